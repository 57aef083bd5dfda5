package workload

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

// Text returns n bytes that compress to about a fourth, names and numbers, the
// same for the same seed.
func Text(n int, seed string) string {
	random := seeded(seed)
	b := make([]byte, 0, n+32)
	for len(b) < n {
		b = fmt.Appendf(b, "\"requests\":%d,", random.Uint64()>>40)
	}
	return string(b[:n])
}

// Incompressible returns n bytes that do not compress at all, the same for the
// same seed.
func Incompressible(n int, seed string) string {
	var b strings.Builder
	b.Grow(n)
	io.CopyN(&b, seeded(seed), int64(n))
	return b.String()
}

func seeded(seed string) *rand.ChaCha8 {
	var key [32]byte
	copy(key[:], seed)
	return rand.NewChaCha8(key)
}
