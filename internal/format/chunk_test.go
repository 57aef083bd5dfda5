package format

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
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
// xxhash64, which is easy, and sees that they are not taken for one another.
func TestIdentityIsNotAChecksum(t *testing.T) {
	a, b := collide(noise(4096, 5))
	require.NotEqual(t, a, b)
	require.Equal(t, xxhash.Sum64(a), xxhash.Sum64(b))
	require.NotEqual(t, identify(a), identify(b))

	space := testSpace(t)
	key, cut := []byte("k"), CutParams{Min: 4096, Avg: 4096, Max: 4096}
	first := NewDraft(space, key, a, 0, cut)
	_, base := first.Build(nil, testListBytes)
	second := NewDraft(space, key, b, 0, cut)
	_, layout := second.Build(base, testListBytes)
	require.Len(t, second.Chunks, 1, "the chunk of the other value was reused")
	require.NotEqual(t, base.All()[0].ID, layout.All()[0].ID)
}

// collide returns b and another input with the same xxhash64. One of the four
// lanes of xxhash64 takes eight bytes of each stripe of 32, as
//
//	lane = rotl(lane + input*prime2, 31) * prime1
//
// so that a change of the input in one stripe is undone in the next one.
func collide(b []byte) (original, other []byte) {
	const (
		prime1 uint64 = 0x9E3779B185EBCA87
		prime2 uint64 = 0xC2B2AE3D27D4EB4F
	)
	round := func(lane, in uint64) uint64 { return bits.RotateLeft64(lane+in*prime2, 31) * prime1 }
	inverse := prime2 // Newton's iteration doubles the bits that are right
	for range 6 {
		inverse *= 2 - prime2*inverse
	}
	p1, p2 := prime1, prime2
	lane := p1 + p2 // the first lane with seed 0
	in := binary.LittleEndian.Uint64
	other = bytes.Clone(b)
	binary.LittleEndian.PutUint64(other, in(b)+1)
	was, is := round(lane, in(b)), round(lane, in(other))
	binary.LittleEndian.PutUint64(other[32:], in(b[32:])+(was-is)*inverse)
	return b, other
}
