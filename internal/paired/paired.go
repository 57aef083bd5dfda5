// Package paired compares two ways to do something on a machine that is not
// quiet: it does them in turns, so that both see the same disturbances, and
// compares the medians.
package paired

import (
	"slices"
	"time"
)

// Durations are the times of one of the two ways.
type Durations []time.Duration

// Median returns the duration that half of the calls took at most.
func (d Durations) Median() time.Duration { return d.Quantile(0.5) }

// Quantile returns the duration that the share q of the calls took at most.
func (d Durations) Quantile(q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// Time appends how long f takes.
func (d *Durations) Time(f func()) {
	start := time.Now()
	f()
	*d = append(*d, time.Since(start))
}

// B is what is needed of a *testing.B, so that this package can be part of a
// program that is not a test.
type B interface {
	Loop() bool
	ReportMetric(n float64, unit string)
}

// Benchmark calls base and other in turns, each time after before, which may be
// nil, and reports the median of each, in microseconds, and their ratio: 1.05
// means that other takes five per cent more time. The order changes from turn to
// turn.
func Benchmark(b B, before, base, other func()) {
	if before == nil {
		before = func() {}
	}
	var bases, others Durations
	for turn := 0; b.Loop(); turn++ {
		before()
		if turn%2 == 0 {
			bases.Time(base)
			others.Time(other)
		} else {
			others.Time(other)
			bases.Time(base)
		}
	}
	b.ReportMetric(float64(bases.Median().Microseconds()), "plain-us")
	b.ReportMetric(float64(others.Median().Microseconds()), "kvwrap-us")
	b.ReportMetric(float64(others.Median())/float64(bases.Median()), "ratio")
}
