package budget

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The clients of the simulation take all that their shares allow, from when they come to
// when they go.
type simClient struct {
	share
	from, to time.Duration
	wants    float64 // revisions a second
	later    float64 // and later than simChange, if it is not 0
	tokens   float64
	next     time.Duration
	counts   time.Duration // when it asks next how many there are
}

// simHeader is a header on its way.
type simHeader struct {
	to       *simClient
	revision int64
	at       time.Duration
}

// simChange is when something changes, in simulations in which it does.
const simChange = 20 * time.Second

type simulation struct {
	budget   float64
	register bool
	foreign  func(time.Duration) float64
	clients  []*simClient
	lost     float64 // part of the headers

	seconds []simSecond
}

// simSecond is what a second was like.
type simSecond struct {
	total, jain float64
}

// run runs the simulation in steps of 5 ms. A header comes 5 to 25 ms after its write.
func (s *simulation) run(t *testing.T, end time.Duration, seed uint64) {
	const dt = 5 * time.Millisecond
	rng := rand.New(rand.NewPCG(seed, 1))
	t0 := time.Unix(0, 0)
	for _, c := range s.clients {
		c.share = *newShare(s.budget)
		c.from += time.Duration(rng.Int64N(int64(200 * time.Millisecond)))
		c.next = c.from + time.Duration(rng.Int64N(int64(sharePeriod)))
		c.tokens = rng.Float64()
	}
	var (
		revision, last int64
		foreign        float64
		onTheWay       []simHeader
	)
	for now := time.Duration(0); now < end; now += dt {
		at := t0.Add(now)
		foreign += s.foreign(now) * dt.Seconds()
		for ; foreign >= 1; foreign-- {
			revision++
		}
		n := 0
		for _, c := range s.clients {
			if c.from <= now && now < c.to {
				n++
			}
		}
		for _, c := range s.clients {
			if now < c.from || now >= c.to {
				continue
			}
			if c.later > 0 && now > simChange {
				c.wants = c.later
			}
			may := min(c.rate, c.wants)
			c.capped = c.capped || c.wants > c.rate
			for c.tokens += may * dt.Seconds(); c.tokens >= 1; c.tokens-- {
				revision++
				c.use(1)
				if rng.Float64() >= s.lost {
					delay := 5*time.Millisecond + time.Duration(rng.Int64N(int64(20*time.Millisecond)))
					onTheWay = append(onTheWay, simHeader{c, revision, now + delay})
				}
			}
			if at.Sub(c.at) > shareAsk && now-c.from > shareAsk { // it asks
				c.observe(at, 1, revision, false)
			}
			if now < c.next {
				continue
			}
			c.next += sharePeriod
			c.step(at)
			if s.register && now >= c.counts {
				c.counts = now + time.Second
				c.register(n)
			}
		}
		kept := onTheWay[:0]
		for _, h := range onTheWay {
			if h.at <= now {
				h.to.observe(at, 1, h.revision, false)
			} else {
				kept = append(kept, h)
			}
		}
		onTheWay = kept
		if now%time.Second == time.Second-dt {
			var sum, squares, n float64
			for _, c := range s.clients {
				if c.from < now && now < c.to && c.wants > s.budget {
					n, sum, squares = n+1, sum+c.rate, squares+c.rate*c.rate
				}
			}
			s.seconds = append(s.seconds, simSecond{float64(revision-last) / s.budget, sum * sum / (n * squares)})
			last = revision
		}
	}
}

func none(time.Duration) float64 { return 0 }

func greedy(n int, from, to time.Duration) (cs []*simClient) {
	for range n {
		cs = append(cs, &simClient{from: from, to: to, wants: 1e9})
	}
	return cs
}

// TestSharesOfMany: from 1 to 500 clients that do not know each other come to the budget
// within 15 seconds, 3 where they are registered, and to equal shares.
func TestSharesOfMany(t *testing.T) {
	const end = 30 * time.Second
	for _, register := range []bool{false, true} {
		within := 15
		if register {
			within = 3
		}
		for _, n := range []int{1, 2, 3, 8, 30, 100, 250, 500} {
			t.Run(fmt.Sprintf("registered=%v,clients=%d", register, n), func(t *testing.T) {
				s := simulation{budget: 1000, register: register, foreign: none, clients: greedy(n, 0, end), lost: 0.05}
				s.run(t, end, uint64(n))
				for i, sec := range s.seconds[within:] {
					require.InDelta(t, 1, sec.total, 0.1, "second %d: %+v", within+i, s.seconds)
					require.GreaterOrEqual(t, sec.jain, 0.95, "second %d: %+v", within+i, s.seconds)
				}
				t.Logf("%+v", s.seconds)
			})
		}
	}
}

// TestSharesThatChange: clients come and go, others write, some want little.
func TestSharesThatChange(t *testing.T) {
	const change, end = simChange, 45 * time.Second
	few := func(n int, wants float64) (cs []*simClient) {
		for range n {
			cs = append(cs, &simClient{to: end, wants: wants})
		}
		return cs
	}
	for name, c := range map[string]struct {
		budget  float64
		clients func() []*simClient
		foreign func(time.Duration) float64
		total   int // seconds after the change until the sum is right
		fair    int // and until shares are
		peak    float64
	}{
		"1, then 99 more": {total: 5, fair: 11, clients: func() []*simClient {
			return append(greedy(1, 0, end), greedy(99, change, end)...)
		}},
		"50, then 50 more": {total: 3, fair: 10, clients: func() []*simClient {
			return append(greedy(50, 0, end), greedy(50, change, end)...)
		}},
		"450 of 500 go": {total: 5, fair: 5, clients: func() []*simClient {
			return append(greedy(50, 0, end), greedy(450, 0, change)...)
		}},
		"others write 30 %": {total: 3, clients: func() []*simClient { return greedy(20, 0, end) }, foreign: func(now time.Duration) float64 {
			if now > change {
				return 300
			}
			return 0
		}},
		"others write no more": {total: 3, clients: func() []*simClient { return greedy(20, 0, end) }, foreign: func(now time.Duration) float64 {
			if now < change {
				return 300
			}
			return 0
		}},
		"others write 30 %, 500 clients": {total: 3, clients: func() []*simClient { return greedy(500, 0, end) }, foreign: func(now time.Duration) float64 {
			if now > change {
				return 300
			}
			return 0
		}},
		"15 of 20 want little": {clients: func() []*simClient { return append(greedy(5, 0, end), few(15, 2)...) }},
		"20 wanted little": {total: 3, fair: 10, peak: 1.5, clients: func() []*simClient {
			cs := few(20, 2)
			for _, c := range cs {
				c.later = 1e9
			}
			return append(cs, greedy(1, 0, end)...)
		}},
		"a small budget":               {budget: 20, clients: func() []*simClient { return greedy(5, 0, end) }},
		"a small budget, many clients": {budget: 100, fair: 10, clients: func() []*simClient { return greedy(100, 0, end) }},
		"a large budget":               {budget: 20_000, clients: func() []*simClient { return greedy(20, 0, end) }},
	} {
		for _, register := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,registered=%v", name, register), func(t *testing.T) {
				if c.budget == 0 {
					c.budget = 1000
				}
				if c.foreign == nil {
					c.foreign = none
				}
				s := simulation{budget: c.budget, register: register, foreign: c.foreign, clients: c.clients(), lost: 0.05}
				s.run(t, end, 7)
				for i, sec := range s.seconds[int(change.Seconds()):] {
					require.LessOrEqual(t, sec.total, cmp.Or(c.peak, 1.5))
					if i >= c.total {
						// A second's revisions are whole numbers.
						require.InDelta(t, 1, sec.total, 0.1+1/c.budget, "%d s after: %+v", i, s.seconds[15:])
					}
					if i >= c.fair {
						require.GreaterOrEqual(t, sec.jain, 0.95, "%d s after: %+v", i, s.seconds[15:])
					}
				}
			})
		}
	}
}
