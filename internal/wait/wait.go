// Package wait has what goes between two attempts.
package wait

import (
	"context"
	"math/rand/v2"
	"time"
)

// Jittered returns a duration between half of d and one and a half times as much, so that
// those who failed together do not try again together.
func Jittered(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// For waits for d, and reports whether ctx has not ended before.
func For(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
