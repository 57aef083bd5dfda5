package format

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func testSpace(t testing.TB) Keyspace {
	space, err := NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	return space
}

// anyKey draws short keys of the bytes that are hardest to get right.
var anyKey = rapid.Custom(func(t *rapid.T) []byte {
	return rapid.SliceOfN(rapid.SampledFrom([]byte{0x00, 0x01, 0x02, 'a', 0xfe, 0xff}), 1, 5).Draw(t, "key")
})

func TestChunkRangesHoldTheChunksOfTheirKeys(t *testing.T) {
	space := testSpace(t)
	rapid.Check(t, func(t *rapid.T) {
		key, from, to := anyKey.Draw(t, "key"), anyKey.Draw(t, "from"), anyKey.Draw(t, "to")
		id := ID{Token: NewToken(), Index: rapid.Uint32().Draw(t, "index")}
		chunk := space.ChunkKey(key, id)
		for _, r := range []Range{{Key: from}, {Key: from, End: to}, {Key: from, End: []byte{0}}} {
			if got, want := space.Chunks(r).Contains(chunk), r.Contains(key); got != want {
				t.Fatalf("chunk of %q in the chunks of %q: %v, should be %v", key, r, got, want)
			}
		}
		require.Len(t, chunk, space.ChunkKeyLen(key))
		require.True(t, space.Reserved(chunk))
		gotKey, gotID, err := space.ParseChunkKey(chunk)
		require.NoError(t, err)
		require.Equal(t, key, gotKey)
		require.Equal(t, id, gotID)
	})
}

func TestChunkKeysSortAsTheirKeys(t *testing.T) {
	space := testSpace(t)
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyKey.Draw(t, "a"), anyKey.Draw(t, "b")
		low, high := ID{}, ID{Token: Token(bytes.Repeat([]byte{0xff}, 16)), Index: lastIndex}
		if bytes.Compare(a, b) < 0 {
			require.Negative(t, bytes.Compare(space.ChunkKey(a, high), space.ChunkKey(b, low)))
		}
	})
}

func TestParseChunkKeyRefuses(t *testing.T) {
	space := testSpace(t)
	id := ID{Token: NewToken(), Index: 7}
	good := space.ChunkKey([]byte("a\x00b"), id)
	for n := range len(good) {
		_, _, err := space.ParseChunkKey(good[:n])
		require.Error(t, err, "cut to %d bytes", n)
	}
	for _, bad := range []string{
		"", "a", "\x00kvw/", string(good) + "x", "\x00kvw/\x00\x01" + strings.Repeat("x", idBytes), "\x00kvw/a\x00\x02" + strings.Repeat("x", idBytes),
	} {
		_, _, err := space.ParseChunkKey([]byte(bad))
		require.Error(t, err, "%q", bad)
	}
}

func TestLogicalIsTheRangeWithoutTheReservedPart(t *testing.T) {
	for _, prefix := range []string{"\x00kvw/", "a", "\x00\x00", "\xfe\xff"} {
		space, err := NewKeyspace(prefix)
		require.NoError(t, err)
		rapid.Check(t, func(t *rapid.T) {
			r := Range{Key: anyKey.Draw(t, "from")}
			if rapid.Bool().Draw(t, "ranged") {
				r.End = anyKey.Draw(t, "to")
			}
			key := slices.Concat(rapid.SampledFrom([][]byte{nil, []byte(prefix)}).Draw(t, "prefix"), anyKey.Draw(t, "key"))
			within := 0
			for _, part := range space.Logical(r) {
				if part.Contains(key) {
					within++
				}
			}
			want := 0
			if r.Contains(key) && !space.Reserved(key) {
				want = 1
			}
			require.Equal(t, want, within, "%q in %q", key, r)
		})
	}
}

func TestNewKeyspaceRefuses(t *testing.T) {
	for _, prefix := range []string{"", strings.Repeat("x", maxPrefixBytes+1), "\x00", "\xff", "\xff\xff"} {
		_, err := NewKeyspace(prefix)
		require.Error(t, err)
		require.Contains(t, err.Error(), "choose")
	}
}
