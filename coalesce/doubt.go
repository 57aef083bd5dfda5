package coalesce

import (
	"context"
	"slices"

	"github.com/kvwrap/kvwrap/internal/keys"
	"github.com/kvwrap/kvwrap/internal/wait"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// unsent is told that units were not written, and will not be by what was sent. They
// wait for another attempt where they may have one; it returns false where that should
// not be at once. Width is that of the request.
func (s *Stage) unsent(f *flight, units []*unit, err error, width int) bool {
	s.mu.Lock()
	defer s.unlock()
	switch l := &s.queue.limits; {
	case wire.Is(err, rpctypes.ErrTooManyOps) && minTxnOps < width && (width <= l.txnOps || slices.ContainsFunc(units, l.lowered)):
		l.txnOps = min(l.txnOps, max(width/2, minTxnOps))
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

// lowered reports whether u was planned when the server was thought to accept more
// operations: what was refused then says nothing of what it is now.
func (l *limits) lowered(u *unit) bool { return u.plan.most > l.txnOps }

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

// wanted returns, under mu, the units that somebody waits for, and ends the others: a put
// whose caller has left before it was sent must not come after what that caller did next.
func (s *Stage) wanted(units []*unit) []*unit {
	wanted, deserted := partition(units, func(u *unit) bool { return !u.deserted() })
	for _, u := range deserted {
		s.end(u, context.Canceled)
	}
	return wanted
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
	known := s.insist(f, s.sequence.settling(), units, func(ctx context.Context) (err error) {
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

// insist asks r, by ask, until there is an answer, and reports whether there was one: not where
// nobody waits any more, the stage is closed, or etcd refuses it.
func (s *Stage) insist(f *flight, r *pb.TxnRequest, units []*unit, ask func(context.Context) error) bool {
	for backoff := firstBackoff; ; backoff = min(2*backoff, lastBackoff) {
		admitted, done, err := s.admit(f, r)
		if err == nil {
			ctx, cancel := s.attempt(f, admitted)
			err = ask(ctx)
			cancel()
			done()
		}
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
		read := &pb.TxnRequest{Success: batch}
		if !s.insist(f, read, guarded, func(ctx context.Context) (err error) {
			resp, err = s.inner.Txn(ctx, read)
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
