package coalesce

import (
	"context"
	"log/slog"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// send takes the steps of a batch. Afterwards each of its units has ended, or waits
// again for its next step. It reports whether etcd has answered; where it has not, what
// waits again should not be sent at once.
func (s *Stage) send(f *flight) bool {
	if n := len(f.units()); s.cfg.Span != nil && n > 1 {
		outer := f.ctx
		ctx, end := s.cfg.Span(outer, "kvwrap batch", slog.Int("writes", n), slog.Bool("sequenced", f.kind == sequenced))
		f.ctx = ctx
		defer func() {
			f.ctx = outer
			end(nil)
		}()
	}
	if f.kind == sequenced {
		if err := s.open(f); err != nil {
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

// open makes a key of the process where there is none.
func (s *Stage) open(f *flight) error {
	if s.sequence.key != nil {
		return nil
	}
	admitted, done, err := s.admit(f, &pb.TxnRequest{Success: []*pb.RequestOp{s.sequence.put(settled)}})
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := s.attempt(f, admitted)
	defer cancel()
	return s.sequence.open(ctx)
}

// attempt returns the context of one request of a batch, of base. The next batch under the
// sequence has to wait for this one, so that none may take for ever.
func (s *Stage) attempt(f *flight, base context.Context) (context.Context, context.CancelFunc) {
	if f.kind == plain {
		return base, func() {}
	}
	return context.WithTimeout(base, s.cfg.RequestTimeout)
}

// admit waits until a request of a batch may go, if it is paced.
func (s *Stage) admit(f *flight, r *pb.TxnRequest) (admitted context.Context, done func(), err error) {
	if s.cfg.Admit == nil || f.kind == plain || !wire.Writes(r) {
		return f.ctx, func() {}, nil
	}
	return s.cfg.Admit(f.ctx, r)
}

// txn makes a request of a batch.
func (s *Stage) txn(f *flight, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	admitted, done, err := s.admit(f, r)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := s.attempt(f, admitted)
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
		if now[i] != nil || u.lost || !u.old(i) {
			continue
		}
		ctx, cancel := s.attempt(f, f.ctx)
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
		if len(s.sequence.unheard) > 0 { // what was sent and given up is not to come after this
			t.Success = []*pb.RequestOp{s.sequence.put(settled)}
		}
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
	switch {
	case resp.Succeeded && len(t.Success) > 0:
		s.sequence.moved(s.sequence.version + 1)
	case !resp.Succeeded && f.kind == sequenced:
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
	case tooLarge(err, proposal) && len(units) == 1:
		s.finish(units[0], err)
		return true
	case tooLarge(err, proposal):
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
