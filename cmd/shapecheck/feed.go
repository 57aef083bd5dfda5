package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wait"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"
)

// feed hands on every event in ranges of keys, from a revision on, for as long as it runs.
//
// It is on etcd's own stream, not on a clientv3.Watcher, which buffers without a bound what
// its reader has not taken yet, does not say that a connection was lost, and takes a third
// more time for each event. When the stream ends, run opens another one, at another member
// where there is one, and goes on after the revision that it has handed on last. What cannot
// be had any more, since it was compacted, or is so far behind that it would not be caught up
// with, is counted as missed.
type feed struct {
	open   func(context.Context) (pb.Watch_WatchClient, error)
	events func([]*mvccpb.Event) // is handed events, by one goroutine at a time
	now    func() time.Time
	ready  chan struct{} // closed when all ranges are watched, for the first time

	ask chan struct{} // for progress

	mu      sync.Mutex
	ranges  []*fedRange
	state   feedState
	end     context.CancelCauseFunc // ends the stream that is open; nil where none is
	pending error                   // what the next one is to end with
	watched bool                    // the stream that is open has been answered
}

// fedRange is a range that is watched.
type fedRange struct {
	format.Range
	optional bool // its events are not missed where the user may not have them

	next   int64 // the revision that is handed on next
	within bool  // a part of a response has been handed on, which may have ended in a revision
}

// feedState is how a feed is.
type feedState struct {
	Seen    int64     // everything up to this revision was handed on
	Missed  int64     // revisions that were not, at the most
	Lost    int       // connections
	Problem string    // why there is no stream; empty while there is one
	Refused bool      // a range that is optional is not permitted
	Heard   time.Time // when there was an answer last
}

func newFeed(cli *clientv3.Client, events func([]*mvccpb.Event), from int64, ranges ...*fedRange) *feed {
	f := &feed{
		open: func(ctx context.Context) (pb.Watch_WatchClient, error) {
			return pb.NewWatchClient(cli.ActiveConnection()).Watch(clientv3.WithRequireLeader(ctx))
		},
		events: events, now: time.Now, ranges: ranges,
		ready: make(chan struct{}), ask: make(chan struct{}, 1),
	}
	for _, r := range ranges {
		r.next = from
	}
	f.state.Seen = from - 1
	return f
}

// current returns how the feed is.
func (f *feed) current() feedState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// progress asks the server whether everything was sent. It answers when it was.
func (f *feed) progress() {
	select {
	case f.ask <- struct{}{}:
	default: // it is asked already
	}
}

// skipTo has the feed go on after a revision, be it behind or ahead of it.
func (f *feed) skipTo(revision int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.endStream(skipped(revision)) {
		f.pending = skipped(revision)
	}
}

// reopen has the feed open another stream where one is open, because of err.
func (f *feed) reopen(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endStream(err)
}

// endStream ends the stream, and reports whether one was open. It is called with mu held.
func (f *feed) endStream(err error) bool {
	if f.end == nil {
		return false
	}
	f.end(err)
	f.end = nil
	return true
}

// skipped is the reason to go on after a revision.
type skipped int64

func (s skipped) Error() string { return fmt.Sprintf("going on after revision %d", int64(s)) }

const (
	feedRetry    = 100 * time.Millisecond // between two attempts to open a stream, at first
	feedMaxRetry = 2 * time.Second
)

// run feeds until ctx ends, or there is an error that will not go away.
func (f *feed) run(ctx context.Context) error {
	retry := feedRetry
	for {
		began := f.now()
		err := f.stream(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var to skipped
		switch {
		case errors.As(err, &to):
			f.jump(int64(to))
			continue
		case errors.Is(err, rpctypes.ErrPermissionDenied) || errors.Is(err, rpctypes.ErrUserEmpty):
			return err
		}
		f.lost(err)
		if f.now().Sub(began) > feedMaxRetry { // it was a good one
			retry = feedRetry
		}
		if !wait.For(ctx, wait.Jittered(retry)) {
			return ctx.Err()
		}
		retry = min(2*retry, feedMaxRetry)
	}
}

// jump goes on after a revision.
func (f *feed) jump(to int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	most := int64(0)
	for _, r := range f.ranges {
		most = max(most, to+1-r.next)
		r.next, r.within = to+1, false
	}
	f.state.Missed += most
	f.state.Seen = to
}

// lost notes that the stream has ended.
func (f *feed) lost(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watched { // else it was not one yet
		f.state.Lost++
		f.watched = false
	}
	f.state.Problem = status.Convert(err).Message()
	for _, r := range f.ranges {
		if r.within {
			f.state.Missed++ // the rest of that revision
			r.within = false
		}
	}
}

// stream opens a stream and hands on what it has until it ends.
func (f *feed) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(context.Canceled)
	stream, err := f.open(ctx)
	if err != nil {
		return rpctypes.Error(err)
	}
	if err := f.opened(cancel); err != nil {
		return err
	}
	defer f.closed()
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel(context.Canceled)
	sender.Go(func() {
		if err := f.send(ctx, stream); err != nil {
			cancel(err) // Recv ends with it
		}
	})
	watched := 0
	for {
		resp, err := stream.Recv()
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if err != nil {
			return rpctypes.Error(err)
		}
		created, err := f.take(resp, watched)
		if err != nil {
			return err
		}
		if created {
			if watched++; watched == len(f.ranges) {
				f.watching()
			}
		}
	}
}

// opened notes how the stream that is open is ended, unless it is to end already.
func (f *feed) opened(end context.CancelCauseFunc) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Heard = f.now()
	if err := f.pending; err != nil {
		f.pending = nil
		return err
	}
	f.end = end
	return nil
}

// closed notes that no stream is open.
func (f *feed) closed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end = nil
}

// send sends requests for ranges, and then for progress when it is asked for. A client's
// stream has one sender.
func (f *feed) send(ctx context.Context, stream pb.Watch_WatchClient) error {
	for i, r := range f.ranges {
		f.mu.Lock()
		next := r.next
		f.mu.Unlock()
		if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			WatchId: int64(i + 1), Key: r.Key, RangeEnd: r.End, StartRevision: next, Fragment: true,
		}}}); err != nil {
			return fmt.Errorf("watching: %w", err)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return stream.CloseSend()
		case <-f.ask:
			if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
				return fmt.Errorf("asking for progress: %w", err)
			}
		}
	}
}

// watching notes that all ranges are watched.
func (f *feed) watching() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Problem, f.watched = "", true
	select {
	case <-f.ready:
	default:
		close(f.ready)
	}
}

// take hands on what a response has, where so many ranges are watched; they are answered in
// order. Created reports whether it says that the next one is, or, where it is optional, that
// it will not be.
func (f *feed) take(resp *pb.WatchResponse, watched int) (created bool, err error) {
	if len(resp.Events) > 0 {
		f.events(resp.Events)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Heard = f.now()
	switch {
	case resp.CompactRevision > 0:
		return false, skipped(resp.CompactRevision - 1) // that revision can be had
	case resp.Canceled:
		err := watchRefusal(resp.CancelReason)
		if watched < len(f.ranges) && f.ranges[watched].optional && errors.Is(err, rpctypes.ErrPermissionDenied) {
			f.state.Refused = true
			return true, nil
		}
		return false, err
	case resp.Created:
		return true, nil
	case len(resp.Events) == 0: // progress: all ranges are where the server is
		f.state.Seen = max(f.state.Seen, resp.Header.GetRevision())
		for _, r := range f.ranges {
			r.next = max(r.next, f.state.Seen+1)
		}
		return false, nil
	}
	if id := int(resp.WatchId); id >= 1 && id <= len(f.ranges) {
		r := f.ranges[id-1]
		last := resp.Events[len(resp.Events)-1].Kv.ModRevision
		r.next, r.within = last+1, resp.Fragment
		if len(f.ranges) == 1 || f.state.Refused {
			f.state.Seen = max(f.state.Seen, last)
		}
	}
	return false, nil
}

// watchRefusal is the error that a server gives as the reason why it has ended a watch.
func watchRefusal(reason string) error {
	for _, err := range []error{rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty} {
		if strings.HasSuffix(reason, err.Error()) { // before it stands gRPC's code
			return err
		}
	}
	return errors.New(reason)
}
