// Package size writes numbers of bytes for people, in one way wherever kvwrap does.
package size

import (
	"fmt"
	"math"
)

// Bytes writes n in the unit that suits it, powers of 1000, with three digits.
func Bytes(n float64) string {
	units := []string{"B", "KB", "MB", "GB", "TB", "PB"}
	u := 0
	for ; math.Abs(n) >= 999.5 && u < len(units)-1; u++ {
		n /= 1000
	}
	digits := 2
	switch abs := math.Abs(n); {
	case u == 0 || abs >= 99.95:
		digits = 0
	case abs >= 9.995:
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, n, units[u])
}
