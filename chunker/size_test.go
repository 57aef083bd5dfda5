package chunker

import (
	"fmt"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/internal/record"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// within checks that something was sent and that no proposal was too large.
func (e *env) within(limit int, sent *record.Stage, what string, args ...any) record.Counts {
	e.Helper()
	counts := sent.Take()
	require.NotEmpty(e, counts.Proposals, what, args)
	require.LessOrEqual(e, counts.Largest(), limit, what, args)
	return counts
}

func TestNoProposalIsTooLarge(t *testing.T) {
	for _, limit := range []int{minMaxEntryBytes, defaultMaxEntryBytes, 256 << 10} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			e := newEnv(t, Config{MaxEntryBytes: limit}, nil)
			for _, key := range []string{"k", strings.Repeat("long", 250), strings.Repeat("\x00", 500)} {
				lengths := []int{limit - 200, limit - 1, limit, limit + 1, 64 << 10, 65<<10 + 1, 500_000}
				if key == "k" {
					lengths = append(lengths, 9<<20)
				}
				for _, n := range lengths {
					for _, value := range []string{text(n, "a"), incompressible(n, "b"), text(n, "a")[:n/2] + incompressible(n-n/2, "c"), strings.Repeat("x", n)} {
						e.put(key, value)
						e.holds(key, value)
						e.within(limit, e.sent, "%d bytes", n)
					}
				}
				require.Empty(t, e.orphans())
				_, err := e.kv.Delete(e.ctx, key)
				require.NoError(t, err)
				e.within(limit, e.sent, "delete")
			}
			require.Empty(t, e.stored())
			require.Zero(t, e.kv.Stats().Oversized)
			require.NoError(t, e.kv.Close())
			for _, n := range e.cluster.EntryBytes(t) {
				require.LessOrEqual(t, n, limit, "an entry in the server's log")
			}
		})
	}
}

func TestTransactionsOfManyPuts(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	const limit = defaultMaxEntryBytes
	for name, c := range map[string]struct{ puts, bytes int }{
		"twenty of 60 KiB":   {20, 60 << 10},
		"two of 40 KiB":      {2, 40 << 10},
		"128 of 1 KiB":       {128, 1 << 10},
		"100 of 10 KiB":      {100, 10 << 10},
		"three of 1 MiB":     {3, 1 << 20},
		"30 of 700 KiB":      {30, 700 << 10}, // whose lists are long, too
		"100 of 200 KiB":     {100, 200 << 10},
		"sixty of 1200 B":    {60, 1200},
		"one that just fits": {1, 65000},
	} {
		t.Run(name, func(t *testing.T) {
			e := e.at(t)
			for round := range 3 { // the first on nothing, the others on what is there
				var then []clientv3.Op
				for i := range c.puts {
					then = append(then, clientv3.OpPut(fmt.Sprintf("k%03d", i), text(c.bytes, fmt.Sprint(i, round))))
				}
				e.sent.Take()
				resp, err := e.kv.Txn(e.ctx).Then(then...).Commit()
				require.NoError(t, err)
				e.within(limit, e.sent, "round %d", round)
				for i := range c.puts {
					key := fmt.Sprintf("k%03d", i)
					e.holds(key, text(c.bytes, fmt.Sprint(i, round)))
					got, err := e.kv.Get(e.ctx, key, clientv3.WithKeysOnly())
					require.NoError(t, err)
					require.Equal(t, resp.Header.Revision, got.Kvs[0].ModRevision, "all puts of a transaction have one revision")
				}
			}
			_, err := e.kv.Delete(e.ctx, "k", clientv3.WithPrefix())
			require.NoError(t, err)
			require.Empty(t, e.stored())
		})
	}
	require.Zero(t, e.kv.Stats().Oversized)
}

// TestWhatCannotFitGoesThrough sees that a transaction that no chunking makes
// small enough is sent as it is, and counted.
func TestWhatCannotFitGoesThrough(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	var then []clientv3.Op
	for i := range 100 {
		then = append(then, clientv3.OpPut(fmt.Sprintf("k%03d", i), text(900, fmt.Sprint(i))))
	}
	_, err := e.kv.Txn(e.ctx).Then(then...).Commit()
	require.NoError(t, err)
	require.Greater(t, e.sent.Take().Largest(), defaultMaxEntryBytes)
	require.EqualValues(t, 1, e.kv.Stats().Oversized)
	e.holds("k099", text(900, "99"))

	// A key that is too long for its chunks to have any room.
	key := strings.Repeat("k", 30<<10)
	value := incompressible(100<<10, "v")
	e.put(key, value)
	require.True(t, value == e.stored()[key])
	require.EqualValues(t, 2, e.kv.Stats().Oversized)

	// As many comparisons as the server allows leave no room for that
	// with an anchor.
	var cs []clientv3.Cmp
	for i := range wideTxn {
		cs = append(cs, clientv3.Compare(clientv3.Version(fmt.Sprint("no", i)), "=", 0))
	}
	resp, err := e.kv.Txn(e.ctx).If(cs...).Then(clientv3.OpPut("wide", value)).Commit()
	require.NoError(t, err)
	require.True(t, resp.Succeeded)
	require.True(t, value == e.stored()["wide"])
	require.EqualValues(t, 3, e.kv.Stats().Oversized)
}

const wideTxn = defaultMaxTxnOps

// TestHugeValues writes the largest value there may be, whose list of chunks is
// many times larger than a proposal, changes a little of it, and deletes it.
func TestHugeValues(t *testing.T) {
	if testing.Short() {
		t.Skip("256 MiB")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // the server is in this process
	e := newEnv(t, Config{MaxValueBytes: maxMaxValueBytes}, func(cfg *embed.Config) {
		cfg.SnapshotCatchUpEntries = 100 // the log would hold it all
	})
	value := []byte(incompressible(maxMaxValueBytes, "huge"))
	put := func() record.Counts {
		e.sent.Take()
		e.put("k", string(value))
		return e.within(defaultMaxEntryBytes, e.sent, "put")
	}
	require.Greater(t, len(put().Proposals), maxMaxValueBytes/defaultMaxEntryBytes)
	e.holds("k", string(value))

	value[100<<20] ^= 1
	require.Less(t, put().ProposedBytes(), 200<<10, "for a byte that changed")

	copy(value, incompressible(maxMaxValueBytes/2, "other"))
	put()
	require.Len(t, e.stored(), len(e.kv.stage.cache.get([]byte("k")).layout.All())+1, "a manifest, its chunks, and no orphan")

	_, err := e.kv.Delete(e.ctx, "k")
	require.NoError(t, err)
	e.within(defaultMaxEntryBytes, e.sent, "delete")
	require.Empty(t, e.stored())
}

// TestBytesPerPublish holds the defaults to what they were chosen for.
func TestBytesPerPublish(t *testing.T) {
	for _, c := range []struct {
		changed float64
		most    int
	}{{0.01, 70_000}, {0.1, 400_000}} {
		t.Run(fmt.Sprint(c.changed), func(t *testing.T) {
			e := newEnv(t, Config{}, nil)
			g := workload.NewGateway(1000, 1)
			e.put("/gateway/status", string(g.Publish(0)))
			e.sent.Take()
			const publishes = 50
			for range publishes {
				e.put("/gateway/status", string(g.Publish(c.changed)))
			}
			counts := e.within(defaultMaxEntryBytes, e.sent, "publishes")
			mean := counts.ProposedBytes() / publishes
			t.Logf("%d bytes in %.1f proposals", mean, float64(len(counts.Proposals))/publishes)
			require.LessOrEqual(t, mean, c.most)
			require.Empty(t, e.orphans())
		})
	}
}
