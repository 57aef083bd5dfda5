package workload

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// Colliding returns two values that are not the same and have the same xxhash64,
// as a whole and from the byte at on. They are value, but for the 32 bytes before
// at, the same in both, and for the 64 bytes from there on. At is a multiple of
// 32.
//
// One of the four lanes of xxhash64 takes eight bytes of each stripe of 32, as
//
//	lane = rotl(lane + input*prime2, 31) * prime1
//
// so that a change of the input in one stripe is undone in the next one. The
// stripe before at brings the lane back to what it begins with.
func Colliding(value []byte, at int) (a, b []byte) {
	const (
		prime1 uint64 = 0x9E3779B185EBCA87
		prime2 uint64 = 0xC2B2AE3D27D4EB4F
		stripe        = 32
	)
	word := binary.LittleEndian
	round := func(lane, in uint64) uint64 { return bits.RotateLeft64(lane+in*prime2, 31) * prime1 }
	p1, p2 := prime1, prime2
	first := p1 + p2 // with seed 0

	a = bytes.Clone(value)
	if at > 0 {
		lane := first
		for i := 0; i < at-stripe; i += stripe {
			lane = round(lane, word.Uint64(a[i:]))
		}
		before := bits.RotateLeft64(first*inverse(prime1), -31)
		word.PutUint64(a[at-stripe:], (before-lane)*inverse(prime2))
	}
	b = bytes.Clone(a)
	word.PutUint64(b[at:], word.Uint64(a[at:])+1)
	was, is := round(first, word.Uint64(a[at:])), round(first, word.Uint64(b[at:]))
	word.PutUint64(b[at+stripe:], word.Uint64(a[at+stripe:])+(was-is)*inverse(prime2))
	return a, b
}

// inverse returns the number whose product with the odd n is 1.
func inverse(n uint64) uint64 {
	x := n
	for range 6 { // Newton's iteration doubles the bits that are right
		x *= 2 - n*x
	}
	return x
}
