package chunker

import (
	"context"
	"fmt"
	"testing"

	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestRoundTrips holds every kind of call to the number of requests that it
// should take.
func TestRoundTrips(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	g := workload.NewGateway(1000, 1)
	first, second := string(g.Publish(0)), string(g.Publish(0.01))
	other, _ := e.another(Config{})
	requests := func(what string, want int, call func(kv clientv3.KV, ctx context.Context) error) int {
		t.Helper()
		e.sent.Take()
		require.NoError(t, call(e.kv, e.ctx))
		counts := e.sent.Take()
		require.Equal(t, want, counts.Requests, what)
		return counts.ResponseBytes
	}
	get := func(kv clientv3.KV, ctx context.Context) error { _, err := kv.Get(ctx, "k"); return err }
	put := func(key, value string) func(clientv3.KV, context.Context) error {
		return func(kv clientv3.KV, ctx context.Context) error { _, err := kv.Put(ctx, key, value); return err }
	}

	requests("small put", 1, put("small", "v"))
	requests("small get", 1, func(kv clientv3.KV, ctx context.Context) error { _, err := kv.Get(ctx, "small"); return err })
	requests("delete", 1, func(kv clientv3.KV, ctx context.Context) error { _, err := kv.Delete(ctx, "small"); return err })
	requests("small value compared", 1, func(kv clientv3.KV, ctx context.Context) error {
		_, err := kv.Txn(ctx).If(clientv3.Compare(clientv3.Value("small"), "=", "v")).Then(clientv3.OpPut("small", "w")).Else(clientv3.OpGet("small")).Commit()
		return err
	})

	_, err := other.Put(e.ctx, "k", first)
	require.NoError(t, err)
	requests("first read", 2, get)
	all := requests("known key", 1, get)
	require.Less(t, all, 800_000)
	require.Less(t, requests("unchanged", 1, get), 200)
	_, err = other.Put(e.ctx, "k", second)
	require.NoError(t, err)
	require.Less(t, requests("one per cent changed", 1, get), 100_000)
	require.Less(t, requests("unchanged again", 1, get), 200)
	e.holds("k", second)

	requests("inline, on what is known", 1, put("k", string(g.Publish(0.01))))
	requests("small over chunked", 1, put("k", "v"))
	requests("prevKV of anything", 1, func(kv clientv3.KV, ctx context.Context) error {
		_, err := kv.Put(ctx, "k", "w", clientv3.WithPrevKV())
		return err
	})
	requests("inline, on what is not known", 2, put("k", text(80<<10, "x")))
	requests("staged, on what is not known", 4, put("l", text(40<<10, "x")+incompressible(90<<10, "y"))) // base, anchor, chunks, commit
}

// TestAValueThatIsKeptIsNotShared changes what it was given.
func TestAValueThatIsKeptIsNotShared(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	value := text(200<<10, "v")
	e.put("k", value)
	for range 4 {
		resp, err := e.kv.Get(e.ctx, "k")
		require.NoError(t, err)
		require.True(t, value == string(resp.Kvs[0].Value))
		require.Equal(t, "k", string(resp.Kvs[0].Key))
		require.EqualValues(t, 1, resp.Kvs[0].Version)
		require.EqualValues(t, 1, resp.Count)
		clear(resp.Kvs[0].Value)
		clear(resp.Kvs[0].Key)
	}
	// A value that is too long to be kept.
	small, sent := e.another(Config{CacheBytes: 100 << 10})
	for range 4 {
		resp, err := small.Get(e.ctx, "k")
		require.NoError(t, err)
		require.True(t, value == string(resp.Kvs[0].Value))
		require.Greater(t, sent.Take().ResponseBytes, 30<<10)
	}
}

// TestATransactionReadsWhatItReturns puts one of many large values beside a range
// of all, of which one is asked for.
func TestATransactionReadsWhatItReturns(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	const keys, bytes = 20, 200 << 10
	for i := range keys {
		e.put(fmt.Sprintf("p/%02d", i), incompressible(bytes, fmt.Sprint(i)))
	}
	e.sent.Take()
	resp, err := e.kv.Txn(e.ctx).Then(
		clientv3.OpGet("p/", clientv3.WithPrefix(), clientv3.WithLimit(1)),
		clientv3.OpPut("p/00", "small"),
		clientv3.OpGet("p/", clientv3.WithPrefix(), clientv3.WithLimit(1)),
		clientv3.OpDelete("p/10", clientv3.WithRange("p/12")),
	).Commit()
	require.NoError(t, err)
	require.True(t, incompressible(bytes, "0") == string(resp.Responses[0].GetResponseRange().Kvs[0].Value))
	require.Equal(t, "small", string(resp.Responses[2].GetResponseRange().Kvs[0].Value))
	require.Less(t, e.sent.Take().ResponseBytes, 8*bytes, "what is put and deleted, for each range, and no more")
	require.Empty(t, e.orphans())
}

// TestManyRangesBesideManyPuts has each put delete chunks that each range reads.
func TestManyRangesBesideManyPuts(t *testing.T) {
	e := newEnv(t, everything, nil)
	var ops []clientv3.Op
	for i := range 60 {
		key := fmt.Sprintf("p/%02d", i)
		e.put(key, text(2000, key))
		ops = append(ops, clientv3.OpGet("p/", clientv3.WithPrefix(), clientv3.WithLimit(2)), clientv3.OpPut(key, ""))
	}
	e.sent.Take()
	resp, err := e.kv.Txn(e.ctx).Then(ops...).Commit()
	require.NoError(t, err)
	require.Equal(t, text(2000, "p/00"), string(resp.Responses[0].GetResponseRange().Kvs[0].Value))
	require.Less(t, e.sent.Take().ProposedBytes(), 40<<10)
	require.Empty(t, e.orphans())
}
