package audit

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/servers"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// fill puts keys of many lengths and shapes, with gaps between them, and returns how many.
func fill(t *testing.T, cli *clientv3.Client) (keys, values uint64) {
	put := func(key string, n int) {
		_, err := cli.Put(t.Context(), key, strings.Repeat("v", n))
		require.NoError(t, err)
		keys++
		values += uint64(n)
	}
	for i := range 700 {
		put(fmt.Sprintf("/a/object-%d", i*i), 100)
	}
	for i := range 40 {
		put(fmt.Sprintf("/b/%c", 'A'+i), 10)
		put(fmt.Sprintf("/large/%02d", i), 200_000)
	}
	put("\x01", 1)
	put("\x01\x00", 1)
	put("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 3)
	put("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 3)
	put(strings.Repeat("z", 300), 0)
	return keys, values
}

// counting counts requests, and does something before each.
type counting struct {
	clientv3.KV
	pages         bool // it has no streams, as before etcd 3.7
	gets, streams int
	before        func(gets int)
	stream        func(streams int)
}

func (c *counting) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if c.gets++; c.before != nil {
		c.before(c.gets)
	}
	return c.KV.Get(ctx, key, opts...)
}

func (c *counting) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	if c.gets++; c.before != nil {
		c.before(c.gets)
	}
	return c.KV.Do(ctx, op)
}

func (c *counting) GetStream(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	if c.pages {
		return nil, status.Error(codes.Unimplemented, "no streams")
	}
	if c.streams++; c.stream != nil {
		c.stream(c.streams)
	}
	return c.KV.GetStream(ctx, key, opts...)
}

// TestCompacted asks every version of etcd what its last compaction has left.
func TestCompacted(t *testing.T) {
	for _, version := range servers.Versions {
		t.Run(version, func(t *testing.T) {
			cli := servers.Start(t, version, servers.Config{}).Client(t)
			none, err := compacted(t.Context(), cli.KV, cli.Watcher)
			require.NoError(t, err)
			require.Zero(t, none)
			for range 3 {
				put, err := cli.Put(t.Context(), "k", "v")
				require.NoError(t, err)
				before, err := compacted(t.Context(), cli.KV, cli.Watcher)
				require.NoError(t, err)
				require.Less(t, before, put.Header.Revision)
				_, err = cli.Compact(t.Context(), put.Header.Revision)
				require.NoError(t, err)
				after, err := compacted(t.Context(), cli.KV, cli.Watcher)
				require.NoError(t, err)
				require.Equal(t, put.Header.Revision, after)
			}
		})
	}
}

// TestLive reads every version of etcd, the old ones in pages, and then the same from a
// server's own file.
func TestLive(t *testing.T) {
	for _, version := range servers.Versions {
		t.Run(version, func(t *testing.T) {
			s := servers.Start(t, version, servers.Config{})
			cli := s.Client(t)
			keys, values := fill(t, cli)
			var r *Report
			for _, pages := range []bool{false, true} {
				kv := &counting{KV: cli.KV, pages: pages}
				l := Live{KV: kv, Config: Config{Space: testSpace(t)}}
				var err error
				r, err = l.Audit(t.Context())
				require.NoError(t, err)
				require.False(t, r.Partial)
				require.Equal(t, keys, r.Totals.Keys)
				require.Equal(t, values, r.Totals.ValueBytes)
				require.Equal(t, uint64(200_000), r.Values.Max)
				require.Equal(t, Key("/large/"), r.Prefixes[0].Prefix)
				if pages || version != "3.7" {
					require.Less(t, kv.gets, 90)
				} else {
					require.Equal(t, 1, kv.gets)
				}
			}
			path := t.TempDir() + "/db"
			snapshot, err := cli.Snapshot(t.Context())
			require.NoError(t, err)
			f, err := os.Create(path)
			require.NoError(t, err)
			_, err = f.ReadFrom(snapshot)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			status, err := cli.Status(t.Context(), s.Endpoint)
			require.NoError(t, err)
			offline, err := open(t, path).Audit(t.Context(), Config{Space: testSpace(t)}, nil)
			require.NoError(t, err)
			require.Equal(t, r.Totals, offline.Totals)
			require.Equal(t, r.Values, offline.Values)
			require.Equal(t, r.Source.Revision, offline.Source.Revision)
			require.Len(t, offline.Members, 1)
			require.Equal(t, "m0", offline.Members[0].Name)
			require.True(t, strings.HasPrefix(offline.Source.Version, version), offline.Source.Version)
			// The member still counts what its last transactions have freed.
			require.InEpsilon(t, float64(status.DbSizeInUse), float64(offline.Backend.InUse), .1)
		})
	}
}

// TestLiveGoesOnAfterACompaction at a later revision, behind what it has read.
func TestLiveGoesOnAfterACompaction(t *testing.T) {
	cli := etcdtest.Start(t, 1, nil).Client(t)
	for i := range 300 {
		_, err := cli.Put(t.Context(), fmt.Sprintf("/k/%03d", i), "v")
		require.NoError(t, err)
	}
	kv := &counting{KV: cli.KV, pages: true}
	kv.before = func(gets int) {
		if gets != 3 {
			return
		}
		put, err := cli.Put(t.Context(), "/k/299", "new value")
		require.NoError(t, err)
		_, err = cli.Compact(t.Context(), put.Header.Revision)
		require.NoError(t, err)
	}
	r, err := (&Live{KV: kv, Config: Config{Space: testSpace(t)}}).Audit(t.Context())
	require.NoError(t, err)
	require.False(t, r.Partial)
	require.Equal(t, uint64(300), r.Totals.Keys)
	require.Equal(t, uint64(299+9), r.Totals.ValueBytes)
	require.Equal(t, r.Source.Revision+1, r.Source.RevisionAtEnd)
	require.Contains(t, r.Notes[0], fmt.Sprintf("revision %d was compacted after", r.Source.Revision))
}

// TestAStreamOfACompactedRevision begins again at a later one.
func TestAStreamOfACompactedRevision(t *testing.T) {
	cli := etcdtest.Start(t, 1, nil).Client(t)
	for i := range 30 {
		_, err := cli.Put(t.Context(), fmt.Sprintf("/k/%03d", i), "v")
		require.NoError(t, err)
	}
	kv := &counting{KV: cli.KV}
	kv.stream = func(streams int) {
		if streams == 1 {
			put, err := cli.Put(t.Context(), "/k/000", "new value")
			require.NoError(t, err)
			_, err = cli.Compact(t.Context(), put.Header.Revision)
			require.NoError(t, err)
		}
	}
	r, err := (&Live{KV: kv, Config: Config{Space: testSpace(t)}}).Audit(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, kv.streams)
	require.False(t, r.Partial)
	require.Equal(t, uint64(30), r.Totals.Keys)
	require.Equal(t, uint64(29+9), r.Totals.ValueBytes)
	require.Contains(t, r.Notes[0], "was compacted after 0 keys")
}

// TestLiveLosesTheCluster: what was read is there, marked, beside the error.
func TestLiveLosesTheCluster(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	cli := cluster.Client(t)
	for i := range 300 {
		_, err := cli.Put(t.Context(), fmt.Sprintf("/k/%03d", i), "v")
		require.NoError(t, err)
	}
	kv := &counting{KV: cli.KV, pages: true}
	kv.before = func(gets int) {
		if gets == 3 {
			cli.Close()
		}
	}
	r, err := (&Live{KV: kv, Config: Config{Space: testSpace(t)}}).Audit(t.Context())
	require.Error(t, err)
	require.True(t, r.Partial)
	require.GreaterOrEqual(t, r.Totals.Keys, uint64(16))
	require.Less(t, r.Totals.Keys, uint64(300))
	require.Contains(t, r.Notes[0], fmt.Sprintf(`%d of 300 keys were read, those before "/k/`, r.Totals.Keys))
}

func TestLiveInterrupted(t *testing.T) {
	cli := etcdtest.Start(t, 1, nil).Client(t)
	for i := range 300 {
		_, err := cli.Put(t.Context(), fmt.Sprintf("/k/%03d", i), "v")
		require.NoError(t, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := &Live{KV: &counting{KV: cli.KV, pages: true}, Config: Config{Space: testSpace(t)}, Progress: func(done, all uint64, _, _ int) {
		require.Equal(t, uint64(300), all)
		cancel()
	}}
	r, err := l.Audit(ctx)
	require.NoError(t, err)
	require.True(t, r.Partial)
	require.Equal(t, uint64(16), r.Totals.Keys)
	require.Contains(t, r.Notes[0], `interrupted: 16 of 300 keys were read, those before "/k/015`)
}

// TestLiveKeepsToItsRate: what it may not read yet it does not read in time.
func TestLiveKeepsToItsRate(t *testing.T) {
	cli := etcdtest.Start(t, 1, nil).Client(t)
	for i := range 4 {
		_, err := cli.Put(t.Context(), fmt.Sprint("k", i), strings.Repeat("v", 100_000))
		require.NoError(t, err)
	}
	r, err := (&Live{KV: cli.KV, Config: Config{Space: testSpace(t)}, BytesPerSecond: 1_000_000}).Audit(t.Context())
	require.NoError(t, err)
	require.Equal(t, uint64(4), r.Totals.Keys)
	require.Greater(t, r.Source.Seconds, .29) // 400 kB, of which the burst of 100 kB goes at once
}

// silent is a cluster whose stream says nothing.
type silent struct{ clientv3.KV }

func (silent) Get(context.Context, string, ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{}, Count: 1}, nil
}

func (silent) GetStream(ctx context.Context, _ string, _ ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	stream := make(chan clientv3.RangeStreamResponse)
	context.AfterFunc(ctx, func() { close(stream) })
	return stream, nil
}

// TestAStreamThatSaysNothing is given up, and what is known is in the report.
func TestAStreamThatSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		l := Live{KV: silent{}, Config: Config{Space: testSpace(t)}, Stall: 30 * time.Second}
		r, err := l.Audit(t.Context())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 30*time.Second, time.Since(begin))
		require.True(t, r.Partial)
		require.Contains(t, r.Notes[0], "the stream has said nothing for 30s")
	})
}
