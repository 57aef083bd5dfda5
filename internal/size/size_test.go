package size

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBytes(t *testing.T) {
	for want, n := range map[string]float64{
		"0 B": 0, "1 B": 1, "999 B": 999, "1.00 KB": 999.6, "1.02 KB": 1024, "64.6 KB": 64_600, "122 KB": 122_000,
		"1.00 MB": 999_960, "10.0 MB": 9_996_000, "100 MB": 99_960_000, "2.15 GB": 2 << 30, "-3.10 MB": -3_100_000,
		"1000 PB": 1e18, "+Inf PB": math.Inf(1),
	} {
		require.Equal(t, want, Bytes(n))
	}
}
