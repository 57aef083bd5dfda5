package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var t0 = time.Unix(1_000_000, 0)

var testWeights = [numClasses]float64{Normal: 4, Critical: 4, Elastic: 2}

func at(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }

// a limiter of 100 revisions a second holds 10, and of them 4, 4 and 2 for the classes.
func newTestLimiter(rates Rates) *limiter {
	return newLimiter(t0, rates, 100*time.Millisecond, testWeights, 1000)
}

func (l *limiter) flow(c Class) *flow { return &flow{class: &l.classes[c]} }

// passes counts how many of n writes of a cost go at once.
func (l *limiter) passes(now time.Time, f *flow, n int, c Cost) (passed int) {
	for range n {
		if _, ok := l.pass(now, f, c); ok {
			passed++
		}
	}
	return passed
}

var one = Cost{Revisions: 1}

func TestABurstAndThenTheRate(t *testing.T) {
	l := newTestLimiter(Rates{Revisions: 100})
	f := l.flow(Normal)
	require.Equal(t, 10, l.passes(t0, f, 100, one))
	require.Zero(t, l.passes(at(9), f, 1, one))
	total := 0
	for ms := 10; ms <= 1000; ms += 10 {
		total += l.passes(at(ms), f, 100, one)
	}
	require.InDelta(t, 100, total, 5)
}

func TestNoLimits(t *testing.T) {
	l := newTestLimiter(Rates{})
	require.Equal(t, 1000, l.passes(t0, l.flow(Elastic), 1000, Cost{Revisions: 1, Bytes: 1 << 30}))
	require.Zero(t, l.expect(t0, l.flow(Normal), Cost{Revisions: 1, Bytes: 1 << 30}))
}

// TestWhatIsScarcer is what counts.
func TestWhatIsScarcer(t *testing.T) {
	l := newTestLimiter(Rates{Revisions: 1e6, Bytes: 10_000})
	f := l.flow(Normal)
	c := Cost{Revisions: 1, Bytes: 500}
	require.Equal(t, 2, l.passes(t0, f, 10, c), "1000 bytes")
	require.Zero(t, l.passes(at(30), f, 1, c))
	require.Equal(t, 1, l.passes(at(50), f, 10, c))
}

// TestALargeWrite takes more than the pool ever holds: it goes when that is full, and what
// comes after it waits.
func TestALargeWrite(t *testing.T) {
	l := newTestLimiter(Rates{Bytes: 10_000})
	f := l.flow(Normal)
	_, ok := l.pass(t0, f, Cost{Revisions: 1, Bytes: 50_000})
	require.True(t, ok)
	require.Equal(t, 4900*time.Millisecond, l.expect(t0, f, Cost{Revisions: 1, Bytes: 1}).Round(100*time.Millisecond))
	w := l.enter(f, Cost{Revisions: 1, Bytes: 1})
	now := t0
	for again := l.serve(now); again > 0; again = l.serve(now) {
		now = now.Add(again)
	}
	require.InDelta(t, 4.9, now.Sub(t0).Seconds(), 0.1)
	require.Nil(t, w.at)
}

// TestACriticalWriteDoesNotWait for others, as long as its class is within its share.
func TestACriticalWriteDoesNotWait(t *testing.T) {
	l := newTestLimiter(Rates{Revisions: 100})
	crowd, critical := l.flow(Elastic), l.flow(Critical)
	l.passes(t0, crowd, 100, one)
	for range 500 {
		l.enter(crowd, one)
	}
	l.serve(t0)
	for ms := 0; ms < 2000; ms += 50 { // 20 a second, of 40 that are its share
		require.Equal(t, 1, l.passes(at(ms), critical, 1, one), "%d ms", ms)
		l.serve(at(ms))
	}
	require.Less(t, l.passes(at(2000), critical, 100, one), 10, "but no more than that")
}

// TestClassesShareByWeight where all of them want more.
func TestClassesShareByWeight(t *testing.T) {
	l := newTestLimiter(Rates{Revisions: 100})
	var flows [numClasses]*flow
	for c := range flows {
		flows[c] = l.flow(Class(c))
		for range 900 {
			l.enter(flows[c], one)
		}
	}
	for ms := 0; ms <= 5000; ms++ {
		l.serve(at(ms))
	}
	for c, f := range flows {
		require.InDelta(t, 50*testWeights[c], 900-f.queue.Len(), 15, "%v", Class(c))
	}
	// What one does not use is lent to the others, by weight.
	for w := flows[Critical].queue.Front(); w != nil; w = flows[Critical].queue.Front() {
		l.leave(w.Value.(*waiter))
	}
	before := [numClasses]int{Normal: flows[Normal].queue.Len(), Elastic: flows[Elastic].queue.Len()}
	for ms := 5001; ms <= 8000; ms++ {
		l.serve(at(ms))
	}
	require.InDelta(t, 200, before[Normal]-flows[Normal].queue.Len(), 20)
	require.InDelta(t, 100, before[Elastic]-flows[Elastic].queue.Len(), 20)
}

// TestRulesTakeTurns: one prefix that floods its class leaves the others theirs.
func TestRulesTakeTurns(t *testing.T) {
	l := newTestLimiter(Rates{Revisions: 100})
	flood, few := l.flow(Normal), l.flow(Normal)
	for range 900 {
		l.enter(flood, one)
	}
	l.serve(t0)
	var waiters []*waiter
	for range 20 {
		waiters = append(waiters, l.enter(few, one))
	}
	for ms := 0; ms <= 500; ms++ {
		l.serve(at(ms))
	}
	for i, w := range waiters {
		require.Nil(t, w.at, "number %d of 20", i)
	}
}

// TestExpect says for how long a write waits, and it does.
func TestExpect(t *testing.T) {
	for _, crowd := range []int{0, 50, 200} {
		l := newTestLimiter(Rates{Revisions: 100})
		f, other := l.flow(Normal), l.flow(Elastic)
		l.passes(t0, other, 100, one)
		l.passes(t0, f, 100, one)
		for range crowd {
			l.enter(f, one)
			l.enter(other, one)
		}
		expected := l.expect(t0, f, one)
		w := l.enter(f, one)
		now := t0
		for again := l.serve(now); w.at != nil; again = l.serve(now) {
			now = now.Add(again)
		}
		require.InDelta(t, expected.Seconds(), now.Sub(t0).Seconds(), 0.15+0.1*expected.Seconds(), "%d before it", crowd)
	}
}

// TestRatesChange for those who wait already.
func TestRatesChange(t *testing.T) {
	l := newTestLimiter(Rates{Revisions: 1})
	f := l.flow(Normal)
	l.passes(t0, f, 100, one)
	var last *waiter
	for range 100 {
		last = l.enter(f, one)
	}
	l.serve(t0)
	l.set(at(1), Rates{Revisions: 10_000})
	l.serve(at(20))
	require.Nil(t, last.at)
}

// TestNeverMoreThanTheRates holds whatever comes, of whichever class and size, leaves, is
// given back or has the rates changed: in any time, what went is at most the rates over it,
// twice the burst, and one write of each class.
func TestNeverMoreThanTheRates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(1, 1000).Draw(t, "rate")
		l := newTestLimiter(Rates{Revisions: rate})
		flows := []*flow{l.flow(Normal), l.flow(Normal), l.flow(Critical), l.flow(Elastic)}
		type went struct {
			at   time.Time
			cost int
		}
		var all []went
		var waiting []*waiter
		now := t0
		largest := 0
		serve := func() {
			l.serve(now)
			kept := waiting[:0]
			for _, w := range waiting {
				if w.at == nil {
					all = append(all, went{now, w.cost.Revisions})
				} else {
					kept = append(kept, w)
				}
			}
			waiting = kept
		}
		t.Repeat(map[string]func(*rapid.T){
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 200).Draw(t, "ms")) * time.Millisecond)
				serve()
			},
			"write": func(t *rapid.T) {
				f := flows[rapid.IntRange(0, 3).Draw(t, "flow")]
				c := Cost{Revisions: rapid.SampledFrom([]int{1, 1, 1, 2, 50}).Draw(t, "cost")}
				largest = max(largest, c.Revisions)
				if _, ok := l.pass(now, f, c); ok {
					all = append(all, went{now, c.Revisions})
					return
				}
				waiting = append(waiting, l.enter(f, c))
				serve()
			},
			"leave": func(t *rapid.T) {
				if len(waiting) > 0 {
					i := rapid.IntRange(0, len(waiting)-1).Draw(t, "which")
					require.True(t, l.leave(waiting[i]))
					require.False(t, l.leave(waiting[i]))
					waiting = append(waiting[:i], waiting[i+1:]...)
				}
			},
			"": func(t *rapid.T) {
				sum, n := Cost{}, 0
				for _, f := range flows {
					sum, n = sum.plus(f.costs), n+f.queue.Len()
				}
				require.Equal(t, n, len(waiting))
				for i := range all {
					got := 0
					for _, w := range all[i:] {
						got += w.cost
						allowed := rate*w.at.Sub(all[i].at).Seconds() + 2*max(1, rate*0.1) + 4*float64(max(1, largest)) + 4
						require.LessOrEqual(t, float64(got), allowed)
					}
				}
			},
		})
		// And all go in the end.
		for range 10_000 {
			again := l.serve(now)
			if again == 0 {
				break
			}
			now = now.Add(again)
		}
		require.False(t, l.waiting())
	})
}
