package budget

import (
	"math"
	"time"

	"golang.org/x/time/rate"
)

// Rates are what may be taken in a second. Zero is no limit.
type Rates struct {
	Revisions float64
	Bytes     float64 // see [Cost]
}

func (r Rates) times(f float64) Rates { return Rates{r.Revisions * f, r.Bytes * f} }

// seconds returns how long c lasts at the rates: that of what is scarcer.
func (r Rates) seconds(c Cost) float64 {
	s := 0.0
	if r.Revisions > 0 {
		s = float64(c.Revisions) / r.Revisions
	}
	if r.Bytes > 0 {
		s = max(s, float64(c.Bytes)/r.Bytes)
	}
	return s
}

// bucket is a token bucket that may go into debt: what is taken before it is there
// delays what comes after it. Nil holds as much as anybody wants.
type bucket struct {
	*rate.Limiter
	full bool // whether it begins full
}

// maxTokens is what a bucket holds, and what is taken from it at a time, at the most.
const maxTokens = 1 << 30

// set has the bucket fill with perSecond tokens, and hold what comes in the time burst,
// one at the least. What it holds, or owes, stays.
func (b *bucket) set(now time.Time, perSecond float64, burst time.Duration) {
	holds := int(min(max(1, perSecond*burst.Seconds()), maxTokens))
	switch {
	case perSecond == 0:
		b.Limiter = nil
	case b.Limiter == nil:
		b.Limiter = rate.NewLimiter(rate.Limit(perSecond), holds)
		if !b.full {
			b.ReserveN(now, holds)
		}
	default:
		b.SetLimitAt(now, rate.Limit(perSecond))
		b.SetBurstAt(now, holds)
	}
}

// wait returns how long it takes until n tokens are there, or as many as it can hold.
func (b bucket) wait(now time.Time, n int) time.Duration {
	if b.Limiter == nil || n == 0 {
		return 0
	}
	missing := float64(min(n, b.Burst())) - b.TokensAt(now)
	if missing <= 1e-9 { // sums of fractions
		return 0
	}
	return seconds(missing / float64(b.Limit()))
}

// seconds returns s as a duration, rounded up, the longest one where it is longer.
func seconds(s float64) time.Duration {
	return time.Duration(min(math.Ceil(s*1e9), math.MaxInt64/2))
}

// take takes n tokens, and gives them back where n is negative.
func (b bucket) take(now time.Time, n int) {
	if b.Limiter == nil {
		return
	}
	n = min(n, maxTokens)
	if holds := b.Burst(); n > holds { // a reservation is of no more than the burst
		b.SetBurstAt(now, n)
		defer b.SetBurstAt(now, holds)
	}
	b.ReserveN(now, n) // a negative n adds tokens, up to the burst
}

// pool holds tokens of both kinds.
type pool struct{ revisions, bytes bucket }

func (p *pool) set(now time.Time, r Rates, burst time.Duration) {
	p.revisions.set(now, r.Revisions, burst)
	p.bytes.set(now, r.Bytes, burst)
}

func (p *pool) wait(now time.Time, c Cost) time.Duration {
	return max(p.revisions.wait(now, c.Revisions), p.bytes.wait(now, c.Bytes))
}

func (p *pool) take(now time.Time, c Cost) {
	p.revisions.take(now, c.Revisions)
	p.bytes.take(now, c.Bytes)
}

// expect returns how long it takes until cost is there, after what comes before it has been
// taken, to one who has to share what comes with others: it comes so many times slower.
func (p *pool) expect(now time.Time, before, cost Cost, slower float64) time.Duration {
	return max(p.revisions.expect(now, before.Revisions, cost.Revisions, slower), p.bytes.expect(now, before.Bytes, cost.Bytes, slower))
}

func (b bucket) expect(now time.Time, before, n int, slower float64) time.Duration {
	if b.Limiter == nil || before+n == 0 {
		return 0
	}
	there := b.TokensAt(now)
	owed := max(0, -there) // which comes first, whoever is next
	missing := max(0, float64(before+min(n, b.Burst()))-max(there, 0))
	return seconds((owed + missing*slower) / float64(b.Limit()))
}
