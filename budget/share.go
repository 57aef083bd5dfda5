package budget

import (
	"math"
	"time"
)

// share finds out what part of a cluster-wide rate of revisions a client may take, from
// nothing but the revisions in the headers of its responses. It is pure.
//
// Revisions are an exact count of everybody's writes. From the rate y at which they rise,
// and the budget B, each client follows the same law for its rate r, every period T:
//
//	e     = (s B - y) / B
//	ln r += T (k e + l (ln ref - ln r))
//
// The first term has all that is left be taken, and what is too much be given back, by
// everybody in proportion to what they have; other writers' revisions count like those of
// clients. The second one draws every client towards the same rate, since a law of the sum
// alone would keep unequal clients unequal for ever. It has a price: the sum settles where
// both terms cancel out, below the budget for one client, above it for hundreds:
//
//	y = s B - (l / k) B ln(r / ref)
//
// With ref = B / 22, the middle of 1 and 500 clients on a scale of logarithms, that is within
// 9 % for them all. And the price buys something: read the other way, it says what r is on the average
// of all clients, weighed by their rates. So a client smooths e over the time tau, and goes
// to the rate that follows from it:
//
//	star  = ref exp((k / l) e')
//	ln r += T m (ln star - ln r)
//
// A client that has more than the others sees it there, and gives way, about four times as
// fast as by the second term alone. A client that has come a moment ago has nothing to lose
// and moves faster, by m = 1 / age.
//
// Where clients are registered, their number N is known: ref is s B / N, a client starts
// there, and when N changes all change their rate in proportion at once. The law is the
// same, and takes care of what others write, and of registered clients that do not.
//
// A rate that a client does not use is not kept: it goes down to twice of what is used.
//
// A leaky integrator without star, and laws of additive increase and multiplicative
// decrease, took 20 seconds to minutes to become fair; see docs/decisions/0011-budget.md
// for the figures. Faster terms oscillate: a client that may write twice a second knows y
// half a second late.
type share struct {
	budget  float64 // of all clients, revisions a second
	clients int     // that are registered, 0 where that is not known

	rate   float64
	capped bool // whether more was wanted since the last step

	cluster   uint64
	newest    int64     // revision
	at        time.Time // when it was seen
	base      int64     // the newest revision at the step before
	since     time.Time // when that was seen
	smooth    float64   // e'
	smoothed  float64   // how much of the smoothing has filled
	age       float64   // seconds of observation
	began     time.Time // when it was observed first
	used      float64   // revisions of this client since the last step
	usedSince time.Time
}

const (
	sharePeriod = 250 * time.Millisecond // T
	shareCount  = 8                      // revisions of the budget, in the shortest time that y is of
	shareAim    = 0.99                   // s
	shareGain   = 2.5                    // k, per second
	shareLeak   = 0.07                   // l, per second
	shareFair   = 0.15                   // m, per second
	shareYoung  = 0.5                    // m of a client that has just come, at most
	shareComing = 3                      // for how many seconds a client has just come
	shareSmooth = 1.5                    // tau, seconds
	shareMiddle = 22                     // B / ref
	shareFirst  = 500                    // what part of the budget a client begins with
	shareLeast  = 5000                   // what part it never goes below
)

func newShare(budget float64) *share {
	return &share{budget: budget, rate: max(budget/shareFirst, min(1, budget/10))}
}

// setBudget changes the budget of all clients.
func (s *share) setBudget(budget float64) {
	s.rate *= budget / s.budget
	s.budget = budget
	s.bound()
}

// observe is told of the revision in the header of a response.
// Stale are reads that one member answers, which may be behind.
func (s *share) observe(now time.Time, cluster uint64, revision int64, stale bool) {
	if s.began.IsZero() {
		s.began = now
	}
	if cluster != s.cluster { // another cluster than before
		s.cluster, s.newest, s.base = cluster, 0, 0
	}
	if revision > s.newest || revision == s.newest && !stale { // that it is the same says something, too
		s.newest, s.at = revision, now
	}
}

// wrote is told of the revision in the response to a write, and which one was the newest
// when it was sent. A lower one is of a cluster that was restored.
func (s *share) wrote(now time.Time, sent, revision int64) {
	if revision < sent {
		s.newest, s.base, s.at = revision, 0, now
	}
}

// use is told what this client has taken.
func (s *share) use(revisions int) { s.used += float64(revisions) }

// register is told how many clients there are. It reports whether the rate has changed.
func (s *share) register(clients int) bool {
	if clients < 1 || clients == s.clients {
		return false
	}
	if s.clients == 0 || s.age < shareComing {
		s.rate = shareAim * s.budget / float64(clients)
	} else {
		s.rate *= float64(s.clients) / float64(clients)
	}
	s.clients = clients
	s.bound()
	return true
}

// young reports whether it does not know yet what the client's part is.
func (s *share) young(now time.Time) bool {
	return s != nil && s.clients == 0 && (s.began.IsZero() || now.Sub(s.began).Seconds() < shareComing)
}

// ref returns what each client is drawn towards.
func (s *share) ref() float64 {
	if s.clients > 0 {
		return shareAim * s.budget / float64(s.clients)
	}
	return s.budget / shareMiddle
}

// step takes what was observed into account, once in a period. It reports whether the rate
// has changed.
func (s *share) step(now time.Time) bool {
	if s.base == 0 || s.newest < s.base {
		if s.newest == 0 {
			return false
		}
		s.base, s.since, s.usedSince, s.used = s.newest, s.at, now, 0
		return false
	}
	seen := s.at.Sub(s.since)
	if seen < sharePeriod/2 || seen.Seconds() < shareCount/s.budget {
		return false
	}
	y := float64(s.newest-s.base) / seen.Seconds()
	s.base, s.since = s.newest, s.at

	t := min(seen, sharePeriod).Seconds()
	e := max((shareAim*s.budget-y)/s.budget, -2)
	a := 1 - math.Exp(-t/shareSmooth)
	s.smooth += a * (e - s.smooth)
	s.smoothed += a * (1 - s.smoothed)
	s.age += t

	ln, ref := math.Log(s.rate), math.Log(s.ref())
	ln += t * (shareGain*e + shareLeak*(ref-ln))
	if s.smoothed > 0.5 {
		m := shareFair
		if s.clients == 0 {
			m = max(m, min(shareYoung, 1/s.age))
		}
		m *= max(0, 1-4*math.Abs(e)) // e' says nothing while e moves
		star := min(ref+shareGain/shareLeak*s.smooth/s.smoothed, math.Log(s.budget))
		ln += t * m * (star - ln)
	}
	rate := math.Exp(ln)
	if !s.capped { // nobody waited: what is not used is not kept
		if used := now.Sub(s.usedSince).Seconds(); used > 0 {
			rate = min(rate, max(2*s.used/used, s.budget/shareFirst, s.ref()/2))
		}
	}
	s.rate, s.capped, s.used, s.usedSince = rate, false, 0, now
	s.bound()
	return true
}

func (s *share) bound() { s.rate = min(max(s.rate, s.budget/shareLeast), s.budget) }

// shareAsk is after what time without a header a client that wants to write asks for one.
const shareAsk = time.Second
