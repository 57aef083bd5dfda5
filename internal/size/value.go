package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Value is a number of bytes as people write it: 1048576, 1MiB, 1.5GB. It is a value of a
// flag, too.
type Value int64

var suffixes = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// Parse reads a number of bytes.
func Parse(s string) (Value, error) {
	number, unit := strings.TrimSpace(s), 1.0
	for _, u := range suffixes {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(v) || math.Abs(v*unit) >= 1<<62 {
		return 0, fmt.Errorf("%q is no size: write it as in 1048576, 64KiB, 1.5GB", s)
	}
	return Value(math.Round(v * unit)), nil
}

// Length returns the length of a value or key that a flag has, which is to be in range before
// it is a number of fewer bits.
func (v Value) Length(flag string) (int, error) {
	if v < math.MinInt32 || v > math.MaxInt32 {
		return 0, fmt.Errorf("--%s %d: choose less than 1GiB", flag, v)
	}
	return int(v), nil
}

// Set, String and Type are those of a flag's value.
func (v *Value) Set(value string) (err error) {
	*v, err = Parse(value)
	return err
}

func (v *Value) String() string { return strconv.FormatInt(int64(*v), 10) }

// Type is what help calls it.
func (v *Value) Type() string { return "size" }
