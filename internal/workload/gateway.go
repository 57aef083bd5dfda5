// Package workload makes the traffic that the demo, the benchmarks and the
// tests replay.
package workload

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
)

// Gateway is the case kvwrap was born from: an API gateway that keeps the
// statistics of all its pipelines in one etcd key and writes the key again
// every few seconds. With 1000 pipelines the value is a JSON object of about
// 2 MB. A Gateway is not safe for concurrent use.
type Gateway struct {
	rng       *rand.Rand
	pipelines [][]number
	value     []byte
}

// number is one figure of a pipeline: digits digits before the point and
// decimals after it.
type number struct {
	value            uint64
	digits, decimals int
}

// stages are the places of a pipeline that are measured, figures what is
// measured at each of them.
var (
	stages  = []string{"pipeline", "validator", "rateLimiter", "proxy", "responseBuilder"}
	figures = []struct {
		name             string
		digits, decimals int
	}{
		{"count", 9, 0}, {"m1", 4, 7}, {"m5", 4, 7}, {"m15", 4, 7},
		{"errCount", 5, 0}, {"m1Err", 2, 7}, {"m5Err", 2, 7}, {"m15Err", 2, 7}, {"errPercent", 2, 4},
		{"min", 2, 0}, {"max", 6, 0}, {"mean", 4, 4},
		{"p25", 3, 4}, {"p50", 3, 4}, {"p75", 4, 4}, {"p95", 4, 4}, {"p98", 4, 4}, {"p99", 5, 4}, {"p999", 5, 4},
		{"reqSize", 11, 0}, {"respSize", 12, 0},
	}
)

// NewGateway returns a gateway with the given number of pipelines, each about
// 2 KB of statistics. Equal seeds give equal sequences of values.
func NewGateway(pipelines int, seed uint64) *Gateway {
	g := &Gateway{rng: rand.New(rand.NewPCG(seed, 0)), pipelines: make([][]number, pipelines)}
	for i := range g.pipelines {
		for range stages {
			for _, f := range figures {
				n := number{digits: f.digits, decimals: f.decimals}
				n.value = g.draw(n)
				g.pipelines[i] = append(g.pipelines[i], n)
			}
		}
	}
	return g
}

// Publish changes the given share of the pipelines, chosen at random, and
// returns the whole value. In a changed pipeline every number changes, and half
// of them change their length by a digit. The value is valid until the next
// call.
func (g *Gateway) Publish(changed float64) []byte {
	n := int(math.Round(changed * float64(len(g.pipelines))))
	for _, i := range g.rng.Perm(len(g.pipelines))[:n] {
		for j := range g.pipelines[i] {
			g.change(&g.pipelines[i][j])
		}
	}
	return g.render()
}

// change draws a new value for n, in half of the cases one digit longer or
// shorter, near the length that n began with.
func (g *Gateway) change(n *number) {
	if g.rng.IntN(2) == 0 {
		if n.digits == 1 || n.digits < 14 && g.rng.IntN(2) == 0 {
			n.digits++
		} else {
			n.digits--
		}
	}
	n.value = g.draw(*n)
}

// draw returns a number of exactly n.digits+n.decimals digits.
func (g *Gateway) draw(n number) uint64 {
	low := uint64(math.Pow10(n.digits + n.decimals - 1))
	return low + g.rng.Uint64N(9*low)
}

func (g *Gateway) render() []byte {
	b := append(g.value[:0], '{')
	for i, numbers := range g.pipelines {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "\n\"pipeline-%04d\":{\"health\":\"\"", i)
		for s, stage := range stages {
			b = append(b, ",\""...)
			b = append(b, stage...)
			b = append(b, "\":{"...)
			for f, figure := range figures {
				if f > 0 {
					b = append(b, ',')
				}
				b = append(b, '"')
				b = append(b, figure.name...)
				b = append(b, "\":"...)
				b = numbers[s*len(figures)+f].append(b)
			}
			b = append(b, '}')
		}
		b = append(b, '}')
	}
	g.value = append(b, '}')
	return g.value
}

func (n number) append(b []byte) []byte {
	scale := uint64(math.Pow10(n.decimals))
	b = strconv.AppendUint(b, n.value/scale, 10)
	if n.decimals > 0 {
		b = append(b, '.')
		start := len(b)
		b = strconv.AppendUint(b, scale+n.value%scale, 10) // a leading 1 keeps the zeros
		b = append(b[:start], b[start+1:]...)
	}
	return b
}
