package faults

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// check compares what clients were answered with what etcd says has happened, and
// returns what does not agree.
//
// Every write is one revision of the whole store, so that revisions are the order
// in which operations took effect: a write at its revision, a read after the write
// of its revision and before the next. A search, which is what makes such checks
// expensive, is not needed. The history is strictly serializable if, and only if,
//
//   - every change that etcd tells of was made by one operation whose client does
//     not know better, and every acknowledged write has made one, at the revision
//     that was answered;
//   - what an operation has found is what was there then: which value, and which
//     revisions, version and lease; so a put is one version;
//   - (of puts that were merged into one write the newest is it: the others took effect
//     at the same revision, just before)
//   - revisions do not go back in real time: an operation that began after another
//     had ended is not before it. That holds across keys too.
func (h *history) check(events []event) []string {
	c := &checker{h: h, keys: make(map[string][]event), puts: make(map[string]event), deletes: make(map[change]bool), writers: make(map[string]int)}
	c.violations = append(c.violations, h.wrong...)
	c.sortEnds()
	for _, e := range events {
		c.event(e)
	}
	for _, r := range h.records {
		if r.ID != "" {
			c.writers[r.ID] = r.Client
		}
	}
	for _, r := range h.records {
		c.settlePut(r)
	}
	c.settleDeletes()
	for _, r := range h.records {
		c.observed(r)
	}
	c.groups()
	c.realTime()
	return c.violations
}

type change struct {
	key string
	rev int64
}

type checker struct {
	h          *history
	keys       map[string][]event // by key, in order
	puts       map[string]event   // by id
	deletes    map[change]bool    // whether an operation is known that made it
	writers    map[string]int     // the client that was to put a value, by id
	ends       []*record          // of known outcome, in the order in which they ended
	newest     []*record          // of all up to that one, the one at the highest revision
	violations []string
}

func (c *checker) violation(format string, args ...any) {
	c.violations = append(c.violations, fmt.Sprintf(format, args...))
}

// sortEnds makes ready for before.
func (c *checker) sortEnds() {
	for _, r := range c.h.records {
		if r.ordered() && r.Return != never {
			c.ends = append(c.ends, r)
		}
	}
	slices.SortFunc(c.ends, func(a, b *record) int { return cmp.Compare(a.Return, b.Return) })
	newest := &record{}
	for _, r := range c.ends {
		if r.Revision > newest.Revision {
			newest = r
		}
		c.newest = append(c.newest, newest)
	}
}

// before returns the operation at the highest revision of those that had ended
// when r began: where r took effect, it did so after that one.
func (c *checker) before(r *record) *record {
	n, _ := slices.BinarySearchFunc(c.ends, r.Call, func(e *record, call time.Duration) int { return cmp.Compare(e.Return, call) })
	if n == 0 {
		return &record{}
	}
	return c.newest[n-1]
}

// event adds an event, which has to follow from the one before: etcd itself is
// tested, too.
func (c *checker) event(e event) {
	var before found
	if es := c.keys[e.Key]; len(es) > 0 {
		before = es[len(es)-1].found
	}
	c.keys[e.Key] = append(c.keys[e.Key], e)
	if e.deletes() {
		c.deletes[change{e.Key, e.Rev}] = false
		return
	}
	if want := before.put(e.ID, e.Rev, e.Lease); e.found != want {
		c.violation("etcd: %v after %+v", e, before)
	}
	if twice, is := c.puts[e.ID]; is {
		c.violation("applied twice: value %s at %d and %d", e.ID, twice.Rev, e.Rev)
	}
	c.puts[e.ID] = e
}

// put returns what is at a key after a put.
func (f found) put(id string, revision, lease int64) found {
	if f.ID == "" {
		f.Create = revision
	}
	return found{ID: id, Create: f.Create, Mod: revision, Version: f.Version + 1, Lease: lease}
}

// settlePut compares a put with its event. One of unknown outcome was applied if
// there is one.
func (c *checker) settlePut(r *record) {
	if r.ID == "" {
		return
	}
	e, applied := c.puts[r.ID]
	delete(c.puts, r.ID)
	if applied && e.Key != r.Key {
		c.violation("applied to another key, %q: %v", e.Key, r)
	}
	switch {
	case r.Outcome == unknown:
		if r.Wrote = applied; applied {
			r.Revision, r.Lease = e.Rev, e.Lease
		}
	case applied && !r.Wrote:
		c.violation("applied at %d, although it should not be: %v", e.Rev, r)
	case r.Wrote && !applied && c.merged(r):
		r.Merged = true
	case r.Wrote && !applied:
		c.violation("lost: %v", r)
	case r.Wrote && e.Rev < r.Revision && c.merged(r):
		r.Revision = e.Rev // its own write had no answer, and while it was being looked for a newer value came
	case r.Wrote && (e.Rev != r.Revision || e.Lease != r.Lease):
		c.violation("applied as %v: %v", e, r)
	}
}

// merged reports whether a client that uses the same KV as r's has put another value at
// the revision that r was answered with: a put of a few that were one write, of which the
// newest was written.
func (c *checker) merged(r *record) bool {
	kv, shares := c.h.share[r.Client]
	if !shares || r.Kind != put && r.Kind != putBehind && r.Kind != putLeased {
		return false
	}
	winner := c.at(r.Key, r.Revision)
	by, is := c.writers[winner.ID]
	other, alsoShares := c.h.share[by]
	return winner.Mod == r.Revision && is && alsoShares && other == kv && winner.Lease == r.Lease
}

// settleDeletes finds the operation that made each delete. One of unknown outcome
// has made one that nobody else has, the one that was begun first if there are
// several: deletes are all alike, so that this fails only where all else does.
func (c *checker) settleDeletes() {
	var open []*record // deletes and revokes of unknown outcome
	revokes := make(map[int64]*record)
	for _, r := range c.h.records {
		switch at := (change{r.Key, r.Revision}); {
		case r.Kind == revoke:
			revokes[r.Lease] = r
		case r.Kind == del && r.Outcome == unknown:
			open = append(open, r)
		case r.Kind == del && r.Wrote:
			if _, is := c.deletes[at]; !is {
				c.violation("lost: %v", r)
			}
			c.deletes[at] = true
		}
	}
	slices.SortStableFunc(open, func(a, b *record) int { return cmp.Compare(a.Call, b.Call) })
	for key, es := range c.keys {
		for i, e := range es {
			if !e.deletes() || c.deletes[change{key, e.Rev}] {
				continue
			}
			var lease int64
			if i > 0 {
				lease = es[i-1].Lease
			}
			r := revokes[lease]
			if r != nil && r.mayHaveMade(e) && c.before(r).Revision < e.Rev {
				delete(revokes, lease)
			} else if at := slices.IndexFunc(open, func(r *record) bool { return r.Key == key }); at >= 0 {
				r = open[at]
				open = slices.Delete(open, at, at+1)
			} else {
				c.violation("deleted by nobody: %q at %d", key, e.Rev)
				continue
			}
			r.Wrote, r.Revision = true, e.Rev
		}
	}
	for id, e := range c.puts {
		c.violation("put by nobody: %s at %d", id, e.Rev)
	}
}

// mayHaveMade reports whether the revoke r may have made e, by what was answered.
func (r *record) mayHaveMade(e event) bool {
	return r.Outcome == unknown || r.Outcome == ok && r.Revision == e.Rev
}

// at returns what was at a key at a revision.
func (c *checker) at(key string, revision int64) found {
	es := c.keys[key]
	i, _ := slices.BinarySearchFunc(es, revision+1, func(e event, revision int64) int { return cmp.Compare(e.Rev, revision) })
	if i == 0 {
		return found{}
	}
	return es[i-1].found
}

// observed compares what an operation has found with what was there.
func (c *checker) observed(r *record) {
	if !r.counts() || r.Merged {
		return
	}
	at := r.Revision
	if r.Wrote {
		at--
	}
	was := c.at(r.Key, at)
	if r.Observed && r.Found != was {
		c.violation("found another value than %+v: %v", was, r)
	}
	if r.Wrote && r.ID == "" && was.ID == "" {
		c.violation("deleted nothing: %v", r)
	}
}

// counts reports whether r has read or changed the key at its revision.
func (r *record) counts() bool {
	return r.Wrote || r.Outcome == ok && r.Kind != revoke
}

// ordered reports whether r counts, and in real time: serializable reads may be of
// the past.
func (r *record) ordered() bool { return r.counts() && r.Kind != getSerializable }

// groups checks that a transaction was applied to all of its keys, or to none.
func (c *checker) groups() {
	first := make(map[int]*record)
	for _, r := range c.h.records {
		if !r.Writes {
			continue
		}
		if f := first[r.Group]; f == nil {
			first[r.Group] = r
		} else if f.Wrote != r.Wrote || f.Revision != r.Revision {
			c.violation("applied in part: %v; %v", f, r)
		}
	}
}

// realTime checks that no operation is before another one that had ended when it
// began.
func (c *checker) realTime() {
	for _, r := range c.h.records {
		if !r.ordered() {
			continue
		}
		if last := c.before(r); r.Revision < last.Revision || r.Wrote && r.Revision == last.Revision {
			c.violation("stale: %v; which began after the end of %v", r, last)
		}
	}
}
