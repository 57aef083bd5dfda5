package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestGearTableIsFrozen(t *testing.T) {
	for i, entry := range gear {
		sum := sha256.Sum256(append([]byte("kvwrap gear"), byte(i)))
		require.Equal(t, binary.BigEndian.Uint64(sum[:]), entry, "entry %d", i)
	}
}

// noise returns n bytes, the same for the same seed.
func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// cuts returns the lengths of the chunks of b.
func cuts(b []byte, p CutParams) (lengths []int) {
	for len(b) > 0 {
		n := p.Next(b)
		lengths = append(lengths, n)
		b = b[n:]
	}
	return lengths
}

// TestCutsAreFrozen holds the cutter to vectors that docs/format.md repeats: a
// client that cuts elsewhere finds none of the chunks of the others.
func TestCutsAreFrozen(t *testing.T) {
	counting := make([]byte, 4096)
	for i := range counting {
		counting[i] = byte(i / 16 * 37)
	}
	slow := make([]byte, 4096)
	for i := range slow {
		slow[i] = byte(i / 16 % 251)
	}
	for _, v := range []struct {
		name string
		b    []byte
		p    CutParams
		want []int
	}{
		{"counting", counting, CutParams{Min: 64, Avg: 256, Max: 1024}, []int{195, 396, 399, 564, 294, 133, 321, 354, 316, 388, 359, 193, 129, 55}},
		{"slow", slow, CutParams{Min: 64, Avg: 256, Max: 1024}, []int{370, 807, 304, 366, 170, 405, 590, 374, 300, 410}},
		{"noise", noise(64<<10, 1), CutParams{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}, []int{9685, 2579, 5224, 3432, 2087, 4400, 4238, 8100, 1423, 5205, 4976, 1076, 5433, 6029, 1649}},
		{"zeros", make([]byte, 10000), CutParams{Min: 64, Avg: 256, Max: 1024}, []int{1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 1024, 784}},
		{"short", []byte("shorter than the least chunk"), CutParams{Min: 64, Avg: 256, Max: 1024}, []int{28}},
	} {
		require.Equal(t, v.want, cuts(v.b, v.p), v.name)
	}
}

func TestChunksAreWithinBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 20000).Draw(t, "value")
		p := NewCutParams(rapid.IntRange(256, 4096).Draw(t, "avg"), rapid.IntRange(256, 20000).Draw(t, "limit"))
		require.NoError(t, p.Check())
		total := 0
		for _, n := range cuts(b, p) {
			require.LessOrEqual(t, n, p.Max)
			total += n
			require.True(t, n >= p.Min || total == len(b), "chunk of %d bytes", n)
		}
		require.Equal(t, len(b), total)
	})
}

// TestAnInsertionMovesFewCuts is what the cutter is for.
func TestAnInsertionMovesFewCuts(t *testing.T) {
	p := CutParams{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}
	before := noise(1<<20, 2)
	chunks := func(b []byte) map[string]bool {
		set := make(map[string]bool)
		for _, n := range cuts(b, p) {
			set[string(b[:n])] = true
			b = b[n:]
		}
		return set
	}
	old := chunks(before)
	for at := 1000; at < len(before); at += 50001 {
		after := bytes.Join([][]byte{before[:at], []byte("x"), before[at:]}, nil)
		fresh := 0
		for c := range chunks(after) {
			if !old[c] {
				fresh++
			}
		}
		require.LessOrEqual(t, fresh, 4, "after an insertion at %d", at)
	}
}

func TestAverageLength(t *testing.T) {
	for _, avg := range []int{1 << 10, 4 << 10, 32 << 10} {
		n := len(cuts(noise(16<<20, 3), NewCutParams(avg, maxChunkBytes)))
		mean := 16 << 20 / n
		require.InEpsilon(t, avg, mean, 0.25, "mean length for an average of %d", avg)
	}
}

func TestCutterDoesNotAllocate(t *testing.T) {
	b := noise(64<<10, 1)
	p := CutParams{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}
	require.Zero(t, testing.AllocsPerRun(10, func() {
		for rest := b; len(rest) > 0; {
			rest = rest[p.Next(rest):]
		}
	}))
}

// BenchmarkCut is the cutter alone, on one core.
func BenchmarkCut(b *testing.B) {
	value := noise(4<<20, 1)
	p := NewCutParams(4<<10, maxChunkBytes)
	b.SetBytes(int64(len(value)))
	b.ReportAllocs()
	for b.Loop() {
		for rest := value; len(rest) > 0; {
			rest = rest[p.Next(rest):]
		}
	}
}
