package audit

import (
	"cmp"
	"slices"
)

// top keeps the entries with the greatest weights. Weights only grow: then the list is exact,
// since the least weight in it grows too, and whoever belongs there at the end has got in
// when its weight was set for the last time.
type top struct {
	room    int
	entries []topEntry // a heap by nothing: at most a few dozen
	least   uint64     // weight, once there is no room left
}

type topEntry struct {
	hash   uint64
	weight uint64
	key    []byte
	length int // of the whole key
	about  KeyReport
}

// wants reports whether a weight is enough. It is what most calls come to.
func (t *top) wants(weight uint64) bool {
	return weight > 0 && (len(t.entries) < t.room || weight > t.least)
}

// set gives the key of a hash its weight.
func (t *top) set(hash, weight uint64, key []byte, about KeyReport) {
	if !t.wants(weight) {
		return
	}
	length := len(key)
	key = key[:min(length, maxShown)]
	at := slices.IndexFunc(t.entries, func(e topEntry) bool { return e.hash == hash })
	switch {
	case at >= 0:
		t.entries[at].weight, t.entries[at].about = weight, about
	case len(t.entries) < t.room:
		t.entries = append(t.entries, topEntry{hash, weight, slices.Clone(key), length, about})
	default:
		at = t.lightest()
		t.entries[at] = topEntry{hash, weight, append(t.entries[at].key[:0], key...), length, about}
	}
	if len(t.entries) == t.room {
		t.least = t.entries[t.lightest()].weight
	}
}

func (t *top) lightest() (at int) {
	for i := range t.entries {
		if t.entries[i].weight < t.entries[at].weight {
			at = i
		}
	}
	return at
}

// report returns what is known of the key, of which a very long one is cut.
func (e topEntry) report() KeyReport {
	k := e.about
	if k.Key = Key(e.key); e.length > len(e.key) {
		k.KeyBytes = uint64(e.length)
	}
	return k
}

// sorted returns the entries, the heaviest first.
func (t *top) sorted() []topEntry {
	return slices.SortedFunc(slices.Values(t.entries), func(a, b topEntry) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), slices.Compare(a.key, b.key))
	})
}
