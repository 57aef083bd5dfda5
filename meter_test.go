package kvwrap

import (
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestMetersOverAndUnder: a large value is one put as it is asked, and small entries as it is
// proposed; both meters agree with the server.
func TestMetersOverAndUnder(t *testing.T) {
	t.Parallel()
	cli := etcdtest.Start(t, 1, nil).Client(t)
	ctx := t.Context()
	newMeter := func() *shaper.Meter {
		m, err := shaper.NewMeter(shaper.MeterConfig{Rules: []string{"statistics", "\x00kvw/"}})
		require.NoError(t, err)
		return m
	}
	asked, proposed := newMeter(), newMeter()
	chunks, err := chunker.New(proposed.Stage(wire.Client(cli.KV)), chunker.Config{Lease: cli.Lease})
	require.NoError(t, err)
	defer func() { require.NoError(t, chunks.Close()) }()
	kv := clientv3.NewKVFromKVClient(asked.Stage(chunks), nil)
	before, err := cli.Get(ctx, "k")
	require.NoError(t, err)

	const size = 1 << 20
	value := workload.Text(size, "statistics")
	for _, change := range []string{"", "changed", "again"} {
		_, err := kv.Put(ctx, "statistics", change+value[len(change):])
		require.NoError(t, err)
	}
	got, err := kv.Get(ctx, "statistics")
	require.NoError(t, err)

	a, p := asked.Traffic(), proposed.Traffic()
	require.True(t, strings.HasPrefix(string(got.Kvs[0].Value), "again"))
	require.EqualValues(t, 3, a.Total.Records)
	require.EqualValues(t, 3, a.Total.Revisions)
	require.EqualValues(t, 3*size, a.Total.ValueBytes)
	require.EqualValues(t, 1, a.Keys)
	require.EqualValues(t, size+len("statistics"), a.Total.RangeBytes)
	require.Greater(t, a.LargestEntryBytes, size)
	require.Greater(t, a.Total.EntrySizes.Quantile(0.01), int((1-shaper.SizeError)*size))

	require.Equal(t, got.Header.Revision-before.Header.Revision, int64(p.Total.Revisions))
	require.LessOrEqual(t, p.LargestEntryBytes, 64<<10)
	require.Less(t, p.Total.EntryBytes, a.Total.EntryBytes/2)
	require.EqualValues(t, 3, p.ByRule[0].Total.Records, "a manifest for each value")
	require.Equal(t, p.Total.Records-3, p.ByRule[1].Total.Records, "and chunks")
}
