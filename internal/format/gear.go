package format

import (
	"fmt"
	"math"
)

// CutParams are the cutting parameters of a value, in bytes. They are part of
// its manifest and stay with the key from write to write, because only equal
// parameters find equal cuts again.
type CutParams struct {
	Min, Avg, Max int // MinChunkBytes <= Min <= Avg <= Max
}

// Next returns the length of the first chunk of b: at most p.Max and, but for
// the last chunk of a value, at least p.Min.
//
// It is content-defined chunking with a gear hash, h = h<<1 + gear[byte]: the
// top bits of h depend on the last 64 bytes, and a chunk ends where h falls
// under a limit. An insertion or a deletion therefore moves the cuts near it and
// no others, which is what lets a writer find its old chunks again after a
// number in the value has grown by a digit. Fixed cuts propose ten times the
// bytes in that case (docs/decisions/0002-chunk-size.md).
//
// Two limits normalise the lengths, as FastCDC does (Xia et al., USENIX ATC
// 2016, section 3.4): below Avg a cut is half as likely as 1/Avg, above it twice
// as likely. The hash starts anew at Min, so that a cut depends only on the
// bytes of its own chunk.
func (p CutParams) Next(b []byte) int {
	n := min(len(b), p.Max)
	if n <= p.Min {
		return n
	}
	normal := min(p.Avg, n)
	every := math.MaxUint64 / uint64(p.Avg) // h is under this once in Avg bytes

	h, at := roll(b[p.Min:normal], 0, every/normalisation)
	if at > 0 {
		return p.Min + at
	}
	if _, at = roll(b[normal:n], h, every*normalisation); at > 0 {
		return normal + at
	}
	return n
}

// normalisation is by how much a cut is rarer before the average length and
// more frequent after it.
const normalisation = 2

// roll adds b to the hash h and stops where the hash falls under limit, after
// at bytes; at is 0 where it does not.
func roll(b []byte, h, limit uint64) (_ uint64, at int) {
	i := 0
	for ; i+1 < len(b); i += 2 {
		// Two bytes a turn: h is computed from the hash before both, which
		// halves the chain of dependent additions.
		first, second := gear[b[i]], gear[b[i+1]]
		if h<<1+first < limit {
			return h<<1 + first, i + 1
		}
		h = h<<2 + (first<<1 + second)
		if h < limit {
			return h, i + 2
		}
	}
	if i < len(b) {
		if h = h<<1 + gear[b[i]]; h < limit {
			return h, i + 1
		}
	}
	return h, 0
}

const (
	// MinChunkBytes is the least length of a chunk that is not the last of its
	// value. It bounds the length of a value's list: a ref has 40 bytes.
	MinChunkBytes = 64

	maxChunkBytes = 1 << 20
)

// Check returns an error where the parameters are out of bounds or order.
func (p CutParams) Check() error {
	if MinChunkBytes <= p.Min && p.Min <= p.Avg && p.Avg <= p.Max && p.Max <= maxChunkBytes {
		return nil
	}
	return fmt.Errorf("cutting parameters min %d, avg %d, max %d: want %d <= min <= avg <= max <= %d",
		p.Min, p.Avg, p.Max, MinChunkBytes, maxChunkBytes)
}

// NewCutParams returns the parameters for chunks of avg bytes on average, none
// longer than limit.
func NewCutParams(avg, limit int) CutParams {
	p := CutParams{Min: max(avg/4, MinChunkBytes), Avg: avg, Max: min(avg*4, limit, maxChunkBytes)}
	p.Avg = min(p.Avg, p.Max)
	p.Min = min(p.Min, p.Avg)
	return p
}
