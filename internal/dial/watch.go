package dial

import (
	"context"
	"io"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// watchStream is a stream of watches whose events are as the application is to see them.
//
// A stream carries any number of watches. The stream over the wire is the same one: what is
// asked goes to the server as it is, and its answers come back with its identifiers, its
// headers and its errors. Each watch is a watch of the chain's Watcher besides, over a
// Watcher that is told what the server says of this one watch; its responses go to the
// application, in its own order and in no order with those of others. So a value that has to
// be read holds up nobody else.
//
//	SendMsg ----------------------------------------> server
//	RecvMsg <- out <- forward <- chain <- feed <- receive <- server
//
// Three things are not the server's answer as it is. A watch that the chain refuses is not
// sent; its answer takes its turn among those of the others. Events that come in fragments
// are put together again. And progress of all watches at once, which says that nothing up to
// a revision is missing, is told to each watch by itself, behind what it still has to say: to
// etcd's client that is the same.
//
// A watch that the chain ends, since a value cannot be read, is ended at the server too. The
// application gets the chain's last response with its reason. etcd's own client passes the
// reason on where that is a compaction, and otherwise ends the watch without a word.
type watchStream struct {
	grpc.ClientStream // the server's
	ctx               context.Context
	cancel            context.CancelFunc
	chain             *chain
	out               chan *pb.WatchResponse
	running           sync.WaitGroup // watches

	done chan struct{} // closed when nothing is to come
	err  error         // why, from then on

	send sync.Mutex // one message at a time, and created in their order
	shut bool       // under send: receive has ended

	turn sync.Mutex // one answer to a request for a watch at a time

	mu      sync.Mutex
	created []*watch         // that the server has not answered
	watches map[int64]*watch // that it has
	ended   map[int64]bool   // that the chain has ended: the server's word for it is to come
}

// watch is one watch. What is below received is receive's alone.
type watch struct {
	ctx    context.Context
	cancel context.CancelFunc
	key    string
	end    string
	in     chan clientv3.WatchResponse
	seen   clientv3.Watcher // the chain's
	out    clientv3.WatchChan
	id     int64

	refused *clientv3.WatchResponse // nil where it is not

	mu       sync.Mutex
	canceled bool // by the application

	fragments []*clientv3.Event // received, of a response that is not complete
}

func newWatchStream(ctx context.Context, c *chain, open func(context.Context) (grpc.ClientStream, error)) (*watchStream, error) {
	s := &watchStream{
		chain: c, out: make(chan *pb.WatchResponse), done: make(chan struct{}),
		watches: make(map[int64]*watch), ended: make(map[int64]bool),
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	var err error
	if s.ClientStream, err = open(s.ctx); err != nil {
		s.cancel()
		return nil, err
	}
	go s.receive()
	return s, nil
}

func (s *watchStream) SendMsg(m any) error {
	r, ok := m.(*pb.WatchRequest)
	if !ok {
		return unknown(m)
	}
	s.send.Lock()
	defer s.send.Unlock()
	if s.shut {
		return io.EOF
	}
	switch r := r.RequestUnion.(type) {
	case *pb.WatchRequest_CreateRequest:
		if r.CreateRequest == nil {
			break // which etcd ignores
		}
		w := s.newWatch(r.CreateRequest)
		s.mu.Lock()
		s.created = append(s.created, w)
		s.mu.Unlock()
		if w.refused != nil {
			s.running.Go(func() {
				s.turn.Lock()
				defer s.turn.Unlock()
				s.refuse()
			})
			return nil
		}
	case *pb.WatchRequest_CancelRequest:
		s.mu.Lock()
		w := s.watches[r.CancelRequest.GetWatchId()]
		s.mu.Unlock()
		if w != nil {
			w.mu.Lock()
			w.canceled = true
			w.mu.Unlock()
			w.cancel() // what it still had to say is not wanted
		}
	case *pb.WatchRequest_ProgressRequest:
	default:
		return unknown(r)
	}
	return s.ClientStream.SendMsg(m)
}

// newWatch begins a watch of the chain's.
func (s *watchStream) newWatch(r *pb.WatchCreateRequest) *watch {
	w := &watch{key: string(r.Key), end: string(r.RangeEnd), in: make(chan clientv3.WatchResponse)}
	w.ctx, w.cancel = context.WithCancel(s.ctx)
	source := &source{Watcher: s.chain.below.Watcher, in: w.in}
	w.seen = s.chain.Watcher(source)
	w.out = w.seen.Watch(w.ctx, w.key, clientv3.WithRange(w.end), clientv3.WithRev(r.StartRevision))
	if !source.taken {
		resp := <-w.out
		w.refused = &resp
		w.close()
	}
	return w
}

// close ends a watch of the chain's.
func (w *watch) close() {
	w.cancel()
	w.seen.Close()
}

// source is a Watcher with one watch, which is told what comes over the wire. Others, by which
// the chain asks about a compaction, are its connection's.
type source struct {
	clientv3.Watcher
	in    chan clientv3.WatchResponse
	taken bool
}

func (s *source) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	if s.taken {
		return s.Watcher.Watch(ctx, key, opts...)
	}
	s.taken = true
	return s.in
}

func (s *source) Close() error { return nil }

// refuse answers requests for watches that were refused, as etcd does, as far as it is their
// turn. It is called under turn.
func (s *watchStream) refuse() {
	for {
		s.mu.Lock()
		if len(s.created) == 0 || s.created[0].refused == nil {
			s.mu.Unlock()
			return
		}
		w := s.created[0]
		s.created = s.created[1:]
		s.mu.Unlock()
		s.say(s.ctx, &pb.WatchResponse{
			Header: w.refused.Header, WatchId: clientv3.InvalidWatchID, Created: true, Canceled: true, CancelReason: w.refused.CancelReason,
		})
	}
}

// say hands a response to the application.
func (s *watchStream) say(ctx context.Context, resp *pb.WatchResponse) {
	select {
	case s.out <- resp:
	case <-ctx.Done():
	}
}

func (s *watchStream) RecvMsg(m any) error {
	into, ok := m.(*pb.WatchResponse)
	if !ok {
		return unknown(m)
	}
	select {
	case resp := <-s.out:
		move(into, resp)
		return nil
	case <-s.done:
		return s.err
	}
}

// receive takes what the server says until it says that it is over.
func (s *watchStream) receive() {
	for {
		resp := &pb.WatchResponse{}
		if err := s.ClientStream.RecvMsg(resp); err != nil {
			s.err = err
			break
		}
		s.received(resp)
	}
	s.cancel()
	// What was created and not answered has no goroutine of its own.
	s.send.Lock()
	s.shut = true
	s.mu.Lock()
	created := s.created
	s.created = nil
	s.mu.Unlock()
	s.send.Unlock()
	for _, w := range created {
		w.close()
	}
	s.running.Wait()
	close(s.done)
}

// received handles one response of the server.
func (s *watchStream) received(resp *pb.WatchResponse) {
	switch {
	case resp.Created:
		s.answered(resp)
		return
	case resp.WatchId == clientv3.InvalidWatchID:
		s.progress(resp)
		return
	}
	s.mu.Lock()
	w := s.watches[resp.WatchId]
	if resp.Canceled {
		delete(s.watches, resp.WatchId)
	}
	ended := s.ended[resp.WatchId]
	if resp.Canceled {
		delete(s.ended, resp.WatchId)
	}
	s.mu.Unlock()
	if w == nil {
		if !ended {
			s.say(s.ctx, resp)
		}
		return
	}
	w.mu.Lock()
	canceled := w.canceled
	w.mu.Unlock()
	if resp.Canceled && canceled {
		s.say(s.ctx, resp)
		return
	}
	events := resp.Events
	if len(w.fragments) > 0 {
		events = append(w.fragments, events...)
	}
	w.fragments = nil
	if resp.Fragment {
		w.fragments = events
		return
	}
	s.feed(w, clientv3.WatchResponse{
		Header: resp.Header, Events: events, CompactRevision: resp.CompactRevision,
		Canceled: resp.Canceled, CancelReason: resp.CancelReason,
	})
	if resp.Canceled {
		close(w.in)
	}
}

func (s *watchStream) feed(w *watch, resp clientv3.WatchResponse) {
	select {
	case w.in <- resp:
	case <-w.ctx.Done():
	}
}

// answered handles the answer to a request for a watch.
func (s *watchStream) answered(resp *pb.WatchResponse) {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.refuse()
	s.mu.Lock()
	if len(s.created) == 0 {
		s.mu.Unlock()
		s.say(s.ctx, resp) // nobody has asked
		return
	}
	w := s.created[0]
	s.created = s.created[1:]
	if !resp.Canceled {
		w.id = resp.WatchId
		s.watches[w.id] = w
		delete(s.ended, w.id)
	}
	s.mu.Unlock()
	s.say(s.ctx, resp)
	if resp.Canceled {
		w.close()
	} else {
		s.running.Go(func() { s.forward(w) })
	}
	s.refuse()
}

// progress tells each watch what the server says of all.
func (s *watchStream) progress(resp *pb.WatchResponse) {
	s.mu.Lock()
	var all []*watch
	for _, w := range s.watches {
		all = append(all, w)
	}
	s.mu.Unlock()
	if len(all) == 0 {
		s.say(s.ctx, resp)
		return
	}
	for _, w := range all {
		s.feed(w, clientv3.WatchResponse{Header: proto.CloneOf(resp.Header)})
	}
}

// forward hands the responses of a watch to the application, and ends it.
func (s *watchStream) forward(w *watch) {
	defer w.close()
	for resp := range w.out {
		said := &pb.WatchResponse{
			Header: resp.Header, WatchId: w.id, Events: resp.Events,
			CompactRevision: resp.CompactRevision, Canceled: resp.Canceled, CancelReason: resp.CancelReason,
		}
		if resp.Canceled {
			if s.over(w) {
				s.say(s.ctx, said)
			}
			return
		}
		s.say(w.ctx, said)
	}
}

// over ends a watch at the server where the chain has ended it, before the application hears
// of it and uses its identifier again. It reports whether that is to be told: not where the
// application has canceled it, which the server answers.
func (s *watchStream) over(w *watch) bool {
	s.send.Lock()
	defer s.send.Unlock()
	w.mu.Lock()
	canceled := w.canceled
	w.mu.Unlock()
	if canceled {
		return false
	}
	s.mu.Lock()
	ours := s.watches[w.id] == w
	if ours {
		delete(s.watches, w.id)
		s.ended[w.id] = true
	}
	s.mu.Unlock()
	if ours {
		s.ClientStream.SendMsg(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{
			CancelRequest: &pb.WatchCancelRequest{WatchId: w.id},
		}}) // its error is that of the stream, which receive gets
	}
	return true
}
