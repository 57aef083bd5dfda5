package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// size is a number of bytes as a flag has it: 1048576, 1MiB, 1.5GB.
type size int64

var sizeUnits = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

func parseSize(s string) (size, error) {
	number, unit := strings.TrimSpace(s), 1.0
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(v) || math.Abs(v*unit) >= 1<<62 {
		return 0, fmt.Errorf("%q is no size: write it as in 1048576, 64KiB, 1.5GB", s)
	}
	return size(math.Round(v * unit)), nil
}

// length returns the length of a value or key that a flag has, which is to be in range before
// it is a number of fewer bits.
func (s size) length(flag string) (int, error) {
	if s < math.MinInt32 || s > math.MaxInt32 {
		return 0, fmt.Errorf("--%s %d: choose less than 1GiB", flag, s)
	}
	return int(s), nil
}

// Set, String and Type implement pflag.Value.
func (s *size) Set(value string) (err error) {
	*s, err = parseSize(value)
	return err
}

func (s *size) String() string { return strconv.FormatInt(int64(*s), 10) }

func (s *size) Type() string { return "size" }
