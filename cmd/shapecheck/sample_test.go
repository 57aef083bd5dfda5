package main

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestSample writes what is known, as soon as somebody watches.
func TestSample(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	cli, kv := w.plain, w.plain.KV
	write := func() {
		for i := range 20 {
			_, err := kv.Put(t.Context(), fmt.Sprint("a/", i%5), workload.Text(1000, "v"))
			require.NoError(t, err)
		}
		_, err := kv.Txn(t.Context()).Then(clientv3.OpPut("b/1", "1"), clientv3.OpPut("b/2", "2"), clientv3.OpDelete("a/0")).Commit()
		require.NoError(t, err)
		_, err = kv.Delete(t.Context(), "a/1")
		require.NoError(t, err)
		for range 3 { // entries without a revision
			_, err := w.plain.Grant(t.Context(), 60)
			require.NoError(t, err)
		}
	}
	done := make(chan time.Time)
	said := &interrupter{at: "watching for", interrupt: func() { write(); close(done) }}
	s, err := takeSample(t.Context(), cli, "", time.Minute, done, newProgress(said))
	require.NoError(t, err)
	total := s.Traffic.Total
	require.EqualValues(t, 22, total.Revisions)
	require.EqualValues(t, 22, total.Entries)
	require.EqualValues(t, 24, total.Records)
	require.EqualValues(t, 2, total.Tombstones)
	require.EqualValues(t, 20*1000+2, total.ValueBytes)
	require.EqualValues(t, 7, s.Traffic.Keys)
	require.GreaterOrEqual(t, s.Others, uint64(3))
	require.LessOrEqual(t, s.Others, uint64(6), "and what a new server has to say of itself")
	require.NotZero(t, s.Live.DbSize)
	require.EqualValues(t, 23, s.Live.Revision)
	put := shaper.PutProposal(3, 1000, false)
	require.InDelta(t, put, s.Traffic.LargestEntryBytes, 4)

	l, seconds := s.load(), s.Took.Seconds()
	entries, records := 0.0, 0.0
	for _, e := range l.Entries {
		entries += e.PerSecond * seconds
	}
	for _, r := range l.Records {
		records += r.PerSecond * seconds
	}
	require.InDelta(t, 22+float64(s.Others), entries, 0.5)
	require.InDelta(t, 24, records, 0.5)
	_, err = shaper.Project(shaper.Server{Version: s.Version}, l)
	require.NoError(t, err)
}

// TestObserved has a workload that a sample says, but for flags.
func TestObserved(t *testing.T) {
	s := &sample{Took: 10 * time.Second, Traffic: shaper.Traffic{Keys: 20}}
	s.Traffic.Total.Records, s.Traffic.Total.Tombstones = 110, 10
	s.Traffic.Total.KeyBytes, s.Traffic.Total.ValueBytes = 110*30, 100*700
	var w shaper.Workload
	require.NoError(t, observed(&w, s, func(string) bool { return false }))
	require.Equal(t, shaper.Workload{Keys: 20, KeyBytes: 30, ValueBytes: 700, Interval: 2 * time.Second}, w)
	w = shaper.Workload{Keys: 3, Writers: 2, ValueBytes: 5}
	require.NoError(t, observed(&w, s, func(flag string) bool { return flag == "value-bytes" }))
	require.Equal(t, shaper.Workload{Keys: 10, Writers: 2, KeyBytes: 30, ValueBytes: 5, Interval: 2 * time.Second}, w)
	require.ErrorContains(t, observed(&w, &sample{Took: time.Second}, func(string) bool { return false }), "nobody has put a key")
}

func TestSettle(t *testing.T) {
	member := func(index uint64, size int64, failed string) budget.HealthMember {
		return budget.HealthMember{RaftIndex: index, DbSize: size, DbSizeInUse: size / 2, Version: fmt.Sprint("3.7.", size), Quota: 100, QuotaAssumed: size == 7, Error: failed}
	}
	s := &sample{}
	s.Traffic.Total.Entries = 20
	s.settle(budget.Health{Members: []budget.HealthMember{member(100, 1, ""), member(90, 1, "")}},
		budget.Health{Members: []budget.HealthMember{member(150, 5, ""), member(140, 7, ""), member(0, 9, "no answer")}})
	require.EqualValues(t, 30, s.Others)
	require.Equal(t, "3.7.7", s.Version)
	require.Equal(t, shaper.Live{InUse: 3, DbSize: 7}, s.Live)
	require.Zero(t, s.Quota, "the member does not say")

	none := &sample{} // more were seen than proposed in that time
	none.Traffic.Total.Entries = 20
	none.settle(budget.Health{Members: []budget.HealthMember{member(100, 1, "")}}, budget.Health{Members: []budget.HealthMember{member(110, 1, "")}})
	require.Zero(t, none.Others)
}

func TestScaled(t *testing.T) {
	l := shaper.PutLoad(10, 4, 50, 1000)
	twice := scaled(l, 3, 2, 0.5)
	require.Equal(t, 30.0, twice.Entries[0].PerSecond)
	require.InDelta(t, shaper.PutProposal(50, 2000, false), twice.Entries[0].Bytes, 2)
	require.Equal(t, shaper.RecordRate{PerSecond: 30, Keys: 2, KeyBytes: 50, ValueBytes: 2000}, twice.Records[0])
	require.Equal(t, 10.0, l.Entries[0].PerSecond, "the load it was made of is as it was")
	require.Equal(t, l, scaled(l, 1, 1, 1))
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]size.Value{"0": 0, "17": 17, "17B": 17, "64KiB": 64 << 10, "1.5 GB": 1.5e9, "2MB": 2e6, "1GiB": 1 << 30, "-1": -1} {
		got, err := size.Parse(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{"", "MB", "1 megabyte", "NaN", "1e30", "0x10q"} {
		_, err := size.Parse(s)
		require.ErrorContains(t, err, "is no size", s)
	}
}

// TestTuneASample sees values whole that are stored in chunks.
func TestTuneASample(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	var out bytes.Buffer
	errs := &interrupter{at: "watching for", interrupt: func() {
		for i := range 4 {
			w.put(fmt.Sprint("stats/", i%2), workload.Text(200e3, fmt.Sprint(i)))
		}
		w.put("other", "1")
	}}
	code := run(t.Context(), []string{"tune", "--endpoints", w.cluster.Endpoints()[0], "--sample", "1s", "--prefix", "stats/", "--changed", "0.1"}, bytes.NewReader(nil), &out, errs)
	require.Zero(t, code, errs.String())
	require.Contains(t, out.String(), "1 x 2 keys, each written every ")
	require.Contains(t, out.String(), "with values of 200 KB")
	require.Contains(t, out.String(), "kvwrap.Config{\n\tChunk: chunker.Config{MaxEntryBytes: 65536},\n")
}

// TestWhatIfHasTheFlags that were given, also those that are zero: a quota of 0 wins over what
// a sample has found, as one that is given does.
func TestWhatIfHasTheFlags(t *testing.T) {
	in := &projectInput{}
	flags := in.register()
	given := map[string]string{
		"writes": "0", "txn-puts": "0", "keys": "0", "key-bytes": "0", "value-bytes": "0", "leased": "false", "live-bytes": "0",
		"live-keys": "0", "for": "0s", "watchers": "0", "scale-writes": "0", "scale-values": "0", "etcd-version": "3.6",
		"snapshot-count": "0", "snapshot-catchup-entries": "0", "quota-backend-bytes": "0", "auto-compaction-mode": "revision",
		"auto-compaction-retention": "0", "gogc": "0",
	}
	for name, value := range given {
		require.NoError(t, flags.Set(name, value))
	}
	changed, err := in.changed("scale-keys=2", true)
	require.NoError(t, err)
	for name, value := range given {
		flag := changed.flags.Lookup(name)
		require.True(t, flag.Changed, name)
		require.Equal(t, value, flag.Value.String(), name)
	}
	found := &sample{Took: time.Second, Version: "3.7.0", Quota: 8 << 30}
	p, err := changed.project(found, nil)
	require.NoError(t, err)
	require.EqualValues(t, 2<<30, p.Projection.Server.Quota, "etcd's default")
}
