package coalesce

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/keys"
	"github.com/kvwrap/kvwrap/internal/wait"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// patience is how long a batch counts as one of those that are under way. One that has no
// answer by then, because the member that it went to hangs, does not hold up the others.
const patience = 250 * time.Millisecond

// launch sends, under mu, what is due and may be sent now. Of batches under the sequence
// one is under way at a time, of others up to InFlight.
//
// Where one of these is a unit alone, whose caller is the one that calls, it is returned
// and not sent: the caller can do that itself, which saves waking another goroutine.
func (s *Stage) launch(alone *unit) (own *flight) {
	if s.ctx.Err() != nil {
		return nil
	}
	now := time.Now()
	for kind, most := range [2]int{plain: s.cfg.InFlight, sequenced: 1} {
		for s.underWay(kind, now) < most {
			f := s.prepare(kind, now, alone)
			if f == nil {
				break
			}
			if f.own {
				own = f
				continue
			}
			s.flying.Go(func() { s.fly(f) })
		}
	}
	next, ok := s.queue.next(now)
	if at := s.slow(now); s.queue.waits(now) && !at.IsZero() && (!ok || at.Before(next)) {
		next, ok = at, true
	}
	if ok && !next.Equal(s.wake) {
		s.wake = next
		if s.timer != nil {
			s.timer.Stop()
		}
		s.timer = time.AfterFunc(next.Sub(now), func() {
			s.mu.Lock()
			defer s.unlock()
			s.launch(nil)
		})
	}
	return own
}

// underWay returns how many batches of a kind are under way that count.
func (s *Stage) underWay(kind int, now time.Time) (n int) {
	for _, f := range s.flights[kind] {
		if kind == sequenced || now.Sub(f.began) < patience {
			n++
		}
	}
	return n
}

// slow returns when the next batch ceases to count as under way, zero where none will.
func (s *Stage) slow(now time.Time) (at time.Time) {
	for _, f := range s.flights[plain] {
		if t := f.began.Add(patience); t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at
}

// flight is a batch under way.
type flight struct {
	*batch
	kind  int
	began time.Time
	ctx   context.Context // of its requests
	own   bool            // sent by the one caller that waits for it
}

// prepare seals, under mu, the next batch of a kind. Where that is alone and nothing else
// it is its caller's own.
func (s *Stage) prepare(kind int, now time.Time, alone *unit) *flight {
	b := s.queue.seal(now, kind == sequenced, kind == plain && s.underWay(kind, now) > 0)
	if b == nil {
		return nil
	}
	f := &flight{batch: b, kind: kind, began: now}
	s.flights[kind] = append(s.flights[kind], f)
	if kind == plain && b.first == alone && len(b.units()) == 1 {
		f.ctx, f.own = alone.ctx, true
		return f
	}
	// The requests are not those of a caller, who may leave, but carry what is in the
	// context of one. They end when nobody waits any more.
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.first.ctx))
	unlink := context.AfterFunc(s.ctx, cancel)
	f.ctx = ctx
	b.stop = func() {
		unlink()
		cancel()
	}
	return f
}

// The time between two attempts, doubled from one to the next.
const (
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 2 * time.Second
)

// fly sends a batch, and what is due then, until nothing is. Where an attempt fails
// after which there is another one it waits before that.
func (s *Stage) fly(f *flight) {
	for backoff := firstBackoff; f != nil; {
		switch answered := s.send(f); {
		case !answered:
			wait.For(s.ctx, wait.Jittered(backoff))
			backoff = min(2*backoff, lastBackoff)
		case len(f.write) > 0: // to look proves nothing
			backoff = firstBackoff
		}
		f.stop()
		s.mu.Lock()
		f = s.land(f)
		s.unlock()
	}
}

// flyAlone sends the flight that is the caller's own. What is due then is for another
// goroutine.
func (s *Stage) flyAlone(f *flight) {
	s.send(f)
	s.mu.Lock()
	defer s.unlock()
	if next := s.land(f); next != nil {
		s.flying.Go(func() { s.fly(next) })
	}
}

// land ends a flight, under mu, and returns the one that takes its place, nil where there
// is none.
func (s *Stage) land(f *flight) (next *flight) {
	s.flights[f.kind] = slices.DeleteFunc(s.flights[f.kind], func(o *flight) bool { return o == f })
	now, most := time.Now(), [2]int{plain: s.cfg.InFlight, sequenced: 1}
	if s.ctx.Err() == nil && s.underWay(f.kind, now) < most[f.kind] {
		next = s.prepare(f.kind, now, nil)
	}
	s.launch(nil)
	return next
}

// send takes the steps of a batch. Afterwards each of its units has ended, or waits
// again for its next step. It reports whether etcd has answered; where it has not, what
// waits again should not be sent at once.
func (s *Stage) send(f *flight) bool {
	if f.kind == sequenced {
		ctx, cancel := s.attempt(f)
		err := s.sequence.open(ctx)
		cancel()
		if err != nil {
			if wire.Is(err, rpctypes.ErrPermissionDenied) {
				err = &SequenceError{Prefix: s.cfg.SequencePrefix, Err: err}
			}
			return s.unsent(f, f.units(), err, 0)
		}
	}
	for _, step := range []func() bool{
		func() bool { return len(f.look) == 0 || s.look(f, f.look) },
		func() bool { return len(f.verify) == 0 || s.verify(f, f.verify) },
		func() bool { return len(f.write) == 0 || s.write(f, f.write) },
	} {
		if !step() {
			var left []*unit
			s.mu.Lock()
			for _, u := range f.units() {
				if u.state == sealed && u.flight == f.batch {
					left = append(left, u)
				}
			}
			s.requeue(left)
			s.unlock()
			return false
		}
	}
	return true
}

// attempt returns the context of one request of a batch. The next batch under the sequence
// has to wait for this one, so that none may take for ever.
func (s *Stage) attempt(f *flight) (context.Context, context.CancelFunc) {
	if f.kind == plain {
		return f.ctx, func() {}
	}
	return context.WithTimeout(f.ctx, s.cfg.RequestTimeout)
}

// txn makes a request of a batch.
func (s *Stage) txn(f *flight, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	ctx, cancel := s.attempt(f)
	defer cancel()
	return s.inner.Txn(ctx, r)
}

// look reads what is stored at the keys of the units whose plan is to look. What is
// read for units under conditions is read under these.
func (s *Stage) look(f *flight, units []*unit) bool {
	for rest := units; len(rest) > 0; {
		var together []*unit
		fence := rest[0].fence
		together, rest = partition(rest, func(u *unit) bool { return u.fence.equal(fence) })
		read := &pb.TxnRequest{Compare: fence.guards()}
		for _, u := range together {
			for i, op := range u.ops {
				read.Success = append(read.Success, wire.Range(&pb.RangeRequest{Key: opKey(op), KeysOnly: u.rules[i].Mode != Max}))
			}
		}
		resp, err := s.txn(f, read)
		switch {
		case err == nil:
		case blames(err) && len(together) > 1:
			if !s.halves(together, func(half []*unit) bool { return s.look(f, half) }) {
				return false
			}
			continue
		case !s.unsent(f, together, err, wire.Width(read)):
			return false
		default:
			continue
		}
		found := resp.Responses
		for _, u := range together {
			if !resp.Succeeded {
				s.finish(u, fence.failed(opKey(u.ops[0])))
				continue
			}
			now := make([]*mvccpb.KeyValue, len(u.ops))
			for i := range u.ops {
				if kvs := found[i].GetResponseRange().Kvs; len(kvs) > 0 {
					now[i] = kvs[0]
				}
			}
			found = found[len(u.ops):]
			then, err := s.lookBack(f, u, now)
			switch {
			case wire.Is(err, rpctypes.ErrCompacted), wire.Is(err, rpctypes.ErrFutureRev): // it is not known any more
				s.finish(u, u.doubt)
				continue
			case err != nil:
				if !s.unsent(f, []*unit{u}, err, 0) {
					return false
				}
				continue
			}
			s.mu.Lock()
			if err := u.learn(s.queue.memory, now, then); err != nil {
				s.end(u, err)
			} else {
				s.again(u)
			}
			s.unlock()
		}
	}
	return true
}

// lookBack reads the keys of u that are not there now as they were when its first attempt
// was made, where it matters whether somebody has deleted them since.
func (s *Stage) lookBack(f *flight, u *unit, now []*mvccpb.KeyValue) ([]*mvccpb.KeyValue, error) {
	then := make([]*mvccpb.KeyValue, len(u.ops))
	for i, op := range u.ops {
		if now[i] != nil || u.lost || !u.old(u.rules[i]) {
			continue
		}
		ctx, cancel := s.attempt(f)
		resp, err := s.inner.Range(ctx, &pb.RangeRequest{Key: opKey(op), Revision: u.since, KeysOnly: true})
		cancel()
		if err != nil {
			return nil, err
		}
		if len(resp.Kvs) > 0 {
			then[i] = resp.Kvs[0]
		}
	}
	return then, nil
}

// partition divides units into those that are chosen and others.
func partition(units []*unit, chosen func(*unit) bool) (yes, no []*unit) {
	for _, u := range units {
		if chosen(u) {
			yes = append(yes, u)
		} else {
			no = append(no, u)
		}
	}
	return yes, no
}

// finish ends a unit.
func (s *Stage) finish(u *unit, err error) {
	s.mu.Lock()
	defer s.unlock()
	s.end(u, err)
}

// maxAttempts bounds how often a unit is planned anew because its guards did not hold.
const maxAttempts = 100

// again has a unit wait for its next step, under mu.
func (s *Stage) again(u *unit) {
	if u.attempts++; u.attempts >= maxAttempts {
		s.end(u, &ContentionError{Key: opKey(u.ops[0]), Attempts: u.attempts})
		return
	}
	s.requeue([]*unit{u})
}

// verify makes sure that what the units of a batch would write is there.
func (s *Stage) verify(f *flight, units []*unit) bool {
	if s.outdated(f, units) {
		return true
	}
	t := &pb.TxnRequest{}
	if f.kind == sequenced {
		t.Compare, t.Failure = s.sequence.compare(), s.sequence.read()
	} else {
		// Without any range it would be serializable, and might be answered from the past.
		t.Failure = []*pb.RequestOp{wire.Range(&pb.RangeRequest{Key: opKey(units[0].ops[0]), KeysOnly: true})}
	}
	for _, u := range units {
		t.Compare = append(t.Compare, u.plan.guards...)
	}
	resp, err := s.txn(f, t)
	if blames(err) && len(units) > 1 {
		return s.halves(units, func(half []*unit) bool { return s.verify(f, half) })
	}
	if err != nil {
		return s.unsent(f, units, err, wire.Width(t))
	}
	s.mu.Lock()
	defer s.unlock()
	if !resp.Succeeded && f.kind == sequenced {
		s.check(resp.Responses[0].GetResponseRange())
	}
	for _, u := range units {
		if !resp.Succeeded {
			u.examine = true
			s.again(u)
			continue
		}
		s.stats.skipped.Add(uint64(len(u.ops)))
		s.written(u, resp.Header, nil)
	}
	return true
}

// outdated reports whether the sequence was lost since the units of a batch were planned.
// They wait again then: under another one, and by what is known then.
func (s *Stage) outdated(f *flight, units []*unit) bool {
	if f.kind == plain || s.sequence.key != nil {
		return false
	}
	s.mu.Lock()
	defer s.unlock()
	s.requeue(units)
	return true
}

// halves finds out which of several units etcd refuses a request for: it shows when it is
// alone. Ask is called with one half and then with the other one, until it returns false.
func (s *Stage) halves(units []*unit, ask func([]*unit) bool) bool {
	s.stats.splits.Add(1)
	half := len(units) / 2
	return ask(units[:half]) && ask(units[half:])
}

// check compares the sequence with what it was found to be. Where that is not what it
// should be, what is remembered cannot be proved any more.
func (s *Stage) check(found *pb.RangeResponse) {
	if len(found.Kvs) == 1 && found.Kvs[0].Version == s.sequence.version {
		return
	}
	if f, _ := s.sequence.look(found); f == lost {
		s.queue.memory.clear()
	}
}

// written ends u, under mu, where own are the responses to its plan.
func (s *Stage) written(u *unit, h *pb.ResponseHeader, own []*pb.ResponseOp) {
	u.header, u.resps = h, u.plan.responses(u, own, h.Revision)
	u.wrote(s.queue.memory, h.Revision)
	s.end(u, nil)
}

// write sends units in one transaction.
func (s *Stage) write(f *flight, units []*unit) bool {
	if s.outdated(f, units) {
		return true
	}
	var (
		sh    = shape{outer: f.kind == sequenced}
		items []*pb.RequestOp
		sent  = s.inner.Revision()
	)
	s.mu.Lock()
	units = s.wanted(units)
	for _, u := range units {
		sh = sh.plus(&u.plan)
		items = append(items, u.plan.request()...)
	}
	if len(units) == 0 {
		s.unlock()
		return true
	}
	size, _ := sh.groups(s.queue.limits.txnOps) // a unit that does not fit alone is for etcd to refuse
	s.unlock()
	s.stats.batches.Add(1)
	proposal := s.wrap(f, pack(items, size))
	resp, err := s.propose(f, proposal)
	switch {
	case err == nil && !resp.Succeeded: // the sequence was not what it should be
		s.mu.Lock()
		defer s.unlock()
		if s.sequence.heard(resp) == lost {
			s.queue.memory.clear()
		}
		for _, u := range units {
			s.again(u)
		}
		return true
	case err == nil:
		if f.kind == sequenced {
			s.sequence.heard(resp)
			resp.Responses = resp.Responses[:len(resp.Responses)-1]
		}
		s.mu.Lock()
		defer s.unlock()
		resps := unpack(resp.Responses, size)
		for _, u := range units {
			var own []*pb.ResponseOp
			var held bool
			if resps, own, held = u.plan.take(resps); held {
				s.stats.records.Add(uint64(len(own)))
				s.stats.skipped.Add(uint64(len(u.ops) - len(own)))
				s.written(u, resp.Header, own)
				continue
			}
			u.examine = true
			s.again(u)
		}
		return true
	case tooLarge(err) && len(units) > 1:
		s.mu.Lock()
		defer s.unlock()
		s.queue.limits.entryBytes = sh.bytes / 2
		for _, u := range units {
			s.again(u)
		}
		return true
	case blames(err) && len(units) > 1:
		// Nothing was applied because of one of them.
		return s.halves(units, func(half []*unit) bool { return s.write(f, half) })
	case unapplicable(err):
		return s.unsent(f, units, err, wire.Width(proposal))
	}
	return s.inDoubt(f, units, sent, err)
}

// wanted returns, under mu, the units that somebody waits for, and ends the others: a put
// whose caller has left before it was sent must not come after what that caller did next.
func (s *Stage) wanted(units []*unit) []*unit {
	wanted, deserted := partition(units, func(u *unit) bool { return !u.deserted() })
	for _, u := range deserted {
		s.end(u, context.Canceled)
	}
	return wanted
}

// wrap returns the transaction of a batch.
func (s *Stage) wrap(f *flight, ops []*pb.RequestOp) *pb.TxnRequest {
	if f.kind == sequenced {
		return s.sequence.wrap(ops)
	}
	return &pb.TxnRequest{Success: ops}
}

// propose sends a batch. A put on its own is sent as one.
func (s *Stage) propose(f *flight, t *pb.TxnRequest) (*pb.TxnResponse, error) {
	if p := t.Success[0].GetRequestPut(); p != nil && len(t.Success) == 1 {
		put, err := s.inner.Put(f.ctx, p)
		if err != nil {
			return nil, err
		}
		own := &pb.PutResponse{Header: &pb.ResponseHeader{Revision: put.Header.Revision}, PrevKv: put.PrevKv}
		resp := &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: own}}
		return &pb.TxnResponse{Header: put.Header, Succeeded: true, Responses: []*pb.ResponseOp{resp}}, nil
	}
	return s.txn(f, t)
}

// tooLarge reports whether a request was refused for its size: by the server's
// --max-request-bytes, or by gRPC's limit for messages, of which the client has one, too.
func tooLarge(err error) bool {
	return wire.Is(err, rpctypes.ErrRequestTooLarge) ||
		status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "message larger than max")
}

// blames reports whether etcd has refused a transaction because of one of its
// operations.
func blames(err error) bool {
	for _, e := range []error{rpctypes.ErrLeaseNotFound, rpctypes.ErrKeyNotFound, rpctypes.ErrPermissionDenied} {
		if wire.Is(err, e) {
			return true
		}
	}
	return false
}

// unapplicable reports whether what was answered with err was not applied and will not
// be. Of NOSPACE that is not known: it may follow a write that was.
func unapplicable(err error) bool {
	if errors.Is(err, wire.ErrUnknownRequest) || wire.Is(err, rpctypes.ErrTooManyRequests) || tooLarge(err) {
		return true
	}
	var e rpctypes.EtcdError
	if !errors.As(rpctypes.Error(err), &e) {
		return false
	}
	switch e.Code() {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.OutOfRange:
		return true
	}
	return false
}

// passes reports whether a request that was answered with err may succeed later.
func passes(err error) bool {
	for _, e := range []error{rpctypes.ErrTooManyRequests, rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision} {
		if wire.Is(err, e) {
			return true
		}
	}
	return !unapplicable(err)
}

// unsent is told that units were not written, and will not be by what was sent. They
// wait for another attempt where they may have one; it returns false where that should
// not be at once. Width is that of the request.
func (s *Stage) unsent(f *flight, units []*unit, err error, width int) bool {
	s.mu.Lock()
	defer s.unlock()
	switch l := &s.queue.limits; {
	case wire.Is(err, rpctypes.ErrTooManyOps) && minTxnOps < width && width <= l.txnOps: // else it is no news
		l.txnOps = max(width/2, minTxnOps)
		for _, u := range units {
			s.again(u)
		}
		return true
	case f.first.retry && passes(err) && f.ctx.Err() == nil:
		s.stats.retries.Add(1)
		for _, u := range units {
			u.fails(err)
			u.attempts = 0
		}
		s.requeue(units)
		return false
	}
	if s.ctx.Err() != nil {
		err = ErrClosed
	}
	for _, u := range units {
		s.end(u, err)
	}
	return true
}

// minTxnOps is what a guarded put takes under the sequence.
const minTxnOps = 4

// requeue has units wait again, under mu, for which somebody waits. Once the stage is
// closed nothing is sent any more.
func (s *Stage) requeue(units []*unit) {
	units = s.wanted(units)
	if s.ctx.Err() != nil {
		for _, u := range units {
			s.end(u, ErrClosed)
		}
		return
	}
	for _, u := range s.queue.requeue(units) { // newer values took their places
		s.transfer(u, u.into)
	}
}

// inDoubt is told that it is not known whether units were written, by a batch that was
// sent at a revision. Where they may be sent again it finds out.
func (s *Stage) inDoubt(f *flight, units []*unit, sent int64, err error) bool {
	s.mu.Lock()
	settles := f.first.retry && f.ctx.Err() == nil
	for _, u := range units {
		if settles {
			u.fails(err)
		} else {
			s.end(u, err)
		}
	}
	s.unlock()
	if !settles {
		return true
	}
	s.stats.retries.Add(1)
	var became fate
	var header *pb.ResponseHeader
	known := s.insist(f, units, func(ctx context.Context) (err error) {
		became, header, err = s.sequence.settle(ctx)
		return err
	})
	if known && became == applied {
		s.wasApplied(f, units, header, err)
		return true
	}
	s.mu.Lock()
	defer s.unlock()
	if !known {
		for _, u := range units {
			s.end(u, err)
		}
		return true
	}
	if became == lost {
		s.queue.memory.clear()
	}
	var again []*unit
	first := true // in doubt: the next attempt may be made at once, since etcd answers
	for _, u := range units {
		u.attempts = 0
		first = first && u.since == 0
		if u.since == 0 {
			u.since, u.doubt = sent, err
		}
		if became == lost {
			u.lost, u.unclear = true, err
		}
		u.pins = nil
		if u.ranged() || len(u.ops)+outerOps > s.queue.limits.txnOps { // what it depends on cannot be compared
			s.end(u, err)
			continue
		}
		again = append(again, u)
	}
	s.requeue(again)
	return first
}

// ranged reports whether u deletes a range.
func (u *unit) ranged() bool {
	return slices.ContainsFunc(u.ranges(), func(r keys.Range) bool { return !r.Single() })
}

// insist calls f until there is an answer, and reports whether there was one: not where
// nobody waits any more, the stage is closed, or etcd refuses it.
func (s *Stage) insist(f *flight, units []*unit, ask func(context.Context) error) bool {
	for backoff := firstBackoff; ; backoff = min(2*backoff, lastBackoff) {
		ctx, cancel := s.attempt(f)
		err := ask(ctx)
		cancel()
		if err == nil {
			return true
		}
		if !passes(err) || f.ctx.Err() != nil {
			return false
		}
		s.mu.Lock()
		for _, u := range units {
			u.fails(err)
		}
		s.unlock()
		if !wait.For(f.ctx, wait.Jittered(backoff)) {
			return false
		}
	}
}

// wasApplied ends the units of a batch that was applied, as its sequence says, at the
// revision of h, although there was no answer. What the answer would have been follows
// from what is stored at that revision; where it does not, or that cannot be read any
// more, the error of the attempt stays.
func (s *Stage) wasApplied(f *flight, units []*unit, h *pb.ResponseHeader, doubt error) {
	var evidence []*pb.RequestOp
	var guarded []*unit
	for _, u := range units {
		if len(u.plan.guards) > 0 {
			guarded = append(guarded, u)
			evidence = append(evidence, wire.Range(&pb.RangeRequest{Key: opKey(u.plan.ops[0]), Revision: h.Revision, KeysOnly: true}))
		}
	}
	written := make(map[*unit]bool)
	for batch := range slices.Chunk(evidence, minTxnOps) {
		var resp *pb.TxnResponse
		if !s.insist(f, guarded, func(ctx context.Context) (err error) {
			resp, err = s.inner.Txn(ctx, &pb.TxnRequest{Success: batch})
			return err
		}) {
			break
		}
		for _, r := range resp.Responses {
			kvs := r.GetResponseRange().Kvs
			written[guarded[len(written)]] = len(kvs) == 1 && kvs[0].ModRevision == h.Revision
		}
	}
	s.mu.Lock()
	defer s.unlock()
	for _, u := range units {
		is, known := written[u]
		switch {
		case u.tellsMore() || len(u.plan.guards) > 0 && !known:
			s.end(u, doubt)
		case len(u.plan.guards) > 0 && !is:
			u.examine = true
			s.again(u)
		default:
			own := make([]*pb.ResponseOp, len(u.plan.ops))
			for i := range own {
				own[i] = &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{
					ResponsePut: &pb.PutResponse{Header: &pb.ResponseHeader{Revision: h.Revision}},
				}}
			}
			s.written(u, h, own)
		}
	}
}

// tellsMore reports whether the answer to u is more than that it was written.
func (u *unit) tellsMore() bool {
	for _, op := range u.ops {
		if op.GetRequestDeleteRange() != nil || op.GetRequestPut().PrevKv {
			return true
		}
	}
	return false
}
