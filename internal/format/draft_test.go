package format

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// store is what etcd would hold of one key.
type store map[ID][]byte

func (s store) add(d *Draft) {
	for _, c := range d.Chunks {
		s[c.ID] = c.Stored
	}
}

// collect deletes what the garbage of old is, once only kept is named.
func (s store) collect(old, kept *Layout) {
	for _, g := range Garbage(old.All(), kept.All()) {
		for id := range s {
			if id.Token == g.First.Token && g.First.Index <= id.Index && id.Index <= g.Last.Index {
				delete(s, id)
			}
		}
	}
}

// read returns the value of a stored manifest.
func (s store) read(t require.TestingT, stored []byte) []byte {
	_, m, err := Parse(stored, maxTestValue)
	require.NoError(t, err)
	value, err := NewLayout(m).Value(Source{Stored: s})
	require.NoError(t, err)
	return value
}

const maxTestValue = 64 << 20

func TestValuesComeBack(t *testing.T) {
	space := testSpace(t)
	for _, n := range []int{1, 63, 64, 65, 255, 4096, 100_000, 1 << 20, 9 << 20} {
		for _, cut := range []CutParams{NewCutParams(256, 1024), NewCutParams(4<<10, 60<<10)} {
			value := noise(n, 7)
			d := NewDraft(space, []byte("k"), value, 0, cut)
			stored, layout := d.Build(nil, testListBytes)
			s := store{}
			s.add(d)
			require.Len(t, s, len(layout.All()))
			require.True(t, bytes.Equal(value, s.read(t, stored)), "%d bytes, %v", n, cut)
			require.LessOrEqual(t, len(stored), testListBytes+300, "the manifest of %d bytes", n)
		}
	}
}

// TestOverwrites writes one value over another, again and again, each time
// deleting the garbage, and sees that what is stored is the value and no more.
func TestOverwrites(t *testing.T) {
	space := testSpace(t)
	rapid.Check(t, func(t *rapid.T) {
		cut := NewCutParams(256, 1024)
		value := rapid.SliceOfN(rapid.Byte(), 1, 3000).Draw(t, "value")
		if rapid.Bool().Draw(t, "long") {
			value = bytes.Repeat(value, 30) // with lists, and equal chunks
		}
		var base *Layout
		s := store{}
		for range 6 {
			edit := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "edit")
			at := rapid.IntRange(0, len(value)-1).Draw(t, "at")
			value = slices.Concat(value[:at], edit, value[min(at+rapid.IntRange(0, 40).Draw(t, "cut"), len(value)-1):])
			d := NewDraft(space, []byte("k"), value, 0, cut)
			stored, layout := d.Build(base, testListBytes)
			s.add(d)
			if base != nil {
				s.collect(base, layout)
			}
			require.True(t, bytes.Equal(value, s.read(t, stored)))
			named := make(map[ID]bool)
			for _, r := range layout.All() {
				named[r.ID] = true
			}
			require.Len(t, s, len(named), "chunks that nothing names")
			base = layout
		}
	})
}

// TestPieces reads a value with the help of another one that was read before.
func TestPieces(t *testing.T) {
	space, cut := testSpace(t), NewCutParams(256, 1024)
	rapid.Check(t, func(t *rapid.T) {
		before := noise(rapid.IntRange(1, 300_000).Draw(t, "bytes"), 1)
		first := NewDraft(space, []byte("k"), before, 0, cut)
		_, base := first.Build(nil, testListBytes)
		pieces := base.Pieces(before)
		require.Len(t, pieces, len(first.Chunks))

		after := bytes.Clone(before)
		after[rapid.IntRange(0, len(after)-1).Draw(t, "at")] ^= 1
		second := NewDraft(space, []byte("k"), after, 0, cut)
		stored, _ := second.Build(base, testListBytes)
		s := store{}
		s.add(second) // and nothing of the first
		_, m, err := Parse(stored, maxTestValue)
		require.NoError(t, err)
		value, err := NewLayout(m).Value(Source{Plain: pieces, Stored: s})
		require.NoError(t, err)
		require.True(t, bytes.Equal(after, value))
		clear(value)
		require.True(t, bytes.Equal(noise(len(before), 1), before), "the value shares memory with a piece")
	})
}

// TestRebase builds a draft for one base and then for another one, as after a
// conflict: what was made before keeps its id.
func TestRebase(t *testing.T) {
	space, cut := testSpace(t), NewCutParams(256, 1024)
	rapid.Check(t, func(t *rapid.T) {
		common := noise(20000, rapid.Byte().Draw(t, "seed"))
		variant := func() []byte {
			v := bytes.Clone(common)
			for range rapid.IntRange(0, 3).Draw(t, "changes") {
				v[rapid.IntRange(0, len(v)-1).Draw(t, "at")] ^= 1
			}
			return v
		}
		s := store{}
		write := func(value []byte) *Layout {
			d := NewDraft(space, []byte("k"), value, 0, cut)
			_, l := d.Build(nil, testListBytes)
			s.add(d)
			return l
		}
		first, second, value := write(variant()), write(variant()), variant()
		d := NewDraft(space, []byte("k"), value, 0, cut)
		d.Build(first, testListBytes)
		before := slices.Clone(d.Chunks)
		s.add(d)
		stored, layout := d.Build(second, testListBytes)
		for i, c := range before {
			require.Equal(t, c, d.Chunks[i])
		}
		s.add(d)
		for _, r := range first.All() {
			delete(s, r.ID) // the first base is gone
		}
		require.True(t, bytes.Equal(value, s.read(t, stored)))
		require.Equal(t, d.Token, layout.Token)
		for i, c := range d.Chunks {
			require.EqualValues(t, i+1, c.Index)
		}
	})
}

func TestALeaseIsNotShared(t *testing.T) {
	space, cut, value := testSpace(t), NewCutParams(256, 1024), noise(5000, 1)
	d := NewDraft(space, []byte("k"), value, 1, cut)
	_, base := d.Build(nil, testListBytes)
	again := NewDraft(space, []byte("k"), value, 2, cut)
	again.Build(base, testListBytes)
	require.Len(t, again.Chunks, len(d.Chunks))
	same := NewDraft(space, []byte("k"), value, 1, cut)
	same.Build(base, testListBytes)
	require.Empty(t, same.Chunks)
}

func TestMissingAndDamagedChunksAreNamed(t *testing.T) {
	space, cut := testSpace(t), NewCutParams(256, 1024)
	d := NewDraft(space, []byte("k"), noise(200_000, 1), 0, cut)
	stored, layout := d.Build(nil, testListBytes)
	require.Positive(t, layout.Depth, "the list should be long enough to be cut")
	_, m, err := Parse(stored, maxTestValue)
	require.NoError(t, err)
	for i, r := range layout.All() {
		if i%29 != 0 {
			continue
		}
		for _, bad := range [][]byte{nil, []byte("x"), d.Chunks[(i+1)%len(d.Chunks)].Stored} {
			s := store{}
			s.add(d)
			s[r.ID] = bad
			_, err = NewLayout(m).Value(Source{Stored: s})
			var chunk *ChunkError
			require.ErrorAs(t, err, &chunk)
			require.Equal(t, bad == nil, chunk.Missing)
			if bad == nil || len(bad) == 1 {
				require.Equal(t, r.ID, chunk.ID)
			}
			require.ErrorIs(t, err, ErrDamaged)
		}
	}
}

func TestGarbageIsAFewRanges(t *testing.T) {
	ref := func(token byte, index uint32) Ref { return Ref{ID: ID{Token: Token{token}, Index: index}} }
	old := []Ref{ref(1, 1), ref(1, 2), ref(1, 3), ref(1, 7), ref(2, 1), ref(2, 2), ref(3, 9)}
	kept := []Ref{ref(1, 2), ref(3, 9), ref(4, 1)}
	got := Garbage(old, kept)
	require.ElementsMatch(t, []IDRange{
		{First: ID{Token: Token{1}, Index: 0}, Last: ID{Token: Token{1}, Index: 1}},
		{First: ID{Token: Token{1}, Index: 3}, Last: ID{Token: Token{1}, Index: lastIndex}},
		WholeToken(Token{2}),
	}, got)
	require.Empty(t, Garbage(old, old))
}

func TestRunsOfChunks(t *testing.T) {
	id := func(token byte, index uint32) ID { return ID{Token: Token{token}, Index: index} }
	var refs []Ref
	for _, i := range []ID{id(2, 4), id(1, 3), id(1, 1), id(1, 2), id(1, 2), id(1, 5), id(2, 6), id(1, 6), id(3, 1)} {
		refs = append(refs, Ref{ID: i})
	}
	require.Equal(t, []IDRange{{id(1, 1), id(1, 3)}, {id(1, 5), id(1, 6)}, {id(2, 4), id(2, 4)}, {id(2, 6), id(2, 6)}, {id(3, 1), id(3, 1)}}, Runs(refs))
	require.Empty(t, Runs(nil))
}

// FuzzRoundTrip cuts, encodes, stores and decodes any value, and then a change of
// it against the first. The manifest has listBytes of the list: where that is
// little, the list has many levels.
func FuzzRoundTrip(f *testing.F) {
	f.Fuzz(func(t *testing.T, value []byte, at uint16, edit []byte, listBytes uint16) {
		if len(value) == 0 || len(value)+len(edit) > 32<<10 {
			return
		}
		space, cut := testSpace(t), NewCutParams(256, 1024)
		s := store{}
		first := NewDraft(space, []byte("k"), value, 0, cut)
		stored, base := first.Build(nil, int(listBytes))
		s.add(first)
		if !bytes.Equal(value, s.read(t, stored)) {
			t.Fatal("another value came back")
		}
		i := int(at) % len(value)
		changed := slices.Concat(value[:i], edit, value[i:])
		second := NewDraft(space, []byte("k"), changed, 0, cut)
		stored, layout := second.Build(base, int(listBytes))
		s.add(second)
		s.collect(base, layout)
		if !bytes.Equal(changed, s.read(t, stored)) {
			t.Fatal("another value came back after a change")
		}
	})
}

// BenchmarkEncode makes the chunks and the manifest of 2 MB of statistics of
// which a share has changed since the base.
func BenchmarkEncode(b *testing.B) {
	space := testSpace(b)
	key, cut := []byte("/gateway/status/objects"), NewCutParams(4<<10, 60<<10)
	for _, changed := range []float64{0.01, 0.1, 1} {
		b.Run(fmt.Sprintf("changed=%v%%", 100*changed), func(b *testing.B) {
			g := workload.NewGateway(1000, 1)
			_, base := NewDraft(space, key, g.Publish(0), 0, cut).Build(nil, testListBytes)
			value := g.Publish(changed)
			b.SetBytes(int64(len(value)))
			b.ReportAllocs()
			for b.Loop() {
				NewDraft(space, key, value, 0, cut).Build(base, testListBytes)
			}
		})
	}
}

// BenchmarkDecode is the way back.
func BenchmarkDecode(b *testing.B) {
	space := testSpace(b)
	value := workload.NewGateway(1000, 1).Publish(0)
	for _, avg := range []int{4 << 10, 8 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("avg=%d", avg), func(b *testing.B) {
			d := NewDraft(space, []byte("/gateway/status/objects"), value, 0, NewCutParams(avg, 60<<10))
			stored, _ := d.Build(nil, testListBytes)
			s := store{}
			s.add(d)
			b.SetBytes(int64(len(value)))
			b.ReportAllocs()
			for b.Loop() {
				s.read(b, stored)
			}
		})
	}
}

// testListBytes is what a chunker gives the manifest of a value by itself.
const testListBytes = 8 << 10
