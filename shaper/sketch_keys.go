package shaper

import (
	"math"
	"math/bits"
)

// keySketch estimates how many distinct keys it was given, by their hashes: a HyperLogLog
// (Flajolet and others, 2007) of 2^14 registers, read with Ertl's estimator ("New cardinality
// estimation algorithms for HyperLogLog sketches", 2017), which needs no tables and no
// special case for few keys. Its standard error is 1.04/sqrt(2^14) = 0.8 %: it is within 2 %
// in 98 cases of 100. Sketches of parts of the keys are put together without a loss.
//
// A set of the hashes is exact, and takes 8 bytes and more a key, without a bound: chunks
// have new keys with every write.
type keySketch [keyRegisters]uint8

const (
	keyBits      = 14
	keyRegisters = 1 << keyBits
	maxRank      = 64 - keyBits + 1

	// KeysError is the standard error of [Traffic].Keys, as a share of it.
	KeysError = 1.04 / (1 << (keyBits / 2))
)

func (k *keySketch) add(hash uint64) {
	rank := uint8(bits.LeadingZeros64(hash<<keyBits|1<<(keyBits-1)) + 1)
	if r := &k[hash>>(64-keyBits)]; *r < rank {
		*r = rank
	}
}

func (k *keySketch) merge(other *keySketch) {
	for i, rank := range other {
		k[i] = max(k[i], rank)
	}
}

func (k *keySketch) estimate() float64 {
	var have [maxRank + 1]float64 // registers by their rank
	for _, rank := range k {
		have[rank]++
	}
	const m = float64(keyRegisters)
	z := 0.0
	for rank := maxRank; rank > 0; rank-- {
		z = (z + have[rank]) / 2
	}
	z += m * sigma(have[0]/m)
	return m * m / (2 * math.Ln2 * z)
}

// sigma is the estimator's correction for registers that are still zero, which are the share
// x. That for registers that are full is left out: they take 2^50 keys.
func sigma(x float64) float64 {
	if x == 1 {
		return math.Inf(1)
	}
	for y, z := 1.0, x; ; y *= 2 {
		x *= x
		before := z
		if z += x * y; z == before {
			return z
		}
	}
}
