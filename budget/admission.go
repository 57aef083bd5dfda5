package budget

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Admit waits until there is budget for a write of key that takes several requests, of cost
// together, and returns a context for these: they do not wait again, and are not refused
// half way. Done is to be called when they have ended, and gives back what they have not
// taken. Errors are those of [Stage.Put]; nothing was sent then.
func (s *Stage) Admit(ctx context.Context, key []byte, cost Cost) (whole context.Context, done func(), err error) {
	return s.admitWhole(ctx, s.ruleOf(key), cost)
}

// AdmitTxn is Admit for one transaction, whose context may then have a deadline for etcd's
// answer that is not also one for the wait.
func (s *Stage) AdmitTxn(ctx context.Context, r *pb.TxnRequest) (admitted context.Context, done func(), err error) {
	cost := costTxn(r)
	if cost == (Cost{}) {
		return ctx, func() {}, nil
	}
	return s.admitWhole(ctx, s.ruleOfAll(r), cost)
}

func (s *Stage) admitWhole(ctx context.Context, p pace, cost Cost) (whole context.Context, done func(), err error) {
	if !s.paces {
		return ctx, func() {}, nil
	}
	s.mu.Lock()
	within := s.allowanceOf(ctx) != nil
	s.mu.Unlock()
	if within {
		return ctx, func() {}, nil
	}
	g, err := s.admit(ctx, p, cost)
	if err != nil {
		return nil, nil, err
	}
	a := &allowance{grant: g, left: cost}
	return context.WithValue(ctx, allowanceKey{s}, a), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		now := time.Now()
		s.limiter.giveBack(now, a.grant, a.left)
		s.gate.stays(a.left)
		a.left, a.ended = Cost{}, true
		s.move(now)
	}, nil
}

// allowance is what is left of a budget for several requests. The stage's mutex guards it.
type allowance struct {
	grant grant
	left  Cost
	ended bool
}

// allowanceKey is of one stage: there may be others below it.
type allowanceKey struct{ *Stage }

// allowanceOf returns, under mu, what ctx has of the stage's budget, nil where it has none.
func (s *Stage) allowanceOf(ctx context.Context) *allowance {
	a, _ := ctx.Value(allowanceKey{s}).(*allowance)
	if a == nil || a.ended {
		return nil
	}
	return a
}

// draw takes cost for one of the requests. What is more than is left, since one of them was
// made again, is owed by the pool.
func (a *allowance) draw(now time.Time, l *limiter, g *gate, cost Cost) grant {
	covered := cost.least(a.left)
	a.left = a.left.minus(covered)
	more := cost.minus(covered)
	l.whole.take(now, more)
	g.goes(now, more)
	return grant{flow: a.grant.flow, cost: cost, at: now, assured: a.grant.assured && more == Cost{}, within: true}
}
