package chunker

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// TestServersWithOtherOpLimits does the same on servers that allow less
// operations than by default, and more. A plain client of the same server says
// what the application may do.
func TestServersWithOtherOpLimits(t *testing.T) {
	for _, limit := range []int{4, 5, 8, 16, 60, 500} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			e := newEnv(t, Config{}, func(cfg *embed.Config) { cfg.MaxTxnOps = uint(limit) })
			value := text(300<<10, "v")
			e.put("k", value)
			e.holds("k", value)
			e.put("k", value[:200<<10])
			require.Empty(t, e.orphans())
			resp := e.put("k", "small", clientv3.WithPrevKV())
			require.True(t, value[:200<<10] == string(resp.PrevKv.Value))
			e.put("k", value)

			// As many operations as the server allows, each of which takes more.
			ops := func(n int, op func(i int) clientv3.Op) (all []clientv3.Op) {
				for i := range n {
					all = append(all, op(i))
				}
				return all
			}
			key := func(i int) string { return fmt.Sprintf("k%03d", i) }
			for name, op := range map[string]func(i int) clientv3.Op{
				"puts":       func(i int) clientv3.Op { return clientv3.OpPut(key(i), text(300, "s")) },
				"large puts": func(i int) clientv3.Op { return clientv3.OpPut(key(i), text(min(70_000, 1_000_000/limit), key(i))) },
				"gets":       func(i int) clientv3.Op { return clientv3.OpGet(key(i)) },
				"deletes":    func(i int) clientv3.Op { return clientv3.OpDelete(key(i), clientv3.WithPrevKV()) },
			} {
				_, err := e.kv.Txn(e.ctx).Then(ops(limit, op)...).Commit()
				require.NoError(t, err, "%d %s", limit, name)
				_, err = e.kv.Txn(e.ctx).Then(ops(limit+1, op)...).Commit()
				require.Equal(t, rpctypes.ErrTooManyOps, err, "%d %s", limit+1, name)
			}
			_, err := e.kv.Delete(e.ctx, "k", clientv3.WithPrefix())
			require.NoError(t, err)
			if limit >= 16 { // else there was no room to delete chunks
				require.Empty(t, e.stored())
			}

			// Reads of many chunked values after their manifests.
			for i := range limit {
				e.put(key(i), text(100<<10, key(i)))
			}
			stranger, _ := e.another(Config{})
			txn, err := stranger.Txn(e.ctx).Then(ops(limit, func(i int) clientv3.Op { return clientv3.OpGet(key(i)) })...).Commit()
			require.NoError(t, err)
			for i, r := range txn.Responses {
				require.True(t, text(100<<10, key(i)) == string(r.GetResponseRange().Kvs[0].Value))
			}
			all, err := stranger.Get(e.ctx, "k", clientv3.WithPrefix())
			require.NoError(t, err)
			require.Len(t, all.Kvs, limit)
		})
	}
}

// TestServersWithOtherRequestLimits writes to servers that refuse entries of the
// default size.
func TestServersWithOtherRequestLimits(t *testing.T) {
	for limit, entry := range map[int]int{18 << 10: 0, 20 << 10: 24 << 10, 40 << 10: 0, 4 << 20: 0} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			e := newEnv(t, Config{MaxEntryBytes: entry}, func(cfg *embed.Config) { cfg.MaxRequestBytes = uint(limit) })
			for _, n := range []int{100, 15 << 10, 30 << 10, 50 << 10, 300 << 10} {
				value := incompressible(n, "v")
				e.put("k", value)
				e.holds("k", value)
				_, err := e.kv.Txn(e.ctx).Then(clientv3.OpPut("a", value), clientv3.OpPut("b", value), clientv3.OpGet("k")).Commit()
				require.NoError(t, err)
				e.holds("b", value)
			}
			require.Empty(t, e.orphans())
			reader, _ := e.another(Config{ReadOnly: true})
			got, err := reader.Get(e.ctx, "k")
			require.NoError(t, err)
			require.True(t, incompressible(300<<10, "v") == string(got.Kvs[0].Value))
			// Without chunks it is the server that says no.
			_, err = reader.Put(e.ctx, "k", incompressible(limit+1000, "w"))
			require.Error(t, err)
			if limit < 2<<20 { // beyond, the client says no
				require.Equal(t, rpctypes.ErrRequestTooLarge, err)
			}
			e.holds("k", incompressible(300<<10, "v"))
		})
	}
}

func TestLimitsAreLearnedOnce(t *testing.T) {
	e := newEnv(t, Config{ChunkBytes: minChunkBytes}, func(cfg *embed.Config) { cfg.MaxTxnOps = 16 })
	e.put("k", text(300<<10, "a"))
	first := e.sent.Take().Requests
	e.put("l", text(300<<10, "b"))
	require.Less(t, e.sent.Take().Requests, first)
	require.EqualValues(t, 16, e.kv.stage.limits.ops.Load())
}

// TestAServerThatAllowsMore is asked before a transaction is called too wide.
func TestAServerThatAllowsMore(t *testing.T) {
	e := newEnv(t, Config{}, func(cfg *embed.Config) { cfg.MaxTxnOps = 1000 })
	e.put("k", text(200<<10, "v"))
	var compares []clientv3.Cmp
	var puts []clientv3.Op
	for i := range 100 {
		compares = append(compares, clientv3.Compare(clientv3.Value("k"), ">", fmt.Sprint(i)[:1]).WithPrefix())
		puts = append(puts, clientv3.OpPut(fmt.Sprintf("p/%02d", i), text(10<<10, fmt.Sprint(i))))
	}
	_, err := e.kv.Txn(e.ctx).If(compares...).Then(clientv3.OpPut("x", "y")).Commit()
	require.NoError(t, err)
	for range 2 {
		_, err = e.kv.Txn(e.ctx).Then(puts...).Commit()
		require.NoError(t, err)
		require.Empty(t, e.orphans())
	}
}

// TestAServerThatAllowsOneOperation answers all but ranges that take two: those around the
// reserved prefix, and those that are sorted by value.
func TestAServerThatAllowsOneOperation(t *testing.T) {
	e := newEnv(t, Config{}, func(cfg *embed.Config) { cfg.MaxTxnOps = 1 })
	e.put("k", "small")
	e.holds("k", "small")
	_, err := e.kv.Get(e.ctx, "k", clientv3.WithPrefix())
	require.NoError(t, err)
	for key, opts := range map[string][]clientv3.OpOption{
		"\x00": {clientv3.WithFromKey()},
		"k":    {clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)},
	} {
		_, err := e.kv.Get(e.ctx, key, opts...)
		require.ErrorIs(t, err, rpctypes.ErrTooManyOps)
	}
}
