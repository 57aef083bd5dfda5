package audit

import (
	"context"
	"testing"

	"github.com/kvwrap/kvwrap/internal/audit/audittest"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// ordinary is about 195,000 keys of 1 KiB, 48 of 1 MiB, and 305,000 revisions: 450 MB.
func ordinary(b testing.TB) string {
	g := audittest.New(b)
	small, large := make([]byte, 1<<10), make([]byte, 1<<20)
	for i := range 195_000 {
		g.Put(audittest.KeyName(i), small, 0)
	}
	for i := range 110_000 {
		g.Put(audittest.KeyName(i*7%195_000), small, 0)
	}
	for i := range 48 {
		g.Put(audittest.KeyName(i*4001), large, 0)
	}
	return g.Close()
}

// BenchmarkDB is an audit of a file, which is in the page cache, beside etcdutl's check of a
// snapshot, of the same file in turns.
func BenchmarkDB(b *testing.B) {
	path := ordinary(b)
	theirs := snapshot.NewV3(zap.NewNop())
	var ours, status paired.Durations
	var records uint64
	run := func() {
		d, err := OpenDB(path)
		require.NoError(b, err)
		defer d.Close()
		r, err := d.Audit(b.Context(), Config{Space: testSpace(b)}, nil)
		require.NoError(b, err)
		records = r.Source.Records
	}
	run()
	for b.Loop() {
		ours.Time(run)
		status.Time(func() {
			_, err := theirs.Status(path)
			require.NoError(b, err)
		})
	}
	b.ReportMetric(float64(records)/ours.Median().Seconds(), "revisions/s")
	b.ReportMetric(float64(records)/status.Median().Seconds(), "etcdutl-revisions/s")
	b.ReportMetric(status.Median().Seconds()/ours.Median().Seconds(), "times-etcdutl")
}

// BenchmarkLive is an audit of a cluster beside a GetStream of everything that throws it
// away, in turns.
func BenchmarkLive(b *testing.B) {
	cli := etcdtest.Start(b, 1, nil).Client(b)
	puts := make([]clientv3.Op, 0, 100)
	put := func(key string, value []byte) {
		puts = append(puts, clientv3.OpPut(key, string(value)))
		if len(puts) == cap(puts) || len(value) > 1<<16 {
			_, err := cli.Txn(b.Context()).Then(puts...).Commit()
			require.NoError(b, err)
			puts = puts[:0]
		}
	}
	small, large := make([]byte, 1<<10), make([]byte, 1<<20)
	for i := range 195_000 {
		put(audittest.KeyName(i), small)
	}
	for i := range 48 {
		put(audittest.KeyName(i*4001), large)
	}
	_, err := cli.Txn(b.Context()).Then(puts...).Commit()
	require.NoError(b, err)
	bare := func(ctx context.Context) {
		stream, err := cli.GetStream(ctx, "\x00", clientv3.WithFromKey())
		require.NoError(b, err)
		for resp := range stream {
			require.NoError(b, resp.Err())
		}
	}
	l := Live{KV: cli.KV, Config: Config{Space: testSpace(b)}}
	pages := Live{KV: &counting{KV: cli.KV, pages: true}, Config: l.Config}
	bare(b.Context())
	var ours, paged, theirs paired.Durations
	audit := func(l *Live) {
		r, err := l.Audit(b.Context())
		require.NoError(b, err)
		require.Equal(b, uint64(195_000), r.Totals.Keys)
	}
	for b.Loop() {
		ours.Time(func() { audit(&l) })
		theirs.Time(func() { bare(b.Context()) })
		paged.Time(func() { audit(&pages) })
	}
	b.ReportMetric(195_000/ours.Median().Seconds(), "keys/s")
	b.ReportMetric(ours.Median().Seconds()/theirs.Median().Seconds(), "of-GetStream")
	b.ReportMetric(paged.Median().Seconds()/theirs.Median().Seconds(), "pages-of-GetStream")
}
