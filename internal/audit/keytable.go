package audit

import "math/bits"

// keyTable knows of each key whether it was seen, and what of it is history: revisions other
// than the newest, and their bytes.
//
// The goal is an exact answer, for any number of keys, in a bounded amount of memory. A Go
// map has the keys themselves, too: hundreds of megabytes for five million. This takes 16 bytes
// a key, plus room, and no keys: a 64-bit hash stands for a key, and two of n keys have the same one with
// a probability of n*n/2^65, which is less than one in a million for five million keys. Where
// it happens one of them counts as a revision of the other. The hash has a seed of its own in
// each run, so that nobody can choose keys that collide.
//
// It is an open-addressing table in segments, by the lowest bits of the hash. Segments grow
// by themselves, by a quarter, so that there is never a copy of the whole table, and two
// thirds of it or more are in use. Where there are more keys than maxKeys, the caller reads
// its records several times, for a part of the keys each time, see [Tally].
type keyTable struct {
	segments [1 << segmentBits]segment
	keys     int
}

const segmentBits = 8

type segment struct {
	slots []slot
	used  int
}

// slot is a key: its hash, which is never 0, and its history, 26 bits for revisions and 36 for
// their bytes, a bit for a key whose newest revision was seen, and one for one that is live.
type slot struct{ hash, history uint64 }

const (
	historyByteBits = 36
	maxHistoryBytes = 1<<historyByteBits - 1 // 64 GiB, and a backend has a few
	maxHistory      = 1<<26 - 1
	seenBit         = 1 << 63
	liveBit         = 1 << 62
	stateBits       = seenBit | liveBit
)

func (s *slot) seen() bool        { return s.history&seenBit != 0 }
func (s *slot) bytes() uint64     { return s.history & maxHistoryBytes }
func (s *slot) revisions() uint64 { return s.history &^ stateBits >> historyByteBits }

// see says that a revision of the key was seen, and whether it is the one that is live.
func (s *slot) see(live bool) {
	if s.history |= seenBit; live {
		s.history |= liveBit
	}
}

// kept is how many revisions there are of the key.
func (s *slot) kept() uint64 { return s.revisions() + s.history&liveBit>>62 }

func (s *slot) add(revisions, bytes uint64) {
	s.history = s.history&stateBits | min(s.revisions()+revisions, maxHistory)<<historyByteBits | min(s.bytes()+bytes, maxHistoryBytes)
}

// find returns the slot of a hash, which is new where it was not there. It is valid until the
// next call.
func (t *keyTable) find(hash uint64) *slot {
	hash = max(hash, 1)
	g := &t.segments[hash&(1<<segmentBits-1)]
	if g.used*5 >= len(g.slots)*4 {
		g.grow()
	}
	s := g.find(hash)
	if s.hash == 0 {
		s.hash = hash
		g.used++
		t.keys++
	}
	return s
}

// find returns the slot with the hash, or the empty one where it belongs.
func (g *segment) find(hash uint64) *slot {
	// The upper bits of hash * length choose, as they would with hash as a fraction.
	i, _ := bits.Mul64(hash, uint64(len(g.slots)))
	for {
		s := &g.slots[i]
		if s.hash == hash || s.hash == 0 {
			return s
		}
		if i++; i == uint64(len(g.slots)) {
			i = 0
		}
	}
}

func (g *segment) grow() {
	old := g.slots
	g.slots = make([]slot, max(len(old)+len(old)/4, 16))
	for _, s := range old {
		if s.hash != 0 {
			*g.find(s.hash) = s
		}
	}
}

// reset empties the table and keeps its memory.
func (t *keyTable) reset() {
	for i := range t.segments {
		clear(t.segments[i].slots)
		t.segments[i].used = 0
	}
	t.keys = 0
}
