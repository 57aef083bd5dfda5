package coalesce

import (
	"math/big"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestOrder(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
		ok   bool
	}{
		{"9", "10", -1, true},
		{"10", "9", 1, true},
		{"007", "7", 0, true},
		{"0", "000", 0, true},
		{"18446744073709551616", "18446744073709551615", 1, true}, // more than 64 bits
		{"0000000012", "0000000009", 1, true},                     // fixed width
		{"\x00\x00\x01\x00", "\x00\x00\x00\xff", 1, true},         // big endian
		{"", "", 0, true},
		{"", "1", 0, false},
		{"-1", "1", 0, false},
		{"1.5", "1", 0, false},
		{" 1", "10", -1, true}, // of one length, byte by byte
		{"\x00\x01", "\x01", 0, false},
	} {
		got, ok := order([]byte(c.a), []byte(c.b))
		require.Equal(t, c.ok, ok, "%q, %q", c.a, c.b)
		if ok {
			require.Equal(t, c.want, got, "%q, %q", c.a, c.b)
		}
	}
}

// TestOrderIsThatOfNumbers compares decimals as math/big does.
func TestOrderIsThatOfNumbers(t *testing.T) {
	digits := rapid.StringMatching(`[0-9]{1,30}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := digits.Draw(t, "a"), digits.Draw(t, "b")
		x, _ := new(big.Int).SetString(a, 10)
		y, _ := new(big.Int).SetString(b, 10)
		got, ok := order([]byte(a), []byte(b))
		require.True(t, ok)
		require.Equal(t, x.Cmp(y), got)
	})
}
