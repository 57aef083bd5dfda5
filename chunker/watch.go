package chunker

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/kvwrap/kvwrap/internal/format"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// Watcher returns inner with whole values in its events, previous values too, and
// without events on chunks. All else is inner's: order, options, notifications,
// compaction, and Close, which ends all watches.
//
// Values are read when they are about to be received, one revision at a time, so
// that a consumer that is slow or a burst of events costs little memory: what waits
// are manifests, of 8 KiB at the most, and small values. A watch holds the values
// of the last revision that it has delivered, of the next two, and of recently seen
// keys, up to a fourth of Config.CacheBytes or one value; of those, no chunk is read
// again. A response with large values in several revisions is delivered as several,
// each with all events of its revisions.
//
// A value that cannot be read because its revision was compacted, and its chunks
// deleted, ends the watch as etcd does when it has been compacted past: with a
// response that is Canceled and says from which revision on it can be resumed. A
// value that is damaged, or that the user may not read, ends it with a response
// that is Canceled and the error's text as CancelReason, which is all that there is
// room for: errors.Is does not know it. Its Header.Revision is that of the value; a
// watch from the next revision on passes it by. A previous value that cannot be
// read is nil. Other errors are waited out, unless etcd ends the watch meanwhile.
func (s *Stage) Watcher(inner clientv3.Watcher) clientv3.Watcher {
	w := &watcher{Watcher: inner, s: s}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

type watcher struct {
	clientv3.Watcher
	s      *Stage
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu      sync.Mutex // orders the start of watches with Close
	watches sync.WaitGroup
}

func (w *watcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op := clientv3.OpWatch(key, opts...)
	t := &watch{
		w: w, key: string(op.KeyBytes()), end: string(op.RangeBytes()), over: make(chan struct{}),
		out:  make(chan clientv3.WatchResponse, 1), // as etcd's
		held: newCache(w.s.cfg.CacheBytes / 4),
	}
	t.held.least = 1
	t.ctx, t.cancel = context.WithCancel(ctx)
	closed := context.AfterFunc(w.ctx, t.cancel)
	in, queued := make(clientv3.WatchChan), make(chan clientv3.WatchResponse)
	refused := w.s.checkKey(op.KeyBytes())
	if refused == nil {
		in = w.Watcher.Watch(t.ctx, key, opts...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watches.Go(func() { t.queue(in, queued) })
	w.watches.Go(func() {
		defer closed()
		defer t.cancel()
		defer close(t.out)
		if refused != nil {
			t.cancelled(0, refused)
			return
		}
		for resp := range queued {
			if t.overtaken && !resp.Canceled {
				continue
			}
			if !t.deliver(resp) {
				return
			}
		}
	})
	return t.out
}

// Close ends all watches.
func (w *watcher) Close() error {
	err := w.Watcher.Close()
	w.cancel()
	w.mu.Lock() // none is half started
	defer w.mu.Unlock()
	w.watches.Wait()
	return err
}

// queue hands on what comes in, without events on chunks, and takes it as soon as
// it comes: etcd's client waits a moment for somebody to take the response that
// ends a watch, and no longer.
func (t *watch) queue(in clientv3.WatchChan, out chan<- clientv3.WatchResponse) {
	defer close(out)
	var (
		waiting []clientv3.WatchResponse
		ended   bool
	)
	for in != nil || len(waiting) > 0 {
		var (
			ready chan<- clientv3.WatchResponse
			first clientv3.WatchResponse
		)
		if len(waiting) > 0 {
			ready, first = out, waiting[0]
		}
		select {
		case resp, ok := <-in:
			if !ok && !ended {
				return // closed by the application: what waits is dropped, as etcd does
			}
			if !ok {
				in = nil
				close(t.over)
				continue
			}
			ended = ended || resp.Canceled
			events := len(resp.Events)
			resp.Events = slices.DeleteFunc(resp.Events, func(e *clientv3.Event) bool { return t.w.s.space.Reserved(e.Kv.Key) })
			if events == 0 || len(resp.Events) > 0 {
				waiting = append(waiting, resp)
			}
		case ready <- first:
			waiting[0] = clientv3.WatchResponse{}
			waiting = waiting[1:]
		case <-t.ctx.Done():
			return
		}
	}
}

// watch is one watch of the application's.
type watch struct {
	w      *watcher
	ctx    context.Context
	cancel context.CancelFunc
	key    string
	end    string // of the range, as in a request
	out    chan clientv3.WatchResponse
	held   *cache // values of keys as the last events left them

	over      chan struct{} // closed when etcd has ended the watch, and all is queued
	overtaken bool          // by that: a value could not be read, what is left to say is why it is over
}

// deliver sends resp with whole values, in one piece or in several, and reports
// whether there is more to be sent after it.
func (t *watch) deliver(resp clientv3.WatchResponse) bool {
	if len(resp.Events) == 0 {
		return t.send(resp)
	}
	for events := resp.Events; len(events) > 0; {
		n := piece(events)
		part := resp
		part.Events = slices.Clone(events[:n]) // which does not keep the others in memory
		clear(events[:n])
		events = events[n:]
		last := part.Events[n-1].Kv.ModRevision
		err := t.whole(part.Events)
		if err != nil { // what is of earlier revisions is whole
			part.Events = slices.DeleteFunc(part.Events, func(e *clientv3.Event) bool { return e.Kv.ModRevision == last })
		}
		if n := len(part.Events); n > 0 && (err != nil || len(events) > 0) {
			// Who resumes after its revision misses none of the events that follow.
			part.Header = proto.CloneOf(resp.Header)
			part.Header.Revision = part.Events[n-1].Kv.ModRevision
		}
		if err != nil {
			return (len(part.Events) == 0 || t.send(part)) && t.fail(last, err)
		}
		if !t.send(part) {
			return false
		}
	}
	return true
}

// piece returns how many events are delivered together: all up to the end of the
// first revision in which there is a value to be read.
func piece(events []*clientv3.Event) int {
	for i, e := range events {
		if format.Plain(e.Kv.Value) && format.Plain(e.PrevKv.GetValue()) {
			continue
		}
		for i++; i < len(events) && events[i].Kv.ModRevision == e.Kv.ModRevision; {
			i++
		}
		return i
	}
	return len(events)
}

func (t *watch) send(resp clientv3.WatchResponse) bool {
	select {
	case t.out <- resp:
		return true
	case <-t.ctx.Done():
		return false
	}
}

// fail ends the watch because the events of a revision could not be made whole. It
// reports whether etcd has ended it already, so that its own answer is to follow.
func (t *watch) fail(revision int64, err error) bool {
	switch {
	case t.ctx.Err() != nil: // the application has ended it
	case errors.Is(err, errOver):
		t.overtaken = true
	case compacted(err):
		t.endCompacted(revision)
	default:
		asked := &pb.RangeRequest{Key: []byte(t.key), RangeEnd: []byte(t.end)}
		t.cancelled(revision, t.w.s.denied(t.ctx, asTxn(asked), err))
	}
	return t.overtaken
}

// cancelled sends the response that ends a watch for err, which is that of the
// events of a revision, or of none.
func (t *watch) cancelled(revision int64, err error) {
	t.send(clientv3.WatchResponse{Header: &pb.ResponseHeader{Revision: revision}, Canceled: true, CancelReason: err.Error()})
}

// errOver says that etcd has ended the watch, while a value could not be read for
// an error that may pass.
var errOver = errors.New("chunker: the watch is over")
