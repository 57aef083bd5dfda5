package format

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
)

var testID = ID{Token: Token([]byte("0123456789abcdef")), Index: 3}

func TestChunksComeBack(t *testing.T) {
	for _, plain := range [][]byte{{0}, []byte("x"), noise(5000, 1), bytes.Repeat([]byte("statistics "), 1000), make([]byte, 60000)} {
		stored := encodeChunk(testID, plain)
		require.LessOrEqual(t, len(stored), len(plain)+ChunkOverhead)
		got := make([]byte, len(plain))
		require.NoError(t, decodeChunk(got, testID, stored))
		require.Equal(t, plain, got)
	}
	require.Less(t, len(encodeChunk(testID, make([]byte, 60000))), 100)
}

func TestDamagedChunksAreRefused(t *testing.T) {
	for _, plain := range [][]byte{noise(300, 1), bytes.Repeat([]byte("statistics "), 30)} {
		stored := encodeChunk(testID, plain)
		dst := make([]byte, len(plain))
		for n := range len(stored) {
			require.Error(t, decodeChunk(dst, testID, stored[:n]), "cut to %d bytes", n)
		}
		for i := range stored {
			for bit := range 8 {
				altered := bytes.Clone(stored)
				altered[i] ^= 1 << bit
				require.Error(t, decodeChunk(dst, testID, altered), "bit %d of byte %d", bit, i)
			}
		}
		require.Error(t, decodeChunk(dst, testID, append(bytes.Clone(stored), 0)))
		require.Error(t, decodeChunk(dst, ID{Token: testID.Token, Index: 4}, stored), "under the key of another chunk")
		require.Error(t, decodeChunk(dst, ID{Index: 3}, stored), "under the key of another write")
		require.Error(t, decodeChunk(dst[1:], testID, stored), "longer than said")
		require.Error(t, decodeChunk(append(dst, 0), testID, stored), "shorter than said")
	}
}

// TestAChunkDoesNotExpandPastItsLength gives a decoder a frame that says it is
// small and is not.
func TestAChunkDoesNotExpandPastItsLength(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	bomb := append([]byte{byte(codecZstd)}, enc.EncodeAll(make([]byte, 64<<20), nil)...)
	bomb = binary.BigEndian.AppendUint64(bomb, chunkChecksum(testID, bomb))
	backing := bytes.Repeat([]byte{0xaa}, 4096)
	require.Error(t, decodeChunk(backing[:1024], testID, bomb))
	require.Equal(t, bytes.Repeat([]byte{0xaa}, 4096-1024), backing[1024:], "written past the end")
	allocated := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if decodeChunk(backing[:1024], testID, bomb) == nil {
				b.Fatal("a bomb was decoded")
			}
		}
	}).AllocedBytesPerOp()
	require.Less(t, allocated, int64(1<<20))
}

// TestIdentityIsNotAChecksum makes two chunks of the same length with the same
// xxhash64, which is easy, and sees that they are not taken for one another: alone,
// and in the middle of values that have the same xxhash64, too.
func TestIdentityIsNotAChecksum(t *testing.T) {
	for name, c := range map[string]struct {
		value []byte
		at    int // where the chunk is
		cut   CutParams
	}{
		"the least that collides": {noise(64, 5), 0, CutParams{Min: 64, Avg: 64, Max: 64}},
		"the only chunk":          {noise(4096, 5), 0, CutParams{Min: 4096, Avg: 4096, Max: 4096}},
		"one among many":          {noise(64<<10, 5), 32 << 10, CutParams{Min: 4096, Avg: 4096, Max: 4096}},
	} {
		a, b := workload.Colliding(c.value, c.at)
		end := c.at + c.cut.Max
		require.NotEqual(t, a, b, name)
		require.Equal(t, xxhash.Sum64(a), xxhash.Sum64(b), name)
		require.Equal(t, xxhash.Sum64(a[c.at:end]), xxhash.Sum64(b[c.at:end]), name)
		require.NotEqual(t, identify(a[c.at:end]), identify(b[c.at:end]), name)

		space, key := testSpace(t), []byte("k")
		first := NewDraft(space, key, a, 0, c.cut)
		_, base := first.Build(nil, testListBytes)
		second := NewDraft(space, key, b, 0, c.cut)
		stored, layout := second.Build(base, testListBytes)
		require.Len(t, second.Chunks, 1, "%s: the chunk of the other value was reused", name)
		require.Equal(t, base.Digest, layout.Digest, name)
		s := store{}
		s.add(first)
		s.add(second)
		require.Equal(t, b, s.read(t, stored), name)
		// Decoded pieces of the one are no pieces of the other either.
		_, m, err := Parse(stored, len(b))
		require.NoError(t, err)
		value, err := NewLayout(m).Value(Source{Plain: base.Pieces(a), Stored: s})
		require.NoError(t, err)
		require.Equal(t, b, value, name)
	}
}
