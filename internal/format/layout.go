package format

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Layout is where every byte of a value is stored: a manifest with the lists
// that it refers to. [NewLayout] begins with the manifest alone, [Layout.Read]
// reads one level of lists after the other, and a complete layout does not
// change any more.
type Layout struct {
	Manifest
	levels [][]Ref // those read, the manifest's own first; the last of a complete layout are the value's chunks
}

// NewLayout returns the layout of m with none of its lists read.
func NewLayout(m *Manifest) *Layout {
	return &Layout{Manifest: *m, levels: [][]Ref{m.Refs}}
}

// Complete reports whether all lists are read.
func (l *Layout) Complete() bool { return len(l.levels) > l.Depth }

// Last returns the refs read last: the chunks that hold the next level of
// lists, or those of the value where the layout is complete.
func (l *Layout) Last() []Ref { return l.levels[len(l.levels)-1] }

// Source is where chunks come from. An id is looked up among the plain ones
// first.
type Source struct {
	Plain  map[ID][]byte // decoded already, see [Layout.Pieces]
	Stored map[ID][]byte // as stored
}

// has reports whether the chunk of r is there.
func (src Source) has(r Ref) bool {
	return src.Stored[r.ID] != nil || len(src.Plain[r.ID]) == int(r.Length)
}

// Missing returns those of the refs read last whose chunks are not in src.
func (l *Layout) Missing(src Source) (missing []Ref) {
	for _, r := range l.Last() {
		if !src.has(r) {
			missing = append(missing, r)
		}
	}
	return missing
}

// Read reads the next level of lists. A [ChunkError] says which chunk was missing
// or damaged.
func (l *Layout) Read(src Source) error {
	// No level has more bytes of list than the value has bytes, or one ref.
	list, err := join(l.Last(), l.Length+refBytes, src)
	if err != nil {
		return err
	}
	refs, err := decodeRefs(list)
	if err != nil {
		return fmt.Errorf("%w manifest: %v", ErrDamaged, err)
	}
	l.levels = append(l.levels, refs)
	return nil
}

// Value reads the lists that are unread and returns the value, in memory of its
// own. Its errors are those of [Layout.Read].
func (l *Layout) Value(src Source) ([]byte, error) {
	for !l.Complete() {
		if err := l.Read(src); err != nil {
			return nil, err
		}
	}
	value, err := join(l.Last(), l.Length, src)
	if err != nil {
		return nil, err
	}
	if len(value) != l.Length {
		return nil, fmt.Errorf("%w manifest: its chunks have %d bytes, the value %d", ErrDamaged, len(value), l.Length)
	}
	if got := xxhash.Sum64(value); got != l.Digest {
		return nil, fmt.Errorf("%w: the value has checksum %016x, should have %016x", ErrDamaged, got, l.Digest)
	}
	return value, nil
}

// Pieces returns the chunks of value, of which l is the complete layout, as they
// were before they were encoded: what a [Source] for another value of the same
// key may have in common with it.
func (l *Layout) Pieces(value []byte) map[ID][]byte {
	pieces := make(map[ID][]byte)
	for i := len(l.levels) - 1; i >= 0; i-- {
		for _, r := range l.levels[i] {
			pieces[r.ID], value = value[:r.Length], value[r.Length:]
		}
		value = encodeRefs(l.levels[i]) // what the level above lists
	}
	return pieces
}

// All returns every ref that was read, those of lists included.
func (l *Layout) All() []Ref { return slices.Concat(l.levels...) }

// Bytes returns roughly what l takes in memory.
func (l *Layout) Bytes() int {
	n := 256
	for _, level := range l.levels {
		n += len(level) * refBytes
	}
	return n
}

// ChunkError is a chunk that is missing or not what was written.
type ChunkError struct {
	ID      ID
	Missing bool
	Reason  string
}

func (e *ChunkError) Error() string { return fmt.Sprintf("chunk %v %s", e.ID, e.Reason) }

func (e *ChunkError) Unwrap() error { return ErrDamaged }

// join decodes the chunks of refs one after the other, limit bytes at the most.
func join(refs []Ref, limit int, src Source) ([]byte, error) {
	offsets := make([]int, len(refs)+1)
	for i, r := range refs {
		offsets[i+1] = offsets[i] + int(r.Length)
		if r.Length > maxChunkBytes || offsets[i+1] > limit {
			return nil, fmt.Errorf("%w manifest: its chunks have more than %d bytes", ErrDamaged, limit)
		}
	}
	// Before anything is allocated: is it all there?
	var encoded []int // refs that have to be decoded
	work := 0         // bytes of them
	for i, r := range refs {
		if len(src.Plain[r.ID]) == int(r.Length) {
			continue
		}
		if src.Stored[r.ID] == nil {
			return nil, &ChunkError{ID: r.ID, Missing: true, Reason: "is missing"}
		}
		encoded = append(encoded, i)
		work += int(r.Length)
	}
	value := make([]byte, offsets[len(refs)])
	if len(encoded) < len(refs) {
		for i, r := range refs {
			copy(value[offsets[i]:offsets[i+1]], src.Plain[r.ID])
		}
	}
	err := inParallel(len(encoded), work, func(i int) error {
		i = encoded[i]
		if err := decodeChunk(value[offsets[i]:offsets[i+1]], refs[i].ID, src.Stored[refs[i].ID]); err != nil {
			return &ChunkError{ID: refs[i].ID, Reason: err.Error()}
		}
		return nil
	})
	return value, err
}

// Garbage returns ranges of chunks that hold every chunk of old and none of
// kept, a few ranges a token: whole tokens where none of it is kept, else the
// gaps between what is kept. All chunks of a token that lie in a gap are garbage
// too, once nothing but kept refers to the token.
func Garbage(old, kept []Ref) []IDRange {
	keeps := make(map[Token][]uint32)
	for _, r := range kept {
		keeps[r.Token] = append(keeps[r.Token], r.Index)
	}
	for _, indexes := range keeps {
		slices.Sort(indexes)
	}
	gaps := make(map[IDRange]struct{})
	for _, r := range old {
		indexes := keeps[r.Token]
		at, isKept := slices.BinarySearch(indexes, r.Index)
		if isKept {
			continue
		}
		gap := IDRange{First: ID{Token: r.Token}, Last: ID{Token: r.Token, Index: lastIndex}}
		if at > 0 {
			gap.First.Index = indexes[at-1] + 1
		}
		if at < len(indexes) {
			gap.Last.Index = indexes[at] - 1
		}
		gaps[gap] = struct{}{}
	}
	return slices.Collect(maps.Keys(gaps))
}

// Runs returns ranges that hold the chunks of refs and no others that may exist:
// one for each run of chunks that were made one after the other.
func Runs(refs []Ref) (runs []IDRange) {
	ids := make([]ID, len(refs))
	for i, r := range refs {
		ids[i] = r.ID
	}
	slices.SortFunc(ids, func(a, b ID) int {
		return cmp.Or(bytes.Compare(a.Token[:], b.Token[:]), cmp.Compare(a.Index, b.Index))
	})
	for _, id := range ids {
		if n := len(runs); n > 0 && runs[n-1].Last.Token == id.Token && id.Index <= runs[n-1].Last.Index+1 {
			runs[n-1].Last = id
		} else {
			runs = append(runs, IDRange{First: id, Last: id})
		}
	}
	return runs
}

// IDRange is the chunks of one token from First to Last, both included.
type IDRange struct{ First, Last ID }

// WholeToken is everything that was stored under a token, its anchor included.
func WholeToken(t Token) IDRange {
	return IDRange{First: ID{Token: t}, Last: ID{Token: t, Index: lastIndex}}
}

const lastIndex = 1<<32 - 1
