//go:build unix

package compat

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
)

// large returns a value that takes several proposals, and is told from others by its name.
func large(name string) string { return workload.Text(300<<10, name) }

// same compares values without printing them.
func same(t *testing.T, want string, got []byte) {
	t.Helper()
	require.True(t, want == string(got), "want %d bytes, got %d", len(want), len(got))
}

// roles has a user who may use a prefix, and no key beside it.
func roles(t *testing.T, c *cluster, w way) {
	ctx := t.Context()
	cli := w.wrap(t, c, c.Client(t))
	watch := cli.Watch(ctx, "app/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	lease, err := cli.Grant(ctx, 600)
	require.NoError(t, err)
	for i, value := range []string{large("1"), large("2"), "small", large("3")} {
		_, err := cli.Put(ctx, "app/k", value, clientv3.WithLease(lease.ID))
		require.NoError(t, err)
		resp, err := cli.Get(ctx, "app/", clientv3.WithPrefix())
		require.NoError(t, err)
		same(t, value, resp.Kvs[0].Value)
		told := <-watch
		require.NoError(t, told.Err())
		same(t, value, told.Events[0].Kv.Value)
		require.Equal(t, i > 0, told.Events[0].PrevKv != nil)
	}
	stream, err := cli.GetStream(ctx, "app/", clientv3.WithPrefix())
	require.NoError(t, err)
	all, err := clientv3.GetStreamToGetResponse(stream)
	require.NoError(t, err)
	same(t, large("3"), all.Kvs[0].Value)
	_, err = cli.Revoke(ctx, lease.ID)
	require.NoError(t, err)
	deleted := <-watch
	require.Equal(t, clientv3.EventTypeDelete, deleted.Events[0].Type)
	for _, value := range []string{"small", large("1")} {
		_, err = cli.Put(ctx, "other", value)
		require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
	}
	_, err = cli.Get(ctx, "other")
	require.Equal(t, rpctypes.ErrPermissionDenied, err)
	_, err = cli.Get(ctx, "\x00", clientv3.WithFromKey())
	require.Equal(t, rpctypes.ErrPermissionDenied, err)
}

// concurrently uses etcd's recipes, with values that are chunked where they have some.
func concurrently(t *testing.T, c *cluster, w way) {
	const callers, rounds = 3, 4
	ctx := t.Context()
	var running sync.WaitGroup
	held, counted := 0, callers*rounds
	for i := range callers {
		cli := w.wrap(t, c, c.Client(t))
		running.Go(func() {
			session, err := concurrency.NewSession(cli, concurrency.WithTTL(60))
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close()
			mutex := concurrency.NewMutex(session, "mutex/")
			for round := range rounds {
				if err := mutex.Lock(ctx); err != nil {
					t.Error(err)
					return
				}
				held++ // which the race detector looks at
				if err := mutex.Unlock(ctx); err != nil {
					t.Error(err)
				}
				_, err := concurrency.NewSTM(cli, func(stm concurrency.STM) error {
					n, _ := strconv.Atoi(stm.Get("n"))
					stm.Put("n", strconv.Itoa(n+1))
					if last := stm.Get("large"); last != "" && last != large(strconv.Itoa(n)) {
						return fmt.Errorf("the large value is not that of %d", n)
					}
					stm.Put("large", large(strconv.Itoa(n+1)))
					return nil
				}, concurrency.WithIsolation([]concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable}[round%2]))
				if err != nil {
					t.Error(err)
				}
			}
			election := concurrency.NewElection(session, "election/")
			program := large(fmt.Sprint("of ", i))
			if err := election.Campaign(ctx, program); err != nil {
				t.Error(err)
				return
			}
			leader, err := election.Leader(ctx)
			if err != nil || string(leader.Kvs[0].Value) != program {
				t.Errorf("leader: %v", err)
			}
			if err := election.Proclaim(ctx, program+"."); err != nil {
				t.Error(err)
			}
			observing, cancel := context.WithCancel(ctx)
			if seen := <-election.Observe(observing); string(seen.Kvs[0].Value) != program+"." {
				t.Error("the election tells another value")
			}
			cancel()
			if err := election.Resign(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	require.Equal(t, counted, held)
	resp, err := w.wrap(t, c, c.Client(t)).Get(ctx, "n")
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(counted), string(resp.Kvs[0].Value))
}

// leased has two caches of etcd's leasing over wrapped clients: what one has written the other
// reads.
func leased(t *testing.T, c *cluster, w way) {
	ctx := t.Context()
	var kvs []clientv3.KV
	for range 2 {
		kv, end, err := leasing.NewKV(w.wrap(t, c, c.Client(t)), "leasing/")
		require.NoError(t, err)
		t.Cleanup(end)
		kvs = append(kvs, kv)
	}
	for i, value := range []string{"small", large("1"), large("2"), "small again"} {
		_, err := kvs[i%2].Put(ctx, "k", value)
		require.NoError(t, err)
		for range 2 { // the second one from memory
			for _, kv := range kvs {
				resp, err := kv.Get(ctx, "k")
				require.NoError(t, err)
				same(t, value, resp.Kvs[0].Value)
			}
		}
		txn, err := kvs[0].Txn(ctx).If(clientv3.Compare(clientv3.Value("k"), "=", value)).
			Then(clientv3.OpPut("k", large("of a transaction")), clientv3.OpGet("k")).Commit()
		require.NoError(t, err)
		require.True(t, txn.Succeeded)
		resp, err := kvs[1].Get(ctx, "k")
		require.NoError(t, err)
		same(t, large("of a transaction"), resp.Kvs[0].Value)
	}
	_, err := kvs[0].Delete(ctx, "k")
	require.NoError(t, err)
	resp, err := kvs[1].Get(ctx, "k")
	require.NoError(t, err)
	require.Empty(t, resp.Kvs)
}

// mirrored copies a prefix as etcdctl make-mirror does, and goes on with what changes.
func mirrored(t *testing.T, c *cluster, w way) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cli := w.wrap(t, c, c.Client(t))
	want := make(map[string]string)
	put := func(key, value string) {
		_, err := cli.Put(ctx, "from/"+key, value)
		require.NoError(t, err)
		want[key] = value
	}
	for i := range 20 {
		put(fmt.Sprint("k", i), fmt.Sprint(i))
	}
	put("large", large("1"))
	syncer := mirror.NewSyncer(cli, "from/", 0)
	copied := make(map[string]string)
	base, errs := syncer.SyncBase(ctx)
	for resp := range base {
		for _, kv := range resp.Kvs {
			copied[string(kv.Key[len("from/"):])] = string(kv.Value)
		}
	}
	require.NoError(t, <-errs)
	require.True(t, mapsEqual(want, copied))

	updates := syncer.SyncUpdates(ctx)
	put("large", large("2"))
	put("k1", large("3"))
	_, err := cli.Delete(ctx, "from/k2")
	require.NoError(t, err)
	delete(want, "k2")
	for range 3 {
		resp := <-updates
		require.NoError(t, resp.Err())
		for _, e := range resp.Events {
			key := string(e.Kv.Key[len("from/"):])
			if copied[key] = string(e.Kv.Value); e.Type == clientv3.EventTypeDelete {
				delete(copied, key)
			}
		}
	}
	require.True(t, mapsEqual(want, copied))
}

func mapsEqual(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

// streamed reads many keys, some large, and an old revision of them, with GetStream; through a
// namespace below it as well, where that is above etcd's namespace, which has none.
func streamed(t *testing.T, c *cluster, w way) {
	ctx := t.Context()
	plain := c.Client(t)
	cli := w.wrap(t, c, c.Client(t))
	const keys = 3000
	for i := 0; i < keys; i += 100 {
		var ops []clientv3.Op
		for j := i; j < i+100; j++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("k/%06d", j*j), fmt.Sprint(j)))
		}
		_, err := cli.Txn(ctx).Then(ops...).Commit()
		require.NoError(t, err)
	}
	_, err := cli.Put(ctx, "k/000000", large("1"))
	require.NoError(t, err)
	want, err := cli.Get(ctx, "k/", clientv3.WithPrefix())
	require.NoError(t, err)
	_, err = cli.Delete(ctx, "k/0", clientv3.WithPrefix())
	require.NoError(t, err)
	for _, opts := range [][]clientv3.OpOption{{}, {clientv3.WithLimit(keys / 2)}, {clientv3.WithSerializable()}} {
		stream, err := cli.GetStream(ctx, "k/", append(opts, clientv3.WithPrefix(), clientv3.WithRev(want.Header.Revision))...)
		require.NoError(t, err)
		messages, n := 0, 0
		for resp := range stream {
			require.NoError(t, resp.Err())
			messages++
			for _, kv := range resp.Kvs {
				require.Equal(t, want.Kvs[n].ModRevision, kv.ModRevision)
				same(t, string(want.Kvs[n].Value), kv.Value)
				n++
			}
		}
		if len(opts) > 0 && n != keys {
			require.Equal(t, keys/2, n)
		} else {
			require.Equal(t, keys, n)
		}
		require.Greater(t, messages, 1)
	}
	if w.name == "Install" {
		plain.KV = namespace.NewKV(plain.KV, "k/")
		below := w.wrap(t, c, plain)
		stream, err := below.GetStream(ctx, "0", clientv3.WithFromKey())
		require.NoError(t, err)
		got, err := clientv3.GetStreamToGetResponse(stream)
		require.NoError(t, err)
		require.NotEmpty(t, got.Kvs)
	}
}

// namespaced returns the cases that are left out through a namespace, since etcd's namespace
// does not pass them over a plain client either: ranges without an end have one there, and a
// watch from the empty key begins before it. Above kvwrap it has no streams, and lets an empty
// key in a transaction be one.
func namespaced(w way) []string {
	cases := []string{
		"a delete from a key on may stand before a put", "a key that is deleted and put in one transaction",
		"a watch of a range tells of its keys",
	}
	if w.name == "DialOptions" {
		cases = append(cases, "a stream", "limits and sorts over keys of any bytes", "a transaction that fails leaves nothing", "an empty key is refused")
	}
	return cases
}
