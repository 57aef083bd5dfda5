package shaper

import (
	"bytes"
	"cmp"
	"slices"
)

// PrefixTraffic is what was written below a prefix. Nothing is counted that was not written,
// but something may be missing: at most MissedBytes of what [PrefixTraffic.Weight] is of, and
// so at most MissedBytes/256 records. It is 0 for prefixes that were there from the beginning,
// which the heaviest ones mostly are.
type PrefixTraffic struct {
	Prefix      string `json:"prefix"`
	Records     uint64 `json:"records"`
	Bytes       uint64 `json:"bytes"` // keys and values
	MissedBytes uint64 `json:"missedBytes"`
}

// Weight is what prefixes are ordered by: bytes as etcd's quota counts them, 256 for each
// record, its key and its value. So a prefix is heavy that has large values, and one that has
// many.
func (p PrefixTraffic) Weight() uint64 { return p.Bytes + recordOverhead*p.Records }

const (
	recordOverhead = 256 // kvOverhead in server/storage/quota.go

	// maxPrefixBytes bounds the memory of a prefix. What is longer counts together with
	// what begins in the same way.
	maxPrefixBytes = 128
)

// prefixOf returns the first depth components of key, each with the separator that ends it,
// or as many as it has.
func prefixOf(key []byte, separator byte, depth int) []byte {
	end := 0
	if len(key) > 0 && key[0] == separator {
		end = 1
	}
	for range depth {
		n := bytes.IndexByte(key[end:], separator)
		if n < 0 {
			break
		}
		end += n + 1
	}
	return key[:min(end, maxPrefixBytes)]
}

// prefixSketch finds the heaviest of any number of prefixes in bounded memory. It is
// Space-Saving (Metwally and others, 2005) with weights: it follows k prefixes; one that is
// not among them takes the place of the lightest.
//
// Invariants, with W the weight of everything that was added:
//
//  1. What is counted of a prefix was written: an entry counts from when its prefix took its
//     place. What was written before weighs at most missed, the weight of the entry that gave
//     way.
//  2. weight = what was counted + missed. The weights sum to W at the most, so the lightest
//     is W/k at the most, and so is everything that is missed, of a prefix that is followed or
//     of one that is not.
//  3. So each prefix that weighs more than W/k is followed.
//  4. Sketches of parts of a stream are put together by adding what each has of a prefix, and
//     to what is missed the lightest weight of each that does not follow it. The sum of these is W/k at the most, again.
//
// A map of all prefixes is exact and has no bound: a prefix may have an id of a user in it. A
// count-min sketch is as small, but its counts are too large by the same bound, it does not
// know which prefixes there were, and it needs several places in memory for each write.
//
// Entries stay where they are. A heap has the lightest on top; a table finds an entry by the
// hash of its prefix, open addressing with linear probing. Nothing is allocated once the
// prefixes have taken their places, whatever comes and goes: a Go map grows anew when keys
// come and go. Two prefixes of the same 64-bit hash are taken for one: with 10,000 prefixes
// that happens once in 10^11 cases.
type prefixSketch struct {
	entries []prefixEntry
	heap    []int32 // of entries by weight
	table   []int32 // of entries, plus one, by hash; its length is a power of two
	cap     int
}

type prefixEntry struct {
	hash           uint64
	weight, missed uint64
	records, bytes uint64
	at             int // in the heap
	prefix         []byte
}

func newPrefixSketch(k int) prefixSketch {
	size := 4
	for size < 2*k {
		size *= 2
	}
	return prefixSketch{entries: make([]prefixEntry, 0, k), heap: make([]int32, 0, k), table: make([]int32, size), cap: k}
}

// add counts records with so many bytes of keys and values below prefix.
func (s *prefixSketch) add(hash uint64, prefix []byte, records, bytes uint64) {
	weight := bytes + recordOverhead*records
	slot := s.find(hash)
	if i := s.table[slot]; i > 0 {
		e := &s.entries[i-1]
		e.weight, e.records, e.bytes = e.weight+weight, e.records+records, e.bytes+bytes
		s.down(e.at)
		return
	}
	if len(s.entries) < s.cap {
		i := len(s.entries)
		s.entries = append(s.entries, prefixEntry{
			hash: hash, weight: weight, records: records, bytes: bytes, at: i, prefix: append(make([]byte, 0, maxPrefixBytes), prefix...),
		})
		s.table[slot] = int32(i) + 1
		s.heap = append(s.heap, int32(i))
		s.up(i)
		return
	}
	i := s.heap[0]
	e := &s.entries[i]
	s.remove(s.find(e.hash))
	s.table[s.find(hash)] = i + 1
	*e = prefixEntry{
		hash: hash, weight: e.weight + weight, missed: e.weight, records: records, bytes: bytes,
		prefix: append(e.prefix[:0], prefix...),
	}
	s.down(0)
}

// lightest returns what a prefix that is not followed weighs at the most.
func (s *prefixSketch) lightest() uint64 {
	if len(s.entries) < s.cap {
		return 0
	}
	return s.entries[s.heap[0]].weight
}

// find returns where in the table the hash is, or else where it belongs.
func (s *prefixSketch) find(hash uint64) int {
	for i := s.home(hash); ; i = s.after(i) {
		if e := s.table[i]; e == 0 || s.entries[e-1].hash == hash {
			return i
		}
	}
}

// remove empties a place in the table, and moves there what it was in the way of.
func (s *prefixSketch) remove(hole int) {
	for i := s.after(hole); s.table[i] != 0; i = s.after(i) {
		// What is at i may go to the hole unless its home is between them.
		home := s.home(s.entries[s.table[i]-1].hash)
		if (i-home)&(len(s.table)-1) >= (i-hole)&(len(s.table)-1) {
			s.table[hole] = s.table[i]
			hole = i
		}
	}
	s.table[hole] = 0
}

func (s *prefixSketch) home(hash uint64) int { return int(hash & uint64(len(s.table)-1)) }
func (s *prefixSketch) after(i int) int      { return (i + 1) & (len(s.table) - 1) }

func (s *prefixSketch) up(at int) {
	for at > 0 && s.lighter(at, (at-1)/2) {
		s.swap(at, (at-1)/2)
		at = (at - 1) / 2
	}
}

func (s *prefixSketch) down(at int) {
	for {
		least := at
		for child := 2*at + 1; child <= 2*at+2 && child < len(s.heap); child++ {
			if s.lighter(child, least) {
				least = child
			}
		}
		if least == at {
			return
		}
		s.swap(at, least)
		at = least
	}
}

func (s *prefixSketch) lighter(a, b int) bool {
	return s.entries[s.heap[a]].weight < s.entries[s.heap[b]].weight
}

func (s *prefixSketch) swap(a, b int) {
	s.heap[a], s.heap[b] = s.heap[b], s.heap[a]
	s.entries[s.heap[a]].at, s.entries[s.heap[b]].at = a, b
}

// followed is what a sketch has at a moment.
type followed struct {
	entries  []prefixEntry
	lightest uint64
}

// copy returns what the sketch has now.
func (s *prefixSketch) copy() followed {
	f := followed{slices.Clone(s.entries), s.lightest()}
	text := make([]byte, 0, len(s.entries)*maxPrefixBytes) // of all entries: it does not grow
	for i := range f.entries {
		text = append(text, f.entries[i].prefix...)
		f.entries[i].prefix = text[len(text)-len(f.entries[i].prefix):]
	}
	return f
}

// heaviest puts what sketches of parts of a stream have together, and returns the n heaviest
// prefixes.
func heaviest(n int, sketches []followed) []PrefixTraffic {
	var lightest uint64 // of all sketches: what is missed of a prefix that none follows
	for _, s := range sketches {
		lightest += s.lightest
	}
	found := make(map[string]int)
	var all []PrefixTraffic
	for _, s := range sketches {
		for _, e := range s.entries {
			i, ok := found[string(e.prefix)]
			if !ok {
				i = len(all)
				all = append(all, PrefixTraffic{Prefix: string(e.prefix), MissedBytes: lightest})
				found[all[i].Prefix] = i
			}
			all[i].Records += e.records
			all[i].Bytes += e.bytes
			all[i].MissedBytes -= s.lightest - e.missed // a sketch that follows it has missed less
		}
	}
	slices.SortFunc(all, func(a, b PrefixTraffic) int {
		return cmp.Or(cmp.Compare(b.Weight(), a.Weight()), cmp.Compare(a.Prefix, b.Prefix))
	})
	return all[:min(n, len(all))]
}
