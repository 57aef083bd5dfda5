package coalesce

import (
	"cmp"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kvwrap/kvwrap/internal/keys"
)

// queue holds the units that are not yet written, and decides which of them make the
// next batch. It is pure: it is told the time, does no I/O and holds no lock.
//
// Units stand in two orders. By key: a unit may be sent only when none that came
// before it and changes one of its keys is left, whether that waits or is under way.
// So writes of one key keep their order, a batch has each key once, and batches that
// are under way together have no key in common; all of that is one rule. And by lane: a
// lane holds what waits under one rule in one way, to be sent when the oldest of it has
// waited long enough, and then all of it.
//
// A batch takes what is due, lane by lane, that with the oldest unit first, and leaves out
// what does not fit for the next one. Of a lane that does not fit whole it takes the oldest
// unit, so that none is passed over for ever, and then the largest that fit: two
// transactions of 31 kilobytes share an entry of 64, and small ones fill what is left.
type queue struct {
	limits        limits
	sequenceBytes int // that the sequence takes in a batch
	memory        *memory

	lanes  []*lane
	byKey  map[string][]*unit // what changes a key, and is not yet written, by seq
	ranged []*unit            // what deletes ranges, by seq
	units  atomic.Int64       // how many there are; may be read by anybody at any time
	seq    uint64
}

// place returns where u stands among units by seq, or would.
func place(units []*unit, u *unit) int {
	at, _ := slices.BinarySearchFunc(units, u, func(a, b *unit) int { return cmp.Compare(a.seq, b.seq) })
	return at
}

// lane is what waits under one rule, of PutAsync or of callers, to be sent under the
// sequence of this process or not.
type lane struct {
	wait      time.Duration
	sequenced bool
	units     []*unit // by seq, the oldest first
	ops       int
	bytes     int
	hurry     uint64 // units up to this one are due
}

func newQueue(l limits, sequenceBytes int, m *memory) *queue {
	return &queue{limits: l, sequenceBytes: sequenceBytes, memory: m, byKey: make(map[string][]*unit)}
}

// newLane adds a lane.
func (q *queue) newLane(wait time.Duration, sequenced bool) *lane {
	l := &lane{wait: wait, sequenced: sequenced}
	q.lanes = append(q.lanes, l)
	return l
}

// add adds u to a lane. It returns the unit that answers for u: another one, which
// waited already, where the two were merged.
func (q *queue) add(u *unit, l *lane, now time.Time) *unit {
	u.added = now
	if u.remembers() { // then it may be less than it says
		p := makePlan(u, q.memory, q.limits.txnOps)
		u.bytes = p.bytes
	}
	if before := q.answers(u); before != nil {
		q.merge(before, u, l)
		return before
	}
	q.seq++
	u.seq = q.seq
	q.hurryBefore(u, l)
	q.units.Add(1)
	for _, op := range u.ops {
		switch r := opRange(op); {
		case !r.Single():
			if len(q.ranged) == 0 || q.ranged[len(q.ranged)-1] != u {
				q.ranged = append(q.ranged, u)
			}
		default:
			q.byKey[string(r.Key)] = append(q.byKey[string(r.Key)], u)
		}
	}
	q.enter(u, l)
	return u
}

// answers returns the unit that waits and may answer for u, nil where there is none.
func (q *queue) answers(u *unit) *unit {
	if u.put == nil {
		return nil
	}
	line := q.byKey[string(u.put.Key)]
	if len(line) == 0 {
		return nil
	}
	if last := line[len(line)-1]; last.state == waiting && last.merges(u) && !q.rangedBetween(last, q.seq+1) {
		return last
	}
	return nil
}

// merge has u, which waits, answer for n too, which is not added.
func (q *queue) merge(u, n *unit, l *lane) {
	if u.wins(n) {
		u.lane.bytes += n.bytes - u.bytes
		u.takeValue(n)
	}
	u.takeCallers(n)
	if l.wait < u.lane.wait {
		due := u.seq <= u.lane.hurry
		q.leave(u)
		q.hurryBefore(u, l)
		q.enter(u, l)
		if due {
			q.hurry(u)
		}
	}
}

// enter has u wait in a lane, in its place.
func (q *queue) enter(u *unit, l *lane) {
	u.state, u.lane = waiting, l
	l.units = slices.Insert(l.units, place(l.units, u), u)
	l.ops += len(u.ops)
	l.bytes += u.bytes
}

// leave has u wait no more in its lane.
func (q *queue) leave(u *unit) {
	at := place(u.lane.units, u)
	u.lane.units = slices.Delete(u.lane.units, at, at+1)
	u.lane.ops -= len(u.ops)
	u.lane.bytes -= u.bytes
}

// hurry makes u due, and what was there before it.
func (q *queue) hurry(u *unit) {
	if u.state == waiting {
		u.lane.hurry = max(u.lane.hurry, u.seq)
	}
}

// hurryBefore makes due what u, in lane l, waits for in other lanes. Of what changes one
// key the last will do: what that waits for was made due when it came.
func (q *queue) hurryBefore(u *unit, l *lane) {
	hurry := func(before *unit) {
		if before.lane != l {
			q.hurry(before)
		}
	}
	for _, op := range u.ops {
		r := opRange(op)
		if r.Single() && len(q.ranged) == 0 {
			line := q.byKey[string(r.Key)]
			if at := place(line, u); at > 0 {
				hurry(line[at-1])
			}
			continue
		}
		for before := range q.within(r, u.seq) {
			hurry(before)
		}
	}
}

// crowded reports whether u would have to wait for others that change one of its keys,
// and need not: where all of them are of callers who wait, these and u are concurrent,
// and may be written in any order. A batch has each key once, so to wait would be to
// take turns. A caller who has left does not wait: u may be what it does next.
func (q *queue) crowded(u *unit) bool {
	if u.sequenced || len(q.ranged) > 0 || u.put != nil && u.rules[0].Mode >= LastWriteWins && !depends(u.put) {
		return false
	}
	some := false
	for _, op := range u.ops {
		if !opRange(op).Single() {
			return false
		}
		for _, before := range q.byKey[string(opKey(op))] {
			if some = true; before.sequenced || before.callers == 0 || before.left {
				return false
			}
		}
	}
	return some
}

// within yields the units before seq that change a key in r, some of them more often than
// once.
func (q *queue) within(r keys.Range, seq uint64) iter.Seq[*unit] {
	return func(yield func(*unit) bool) {
		if !r.Single() {
			for u := range q.all {
				if u.seq < seq && u.changes(r) && !yield(u) {
					return
				}
			}
			return
		}
		for _, units := range [][]*unit{q.byKey[string(r.Key)], q.ranged} {
			for _, u := range units {
				if u.seq >= seq {
					break
				}
				if u.changes(r) && !yield(u) {
					return
				}
			}
		}
	}
}

// all yields all units, some of them more often than once.
func (q *queue) all(yield func(*unit) bool) {
	for _, line := range q.byKey {
		for _, u := range line {
			if !yield(u) {
				return
			}
		}
	}
	for _, u := range q.ranged {
		if !yield(u) {
			return
		}
	}
}

// changes reports whether u changes a key in r.
func (u *unit) changes(r keys.Range) bool {
	for _, op := range u.ops {
		if opRange(op).Overlaps(r) {
			return true
		}
	}
	return false
}

// blocked reports whether something that came before u has to be written first.
func (q *queue) blocked(u *unit) bool {
	for _, op := range u.ops {
		for range q.within(opRange(op), u.seq) {
			return true
		}
	}
	return false
}

// remove takes u out of the queue: it was written, or will not be.
func (q *queue) remove(u *unit) {
	if u.state == waiting {
		q.leave(u)
	}
	q.units.Add(-1)
	for _, op := range u.ops {
		r := opRange(op)
		if !r.Single() {
			q.ranged = slices.DeleteFunc(q.ranged, func(o *unit) bool { return o == u })
			continue
		}
		line := q.byKey[string(r.Key)]
		if at := place(line, u); len(line) > 1 {
			q.byKey[string(r.Key)] = slices.Delete(line, at, at+1)
		} else {
			delete(q.byKey, string(r.Key))
		}
	}
}

// requeue has units of a batch wait again, at once, in their old places. Where a newer
// value of the same key has come in the meantime that may take the place of one, it
// does; those are returned.
func (q *queue) requeue(units []*unit) (taken []*unit) {
	for _, u := range units {
		if u.put != nil {
			line := q.byKey[string(u.put.Key)]
			if after := line[place(line, u)+1:]; len(after) > 0 && after[0].state == waiting && u.merges(after[0]) && !q.rangedBetween(u, after[0].seq) {
				n := after[0]
				if !u.wins(n) {
					n.lane.bytes += u.bytes - n.bytes
					n.takeValue(u)
				}
				n.absorb(u)
				taken = append(taken, u)
				q.remove(u)
				q.hurry(n)
				continue
			}
		}
		q.enter(u, u.lane)
		q.hurry(u)
	}
	return taken
}

// waits reports whether anything is due.
func (q *queue) waits(now time.Time) bool {
	return slices.ContainsFunc(q.lanes, func(l *lane) bool {
		at, ok := l.due(q.limits)
		return ok && !at.After(now)
	})
}

// rangedBetween reports whether a delete of a range with the key of u, a put, stands
// between u and seq.
func (q *queue) rangedBetween(u *unit, seq uint64) bool {
	key := keys.Range{Key: u.put.Key}
	return slices.ContainsFunc(q.ranged, func(r *unit) bool { return u.seq < r.seq && r.seq < seq && r.changes(key) })
}

// fullBatches is how many batches' bytes have to wait for the first of them to be sent before
// its time: of what is just enough for one, a few large units may not fit with each other.
const fullBatches = 3

// due returns when the lane is to be sent, and whether there is something in it.
func (l *lane) due(lim limits) (at time.Time, ok bool) {
	if len(l.units) == 0 {
		return at, false
	}
	first := l.units[0]
	if first.seq <= l.hurry || l.ops >= lim.maxOps || l.bytes >= fullBatches*lim.entryBytes {
		return first.added, true
	}
	return first.added.Add(l.wait), true
}

// next returns when the next lane will be due that is not yet.
func (q *queue) next(now time.Time) (at time.Time, ok bool) {
	for _, l := range q.lanes {
		if t, some := l.due(q.limits); some && t.After(now) && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	return at, ok
}

// batch is what is sent together.
type batch struct {
	first               *unit // all are of the same sender as this one
	look, verify, write []*unit
	shape               shape // of write
	compares, reads     int   // of verify, of look

	stop func() // ends its requests
}

// wanted reports whether somebody waits for a unit that is under way in the batch.
func (b *batch) wanted() bool {
	return slices.ContainsFunc(b.units(), func(u *unit) bool { return u.state == sealed && u.flight == b && !u.deserted() })
}

func (b *batch) units() []*unit { return slices.Concat(b.look, b.verify, b.write) }

// Of each lane a batch looks at so many units at the most, and no further when it has left
// out so many for want of room.
const (
	maxScan   = 4 * maxMaxOps
	maxMisses = 128
)

// fullOps is what waits, at least, for another batch to be sent beside one that is under
// way: to wait longer would save revisions, but then the server is idle while the answers
// are told.
const fullOps = 256

// seal takes the next batch of what is due: of units that are sent under the sequence
// of this process, or of others; nil where there is none. Where it has to be full, there
// is none before that much is due.
func (q *queue) seal(now time.Time, sequenced, full bool) *batch {
	var ready []*lane
	ops, bytes := 0, 0
	for _, l := range q.lanes {
		if at, ok := l.due(q.limits); ok && l.sequenced == sequenced && !at.After(now) {
			ready = append(ready, l)
			ops, bytes = ops+l.ops, bytes+l.bytes
		}
	}
	if len(ready) == 0 || full && ops < min(fullOps, q.limits.maxOps) && bytes < q.limits.entryBytes {
		return nil
	}
	slices.SortFunc(ready, func(a, b *lane) int { return a.units[0].added.Compare(b.units[0].added) })
	b := &batch{shape: shape{outer: sequenced}}
	for _, l := range ready {
		q.draw(b, l)
	}
	if b.first == nil {
		return nil
	}
	return b
}

// draw takes what fits from a lane: the oldest, and where not all will fit the largest
// first, so that little room is left between them.
func (q *queue) draw(b *batch, l *lane) {
	due := l.units[:min(len(l.units), maxScan)]
	first, rest := due[0], due[1:]
	if l.bytes > q.limits.entryBytes {
		rest = slices.Clone(rest)
		slices.SortStableFunc(rest, func(a, b *unit) int { return cmp.Compare(b.bytes, a.bytes) })
	}
	misses := 0
	for i := -1; i < len(rest) && misses < maxMisses; i++ {
		u := first
		if i >= 0 {
			u = rest[i]
		}
		switch {
		case q.blocked(u):
		case !q.take(b, u):
			misses++
		default:
			u.state, u.flight = sealed, b
			l.ops -= len(u.ops)
			l.bytes -= u.bytes
		}
	}
	l.units = slices.DeleteFunc(l.units, func(u *unit) bool { return u.state == sealed })
}

// take adds u to the batch, if it fits.
func (q *queue) take(b *batch, u *unit) bool {
	if b.first != nil && (b.first.retry != u.retry || !b.first.sameSender(u)) {
		return false
	}
	u.plan = makePlan(u, q.memory, q.limits.txnOps)
	most := q.limits.txnOps - outerOps
	switch p := &u.plan; p.step {
	case look:
		if len(b.look) > 0 && b.reads+len(u.ops) > most {
			return false
		}
		b.look, b.reads = append(b.look, u), b.reads+len(u.ops)
	case verify:
		if len(b.verify) > 0 && b.compares+len(p.guards) > most {
			return false
		}
		b.verify, b.compares = append(b.verify, u), b.compares+len(p.guards)
	case write:
		s := b.shape.plus(p)
		if len(b.write) > 0 && !s.fits(q.limits, q.sequenceBytes) {
			return false
		}
		b.write, b.shape = append(b.write, u), s
	}
	if b.first == nil {
		b.first = u
	}
	return true
}
