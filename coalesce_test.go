package kvwrap

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// TestDeletesJoin has transactions that delete share a revision, although a delete is
// more than that below the chunker.
func TestDeletesJoin(t *testing.T) {
	for _, prefix := range []string{"", "status/"} {
		s := newSide(t)
		kv := s.over(t, Config{Rules: []Rule{{Prefix: prefix, Coalesce: coalesce.GroupCommit, Transactions: true, Linger: 100 * time.Millisecond}}})
		_, err := kv.Put(t.Context(), "status/large3", statistics())
		require.NoError(t, err)
		chunks := len(stored(t, s.cli))
		before := s.revision(t)
		together(10, func(i int) {
			resp, err := kv.Txn(t.Context()).Then(
				clientv3.OpPut(fmt.Sprint("status/k", i), "v"), clientv3.OpDelete(fmt.Sprint("status/large", i)),
			).Commit()
			require.NoError(t, err)
			deleted := int64(0)
			if i == 3 {
				deleted = 1
			}
			require.Equal(t, deleted, resp.Responses[1].GetResponseDeleteRange().Deleted)
		})
		require.Equal(t, before+1, s.revision(t))
		require.Len(t, stored(t, s.cli), 10)
		require.Greater(t, chunks, 100)
	}
}

func together(n int, call func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { call(i) })
	}
	all.Wait()
}

// TestPutAsyncOfWhatIsChunked is written before it returns, and in order.
func TestPutAsyncOfWhatIsChunked(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{Rules: []Rule{{Coalesce: coalesce.LastWriteWins, FlushEvery: time.Hour}}})
	told := make(chan string, 5)
	put := func(name, value string, opts ...clientv3.OpOption) {
		kv.PutAsync(t.Context(), "k", value, func(resp *clientv3.PutResponse, err error) { told <- fmt.Sprint(name, " ", err) }, opts...)
	}
	ended := func(names ...string) {
		t.Helper()
		for _, name := range names {
			require.Equal(t, name+" <nil>", <-told)
		}
	}
	holds := func(value string) {
		t.Helper()
		resp, err := kv.Get(t.Context(), "k")
		require.NoError(t, err)
		require.True(t, value == string(resp.Kvs[0].Value), "%d bytes, want %d", len(resp.Kvs[0].Value), len(value))
	}
	put("small", "1")
	require.Equal(t, 1, kv.Pending().Puts)
	put("large", statistics())
	require.Zero(t, kv.Pending())
	ended("small", "large") // what came before is written first
	holds(statistics())
	put("small again", "2") // of a key that is known to be chunked
	ended("small again")
	put("behind", "3")
	require.Equal(t, 1, kv.Pending().Puts)
	put("with more to tell", "4", clientv3.WithPrevKV())
	ended("behind", "with more to tell")
	holds("4")
	require.Zero(t, kv.Pending())
	require.Len(t, stored(t, s.cli), 2, "the key and the sequence: no chunk is left")

	put("too large", strings.Repeat("x", 17<<20))
	require.Contains(t, <-told, "value too large")
	reserved := make(chan error, 1)
	kv.PutAsync(t.Context(), "\x00kvw/x", "v", func(_ *clientv3.PutResponse, err error) { reserved <- err })
	require.ErrorIs(t, <-reserved, chunker.ErrReservedKey)
	require.Panics(t, func() { put("", "", clientv3.WithPrefix()) }, "as etcd's client does for what is no option of a put")
}

// TestALargePutUnderAFence is made in several steps, none of them once the fence is lost.
func TestALargePutUnderAFence(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{})
	_, err := s.cli.Put(t.Context(), "owner", "me")
	require.NoError(t, err)
	mine := coalesce.WithFence(t.Context(), clientv3.Compare(clientv3.Value("owner"), "=", "me"))
	theirs := coalesce.WithFence(t.Context(), clientv3.Compare(clientv3.Value("owner"), "=", "you"))
	_, err = kv.Put(mine, "k", statistics())
	require.NoError(t, err)
	before := stored(t, s.cli)
	_, err = kv.Put(theirs, "k", strings.ToUpper(statistics()))
	require.ErrorIs(t, err, coalesce.ErrFenced)
	_, err = kv.Put(theirs, "k", "small")
	require.ErrorIs(t, err, coalesce.ErrFenced)
	_, err = kv.Delete(theirs, "k")
	require.ErrorIs(t, err, coalesce.ErrFenced)
	resp, err := kv.Get(theirs, "k")
	require.NoError(t, err)
	require.True(t, statistics() == string(resp.Kvs[0].Value))
	require.Equal(t, before, stored(t, s.cli))
}

// TestClosingTheClientWritesWhatWaits as an application does that ends.
func TestClosingTheClientWritesWhatWaits(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	other := cluster.Client(t)
	cli, err := clientv3.New(clientv3.Config{Endpoints: cluster.Endpoints(), Logger: zap.NewNop()})
	require.NoError(t, err)
	kv, err := Install(cli, Config{Rules: []Rule{{Coalesce: coalesce.LastWriteWins, FlushEvery: time.Hour}}})
	require.NoError(t, err)
	kv.PutAsync(t.Context(), "k", "v", nil)
	require.NoError(t, cli.Close())
	resp, err := other.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, "v", string(resp.Kvs[0].Value))
	leases, err := other.Leases(t.Context())
	require.NoError(t, err)
	require.Empty(t, leases.Leases)
}

// TestTheSequenceIsHidden from whoever uses the chain, in reads, watches and leases.
func TestTheSequenceIsHidden(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	cli := cluster.Client(t)
	kv, err := Install(cli, Config{Rules: []Rule{{Coalesce: coalesce.GroupCommit, Retry: true}}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kv.Close()) })
	watch := cli.Watch(t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithRev(1))
	_, err = cli.Put(t.Context(), "k", "v")
	require.NoError(t, err)
	resp, err := cli.Get(t.Context(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1)
	require.Len(t, (<-watch).Events, 1)
	leases, err := cli.Leases(t.Context())
	require.NoError(t, err)
	require.Len(t, leases.Leases, 1)
	left, err := cli.TimeToLive(t.Context(), leases.Leases[0].ID, clientv3.WithAttachedKeys())
	require.NoError(t, err)
	require.Empty(t, left.Keys)
	// A sweep leaves it alone.
	_, err = kv.Sweep(t.Context())
	require.NoError(t, err)
	_, err = cli.Put(t.Context(), "k", "w")
	require.NoError(t, err)
}

func TestWhatIsWrongWithRules(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	cli := cluster.Client(t)
	_, err := New(cli, Config{Coalesce: coalesce.Config{Rules: []coalesce.Rule{{Mode: coalesce.Max}}, MaxOps: -1}, Rules: []Rule{{Linger: time.Second}}})
	require.ErrorContains(t, err, "Config.Coalesce.Rules is set: set Config.Rules in its place")
	require.ErrorContains(t, err, "MaxOps is -1")
	require.ErrorContains(t, err, "the mode is Off, which has no use for Linger")
	require.ErrorIs(t, err, coalesce.ErrConfig)
}

// TestErrorsPassUnchanged through both stages.
func TestErrorsPassUnchanged(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	plain, cli := cluster.Client(t), cluster.Client(t)
	kv, err := Install(cli, Config{Rules: []Rule{{Coalesce: coalesce.GroupCommit, Transactions: true}}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kv.Close()) })
	for _, put := range []clientv3.Op{
		clientv3.OpPut("", "v"), clientv3.OpPut("k", "v", clientv3.WithLease(4711)), clientv3.OpPut("none", "", clientv3.WithIgnoreValue()),
		clientv3.OpPut("none", "v", clientv3.WithIgnoreLease()), clientv3.OpPut("k", "v", clientv3.WithIgnoreValue()),
	} {
		_, want := plain.Do(t.Context(), put)
		require.Error(t, want)
		_, err := cli.Do(t.Context(), put)
		require.Equal(t, want, err)
		_, err = cli.Txn(t.Context()).Then(put).Commit()
		require.Equal(t, want, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = cli.Put(ctx, "k", "v")
	require.Equal(t, context.Canceled, err)
	_, err = cli.Put(t.Context(), "k", strings.Repeat("x", 40<<10), clientv3.WithLease(4711))
	require.ErrorIs(t, err, rpctypes.ErrLeaseNotFound)
}

// TestManyCallers has a thousand callers at once share revisions.
func TestManyCallers(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{Rules: []Rule{{Coalesce: coalesce.GroupCommit}}})
	before := s.revision(t)
	const callers, puts = 1000, 10
	together(callers, func(i int) {
		for n := range puts {
			_, err := kv.Put(t.Context(), workload.OffsetKey(i), fmt.Sprint(n))
			require.NoError(t, err)
		}
	})
	perRevision := callers * puts / float64(s.revision(t)-before)
	t.Logf("%.0f puts a revision", perRevision)
	require.GreaterOrEqual(t, perRevision, 100.0)
}

// TestHotOffsets has a broker write 200 offsets behind while a poller reads them all, and
// counts what etcd sees.
func TestHotOffsets(t *testing.T) {
	s := newSide(t)
	const flush = 50 * time.Millisecond
	kv := s.over(t, Config{Rules: []Rule{{Prefix: workload.OffsetsPrefix, Coalesce: coalesce.LastWriteWins, FlushEvery: flush, StaleReads: true}}})
	kv.PutAsync(t.Context(), workload.OffsetKey(0), "0", nil)
	require.NoError(t, kv.Flush(t.Context()))
	polling, stop := context.WithCancel(t.Context())
	var poller sync.WaitGroup
	polls := 0
	poller.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for polling.Err() == nil {
			<-tick.C
			if _, err := kv.Get(polling, workload.OffsetsPrefix, clientv3.WithPrefix()); err == nil {
				polls++
			}
		}
	})
	c := s.commit(t, 200, time.Second, func(partition int, offset string, done func(error)) {
		kv.PutAsync(t.Context(), workload.OffsetKey(partition), offset, func(_ *clientv3.PutResponse, err error) { done(err) })
	})
	stop()
	poller.Wait()
	t.Logf("%d offsets in %d revisions, of %.2f s; %d polls", len(c.took), c.revisions, c.seconds, polls)
	require.Len(t, c.took, 5000)
	require.Greater(t, polls, 10)
	require.LessOrEqual(t, float64(c.revisions), 1+c.seconds/flush.Seconds())
}

// TestStatusOfAGateway holds what the status of three members costs to what a plain
// client's costs.
func TestStatusOfAGateway(t *testing.T) {
	plain, wrapped := newSide(t), newSide(t)
	g := newGatewayStatus(t, plain, wrapped, Rule{
		Prefix: workload.StatusPrefix, Coalesce: coalesce.GroupCommit, Transactions: true, SkipUnchanged: true, Linger: 500 * time.Millisecond,
	}, 100)
	g.turn(1)
	base, all := g.turn(0.05)
	t.Logf("one in twenty is active: plain %+v, kvwrap %+v", base, all)
	require.LessOrEqual(t, 10*all.revisions, base.revisions)
	require.LessOrEqual(t, 10*all.proposed, base.proposed)
	require.LessOrEqual(t, 10*all.backend, base.backend)
	base, all = g.turn(1)
	t.Logf("all are active: plain %+v, kvwrap %+v", base, all)
	require.LessOrEqual(t, 2*all.revisions, base.revisions)
	require.LessOrEqual(t, all.largest, int64(64<<10))
	_, all = g.turn(0)
	require.Zero(t, all.revisions, "nothing has changed")

	contents := func(s *side) map[string]string {
		resp, err := s.cli.Get(t.Context(), workload.StatusPrefix, clientv3.WithPrefix())
		require.NoError(t, err)
		found := make(map[string]string)
		for _, kv := range resp.Kvs {
			found[string(kv.Key)] = string(kv.Value)
		}
		return found
	}
	require.Len(t, contents(wrapped), 6000)
	require.Equal(t, contents(plain), contents(wrapped))
}
