package coalesce

import (
	"context"

	"github.com/kvwrap/kvwrap/internal/keys"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// barrier has what waits in the ranges be sent, and waits until it is written: it comes
// before whatever does not wait itself. Reads go past what they may miss.
func (s *Stage) barrier(ctx context.Context, read bool, ranges ...keys.Range) error {
	if s.queue.units.Load() == 0 {
		return nil
	}
	var before []*unit
	var failures []<-chan struct{}
	s.mu.Lock()
	for _, r := range ranges {
		for u := range s.queue.within(r, s.queue.seq+1) {
			if !(read && u.mayBeMissed(r)) {
				s.queue.hurry(u)
				before, failures = append(before, u), append(failures, u.failure())
			}
		}
	}
	s.launch(nil)
	s.unlock()
	if len(before) > 0 {
		s.stats.barriers.Add(1)
	}
	for i, u := range before {
		select {
		case <-u.done:
		case <-failures[i]:
			s.mu.Lock()
			err := &BarrierError{Key: opKey(u.ops[0]), Err: u.reason}
			s.unlock()
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// mayBeMissed reports whether a read of r may go past u.
func (u *unit) mayBeMissed(r keys.Range) bool {
	for i, op := range u.ops {
		if !u.rules[i].StaleReads && opRange(op).Overlaps(r) {
			return false
		}
	}
	return true
}

// touched appends the ranges that r reads, compares or changes.
func touched(ranges []keys.Range, r *pb.TxnRequest) []keys.Range {
	for _, c := range r.Compare {
		ranges = append(ranges, keys.Range{Key: c.Key, End: c.RangeEnd})
	}
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			switch op := op.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				ranges = append(ranges, keys.Range{Key: op.RequestRange.Key, End: op.RequestRange.RangeEnd})
			case *pb.RequestOp_RequestPut:
				ranges = append(ranges, keys.Range{Key: op.RequestPut.Key})
			case *pb.RequestOp_RequestDeleteRange:
				ranges = append(ranges, keys.Range{Key: op.RequestDeleteRange.Key, End: op.RequestDeleteRange.RangeEnd})
			case *pb.RequestOp_RequestTxn:
				ranges = touched(ranges, op.RequestTxn)
			}
		}
	}
	return ranges
}

// fenced is the barrier before a write under conditions: these are about what was written
// before. It returns an error where nothing can be written under them.
func (s *Stage) fenced(ctx context.Context) error {
	c := fenceOf(ctx)
	if c == nil || c.wrong != nil {
		return c.valid()
	}
	var ranges []keys.Range
	for _, compare := range c.compares {
		ranges = append(ranges, keys.Range{Key: compare.Key, End: compare.RangeEnd})
	}
	return s.barrier(ctx, false, ranges...)
}
