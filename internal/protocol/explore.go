package protocol

import (
	"fmt"
	"hash/maphash"
	"math/bits"
)

// canon makes states equal that nothing can tell apart.
func (m *model) canon(s *state) {
	for i := range s.writers {
		w := &s.writers[i]
		switch w.phase {
		case ended:
			*w = writer{phase: ended, outcome: w.outcome, applied: w.applied, session: w.session}
		case abandoning:
			w.known, w.attempts, w.spent = record{}, 0, 0
			w.draft = draft{token: w.draft.token, anchor: w.draft.anchor, sent: true}
		}
	}
	if m.env.restore > 0 {
		return // revisions come back
	}
	for i := range s.late {
		if s.never(m.txn(s.late[i]).ifs) {
			s.late[i] = request{}
		}
	}
	for i := range s.sweepers {
		if sw := s.sweepers[i]; sw.token != 0 && s.never(m.sweepTxn(sw).ifs) {
			s.sweepers[i] = sweeper{}
		}
	}
	s.renumber()
}

// never reports whether the comparisons will not hold any more: what has had a
// revision and has lost it does not get it back.
func (s *state) never(ifs []compare) bool {
	for _, c := range ifs {
		if (c.target == modOfK || c.target == createdAt || c.target == modAt) && c.want != 0 && !s.holds(c) {
			return true
		}
	}
	return false
}

// renumber gives revisions the smallest numbers that keep their order. They are
// below 64 as there are not that many.
func (s *state) renumber() {
	var used uint64
	s.revisions(func(r *uint8) { used |= 1 << *r })
	used &^= 1 // which stands for none
	s.rev = uint8(bits.OnesCount64(used))
	s.revisions(func(r *uint8) { *r = uint8(bits.OnesCount64(used << (63 - *r))) })
}

func (s *state) revisions(visit func(*uint8)) {
	visit(&s.k.mod)
	for i := range s.cells {
		visit(&s.cells[i].created)
		visit(&s.cells[i].mod)
	}
	for i := range s.writers {
		visit(&s.writers[i].known.mod)
		visit(&s.writers[i].draft.base.mod)
		visit(&s.writers[i].draft.anchor)
		visit(&s.writers[i].draft.latest)
	}
	for i := range s.late {
		visit(&s.late[i].draft.base.mod)
		visit(&s.late[i].draft.anchor)
		visit(&s.late[i].draft.latest)
	}
	for i := range s.sweepers {
		visit(&s.sweepers[i].k.mod)
	}
	for i := range s.readers {
		visit(&s.readers[i].holds.mod)
	}
}

// broken returns which invariant does not hold in s, "" where all do.
func (m *model) broken(s *state) string {
	if s.k.token != 0 && !s.k.moved && (s.missing(s.k) > 0 || !s.holdsValue(s.k)) {
		return "I1"
	}
	if s.mixed {
		return "I2"
	}
	over := true
	for i := range s.writers {
		w := &s.writers[i]
		switch {
		case w.applied > 1,
			w.outcome == acked && w.applied != 1,
			(w.outcome == failed || w.outcome == contended) && w.applied != 0:
			return "I4"
		}
		over = over && (w.phase == idle || w.phase == ended)
	}
	if over && !m.sweeps(*s) {
		return "I3"
	}
	return ""
}

// sweeps reports whether one sweep removes all that is unnamed, once all sessions
// have ended, those of old that a restore has brought back included.
func (m *model) sweeps(s state) bool {
	for lease := uint8(firstSession); lease < leases; lease++ {
		s.expire(lease)
	}
	for token := uint8(1); token <= tokens; token++ {
		if sw := look(&s.store, token); sw.finds() {
			if s.apply(m.sweepTxn(sw)); look(&s.store, token).finds() {
				return false
			}
		}
	}
	return true
}

// finishes reports whether writer i, running alone from s, comes to an end. It
// may take one fresh token, and not run out of them.
func (m *model) finishes(s state, i int) bool {
	w := &s.writers[i]
	spare := w.outcome == open && w.spent < m.tokens
	for range 12 {
		switch w.phase {
		case idle:
			m.begin(&s, i)
		case ended:
			return !spare || w.outcome != contended
		default:
			m.act(&s, i)
		}
	}
	return false
}

// fault is a broken invariant, and the shortest way to it.
type fault struct {
	invariant string
	trace     []string
}

// result is what an exploration has come to.
type result struct {
	states, depth int
	fault         *fault // nil where every state is good
}

var seed = maphash.MakeSeed()

// explore visits every state that can be reached, those with the shortest way
// first, up to one that is bad. States are known by 64 bits of their hash: of a
// hundred million, a pair is taken for one with a probability of 3 in 10,000.
func (m *model) explore() result {
	m.tokens, m.blind = max(m.tokens, 2), max(m.blind, 2)
	first := m.start()
	m.canon(&first)
	var (
		known   = map[uint64]uint32{maphash.Comparable(seed, first): 0}
		parents = []uint32{0}
		now     = []state{first}
		from    = []uint32{0}
		r       result
	)
	for ; len(now) > 0 && r.fault == nil; r.depth++ {
		var next []state
		var nextFrom []uint32
		for at := range now {
			m.moves(&now[at], func(_ step, n *state) {
				m.canon(n)
				hash := maphash.Comparable(seed, *n)
				if _, ok := known[hash]; ok || r.fault != nil {
					return
				}
				number := uint32(len(parents))
				known[hash] = number
				parents = append(parents, from[at])
				next, nextFrom = append(next, *n), append(nextFrom, number)
				if invariant := m.broken(n); invariant != "" {
					r.fault = &fault{invariant, m.trace(known, parents, number)}
				}
				for i := range m.puts {
					if r.fault == nil && !m.finishes(*n, i) {
						r.fault = &fault{"I5", m.trace(known, parents, number)}
					}
				}
			})
		}
		now, from = next, nextFrom
	}
	r.states = len(parents)
	return r
}

// trace plays the way to a state again, with the revisions that it really has, and
// tells of it.
func (m *model) trace(known map[uint64]uint32, parents []uint32, last uint32) (lines []string) {
	var way []uint32
	for n := last; n != 0; n = parents[n] {
		way = append(way, n)
	}
	s := m.start()
	lines = append(lines, fmt.Sprintf("%-44s %v", "at first", &s.store))
	for i := len(way) - 1; i >= 0; i-- {
		before, found := s, false
		m.moves(&before, func(st step, n *state) {
			c := *n
			if m.canon(&c); !found && known[maphash.Comparable(seed, c)] == way[i] {
				s, found = *n, true
				lines = append(lines, fmt.Sprintf("%-44s %v", st, &n.store))
			}
		})
	}
	return lines
}

func (s step) String() string {
	if s.who == "" {
		return s.what
	}
	return fmt.Sprint(s.who, " ", s.number+1, " ", s.what, " ", s.more)
}

func (s *store) String() string {
	text := "K absent"
	switch {
	case s.k.token != 0:
		text = fmt.Sprintf("K@%d = t%d %q in %v %v", s.k.mod, s.k.token, s.k.want, s.k.refs[0], s.k.refs[1])
	case s.k.mod != 0:
		text = fmt.Sprintf("K@%d = plain", s.k.mod)
	}
	for i, c := range s.cells {
		if c.created != 0 && id(i)%perToken == 0 || i >= chunkKeys && c.created != 0 {
			text += fmt.Sprintf("; %v@%d", id(i), c.created)
		} else if c.created != 0 {
			text += fmt.Sprintf("; %v@%d %q", id(i), c.created, c.content)
		}
	}
	return text
}

func (i id) String() string {
	switch index := i % perToken; {
	case i >= chunkKeys:
		return fmt.Sprintf("anchor outside %d", i-chunkKeys+1)
	case index == 0:
		return fmt.Sprintf("t%d.anchor", i/perToken+1)
	default:
		return fmt.Sprintf("t%d.%d", i/perToken+1, index)
	}
}
