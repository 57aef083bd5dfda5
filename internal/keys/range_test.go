package keys

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// anyKey draws keys of few bytes, so that they meet.
var anyKey = rapid.SliceOfN(rapid.SampledFrom([]byte{0x00, 0x01, 0x61, 0xfe, 0xff}), 1, 4)

func TestRangesOverlapWhereTheyShareAKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) Range {
			r := Range{Key: anyKey.Draw(t, name)}
			if rapid.Bool().Draw(t, "ranged") {
				r.End = anyKey.Draw(t, "end")
			}
			return r
		}
		a, b := draw("a"), draw("b")
		require.Equal(t, a.Overlaps(b), b.Overlaps(a))
		// If they share a key, the greater of their beginnings is one.
		first := a.Key
		if bytes.Compare(b.Key, first) > 0 {
			first = b.Key
		}
		require.Equal(t, a.Contains(first) && b.Contains(first), a.Overlaps(b), "%q, %q", a, b)
	})
}

// TestIntersectAndCover hold the two to what they say of every key.
func TestIntersectAndCover(t *testing.T) {
	keys := []string{"a", "a\x00", "b", "c", "\xff"}
	draw := func(t *rapid.T) Range {
		return Range{Key: []byte(rapid.SampledFrom(keys).Draw(t, "from")), End: []byte(rapid.SampledFrom(append([]string{"", "\x00"}, keys...)).Draw(t, "to"))}
	}
	rapid.Check(t, func(t *rapid.T) {
		r, o := draw(t), draw(t)
		if !r.Overlaps(o) {
			return
		}
		both, all := r.Intersect(o), true
		for _, key := range keys {
			k := []byte(key)
			require.Equal(t, r.Contains(k) && o.Contains(k), both.Contains(k), "%q in %q and %q", k, r, o)
			all = all && (!o.Contains(k) || r.Contains(k))
		}
		if r.Covers(o) {
			require.True(t, all, "%q covers %q", r, o)
		}
		require.True(t, r.Covers(both) && o.Covers(both), "%q, %q: %q", r, o, both)
	})
}
