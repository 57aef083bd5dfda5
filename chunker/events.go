package chunker

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
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
	if err := t.previous(events, revision-1); err != nil {
		return err
	}
	var kvs []*mvccpb.KeyValue
	for _, e := range events {
		if e.Type == clientv3.EventTypeDelete {
			t.held.forget(e.Kv.Key, e.Kv.ModRevision)
		}
		kvs = append(kvs, e.Kv)
	}
	open, err := t.w.s.parseAll(kvs)
	if err != nil {
		return err
	}
	return t.complete(open, revision)
}

// previous makes previous values whole, as they were at a revision. Those that
// cannot be read are nil, as etcd leaves them out where they have been compacted.
func (t *watch) previous(events []*clientv3.Event, revision int64) error {
	var (
		open []unresolved
		of   []*clientv3.Event
	)
	for _, e := range events {
		if e.PrevKv == nil {
			continue
		}
		o, err := t.w.s.parseAll([]*mvccpb.KeyValue{e.PrevKv})
		if err != nil {
			e.PrevKv = nil
		}
		for range o {
			of = append(of, e)
		}
		open = append(open, o...)
	}
	if t.complete(open, revision) == nil {
		return nil
	}
	for i := range open { // which is it?
		err := t.complete(open[i:i+1], revision)
		if t.ctx.Err() != nil || errors.Is(err, errOver) {
			return err
		}
		if err != nil {
			of[i].PrevKv = nil
		}
	}
	return nil
}

// complete makes values whole that were stored at a revision. It tries again after
// errors that may pass.
func (t *watch) complete(open []unresolved, revision int64) error {
	if len(open) == 0 {
		return nil
	}
	s := t.w.s
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
		case <-t.over:
			return errOver
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
	return code == codes.Unavailable || code == codes.Internal || wire.Is(err, rpctypes.ErrTooManyRequests)
}

func compacted(err error) bool { return wire.Is(err, rpctypes.ErrCompacted) }

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
