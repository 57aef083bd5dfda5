package budget

import (
	"time"

	"github.com/kvwrap/kvwrap/internal/wire"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Backend is the state of the cluster's backend: of the member whose database is largest,
// since that one raises the alarm.
type Backend struct {
	Size    int64  // bytes of the database
	InUse   int64  // bytes of those that hold something
	Quota   int64  // bytes that Size may not reach; 0 where there is no quota
	Lag     uint64 // entries that are committed and not yet applied, of the member with most
	NoSpace bool   // whether the alarm is armed
}

// gate decides from what etcd says whether writes may go at all, and how much slower. It is
// pure: time is told to it. Its user guards it.
type gate struct {
	noSpace bool
	since   time.Time // when that was first said
	probed  time.Time // when a write was last let through to find out whether it still is so

	backend Backend
	seen    time.Time     // when
	stale   time.Duration // after which it says nothing any more
	flying  int           // bytes of writes that were let go and have no answer yet
	written int           // bytes that this client has written since backend was seen
	lows    [2]low

	pressure float64 // what part of the rates may go: etcd has too many requests
	eased    time.Time
}

// low is the least that was in use in some time: after a compaction.
type low struct {
	from  time.Time
	inUse int64
}

const (
	probeEvery = time.Second // how often one write finds out whether the alarm is disarmed

	slowFrom  = healthWarnQuota  // of the quota in use: from here on writes are slowed down
	slowUntil = healthErrorQuota // of the quota in use: and as good as stopped here
	stopShare = 0.02             // of the quota: what is kept free for whoever does not know of it
	slack     = 64 << 10

	lagFrom  = 1000 // entries; etcd refuses requests above 5000 (maxGapBetweenApplyAndCommitIndex)
	lagUntil = 5000

	leastPressure = 1.0 / 64
	easeEvery     = 250 * time.Millisecond
	ease          = 1.15 // in each of which pressure eases by so much: from half to none in 1.2 s
)

// refuses returns the error for a write that may not go.
func (g *gate) refuses(now time.Time, cost Cost) error {
	if cost.Bytes == 0 { // deletes alone
		return nil
	}
	if g.noSpace {
		if now.Sub(g.probed) < probeEvery {
			return &NoSpaceError{Since: g.since}
		}
		g.probed = now
		return nil
	}
	b := g.backend
	if b.Quota == 0 || now.Sub(g.seen) > g.stale {
		return nil
	}
	free := b.Size - b.InUse
	size := b.Size + max(0, int64(g.written+g.flying)-free)
	kept := int64(slack)
	if float64(free) < stopShare*5*float64(b.Quota) {
		kept = max(kept, int64(stopShare*float64(b.Quota)))
	}
	if size+int64(cost.Bytes) >= b.Quota-min(kept, b.Quota/4) {
		return &QuotaError{Backend: b, Cost: cost}
	}
	return nil
}

// answered is told how a write that could take cost was answered, and what it has spent. It
// reports whether nothing can be written any more.
func (g *gate) answered(now time.Time, cost, spent Cost, err error) (closed bool) {
	g.flying = max(0, g.flying-cost.Bytes)
	if g.written += spent.Bytes; err == nil && cost.Bytes > 0 {
		// etcd refuses what could take space, whether it would or not.
		g.noSpace = false
	}
	switch {
	case wire.Is(err, rpctypes.ErrNoSpace):
		return g.close(now)
	case wire.Is(err, rpctypes.ErrTooManyRequests):
		g.pressure, g.eased = max(g.factorOf()/2, leastPressure), now
	}
	return false
}

func (g *gate) close(now time.Time) bool {
	if g.noSpace {
		return false
	}
	g.noSpace, g.since, g.probed = true, now, now
	return true
}

// observe is told of the state of the backend. Window is over how long its size is at its
// least once, 0 where that is of no interest. It reports whether nothing can be written any
// more.
func (g *gate) observe(now time.Time, b Backend, window time.Duration) (closed bool) {
	g.backend, g.seen, g.written = b, now, 0
	if l := &g.lows[0]; l.from.IsZero() || now.Sub(l.from) > window {
		g.lows[1], g.lows[0] = g.lows[0], low{now, b.InUse}
	} else {
		l.inUse = min(l.inUse, b.InUse)
	}
	if b.NoSpace {
		return g.close(now)
	}
	g.noSpace = false
	return false
}

// derived returns the bytes per second that keep the backend within slowFrom of its quota,
// where revisions are kept for retention, and compacted every interval:
//
//	(slowFrom quota - in use after a compaction) / (retention + interval)
//
// 0 where no quota is known.
func (g *gate) derived(retention, interval time.Duration) float64 {
	if retention == 0 || g.backend.Quota == 0 {
		return 0
	}
	low := g.lows[0].inUse
	if !g.lows[1].from.IsZero() {
		low = min(low, g.lows[1].inUse)
	}
	return max(slowFrom*float64(g.backend.Quota)-float64(low), slack) / (retention + interval).Seconds()
}

// factor returns what part of the rates may go.
func (g *gate) factor(now time.Time) float64 {
	for g.pressure > 0 && now.Sub(g.eased) >= easeEvery {
		g.eased = g.eased.Add(easeEvery)
		if g.pressure *= ease; g.pressure >= 1 {
			g.pressure = 0
		}
	}
	f := g.factorOf()
	if now.Sub(g.seen) > g.stale {
		return f
	}
	if b := g.backend; b.Quota > 0 {
		used := (float64(b.InUse) + float64(g.written+g.flying)) / float64(b.Quota)
		f = min(f, fall(used, slowFrom, slowUntil))
	}
	return min(f, fall(float64(g.backend.Lag), lagFrom, lagUntil))
}

// factorOf returns the part that is left by pressure.
func (g *gate) factorOf() float64 {
	if g.pressure == 0 {
		return 1
	}
	return g.pressure
}

// slowed reports whether the state of the backend is worth asking for more often.
func (g *gate) slowed(now time.Time) bool { return g.noSpace || g.factor(now) < 1 }

// fall falls from 1 at from to 1/20 at until.
func fall(x, from, until float64) float64 {
	return min(1, max(1-(x-from)/(until-from), 0.05))
}
