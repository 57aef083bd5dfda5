package coalesce

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/kvwrap/kvwrap/internal/history"
	"github.com/kvwrap/kvwrap/internal/keys"
	"github.com/kvwrap/kvwrap/internal/session"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// Stage is the coalescer as middleware: a pb.KVClient over another one. It is safe
// for concurrent use.
//
// It implements every method by name, so that a new one in pb.KVClient breaks the
// build and does not slip past it.
type Stage struct {
	inner    *history.Stage
	cfg      Config
	rules    rules
	session  *session.Session
	sequence sequence // used by whoever flies sequenced batches
	stats    counters

	ctx    context.Context // of all requests that are nobody's; ends with Close
	cancel context.CancelFunc
	flying sync.WaitGroup // goroutines that send batches

	mu      sync.Mutex // released by unlock
	ended   []*unit    // whose callers are told when it is
	queue   *queue
	lanes   map[laneKey]*lane
	flights [2][]*flight // under way, by kind
	timer   *time.Timer  // for the next lane that will be due
	wake    time.Time    // when that is
	pending Pending
	room    chan struct{} // closed when pending shrinks; nil while nobody waits
	closed  bool
	calls   []func() // to promises, in order
	calling bool
}

var _ pb.KVClient = (*Stage)(nil)

// laneKey names the lane of a unit: the rule of its first operation, whether it is of
// PutAsync, and whether it is sent under the sequence.
type laneKey struct {
	rule             *Rule
	async, sequenced bool
}

// kinds of flights.
const (
	plain = iota
	sequenced
)

// New returns a coalescer over inner. It sends nothing before it is used.
func New(inner pb.KVClient, cfg Config) (*Stage, error) {
	cfg, err := cfg.filled()
	if err != nil {
		return nil, err
	}
	if inner == nil {
		return nil, fmt.Errorf("%w: the KV to write to is nil: use the client's", ErrConfig)
	}
	s := &Stage{cfg: cfg, rules: newRules(cfg.Rules), lanes: make(map[laneKey]*lane)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.inner = history.Over(inner, s.restarted)
	s.session = session.New(cfg.Lease, cfg.SessionTTL, ErrClosed)
	s.sequence = sequence{inner: s.inner, session: s.session, prefix: cfg.SequencePrefix}
	l := limits{maxOps: cfg.MaxOps, entryBytes: cfg.MaxEntryBytes, txnOps: defaultMaxTxnOps}
	s.queue = newQueue(l, sequenceBytes(cfg.SequencePrefix), newMemory(cfg.RememberBytes))
	return s, nil
}

// defaultMaxTxnOps is the server's --max-txn-ops where it is not set.
const defaultMaxTxnOps = 128

// restarted is told that the cluster is no longer the one that it was.
func (s *Stage) restarted() {
	s.mu.Lock()
	defer s.unlock()
	s.queue.memory.clear()
}

// unlock unlocks mu, and then wakes those whose units have ended: they are about to take
// it, and would wait.
func (s *Stage) unlock() {
	ended := s.ended
	s.ended = nil
	s.mu.Unlock()
	for _, u := range ended {
		close(u.done)
	}
}

// Put implements pb.KVClient. A put whose rule says so waits for others, and is
// answered when the batch that it is in has been; other puts are sent when what waits
// for their key has been written. Where ctx ends first the put may have been applied, or
// still be: where nobody else waits for its batch, that is not sent.
func (s *Stage) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	rule := s.rules.of(r.Key)
	if err := cmp.Or(rule.refuses(r), s.fenced(ctx)); err != nil {
		return nil, err
	}
	if rule.Mode != Off && refused(r) == nil {
		u, err := s.submit(ctx, newPut(ctx, s.rules, kept(r)))
		if err != nil {
			return nil, err
		}
		if u != nil {
			s.stats.puts.Add(1)
			return u.answerPut(), nil
		}
	} else if err := s.barrier(ctx, false, keys.Range{Key: r.Key}); err != nil {
		return nil, err
	}
	if c := fenceOf(ctx); c != nil {
		return putUnder(ctx, s.inner, c, r)
	}
	return s.inner.Put(ctx, r)
}

// submit has a unit written, and waits for it. It returns the one that answers for it,
// or nil where it is to be sent on its own, at once.
func (s *Stage) submit(ctx context.Context, u *unit) (*unit, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	u.callers = 1
	s.mu.Lock()
	switch {
	case s.closed && u.put != nil && u.rules[0].Mode == Max && !depends(u.put):
		s.unlock()
		return nil, ErrClosed
	case s.closed:
		s.unlock()
		return nil, s.barrier(ctx, false, u.ranges()...)
	case s.queue.crowded(u):
		s.unlock()
		return nil, nil
	}
	u, own := s.enqueue(u)
	s.unlock()
	if own != nil { // nobody else waits
		s.flyAlone(own)
	}
	select {
	case <-u.done:
	case <-ctx.Done():
		s.desert(u)
		return nil, ctx.Err()
	}
	return u, u.err
}

// enqueue adds a unit to the queue, under mu. It returns the one that answers for it, and
// a flight that is for the caller to send, nil where there is none.
func (s *Stage) enqueue(u *unit) (*unit, *flight) {
	key := laneKey{u.rules[0], u.async > 0, u.sequenced}
	l := s.lanes[key]
	if l == nil {
		wait := key.rule.Linger
		if key.async {
			wait = key.rule.FlushEvery
		}
		l = s.queue.newLane(wait, key.sequenced)
		s.lanes[key] = l
	}
	answers := s.queue.add(u, l, time.Now())
	if answers != u {
		s.stats.merged.Add(1)
		s.recharge(answers)
	}
	return answers, s.launch(u)
}

// desert is told that a caller does not wait for u any more. A unit that nobody waits
// for is not sent, and a batch of which that is true of all is not waited for.
func (s *Stage) desert(u *unit) {
	s.mu.Lock()
	defer s.unlock()
	if u.state == ended {
		return
	}
	u.callers--
	u.left = true
	for u.state == absorbed {
		u = u.into
		u.left = true
	}
	if !u.deserted() {
		return
	}
	switch u.state {
	case waiting:
		s.end(u, context.Canceled)
	case sealed:
		if b := u.flight; b.stop != nil && !b.wanted() { // nil where it is the caller's own
			b.stop()
		}
	}
}

// DeleteRange implements pb.KVClient. It is sent when what waits in its range has been
// written.
func (s *Stage) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	if err := s.fenced(ctx); err != nil {
		return nil, err
	}
	if err := s.barrier(ctx, false, keys.Range{Key: r.Key, End: r.RangeEnd}); err != nil {
		return nil, err
	}
	if c := fenceOf(ctx); c != nil {
		return deleteUnder(ctx, s.inner, c, r)
	}
	return s.inner.DeleteRange(ctx, r)
}

// Txn implements pb.KVClient. A transaction that may joins a batch; others are sent when
// what waits for their keys has been written.
func (s *Stage) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	if wire.Writes(r) {
		if err := s.fenced(ctx); err != nil {
			return nil, err
		}
	}
	if s.joins(ctx, r) {
		u, err := s.submit(ctx, newUnit(ctx, s.rules, keptAll(r.Success)))
		if err != nil {
			return nil, err
		}
		if u != nil {
			s.stats.txns.Add(1)
			return u.answerTxn(), nil
		}
	} else if err := s.barrier(ctx, !wire.Writes(r), touched(nil, r)...); err != nil {
		return nil, err
	}
	if c := fenceOf(ctx); c != nil && wire.Writes(r) {
		return txnUnder(ctx, s.inner, c, r)
	}
	return s.inner.Txn(ctx, r)
}

// Range implements pb.KVClient. It is sent when what waits in its range has been
// written, unless the rule allows stale reads. A read of the past waits for nothing.
func (s *Stage) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	if r.Revision == 0 {
		if err := s.barrier(ctx, true, keys.Range{Key: r.Key, End: r.RangeEnd}); err != nil {
			return nil, err
		}
	}
	return s.inner.Range(ctx, r)
}

// RangeStream implements pb.KVClient, as Range.
func (s *Stage) RangeStream(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	if r.Revision == 0 {
		if err := s.barrier(ctx, true, keys.Range{Key: r.Key, End: r.RangeEnd}); err != nil {
			return nil, err
		}
	}
	return s.inner.RangeStream(ctx, r)
}

// Compact implements pb.KVClient.
func (s *Stage) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return s.inner.Compact(ctx, r)
}
