package coalesce

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

// revision returns the cluster's.
func (e *env) revision() int64 {
	e.Helper()
	resp, err := e.cli.Get(e.ctx, "any", clientv3.WithCountOnly())
	require.NoError(e, err)
	return resp.Header.Revision
}

// together makes all calls at the same time, and waits for them.
func together(n int, call func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { call(i) })
	}
	all.Wait()
}

// TestABatchIsOneRevision puts 600 keys, more than the operations that a transaction may
// have, at once.
func TestABatchIsOneRevision(t *testing.T) {
	for name, r := range map[string]Rule{
		"group":   {Mode: GroupCommit, Linger: time.Hour},
		"retried": {Mode: GroupCommit, Linger: time.Hour, Retry: true},
		"max":     {Mode: Max, Linger: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := rule(r)
			cfg.MaxOps = 600 // it goes when it is full, however long that takes
			e := newEnv(t, cfg, nil)
			together(600, func(i int) { e.put(fmt.Sprintf("warm/%03d", i), "0") })
			before := e.revision()
			resps := make([]*clientv3.PutResponse, 600)
			together(len(resps), func(i int) { resps[i] = e.put(fmt.Sprintf("warm/%03d", i), fmt.Sprint(i+1)) })
			require.Equal(t, before+1, e.revision())
			for i, resp := range resps {
				require.Equal(t, before+1, resp.Header.Revision)
				require.NotZero(t, resp.Header.ClusterId)
				require.NotZero(t, resp.Header.MemberId)
				require.NotZero(t, resp.Header.RaftTerm)
				for _, other := range resps[:i] {
					require.NotSame(t, resp.Header, other.Header, "callers may change what they are given")
				}
			}
			kvs, err := e.cli.Get(e.ctx, "warm/", clientv3.WithPrefix())
			require.NoError(t, err)
			require.Len(t, kvs.Kvs, 600)
			for i, kv := range kvs.Kvs {
				require.Equal(t, fmt.Sprint(i+1), string(kv.Value))
				require.EqualValues(t, 2, kv.Version)
			}
		})
	}
}

// TestWhatEtcdRefusesIsItsOwn has a batch hold puts that etcd refuses. They get its
// errors; the others are written.
func TestWhatEtcdRefusesIsItsOwn(t *testing.T) {
	for name, r := range map[string]Rule{
		"group":   {Mode: GroupCommit, Linger: 100 * ms},
		"retried": {Mode: GroupCommit, Linger: 100 * ms, Retry: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, rule(r), nil)
			errs := make([]error, 100)
			together(len(errs), func(i int) {
				var opts []clientv3.OpOption
				switch i {
				case 17:
					opts = append(opts, clientv3.WithLease(4711))
				case 18:
					opts = append(opts, clientv3.WithIgnoreLease())
				case 90:
					_, errs[i] = e.kv.Put(e.ctx, "k90", "", clientv3.WithIgnoreValue())
					return
				}
				_, errs[i] = e.kv.Put(e.ctx, fmt.Sprint("k", i), "v", opts...)
			})
			for i, err := range errs {
				switch i {
				case 17:
					require.ErrorIs(t, err, rpctypes.ErrLeaseNotFound)
				case 18, 90:
					require.ErrorIs(t, err, rpctypes.ErrKeyNotFound)
				default:
					require.NoError(t, err)
					e.holds(fmt.Sprint("k", i), "v")
				}
			}
			require.NotZero(t, e.kv.Stats().Splits)
			require.Less(t, e.kv.Stats().Batches, uint64(50), "it is divided, not taken apart")
		})
	}
}

// TestServersWithOtherLimits has servers allow less than a batch has.
func TestServersWithOtherLimits(t *testing.T) {
	for name, edit := range map[string]func(*embed.Config){
		"4 operations": func(cfg *embed.Config) { cfg.MaxTxnOps = 4 },
		"11":           func(cfg *embed.Config) { cfg.MaxTxnOps = 11 },
		"2 KiB":        func(cfg *embed.Config) { cfg.MaxRequestBytes = 2 << 10 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, r := range []Rule{
				{Mode: GroupCommit, Linger: 50 * ms},
				{Mode: GroupCommit, Linger: 50 * ms, Retry: true},
				{Mode: Max, Linger: 50 * ms, Retry: true},
			} {
				e := newEnv(t, rule(r), edit)
				for round := range 2 {
					together(150, func(i int) { e.put(fmt.Sprintf("key/%03d", i), fmt.Sprintf("%0100d", round)) })
				}
				kvs, err := e.cli.Get(e.ctx, "key/", clientv3.WithPrefix())
				require.NoError(t, err)
				require.Len(t, kvs.Kvs, 150)
				for _, kv := range kvs.Kvs {
					require.EqualValues(t, 2, kv.Version)
				}
			}
		})
	}
}

// TestNoEntryIsTooLarge has batches of all sorts of puts, guards and transactions.
func TestNoEntryIsTooLarge(t *testing.T) {
	for name, r := range map[string]Rule{
		"group": {Mode: GroupCommit, Transactions: true},
		"retry": {Mode: GroupCommit, Transactions: true, Retry: true},
		"skip":  {Mode: GroupCommit, Transactions: true, SkipUnchanged: true},
		"max":   {Mode: Max},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const most = 16 << 10
			e := newEnv(t, Config{Rules: []Rule{r}, MaxEntryBytes: most}, nil)
			e.sent.Take()
			for round := range 3 {
				together(300, func(i int) {
					value := strings.Repeat("7", 1+(i*i*31+round*77)%900)
					if i%10 == 0 && r.Transactions {
						_, err := e.kv.Txn(e.ctx).Then(clientv3.OpPut(fmt.Sprint("a", i), value), clientv3.OpPut(fmt.Sprint("b", i), "same"), clientv3.OpDelete(fmt.Sprint("c", i))).Commit()
						require.NoError(t, err)
						return
					}
					e.put(fmt.Sprintf("key/%d", i), value)
				})
			}
			sent := e.sent.Take()
			require.LessOrEqual(t, sent.Largest(), most)
			require.Greater(t, sent.Largest(), most*8/10, "and they are filled")
			require.Less(t, len(sent.Proposals), 300)
		})
	}
}

// TestTransactionsJoin has transactions share a batch, each with its own answer.
func TestTransactionsJoin(t *testing.T) {
	e := newEnv(t, Config{Rules: []Rule{{Mode: GroupCommit, Transactions: true, Linger: 100 * ms}, {Prefix: "alone/", Mode: GroupCommit}, {Prefix: "in/", Mode: GroupCommit, Transactions: true}}}, nil)
	e.put("old3", "0")
	before := e.revision()
	resps := make([]*clientv3.TxnResponse, 10)
	together(len(resps), func(i int) {
		var err error
		resps[i], err = e.kv.Txn(e.ctx).Then(
			clientv3.OpPut(fmt.Sprint("x", i), "1"), clientv3.OpDelete(fmt.Sprint("old", i)), clientv3.OpPut(fmt.Sprint("y", i), "2", clientv3.WithPrevKV()),
		).Commit()
		require.NoError(t, err)
	})
	require.Equal(t, before+1, e.revision())
	for i, resp := range resps {
		require.True(t, resp.Succeeded)
		require.Equal(t, before+1, resp.Header.Revision)
		require.NotZero(t, resp.Header.ClusterId)
		require.Len(t, resp.Responses, 3)
		require.Equal(t, before+1, resp.Responses[0].GetResponsePut().Header.Revision)
		deleted := int64(0)
		if i == 3 {
			deleted = 1
		}
		require.Equal(t, deleted, resp.Responses[1].GetResponseDeleteRange().Deleted)
	}
	require.EqualValues(t, 10, e.kv.Stats().Txns)

	// What may not join is sent as it is.
	for name, txn := range map[string]clientv3.Txn{
		"comparison":    e.kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Version("x"), "=", 0)).Then(clientv3.OpPut("x", "")),
		"read":          e.kv.Txn(e.ctx).Then(clientv3.OpPut("x", ""), clientv3.OpGet("y")),
		"else":          e.kv.Txn(e.ctx).Then(clientv3.OpPut("x", "")).Else(clientv3.OpPut("y", "")),
		"nested":        e.kv.Txn(e.ctx).Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("x", "")}, nil)),
		"another rule":  e.kv.Txn(e.ctx).Then(clientv3.OpPut("x", ""), clientv3.OpPut("alone/y", "")),
		"nothing":       e.kv.Txn(e.ctx),
		"deletes twice": e.kv.Txn(e.ctx).Then(clientv3.OpDelete("x"), clientv3.OpDelete("x")),
	} {
		joined := e.kv.Stats().Txns
		_, err := txn.Commit()
		require.NoError(t, err, name)
		require.Equal(t, joined, e.kv.Stats().Txns, name)
	}
	for name, ops := range map[string][]clientv3.Op{
		"puts twice":        {clientv3.OpPut("x", ""), clientv3.OpPut("x", "")},
		"put and delete":    {clientv3.OpPut("x", ""), clientv3.OpDelete("x")},
		"put in the range":  {clientv3.OpPut("x1", ""), clientv3.OpDelete("x", clientv3.WithPrefix())},
		"too many for etcd": manyPuts(129),
	} {
		_, plain := e.cli.Txn(e.ctx).Then(ops...).Commit()
		require.Error(t, plain)
		_, err := e.kv.Txn(e.ctx).Then(ops...).Commit()
		require.Equal(t, plain, err, name)
	}
}

func manyPuts(n int) (ops []clientv3.Op) {
	for i := range n {
		ops = append(ops, clientv3.OpPut(fmt.Sprint("many", i), ""))
	}
	return ops
}

// TestAHotKey is put by many callers at once, under a rule that writes each. A batch has
// each key once; what cannot share is not made to wait.
func TestAHotKey(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: GroupCommit, Linger: time.Hour}), nil)
	first := make(chan struct{})
	go func() {
		defer close(first)
		e.put("k", "first")
	}()
	require.Eventually(t, func() bool { return e.kv.stage.queue.units.Load() == 1 }, 10*time.Second, ms)
	together(200, func(i int) { e.put("k", fmt.Sprint(i)) })
	require.NoError(t, e.kv.Flush(e.ctx))
	<-first
	kvs, err := e.cli.Get(e.ctx, "k")
	require.NoError(t, err)
	require.EqualValues(t, 201, kvs.Kvs[0].Version)
}

func TestSkipUnchanged(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: GroupCommit, SkipUnchanged: true, Transactions: true}), nil)
	lease, err := e.cli.Grant(e.ctx, 600)
	require.NoError(t, err)
	status := func(values ...string) *clientv3.TxnResponse {
		t.Helper()
		var ops []clientv3.Op
		for i, v := range values {
			ops = append(ops, clientv3.OpPut(fmt.Sprint("status", i), v, clientv3.WithLease(lease.ID)))
		}
		resp, err := e.kv.Txn(e.ctx).Then(ops...).Commit()
		require.NoError(t, err)
		require.Len(t, resp.Responses, len(values))
		return resp
	}
	versions := func() (all []int64) {
		kvs, err := e.cli.Get(e.ctx, "status", clientv3.WithPrefix())
		require.NoError(t, err)
		for _, kv := range kvs.Kvs {
			all = append(all, kv.Version)
		}
		return all
	}
	status("a", "b", "c")
	require.Equal(t, []int64{1, 1, 1}, versions())
	before := e.revision()
	e.sent.Take()
	resp := status("a", "b", "c")
	require.Equal(t, before, e.revision(), "nothing is written")
	require.Empty(t, e.sent.Take().Proposals, "nor proposed")
	require.Equal(t, before, resp.Header.Revision)
	require.Equal(t, before, resp.Responses[2].GetResponsePut().Header.Revision)

	status("a", "B", "c")
	require.Equal(t, []int64{1, 2, 1}, versions(), "what has changed is written")
	require.EqualValues(t, 5, e.kv.Stats().Skipped)

	// Somebody else writes one, and deletes another.
	_, err = e.cli.Put(e.ctx, "status0", "other")
	require.NoError(t, err)
	_, err = e.cli.Delete(e.ctx, "status2")
	require.NoError(t, err)
	status("a", "B", "c")
	require.Equal(t, []int64{3, 2, 1}, versions())
	e.holds("status0", "a")
	e.holds("status2", "c")
	status("a", "B", "c")
	require.Equal(t, []int64{3, 2, 1}, versions())

	// The lease ends with its keys; what is put on another one is written.
	_, err = e.cli.Revoke(e.ctx, lease.ID)
	require.NoError(t, err)
	lease, err = e.cli.Grant(e.ctx, 600)
	require.NoError(t, err)
	status("a", "B", "c")
	require.Equal(t, []int64{1, 1, 1}, versions())
	another, err := e.cli.Grant(e.ctx, 600)
	require.NoError(t, err)
	lease = another
	status("a", "B", "c")
	require.Equal(t, []int64{2, 2, 2}, versions())

	// Options that ask for more are carried out.
	for i := range 2 {
		put := e.put("status1", "B", clientv3.WithLease(lease.ID), clientv3.WithPrevKV())
		require.EqualValues(t, 2+i, put.PrevKv.Version)
	}
	e.put("status1", "", clientv3.WithIgnoreValue(), clientv3.WithLease(lease.ID))
	require.Equal(t, []int64{2, 5, 2}, versions())

	// Single puts as well.
	e.put("status0", "a", clientv3.WithLease(lease.ID))
	require.Equal(t, []int64{2, 5, 2}, versions())
}

// TestSkippingManyOfATransaction compares more keys than one transaction may.
func TestSkippingManyOfATransaction(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: GroupCommit, SkipUnchanged: true, Transactions: true}), nil)
	for range 2 {
		_, err := e.kv.Txn(e.ctx).Then(manyPuts(128)...).Commit()
		require.NoError(t, err)
	}
	e.holds("many127", "")
}

func TestMax(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: Max}), nil)
	e.put("k", "9")
	e.holds("k", "9")
	before := e.revision()
	require.Equal(t, before, e.put("k", "7").Header.Revision, "a smaller one is not written")
	e.put("k", "9")
	require.Equal(t, before, e.revision())
	e.put("k", "10")
	e.holds("k", "10")

	// Whoever else writes it.
	_, err := e.cli.Put(e.ctx, "k", "100")
	require.NoError(t, err)
	e.put("k", "99")
	e.holds("k", "100")
	_, err = e.cli.Put(e.ctx, "k", "1") // a reset
	require.NoError(t, err)
	e.put("k", "2")
	e.holds("k", "2")
	_, err = e.cli.Delete(e.ctx, "k")
	require.NoError(t, err)
	e.put("k", "1")
	e.holds("k", "1")

	// A lease is the last put's, whatever the number.
	lease, err := e.cli.Grant(e.ctx, 600)
	require.NoError(t, err)
	e.put("k", "0", clientv3.WithLease(lease.ID))
	kvs, err := e.cli.Get(e.ctx, "k")
	require.NoError(t, err)
	require.EqualValues(t, lease.ID, kvs.Kvs[0].Lease)
	require.Equal(t, "1", string(kvs.Kvs[0].Value))

	_, err = e.cli.Put(e.ctx, "k", "many")
	require.NoError(t, err)
	_, err = e.kv.Put(e.ctx, "k", "3")
	var number *NumberError
	require.ErrorAs(t, err, &number)
	require.Equal(t, "many", string(number.Before))
	e.holds("k", "many")
}

// TestMaxOfManyProcesses has processes put numbers in any order. None may go back.
func TestMaxOfManyProcesses(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: Max}), nil)
	kvs := []*KV{e.kv}
	for range 2 {
		kv, _ := e.another(rule(Rule{Mode: Max, Retry: true}), nil)
		kvs = append(kvs, kv)
	}
	together(60, func(i int) {
		for n := range 10 {
			_, err := kvs[i%3].Put(e.ctx, "offset", fmt.Sprint(1+(i*37+n*101)%600))
			require.NoError(t, err)
		}
	})
	last := ""
	watch := e.cli.Watch(e.ctx, "offset", clientv3.WithRev(1))
	for last != "600" {
		for _, ev := range (<-watch).Events {
			c, ok := order(ev.Kv.Value, []byte(last))
			require.True(t, ok && c > 0 || last == "", "%s after %s", ev.Kv.Value, last)
			last = string(ev.Kv.Value)
		}
	}
}

func TestFence(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: GroupCommit, Transactions: true, Linger: 20 * ms}), nil)
	lease, err := e.cli.Grant(e.ctx, 600)
	require.NoError(t, err)
	owner, err := e.cli.Put(e.ctx, "owner", "me", clientv3.WithLease(lease.ID))
	require.NoError(t, err)
	mine := WithFence(e.ctx, clientv3.Compare(clientv3.CreateRevision("owner"), "=", owner.Header.Revision), clientv3.Compare(clientv3.LeaseValue("owner"), "=", lease.ID))
	theirs := WithFence(e.ctx, clientv3.Compare(clientv3.Value("owner"), "=", "you"))

	writes := map[string]func(ctx context.Context, key string) error{
		"put": func(ctx context.Context, key string) error { _, err := e.kv.Put(ctx, key, "v"); return err },
		"put behind": func(ctx context.Context, key string) error {
			told := make(chan error, 1)
			e.kv.PutAsync(ctx, key, "v", func(_ *clientv3.PutResponse, err error) { told <- err })
			return <-told
		},
		"transaction that joins": func(ctx context.Context, key string) error {
			_, err := e.kv.Txn(ctx).Then(clientv3.OpPut(key, "v"), clientv3.OpDelete(key+"x")).Commit()
			return err
		},
		"transaction that does not": func(ctx context.Context, key string) error {
			resp, err := e.kv.Txn(ctx).If(clientv3.Compare(clientv3.Version("nothing"), "=", 0)).Then(clientv3.OpPut(key, "v"), clientv3.OpGet("owner")).Commit()
			if err == nil {
				require.True(t, resp.Succeeded)
				require.Equal(t, "me", string(resp.Responses[1].GetResponseRange().Kvs[0].Value))
				require.NotZero(t, resp.Header.ClusterId)
			}
			return err
		},
	}
	names := []string{}
	for name := range writes {
		names = append(names, name)
	}
	errs := map[string]error{}
	var mu sync.Mutex
	together(2*len(names), func(i int) { // in one batch, those that may and those that may not
		ctx, key := mine, "mine/"
		if i >= len(names) {
			ctx, key = theirs, "theirs/"
		}
		name := names[i%len(names)]
		err := writes[name](ctx, key+name)
		mu.Lock()
		defer mu.Unlock()
		errs[key+name] = err
	})
	for _, name := range names {
		require.NoError(t, errs["mine/"+name], name)
		e.holds("mine/"+name, "v")
		var fenced *FencedError
		require.ErrorAs(t, errs["theirs/"+name], &fenced, name)
		require.ErrorIs(t, errs["theirs/"+name], ErrFenced)
		require.Equal(t, `value("owner") = "you"`, fenced.Conditions)
		kvs, err := e.cli.Get(e.ctx, "theirs/"+name)
		require.NoError(t, err)
		require.Empty(t, kvs.Kvs, name)
	}

	// The ownership ends with the lease.
	_, err = e.cli.Revoke(e.ctx, lease.ID)
	require.NoError(t, err)
	_, err = e.kv.Put(mine, "mine/put", "late")
	require.ErrorIs(t, err, ErrFenced)
	_, err = e.kv.Delete(mine, "mine/put")
	require.ErrorIs(t, err, ErrFenced)
	e.holds("mine/put", "v")
	_, err = e.kv.Get(mine, "mine/put")
	require.NoError(t, err, "reads are everybody's")
	resp, err := e.kv.Txn(mine).Then(clientv3.OpGet("mine/put")).Commit()
	require.NoError(t, err)
	require.True(t, resp.Succeeded)
	_, err = e.kv.Put(WithFence(theirs, clientv3.Compare(clientv3.Version("owner"), "=", 0)), "k", "")
	require.ErrorIs(t, err, ErrFenced, "outer conditions stay")
}

// TestAFenceWithoutConditions holds up everything: a list that has come out empty is a
// mistake.
func TestAFenceWithoutConditions(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: GroupCommit, Transactions: true}), nil)
	for says, ctx := range map[string]context.Context{
		"without conditions": WithFence(e.ctx),
		"has no key":         WithFence(e.ctx, clientv3.Compare(clientv3.Version(""), "=", 0)),
	} {
		told := make(chan error, 1)
		e.kv.PutAsync(ctx, "k", "v", func(_ *clientv3.PutResponse, err error) { told <- err })
		_, put := e.kv.Put(WithFence(ctx, clientv3.Compare(clientv3.Version("k"), "=", 0)), "k", "v")
		_, deleted := e.kv.Delete(ctx, "k")
		_, txn := e.kv.Txn(ctx).Then(clientv3.OpPut("k", "v")).Commit()
		for _, err := range []error{<-told, put, deleted, txn} {
			require.ErrorIs(t, err, ErrFenced)
			require.ErrorContains(t, err, says)
		}
		resp, err := e.kv.Get(ctx, "k")
		require.NoError(t, err)
		require.Empty(t, resp.Kvs)
	}
}

// TestAFenceSeesWhatWaits: a condition is about what was written before.
func TestAFenceSeesWhatWaits(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: GroupCommit, FlushEvery: time.Hour, Linger: time.Hour}), nil)
	_, err := e.cli.Put(e.ctx, "owner", "me")
	require.NoError(t, err)
	mine := WithFence(e.ctx, clientv3.Compare(clientv3.Value("owner"), "=", "me"))
	e.kv.PutAsync(e.ctx, "owner", "you", nil)
	_, err = e.kv.Delete(mine, "k")
	require.ErrorIs(t, err, ErrFenced)
}

// TestPermissionsOfASequence has a user who may write the keys, but not the sequence.
func TestPermissionsOfASequence(t *testing.T) {
	cluster, root := etcdtest.StartAuth(t)
	cluster.AddUser(t, root, "app", etcdtest.Permission{Key: "app/", RangeEnd: "app0", Type: clientv3.PermissionType(clientv3.PermReadWrite)})
	cli := cluster.ClientAs(t, "app")
	kv, err := NewKV(cli.KV, Config{Rules: []Rule{{Mode: GroupCommit}}, Lease: cli.Lease})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kv.Close()) })
	_, err = kv.Put(t.Context(), "app/k", "v")
	require.NoError(t, err, "what needs no sequence goes on")
	_, err = kv.Put(t.Context(), "other", "v")
	require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)

	told := make(chan error, 1)
	async := func(key string) error {
		kv.PutAsync(t.Context(), key, "v", func(_ *clientv3.PutResponse, err error) { told <- err })
		return <-told
	}
	err = async("app/k")
	var sequence *SequenceError
	require.ErrorAs(t, err, &sequence)
	require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
	require.ErrorContains(t, err, "grant readwrite")
	_, err = root.RoleGrantPermission(t.Context(), "app", sequence.Prefix, clientv3.GetPrefixRangeEnd(sequence.Prefix), clientv3.PermissionType(clientv3.PermReadWrite))
	require.NoError(t, err)
	require.NoError(t, async("app/k"))
	require.ErrorIs(t, async("other"), rpctypes.ErrPermissionDenied)
	require.NoError(t, async("app/k"), "the others go on")
}

// TestASequenceThatIsGone has somebody delete the key, and the lease end.
func TestASequenceThatIsGone(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: GroupCommit, Retry: true}), nil)
	e.put("k", "1")
	e.cluster.Wipe(t)
	e.put("k", "2")
	e.holds("k", "2")
	_, err := e.cli.Revoke(e.ctx, e.kv.stage.session.Held())
	require.NoError(t, err)
	e.put("k", "3")
	e.holds("k", "3")
	require.NoError(t, e.kv.Close())
	leases, err := e.cli.Leases(e.ctx)
	require.NoError(t, err)
	require.Empty(t, leases.Leases, "and closes what it has")
}

// TestErrorsWithoutAnAnswerReachAll has the connection fail after a batch was applied.
func TestErrorsWithoutAnAnswerReachAll(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	f := &failing{}
	kv, _ := e.another(rule(Rule{Mode: GroupCommit, Linger: 50 * ms}), f.over)
	f.set(rpctypes.ErrTimeout)
	errs := make([]error, 20)
	together(len(errs), func(i int) { _, errs[i] = kv.Put(e.ctx, fmt.Sprint("k", i), "v") })
	for i, err := range errs {
		require.ErrorIs(t, err, rpctypes.ErrTimeout)
		e.holds(fmt.Sprint("k", i), "v")
	}
	require.EqualValues(t, 1, kv.Stats().Batches, "and nothing is sent again")

	// Under Retry it is found out that it was.
	kv, _ = e.another(rule(Rule{Mode: GroupCommit, Linger: 50 * ms, Retry: true}), f.over)
	f.set(nil)
	_, err := kv.Put(e.ctx, "warm", "")
	require.NoError(t, err)
	f.once(rpctypes.ErrTimeout)
	before := e.revision()
	resps := make([]*clientv3.PutResponse, 20)
	together(len(errs), func(i int) { resps[i], errs[i] = kv.Put(e.ctx, fmt.Sprint("k", i), "w") })
	for i, err := range errs {
		require.NoError(t, err)
		require.Equal(t, before+1, resps[i].Header.Revision)
		e.holds(fmt.Sprint("k", i), "w")
	}
	require.Equal(t, before+1, e.revision(), "and it is applied once")
}

// failing is a stage that applies transactions and answers with an error.
type failing struct {
	pb.KVClient
	mu     sync.Mutex
	err    error
	single bool
}

func (f *failing) over(inner pb.KVClient) pb.KVClient { f.KVClient = inner; return f }

func (f *failing) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.single = err, false
}

func (f *failing) once(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.single = err, true
}

func (f *failing) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	resp, err := f.KVClient.Txn(ctx, r, opts...)
	f.mu.Lock()
	defer f.mu.Unlock()
	if fails := f.err; fails != nil && wire.Writes(r) {
		if f.single {
			f.err = nil
		}
		return nil, fails
	}
	return resp, err
}
