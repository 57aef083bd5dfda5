package main

import (
	"fmt"
	"math"
	"time"

	"github.com/kvwrap/kvwrap/shaper"
)

// figureOf writes a value of a figure in the unit that suits it.
func figureOf(u shaper.Unit, v float64) string {
	switch {
	case math.IsInf(v, 1) && u == shaper.Seconds:
		return "never"
	case math.IsInf(v, 1):
		return "no bound"
	case u == shaper.Entries:
		return fmt.Sprintf("%.0f", v)
	case u == shaper.BytesPerSecond:
		return bytesOf(int(min(v, math.MaxInt64))) + "/s"
	case u != shaper.Seconds:
		return bytesOf(int(min(v, math.MaxInt64)))
	case v >= 48*3600:
		return fmt.Sprintf("%.1f days", v/24/3600)
	case v >= 2*3600:
		return fmt.Sprintf("%.1f h", v/3600)
	case v >= 120:
		return fmt.Sprintf("%.1f min", v/60)
	}
	return (time.Duration(v*1000) * time.Millisecond).String()
}
