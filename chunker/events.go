package chunker

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// whole replaces manifests and envelopes in events by the values that they stand
// for. All of these are of the revision of the last event.
func (t *watch) whole(events []*clientv3.Event) error {
	revision := events[len(events)-1].Kv.ModRevision
	var kvs []*mvccpb.KeyValue
	for _, e := range events {
		if e.PrevKv != nil && t.resolve([]*mvccpb.KeyValue{e.PrevKv}, revision-1) != nil {
			if t.ctx.Err() != nil {
				return t.ctx.Err()
			}
			e.PrevKv = nil // as etcd leaves it out where it has been compacted
		}
		if e.Type == clientv3.EventTypeDelete {
			t.held.forget(e.Kv.Key, e.Kv.ModRevision)
		}
		kvs = append(kvs, e.Kv)
	}
	return t.resolve(kvs, revision)
}

// resolve makes kvs whole, which were stored at a revision. It tries again after
// errors that may pass.
func (t *watch) resolve(kvs []*mvccpb.KeyValue, revision int64) error {
	s := t.w.s
	open, err := s.parseAll(kvs)
	if err != nil || len(open) == 0 {
		return err
	}
	src := format.Source{Plain: make(map[format.ID][]byte), Stored: chunkPool{}}
	for _, u := range open {
		for _, known := range []*chunked{s.cache.get(u.kv.Key), t.held.get(u.kv.Key)} {
			if known != nil && known.value != nil {
				maps.Copy(src.Plain, known.layout.Pieces(known.value))
			}
		}
	}
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := s.complete(t.ctx, open, src, snapshot{revision: revision})
		if err == nil {
			break
		}
		if !passing(err) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-t.ctx.Done():
			return t.ctx.Err()
		}
	}
	for _, u := range open {
		t.held.put(newChunked(u.kv, u.layout).with(u.kv.Value))
	}
	return nil
}

// passing reports whether err is one after which etcd's client resumes a watch, or
// says that the server is too busy.
func passing(err error) bool {
	var e rpctypes.EtcdError
	code := status.Code(err)
	if errors.As(err, &e) {
		code = e.Code()
	}
	return code == codes.Unavailable || code == codes.Internal || is(err, rpctypes.ErrTooManyRequests)
}

func compacted(err error) bool { return is(err, rpctypes.ErrCompacted) }

// endCompacted ends the watch at a revision that has been compacted, as etcd does:
// with its own answer to a watch from that revision on, which says from which one
// on there are events. A member that has not compacted it yet is asked again.
func (t *watch) endCompacted(revision int64) {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		ctx, cancel := context.WithCancel(t.ctx)
		resp, ok := <-t.w.Watcher.Watch(ctx, t.key, clientv3.WithRange(t.end), clientv3.WithRev(revision))
		cancel()
		if ok && resp.Canceled {
			t.send(resp)
			return
		}
		select {
		case <-time.After(wait):
		case <-t.ctx.Done():
			return
		}
	}
}
