package coalesce

import (
	"context"
	"slices"
	"time"

	"github.com/kvwrap/kvwrap/internal/wait"
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
	for kind := range s.flights {
		for s.mayLaunch(kind, now) {
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

// mayLaunch reports whether another batch of a kind may be under way.
func (s *Stage) mayLaunch(kind int, now time.Time) bool {
	return s.underWay(kind, now) < [...]int{plain: s.cfg.InFlight, sequenced: 1}[kind]
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
	if now := time.Now(); s.ctx.Err() == nil && s.mayLaunch(f.kind, now) {
		next = s.prepare(f.kind, now, nil)
	}
	s.launch(nil)
	return next
}
