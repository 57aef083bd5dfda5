package shaper

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPacked has the pages of one size as one can draw them.
func TestPacked(t *testing.T) {
	for _, c := range []struct {
		bytes, perCommit int
		want             float64
	}{
		{91, 1000, (4096 + 37) / 40.0},    // 40 fill nine tenths of a page
		{91, 1, (4096 + 37) / 40.0},       // and are cut when there are 45
		{1954, 1000, (4096 + 37) / 2.0},   // two, in a page
		{2554, 1000, (8192 + 37) / 2.0},   // two, in two pages
		{4154, 1000, (12_288 + 37) / 2.0}, // in three
		{1_000_000, 1, (489*4096 + 37) / 2.0},
		{1054, 1000, (4096 + 37) / 3.0},
		{1054, 1, (4096 + 37) / 2.0}, // five are cut into two and three, each time
		{900, 1000, (4096 + 37) / 4.0},
		{900, 1, (4096 + 37) / 2.0}, // five as well
		{650, 1, (4096 + 37) / 4.0}, // seven into four and three
	} {
		require.InEpsilon(t, c.want, packed([]element{{1, c.bytes}}, c.perCommit), 0.002, "%d bytes, %d in a commit", c.bytes, c.perCommit)
	}
}

// TestPackedMixed has records of two sizes in one entry: together they take less than each
// beside the other.
func TestPackedMixed(t *testing.T) {
	one, many := []element{{1, 1800}, {1, 90}}, []element{{40, 1800}, {40, 90}}
	require.Less(t, packed(many, 2000), 0.75*packed(one, 2000))
	require.InEpsilon(t, sortedly(one), packed(many, 2000), 0.05)
	require.Greater(t, apart(many), 1.2*sortedly(one))
}
