package audit

import (
	"math"
	"math/bits"
)

// Sizes are counted in log-linear buckets: one for each size below 64 bytes, and above that
// 32 for each power of two.
const (
	sizeBits    = 5
	sizeBuckets = 1 << sizeBits
)

// SizeError is the most by which a quantile of sizes is too large, as a share of it. It is
// never too small.
const SizeError = 1.0 / sizeBuckets

// sizes counts sizes. It takes as many buckets as the largest of them needs.
type sizes struct {
	counts []uint32
	n      uint64
	sum    uint64
	most   uint64
}

func sizeBucket(n uint64) int {
	n = min(n, math.MaxUint32)
	if n < sizeBuckets {
		return int(n)
	}
	shift := bits.Len64(n) - 1 - sizeBits
	return shift<<sizeBits + int(n>>shift)
}

// sizeBounds returns the smallest and the largest size in a bucket.
func sizeBounds(bucket int) (least, most uint64) {
	if bucket < 2*sizeBuckets {
		return uint64(bucket), uint64(bucket)
	}
	shift := bucket>>sizeBits - 1
	n := uint64(bucket - shift<<sizeBits)
	return n << shift, (n+1)<<shift - 1
}

func (s *sizes) add(n uint64) {
	b := sizeBucket(n)
	if b >= len(s.counts) {
		s.counts = append(s.counts, make([]uint32, b+1-len(s.counts))...)
	}
	if s.counts[b] < math.MaxUint32 {
		s.counts[b]++
	}
	s.n++
	s.sum += n
	s.most = max(s.most, n)
}

// quantile returns a size that the share q of the sizes have at the most.
func (s *sizes) quantile(q float64) uint64 {
	rank := uint64(math.Ceil(q * float64(s.n)))
	var seen uint64
	for b, n := range s.counts {
		if seen += uint64(n); n > 0 && seen >= rank {
			_, most := sizeBounds(b)
			return min(most, s.most)
		}
	}
	return s.most
}

// distribution returns what a report says of the sizes: its bars are powers of two.
func (s *sizes) distribution() Distribution {
	d := Distribution{Count: s.n, Bytes: s.sum, Max: s.most}
	if s.n == 0 {
		return d
	}
	d.Mean = s.sum / s.n
	d.P50, d.P90, d.P99, d.P999 = s.quantile(.5), s.quantile(.9), s.quantile(.99), s.quantile(.999)
	for b, n := range s.counts {
		if n == 0 {
			continue
		}
		least, _ := sizeBounds(b)
		from, to := uint64(0), uint64(0)
		if least > 0 {
			from = 1 << (bits.Len64(least) - 1)
			to = 2*from - 1
		}
		if last := len(d.Histogram) - 1; last >= 0 && d.Histogram[last].Min == from {
			d.Histogram[last].Count += uint64(n)
		} else {
			d.Histogram = append(d.Histogram, Bar{Min: from, Max: to, Count: uint64(n)})
		}
	}
	return d
}
