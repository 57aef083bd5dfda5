package budget

import (
	"cmp"
	"container/list"
	"slices"
	"time"
)

// limiter decides which write may go when. It is pure: time is told to it, and it is
// told when to look again. Its user guards it.
//
// Goals: what goes in a second is at most what the rates say, and all of that while
// there is demand; each class has its share of it for certain, and of what others leave
// a part by weight; a write of a class that is within its share does not wait for those
// of other classes at all.
//
// There is one pool of tokens for all, which fills at the rates, and one for each class,
// which fills at its share of them. A write goes when
//
//   - its class's pool has the tokens: they are taken from there, and from the pool of
//     all, which may owe them; others wait the longer; or else when
//   - the pool of all has them: what other classes have left is lent, to the class that
//     has had the least for its weight.
//
// The shares sum to the whole, so that what all classes take for certain never exceeds
// what comes, and the debt never what their pools hold. A simpler design, one pool and a
// queue by weights, has a critical write wait for the next token, which at 500 revisions
// a second is several times what etcd takes for it.
//
// Within a class, the writes under each rule are a flow, and flows take turns by what
// they have had; within a flow, who came first is first. Nothing is taken while a write
// waits, so one that leaves has nothing to give back, and a change of the rates is for all
// who wait.
//
// What a write has had is counted in seconds of the rates, by what is scarcer: revisions
// or bytes.
type limiter struct {
	rates   Rates
	burst   time.Duration
	whole   pool
	classes [numClasses]classQueue
	lent    float64 // the service of the class that went last
	most    int     // writes that may wait, of each class

	refuses func(time.Time, Cost) error // asked again when a write that waited is to go
}

// classQueue is what waits of a class.
type classQueue struct {
	share   float64
	assured pool
	flows   []*flow // those that wait
	waiting int
	turn    float64 // the service of the flow that went last
	had     float64 // seconds, over the share
	took    meter
	stats   ClassStats // but for Waiting
}

// flow is what waits under a rule.
type flow struct {
	class *classQueue
	queue list.List // of waiters
	costs Cost      // of those
	had   float64   // seconds
}

// grant is what was taken for a write.
type grant struct {
	flow    *flow
	cost    Cost
	at      time.Time
	seen    int64 // the newest revision that was known then
	assured bool  // from the pool of its class, too
	within  bool  // of an allowance
}

// waiter is a write that waits.
type waiter struct {
	grant
	at      *list.Element // nil when it waits no more
	goes    chan struct{} // closed when it may go, or is refused
	refused error
}

func newLimiter(now time.Time, rates Rates, burst time.Duration, weights [numClasses]float64, most int) *limiter {
	l := &limiter{burst: burst, most: most, refuses: func(time.Time, Cost) error { return nil }}
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	begin := func(p *pool, full bool) { p.revisions.full, p.bytes.full = full, full }
	begin(&l.whole, true)
	for i := range l.classes {
		l.classes[i].share = weights[i] / sum
		begin(&l.classes[i].assured, true)
	}
	l.set(now, rates)
	begin(&l.whole, false) // where limits come later
	for i := range l.classes {
		begin(&l.classes[i].assured, false)
	}
	return l
}

// set changes the rates, from now on.
func (l *limiter) set(now time.Time, rates Rates) {
	l.rates = rates
	l.whole.set(now, rates, l.burst)
	for i := range l.classes {
		c := &l.classes[i]
		c.assured.set(now, rates.times(c.share), l.burst)
	}
}

// pass takes cost for a write of f, if it may go at once.
func (l *limiter) pass(now time.Time, f *flow, cost Cost) (g grant, ok bool) {
	g = grant{flow: f, cost: cost}
	switch {
	case l.rates.seconds(cost) == 0: // of what there is no limit for
	case f.class.waiting == 0 && f.class.assured.wait(now, cost) == 0:
		g.assured = true
	case l.waiting() || l.whole.wait(now, cost) > 0:
		return g, false
	}
	g.at = now
	l.take(now, g)
	return g, true
}

// waiting reports whether any write waits.
func (l *limiter) waiting() bool {
	return slices.ContainsFunc(l.classes[:], func(c classQueue) bool { return c.waiting > 0 })
}

// expect returns how long a write of a flow would wait if no other write came under its
// rule, the classes that wait now were waiting all the time, and the others went on as in
// the last second.
func (l *limiter) expect(now time.Time, f *flow, cost Cost) time.Duration {
	before := f.costs
	for _, other := range f.class.flows {
		if other != f {
			before = before.plus(other.costs.least(f.costs.plus(cost)))
		}
	}
	part, waiting := 1.0, f.class.share // of the rates for those who wait, and their shares
	for i := range l.classes {
		switch c := &l.classes[i]; {
		case c == f.class:
		case c.waiting > 0:
			waiting += c.share
		default:
			part -= l.rates.seconds(c.took.cost(now))
		}
	}
	part = max(part*f.class.share/waiting, f.class.share)
	wait := l.whole.expect(now, before, cost, 1/part)
	if f.class.waiting == 0 {
		wait = min(wait, f.class.assured.wait(now, cost))
	}
	return wait
}

// opens returns how long it takes until the next write of a class goes.
func (l *limiter) opens(now time.Time, f *flow) time.Duration {
	if f.class.waiting == 0 {
		return 0
	}
	first := f.class.next().cost
	return min(l.whole.expect(now, Cost{}, first, 1/f.class.share), f.class.assured.wait(now, first))
}

// full reports whether as many writes of a class wait as may.
func (l *limiter) full(f *flow) bool { return f.class.waiting >= l.most }

// enter has a write wait.
func (l *limiter) enter(f *flow, cost Cost) *waiter {
	c := f.class
	if c.waiting == 0 {
		c.had = max(c.had, l.lent) // what it has not taken is not saved up
	}
	if f.queue.Len() == 0 {
		f.had = max(f.had, c.turn)
		c.flows = append(c.flows, f)
	}
	w := &waiter{grant: grant{flow: f, cost: cost}, goes: make(chan struct{})}
	w.at = f.queue.PushBack(w)
	f.costs = f.costs.plus(cost)
	c.waiting++
	return w
}

// leave has a write wait no longer. It reports whether it was still waiting.
func (l *limiter) leave(w *waiter) bool {
	if w.at == nil {
		return false
	}
	f := w.flow
	f.queue.Remove(w.at)
	w.at = nil
	f.costs = f.costs.minus(w.cost)
	f.class.waiting--
	if f.queue.Len() == 0 {
		f.class.flows = slices.DeleteFunc(f.class.flows, func(other *flow) bool { return other == f })
	}
	return true
}

// serve lets go who may, and returns when to look again, 0 where nobody waits.
func (l *limiter) serve(now time.Time) (again time.Duration) {
	for {
		var borrower *classQueue
		again, served := time.Duration(0), false
		for i := range l.classes {
			c := &l.classes[i]
			if c.waiting == 0 {
				continue
			}
			first := c.next()
			wait := c.assured.wait(now, first.cost)
			if wait == 0 {
				l.release(now, first, true)
				served = true
				continue
			}
			if again == 0 || wait < again {
				again = wait
			}
			if borrower == nil || c.had < borrower.had {
				borrower = c
			}
		}
		switch {
		case served:
			continue
		case borrower == nil:
			return 0
		}
		first := borrower.next()
		if wait := l.whole.wait(now, first.cost); wait > 0 {
			return min(again, wait)
		}
		l.release(now, first, false)
	}
}

// next returns the first write of the flow whose turn it is.
func (c *classQueue) next() *waiter {
	f := slices.MinFunc(c.flows, func(a, b *flow) int { return cmp.Compare(a.had, b.had) })
	return f.queue.Front().Value.(*waiter)
}

// release lets a write go that waits.
func (l *limiter) release(now time.Time, w *waiter, assured bool) {
	l.leave(w)
	switch w.refused = l.refuses(now, w.cost); w.refused {
	default:
		w.flow.class.stats.Refused++
	case errLook:
	case nil:
		w.assured, w.grant.at = assured, now
		l.take(now, w.grant)
	}
	close(w.goes)
}

// take takes the tokens of g.
func (l *limiter) take(now time.Time, g grant) {
	c := g.flow.class
	c.took.add(now, g.cost)
	l.whole.take(now, g.cost)
	if g.assured {
		c.assured.take(now, g.cost)
	}
	// What was not taken while nobody waited is not saved up: who goes without waiting is
	// where the others are.
	if c.waiting == 0 {
		c.had = max(c.had, l.lent)
	}
	l.lent = max(l.lent, c.had)
	if g.flow.queue.Len() == 0 {
		g.flow.had = max(g.flow.had, c.turn)
	}
	seconds := l.rates.seconds(g.cost)
	c.turn = max(c.turn, g.flow.had)
	g.flow.had += seconds
	c.had += seconds / c.share
}

// refuse refuses the writes that wait and for whose cost why has an error.
func (l *limiter) refuse(why func(Cost) error) {
	for i := range l.classes {
		for _, f := range slices.Clone(l.classes[i].flows) {
			for e := f.queue.Front(); e != nil; {
				w := e.Value.(*waiter)
				e = e.Next()
				if w.refused = why(w.cost); w.refused != nil {
					l.leave(w)
					w.flow.class.stats.Refused++
					close(w.goes)
				}
			}
		}
	}
}

// giveBack returns what was taken for g and not used.
func (l *limiter) giveBack(now time.Time, g grant, unused Cost) {
	unused = Cost{Revisions: -unused.Revisions, Bytes: -unused.Bytes}
	l.whole.take(now, unused)
	if g.assured {
		g.flow.class.assured.take(now, unused)
	}
}
