package budget

import (
	"cmp"
	"errors"
	"fmt"
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
	probed  time.Time // when a write last went to find out whether it still is so

	watched bool // whether backend is asked for
	backend Backend
	seen    time.Time // when it was asked for
	asked   time.Time // when it was asked for the first time
	failing time.Time // since when that fails; zero where it does not
	looks   int       // how often it was seen, so far apart that growth is of two
	wanted  bool      // whether somebody waits for a look
	growth  float64   // bytes a second, of everybody, between two looks
	grown   Backend   // as it was at the second of these
	grownAt time.Time
	flying  int       // bytes of writes that were let go and have no answer yet
	written int       // bytes that this client has written
	known   int       // of those, what backend counts already, for certain
	wrote   time.Time // when it last has
	large   time.Time // when a large put last went
	marks   [2]mark
	lows    [2]low

	pressure float64 // what part of the rates may go: etcd has too many requests
	eased    time.Time
}

// mark is how much had been written at a time. Of the two that a gate keeps the older one
// is at least commitLag old.
type mark struct {
	at      time.Time
	written int
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
	slack     = 64 << 10         // and that many bytes may be written before the backend was seen

	// commitLag is for how long a write may not show in a member's size, which follows a
	// commit of the backend: every 100 ms (defaultBatchInterval in server/storage/backend),
	// and a follower has to apply it before.
	commitLag = 250 * time.Millisecond
	// inflation is how many bytes of pages the quota's byte takes for a while, at the most.
	// bbolt does not split a leaf of four records, however large, and writes it again, as a
	// whole and to another place, with each record that is added.
	inflation = 5
	// largePut is from what size on a record takes pages in a row that are seldom free.
	largePut = 64 << 10
	// growing is for how long others are taken to go on as between the last two looks.
	growing = 3 * time.Second
	// silence is how long the backend may not be known before nothing is presumed of it.
	silence = 30 * time.Second

	// The backend is looked at again when this part of what is free of the quota may have been
	// written, by this client or, as fast as between the last two looks, by all; but not more often than
	// every lookLeast.
	lookPart   = 1.0 / 8
	lookLeast  = 100 * time.Millisecond
	lookSlowed = time.Second // where writes are slowed down, or nothing is known yet

	lagFrom  = 1000 // entries; etcd refuses requests above 5000 (maxGapBetweenApplyAndCommitIndex)
	lagUntil = 5000

	leastPressure = 1.0 / 64
	easeEvery     = 250 * time.Millisecond
	ease          = 1.15 // in each of which pressure eases by so much: from half to none in 1.2 s
)

// errLook says that it depends on what the backend has come to since it was seen whether a
// write may go: it is to be looked at.
var errLook = errors.New("budget: look at the backend first")

// refuses returns the error for a write that may not go, or errLook.
func (g *gate) refuses(now time.Time, cost Cost) error {
	if cost.Bytes == 0 { // deletes alone
		return nil
	}
	if g.noSpace {
		if now.Sub(g.probed) < probeEvery {
			return &NoSpaceError{Since: g.since}
		}
		return nil
	}
	if g.silent(now) {
		return nil
	}
	if g.looks == 0 {
		if g.written+g.flying+cost.Bytes > slack {
			g.wanted = true
			return errLook
		}
		return nil
	}
	b := g.backend
	switch {
	case b.Quota == 0:
		return nil
	case g.fills(now, cost, 0):
		return g.full(now, cost)
	case g.fills(now, cost, g.ahead(now)):
		g.wanted = true
		return errLook
	}
	return nil
}

// fills reports whether the quota is reached, or nearly, by a write and what is ahead of it.
// What is free is written again, but by the write itself only if it happens to find enough in one piece,
// and by large ones seldom.
func (g *gate) fills(now time.Time, cost Cost, ahead int64) bool {
	b := g.backend
	free := b.Size - b.InUse
	kept := int64(slack)
	if float64(free) < stopShare*5*float64(b.Quota) {
		kept = max(kept, int64(stopShare*float64(b.Quota)))
	}
	if cost.largest <= largePut && now.Sub(g.large) > growing {
		ahead = max(0, ahead-free)
	}
	return b.Size+ahead+inflation*int64(cost.Bytes) >= b.Quota-min(kept, b.Quota/4)
}

// full returns the error for a write that does not fit.
func (g *gate) full(now time.Time, cost Cost) error {
	return &QuotaError{Backend: g.backend, Ahead: g.ahead(now), Cost: cost}
}

// silent reports whether nothing is known of the backend, or not asked for.
func (g *gate) silent(now time.Time) bool {
	return !g.watched || !g.failing.IsZero() && now.Sub(g.failing) > silence ||
		g.looks == 0 && !g.asked.IsZero() && now.Sub(g.asked) > askTimeout
}

// failed is told that the backend cannot be asked for.
func (g *gate) failed(now time.Time) {
	if g.failing.IsZero() {
		g.failing = now
	}
}

// goes is told that a write goes.
func (g *gate) goes(now time.Time, cost Cost) {
	g.flying += cost.Bytes
	if cost.largest > largePut {
		g.large = now
	}
	if g.noSpace && cost.Bytes > 0 {
		g.probed = now
	}
}

// stays is told that of what a write might have taken so much has not gone.
func (g *gate) stays(cost Cost) { g.flying = max(0, g.flying-cost.Bytes) }

// ahead returns how many bytes of pages the backend may have taken since it was seen.
func (g *gate) ahead(now time.Time) int64 {
	mine := inflation * int64(g.written-g.known+g.flying)
	return max(mine, int64(g.growth*min(now.Sub(g.seen), growing).Seconds()))
}

// due reports whether the backend is to be looked at, where that is done every so often,
// and was for the last time at last.
func (g *gate) due(now, last time.Time, every time.Duration) bool {
	since := now.Sub(last)
	if g.noSpace || g.looks < 2 || g.factor(now) < 1 {
		every = min(every, lookSlowed)
	}
	if since >= every || last.IsZero() {
		return true
	}
	room := max(float64(g.backend.Quota-g.backend.Size), stopShare*float64(g.backend.Quota))
	return since >= lookLeast && (g.wanted || room > 0 && float64(g.ahead(now)) >= lookPart*room)
}

// mark sees to it that marks[0] is of a time that is long enough ago.
func (g *gate) mark(now time.Time) {
	if now.Sub(g.marks[1].at) >= commitLag {
		g.marks[0], g.marks[1] = g.marks[1], mark{now, g.written}
	}
	if now.Sub(g.wrote) >= commitLag {
		g.marks[0] = mark{now, g.written}
	}
}

// answered is told how a write that could take cost was answered, and what it has spent. It
// reports whether nothing can be written any more.
func (g *gate) answered(now time.Time, cost, spent Cost, err error) (closed bool) {
	g.stays(cost)
	g.mark(now)
	if spent.Bytes > 0 {
		g.written, g.wrote = g.written+spent.Bytes, now
	}
	if err == nil && cost.Bytes > 0 {
		// etcd refuses what could take space, whether it would or not.
		g.noSpace = false
	}
	switch {
	case wire.Is(err, rpctypes.ErrNoSpace):
		return g.close(now)
	case wire.Is(err, rpctypes.ErrTooManyRequests):
		g.pressure, g.eased = max(cmp.Or(g.pressure, 1)/2, leastPressure), now
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

// observe is told of the state of the backend, which was asked for at a time, when marks[0]
// was before. Window is over how long its size is at its least once, 0 where that is of no
// interest. It reports whether nothing can be written any more.
func (g *gate) observe(now, asked time.Time, before mark, b Backend, window time.Duration) (closed bool) {
	if d := asked.Sub(g.grownAt); d >= commitLag {
		if !g.grownAt.IsZero() {
			g.growth = max(0, float64(max(b.Size-g.grown.Size, b.InUse-g.grown.InUse))) / d.Seconds()
		}
		g.grown, g.grownAt, g.looks = b, asked, g.looks+1
	}
	g.backend, g.seen, g.known, g.failing, g.wanted = b, asked, before.written, time.Time{}, false
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
	f, _ := g.slowed(now)
	return f
}

// slowed returns what part of the rates may go, and why, where that is not all.
func (g *gate) slowed(now time.Time) (f float64, why string) {
	for g.pressure > 0 && now.Sub(g.eased) >= easeEvery {
		g.eased = g.eased.Add(easeEvery)
		if g.pressure *= ease; g.pressure >= 1 {
			g.pressure = 0
		}
	}
	f = 1
	least := func(part float64, format string, args ...any) {
		if part < f {
			f, why = part, fmt.Sprintf(format, args...)
		}
	}
	if g.pressure > 0 {
		least(g.pressure, "etcd has had too many requests")
	}
	if g.silent(now) {
		return f, why
	}
	if b := g.backend; b.Quota > 0 {
		used := float64(b.InUse+g.ahead(now)) / float64(b.Quota)
		least(fall(used, slowFrom, slowUntil), "%.0f %% of the backend's quota are in use", 100*used)
	}
	least(fall(float64(g.backend.Lag), lagFrom, lagUntil), "a member has %d entries to apply", g.backend.Lag)
	return f, why
}

// fall falls from 1 at from to 1/20 at until.
func fall(x, from, until float64) float64 {
	return min(1, max(1-(x-from)/(until-from), 0.05))
}
