package budget

import (
	"context"
	"time"
)

// Admit waits until there is budget for a write of key that takes several requests, of cost
// together, and returns a context for these: they do not wait again, and are not refused
// half way. Done is to be called when they have ended, and gives back what they have not
// taken. Errors are those of [Stage.Put]; nothing was sent then.
func (s *Stage) Admit(ctx context.Context, key []byte, cost Cost) (whole context.Context, done func(), err error) {
	if !s.paces || allowanceOf(ctx) != nil {
		return ctx, func() {}, nil
	}
	g, err := s.admit(ctx, s.rules.of(key), cost)
	if err != nil {
		return nil, nil, err
	}
	a := &allowance{grant: g, left: cost}
	return context.WithValue(ctx, allowanceKey{}, a), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		now := time.Now()
		s.limiter.giveBack(now, a.grant, a.left)
		a.left = Cost{}
		s.move(now)
	}, nil
}

// allowance is what is left of a budget for several requests. The stage's mutex guards it.
type allowance struct {
	grant grant
	left  Cost
}

type allowanceKey struct{}

func allowanceOf(ctx context.Context) *allowance {
	a, _ := ctx.Value(allowanceKey{}).(*allowance)
	return a
}

// draw takes cost for one of the requests. What is more than is left, since one of them was
// made again, is owed by the pool.
func (a *allowance) draw(now time.Time, l *limiter, cost Cost) grant {
	covered := cost.least(a.left)
	a.left = a.left.minus(covered)
	l.whole.take(now, cost.minus(covered))
	return grant{flow: a.grant.flow, cost: cost, at: now}
}
