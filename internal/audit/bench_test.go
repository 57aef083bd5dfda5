package audit

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// ordinary is about 195,000 keys of 1 KiB, 48 of 1 MiB, and 305,000 revisions: 450 MB.
func ordinary(b testing.TB) string {
	g := generate(b)
	small, large := make([]byte, 1<<10), make([]byte, 1<<20)
	for i := range 195_000 {
		g.put(keyName(i), small, 0)
	}
	for i := range 110_000 {
		g.put(keyName(i*7%195_000), small, 0)
	}
	for i := range 48 {
		g.put(keyName(i*4001), large, 0)
	}
	return g.close()
}

// BenchmarkDB is an audit of a file, which is in the page cache, beside etcdutl's check of a
// snapshot, of the same file in turns.
func BenchmarkDB(b *testing.B) {
	path := ordinary(b)
	theirs := snapshot.NewV3(zap.NewNop())
	var ours, status time.Duration
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
		at := time.Now()
		run()
		ours += time.Since(at)
		at = time.Now()
		_, err := theirs.Status(path)
		require.NoError(b, err)
		status += time.Since(at)
	}
	b.ReportMetric(float64(records)*float64(b.N)/ours.Seconds(), "revisions/s")
	b.ReportMetric(float64(records)*float64(b.N)/status.Seconds(), "etcdutl-revisions/s")
	b.ReportMetric(status.Seconds()/ours.Seconds(), "times-etcdutl")
}
