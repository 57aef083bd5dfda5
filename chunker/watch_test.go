package chunker

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// watcher returns the watcher of kv over a client of its own.
func (e *env) watcher(kv *KV) clientv3.Watcher { return kv.stage.Watcher(e.cluster.Client(e).Watcher) }

// next returns the next response of a watch.
func (e *env) next(ch clientv3.WatchChan) clientv3.WatchResponse {
	e.Helper()
	select {
	case resp, ok := <-ch:
		require.True(e, ok, "the channel is closed")
		return resp
	case <-time.After(time.Minute):
		require.Fail(e, "no event for a minute")
		panic("unreachable")
	}
}

// TestAWatcherReadsWhatHasChanged watches 2 MB of statistics.
func TestAWatcherReadsWhatHasChanged(t *testing.T) {
	for _, changed := range []struct{ share, most float64 }{{0.01, 100_000}, {0.1, 500_000}} {
		t.Run(fmt.Sprint(changed.share), func(t *testing.T) {
			e := newEnv(t, Config{}, nil)
			reader, sent := e.another(Config{})
			const events = 20
			var (
				gateway = workload.NewGateway(1000, 1)
				values  []string
			)
			first := e.put("k", string(gateway.Publish(1))).Header.Revision
			for range events {
				values = append(values, string(gateway.Publish(changed.share)))
				e.put("k", values[len(values)-1])
			}
			watch := e.watcher(reader).Watch(e.ctx, "k", clientv3.WithRev(first))
			e.next(watch)
			sent.Take()
			for _, want := range values {
				got := e.next(watch).Events
				require.Len(t, got, 1)
				require.True(t, want == string(got[0].Kv.Value))
			}
			read := sent.Take()

			// And what came with the events.
			stored := 0
			for plain := e.cli.Watch(e.ctx, "k", clientv3.WithRev(first+1)); stored == 0; {
				for _, ev := range e.next(plain).Events {
					stored += proto.Size(ev)
				}
			}
			bytes := float64(read.ResponseBytes+stored) / events
			t.Logf("%.0f bytes an event, %.1f requests", bytes, float64(read.Requests)/events)
			require.LessOrEqual(t, bytes, changed.most)
		})
	}
}

// TestABurstOfLargeValues delivers a thousand events on values of 1 MB, all of
// which have happened before the watch begins, to a consumer that stops at times.
// At no time are there more than a few values in memory.
func TestABurstOfLargeValues(t *testing.T) {
	const (
		size  = 1 << 20
		bound = 32 << 20
	)
	events := 1000
	if testing.Short() {
		events = 100
	}
	e := newEnv(t, Config{}, nil)
	base := text(size, "base")
	value := func(i int) string {
		at := i * 1000
		return base[:at] + fmt.Sprintf("%020d", i) + base[at+20:]
	}
	first := e.put("k", value(0)).Header.Revision
	for i := 1; i < events; i++ {
		e.put("k", value(i))
	}
	reader, _ := e.another(Config{})
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, most := heap(), int64(0)
	watch := e.watcher(reader).Watch(e.ctx, "k", clientv3.WithRev(first), clientv3.WithPrevKV())
	last := int64(0)
	for i := 0; i < events; {
		for _, ev := range e.next(watch).Events {
			require.True(t, value(i) == string(ev.Kv.Value), "event %d", i)
			require.Greater(t, ev.Kv.ModRevision, last)
			last = ev.Kv.ModRevision
			if i > 0 {
				require.True(t, value(i-1) == string(ev.PrevKv.Value), "previous value of event %d", i)
			}
			i++
		}
		if i%100 == 0 {
			most = max(most, heap()-before)
		}
	}
	t.Logf("%d MB of values, %d MB of heap at the most", 2*events*size>>20, most>>20)
	require.Less(t, most, int64(bound))
}

// TestAWatchPastACompaction reads the values of events whose revisions have been
// compacted since: as long as their chunks are there, and then not.
func TestAWatchPastACompaction(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	base := text(300<<10, "base")
	changed := "changed " + base[8:]
	first := e.put("k", base).Header.Revision
	e.put("k", changed)
	e.put("l", base)

	// Events are delivered, and read then, one revision at a time.
	reader, _ := e.another(Config{})
	watch := e.watcher(reader).Watch(e.ctx, "", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithPrevKV())
	require.True(t, base == string(e.next(watch).Events[0].Kv.Value))
	e.compact()
	second := e.next(watch)
	require.True(t, changed == string(second.Events[0].Kv.Value)) // its chunks are still those of k
	require.True(t, base == string(second.Events[0].PrevKv.Value))
	e.next(watch) // l
	e.next(watch) // what compact has put

	// Now they are not.
	third := e.put("k", incompressible(300<<10, "3")).Header.Revision
	for _, name := range []string{"4", "5", "not read in time", "5 again"} {
		e.put("k", incompressible(300<<10, name))
	}
	queued := e.watcher(reader).Watch(e.ctx, "k", clientv3.WithRev(third), clientv3.WithPrevKV())
	got := e.next(queued)
	require.Equal(t, third, got.Events[0].Kv.ModRevision)
	require.True(t, changed == string(got.Events[0].PrevKv.Value))
	// Two more may have been read before the compaction, and wait to be taken. What is
	// in k now can be read for ever.
	e.compact()
	compacted := e.revision()
	e.put("k", incompressible(300<<10, "6"))
	var end clientv3.WatchResponse
	for !end.Canceled {
		end = e.next(queued)
	}
	require.Equal(t, rpctypes.ErrCompacted, end.Err())
	require.Equal(t, compacted, end.CompactRevision)
	_, open := <-queued
	require.False(t, open)

	resumed := e.next(e.watcher(reader).Watch(e.ctx, "k", clientv3.WithRev(end.CompactRevision), clientv3.WithPrevKV()))
	require.True(t, incompressible(300<<10, "6") == string(resumed.Events[0].Kv.Value))
	require.True(t, incompressible(300<<10, "5 again") == string(resumed.Events[0].PrevKv.Value))

	// A previous value of which the manifest came and the chunks have gone is nil.
	e.put("m", base)
	stored := e.next(e.cli.Watch(e.ctx, "m", clientv3.WithPrevKV(), clientv3.WithRev(e.put("m", incompressible(300<<10, "7")).Header.Revision)))
	require.NotNil(t, stored.Events[0].PrevKv)
	e.compact()
	inner := make(chan clientv3.WatchResponse, 1)
	inner <- stored
	w := reader.stage.Watcher(scriptedWatcher{responses: inner})
	resumed = e.next(w.Watch(e.ctx, "m", clientv3.WithPrevKV()))
	require.True(t, incompressible(300<<10, "7") == string(resumed.Events[0].Kv.Value))
	require.Nil(t, resumed.Events[0].PrevKv)
	require.NoError(t, w.Close())
}

// revision returns the current one.
func (e *env) revision() int64 {
	resp, err := e.cli.Get(e.ctx, "k", clientv3.WithCountOnly())
	require.NoError(e, err)
	return resp.Header.Revision
}

// TestAWatchEndsLoudly where a value cannot be read.
func TestAWatchEndsLoudly(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	cancelled := func(watch clientv3.WatchChan, reason ...string) {
		t.Helper()
		resp := e.next(watch)
		require.True(t, resp.Canceled)
		require.Empty(t, resp.Events)
		require.Zero(t, resp.CompactRevision)
		for _, r := range reason {
			require.ErrorContains(t, resp.Err(), r)
		}
		_, open := <-watch
		require.False(t, open)
	}
	cancelled(e.watcher(e.kv).Watch(e.ctx, "\x00kvw/x", clientv3.WithPrefix()), "reserved key")

	watch := e.watcher(e.kv).Watch(e.ctx, "k", clientv3.WithPrefix())
	_, err := e.cli.Put(e.ctx, "k", "\xffkvw\x01\x01 no manifest")
	require.NoError(t, err)
	cancelled(watch, "damaged", `"k"`)

	small, _ := e.another(Config{MaxValueBytes: 1000})
	watch = e.watcher(small).Watch(e.ctx, "k")
	e.put("k", text(200<<10, "value"))
	cancelled(watch, "MaxValueBytes is 1000")

	elsewhere, _ := e.another(Config{ReservedPrefix: "\x00elsewhere/"})
	watch = e.watcher(elsewhere).Watch(e.ctx, "k")
	e.put("k", text(200<<10, "value"))
	cancelled(watch, "reserved prefix mismatch")
}

// failing is a KV that fails a number of transactions.
type failing struct {
	pb.KVClient
	left atomic.Int64
	err  error
}

func (f *failing) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if f.left.Add(-1) >= 0 {
		return nil, f.err
	}
	return f.KVClient.Txn(ctx, r, opts...)
}

// TestAWatchWaitsErrorsOut, as etcd's watches do, and ends with the context.
func TestAWatchWaitsErrorsOut(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	for _, err := range []error{rpctypes.ErrNoLeader, rpctypes.ErrTooManyRequests, status.Error(codes.Unavailable, "connection refused")} {
		f := &failing{KVClient: wire.Client(e.cli.KV), err: err}
		stage, err := New(f, Config{Lease: e.cli.Lease})
		require.NoError(t, err)
		kv := &KV{KV: clientv3.NewKVFromKVClient(stage, nil), stage: stage}
		watch := e.watcher(kv).Watch(e.ctx, "k", clientv3.WithPrevKV())
		f.left.Store(3)
		value := text(200<<10, fmt.Sprint(err))
		e.put("k", value)
		require.True(t, value == string(e.next(watch).Events[0].Kv.Value))
		require.Negative(t, f.left.Load())

		ctx, cancel := context.WithCancel(e.ctx)
		watch = e.watcher(kv).Watch(ctx, "k")
		f.left.Store(1 << 40)
		e.put("k", value)
		require.Eventually(t, func() bool { return f.left.Load() < 1<<40 }, time.Minute, time.Millisecond)
		cancel()
		_, open := <-watch
		require.False(t, open)
		require.NoError(t, stage.Close())
	}
}

// TestNoResponseIsLost because nobody receives: the one that ends a watch, above
// all.
func TestNoResponseIsLost(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	inner := make(chan clientv3.WatchResponse)
	w := e.kv.stage.Watcher(scriptedWatcher{responses: inner})
	watch := w.Watch(e.ctx, "k")
	ended := clientv3.WatchResponse{Canceled: true, CancelReason: "no leader"}
	for i := range 100 {
		inner <- clientv3.WatchResponse{Header: &pb.ResponseHeader{Revision: int64(i)}}
	}
	inner <- ended
	close(inner)
	for i := range 100 {
		require.EqualValues(t, i, e.next(watch).Header.Revision)
	}
	require.Equal(t, ended, e.next(watch))
	_, open := <-watch
	require.False(t, open)
	require.NoError(t, w.Close())
}

// scriptedWatcher is a watcher of one watch.
type scriptedWatcher struct {
	clientv3.Watcher
	responses chan clientv3.WatchResponse
}

func (w scriptedWatcher) Watch(context.Context, string, ...clientv3.OpOption) clientv3.WatchChan {
	return w.responses
}

func (scriptedWatcher) Close() error { return nil }

// TestOneRevisionStaysWhole puts many large values in one transaction, and small
// ones around it.
func TestOneRevisionStaysWhole(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	first := e.put("a", "small").Header.Revision
	e.put("b", "small")
	var puts []clientv3.Op
	for i := range 20 {
		puts = append(puts, clientv3.OpPut(fmt.Sprintf("k%02d", i), text(100<<10, fmt.Sprint(i))))
	}
	txn, err := e.kv.Txn(e.ctx).Then(puts...).Commit()
	require.NoError(t, err)
	last := e.put("z", "small").Header.Revision

	reader, _ := e.another(Config{})
	watch := e.watcher(reader).Watch(e.ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(first))
	var keys []string
	for revision := int64(0); revision < last; {
		resp := e.next(watch)
		require.NoError(t, resp.Err())
		require.NotEmpty(t, resp.Events)
		require.Greater(t, resp.Events[0].Kv.ModRevision, revision, "a revision in two responses")
		for _, ev := range resp.Events {
			keys = append(keys, string(ev.Kv.Key))
			revision = ev.Kv.ModRevision
			if strings.HasPrefix(string(ev.Kv.Key), "k") {
				require.Equal(t, txn.Header.Revision, revision)
				require.Len(t, ev.Kv.Value, 100<<10)
			}
		}
		require.GreaterOrEqual(t, resp.Header.Revision, revision)
	}
	require.Len(t, keys, 23)
}

// TestEventsBeforeOneThatCannotBeRead come in the same response of etcd's, and are
// delivered; then the watch ends.
func TestEventsBeforeOneThatCannotBeRead(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	reader, _ := e.another(Config{})
	tooSmall, _ := e.another(Config{MaxValueBytes: 100 << 10})
	first := e.put("p/a", "small").Header.Revision
	large := e.put("p/b", incompressible(200<<10, "1")).Header.Revision
	for _, compacted := range []bool{false, true} {
		stored := e.next(e.cli.Watch(e.ctx, "p/", clientv3.WithPrefix(), clientv3.WithRev(first)))
		require.Len(t, stored.Events, 2)
		kv := tooSmall
		if compacted {
			kv = reader
			e.put("p/b", incompressible(200<<10, "2"))
			e.compact()
		}
		inner := make(chan clientv3.WatchResponse, 1)
		inner <- stored
		w := kv.stage.Watcher(&replayed{Watcher: e.cluster.Client(t).Watcher, first: inner})
		watch := w.Watch(e.ctx, "p/", clientv3.WithPrefix(), clientv3.WithRev(first))
		got := e.next(watch)
		require.Len(t, got.Events, 1)
		require.Equal(t, "small", string(got.Events[0].Kv.Value))
		require.Equal(t, first, got.Header.Revision)
		got = e.next(watch)
		require.True(t, got.Canceled)
		if compacted {
			require.Equal(t, rpctypes.ErrCompacted, got.Err())
		} else {
			require.Equal(t, large, got.Header.Revision)
			require.ErrorContains(t, got.Err(), "MaxValueBytes")
		}
		_, open := <-watch
		require.False(t, open)
		require.NoError(t, w.Close())
	}
}

// TestTheFirstOfManyEventsCannotBeRead leaves nothing to deliver.
func TestTheFirstOfManyEventsCannotBeRead(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	tooSmall, _ := e.another(Config{MaxValueBytes: 100 << 10})
	first := e.put("p/a", text(200<<10, "v")).Header.Revision
	e.put("p/b", "small")
	watch := e.watcher(tooSmall).Watch(e.ctx, "p/", clientv3.WithPrefix(), clientv3.WithRev(first))
	got := e.next(watch)
	require.True(t, got.Canceled)
	require.Equal(t, first, got.Header.Revision)

	passedBy := e.next(e.watcher(tooSmall).Watch(e.ctx, "p/", clientv3.WithPrefix(), clientv3.WithRev(first+1)))
	require.Equal(t, "small", string(passedBy.Events[0].Kv.Value))
}

// replayed is a watcher whose first watch is scripted.
type replayed struct {
	clientv3.Watcher
	first chan clientv3.WatchResponse
}

func (r *replayed) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	if first := r.first; first != nil {
		r.first = nil
		return first
	}
	return r.Watcher.Watch(ctx, key, opts...)
}

// TestAWatchThatIsOverSaysSo although a value before its end cannot be read, as
// where there is no leader.
func TestAWatchThatIsOverSaysSo(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	first := e.put("k", text(200<<10, "v")).Header.Revision
	stored := e.next(e.cli.Watch(e.ctx, "k", clientv3.WithRev(first)))
	f := &failing{KVClient: wire.Client(e.cli.KV), err: rpctypes.ErrNoLeader}
	f.left.Store(1 << 40)
	stage, err := New(f, Config{Lease: e.cli.Lease})
	require.NoError(t, err)
	inner := make(chan clientv3.WatchResponse, 2)
	inner <- stored
	ended := clientv3.WatchResponse{Canceled: true, CancelReason: "etcdserver: no leader"}
	inner <- ended
	close(inner)
	w := stage.Watcher(scriptedWatcher{responses: inner})
	watch := w.Watch(clientv3.WithRequireLeader(e.ctx), "k")
	require.Equal(t, ended, e.next(watch))
	_, open := <-watch
	require.False(t, open)
	require.NoError(t, w.Close())
	require.NoError(t, stage.Close())
}

// TestChunksDoNotWait in the queue of a watch of all keys, whose consumer is slow.
func TestChunksDoNotWait(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	in, out := make(chan clientv3.WatchResponse), make(chan clientv3.WatchResponse)
	w := &watch{w: &watcher{s: e.kv.stage}, ctx: e.ctx, over: make(chan struct{})}
	go w.queue(in, out)
	event := func(key string) *clientv3.Event { return &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(key)}} }
	in <- clientv3.WatchResponse{Events: []*clientv3.Event{event("\x00kvw/k"), event("\x00kvw/l")}}
	in <- clientv3.WatchResponse{Events: []*clientv3.Event{event("\x00kvw/k"), event("k")}}
	in <- clientv3.WatchResponse{Canceled: true}
	close(in)
	require.Equal(t, []*clientv3.Event{event("k")}, (<-out).Events)
	require.True(t, (<-out).Canceled)
	_, open := <-out
	require.False(t, open)
}
