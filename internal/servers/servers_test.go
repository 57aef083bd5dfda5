//go:build unix

package servers

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMeasure writes to a server, and to it again after a restart, and finds what it has
// written in each figure.
func TestMeasure(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := Start(t, "3.7", Config{Exact: true})
	cli := s.Client(t)
	before, err := s.Measure(ctx)
	require.NoError(t, err)
	require.Regexp(t, `^3\.7\.`, before.Version)

	const puts, size = 200, 10_000
	for range puts {
		_, err := cli.Put(ctx, "key", string(make([]byte, size)))
		require.NoError(t, err)
	}
	check := func(after Measurement) {
		require.GreaterOrEqual(t, after.Entries.Number, puts)
		require.GreaterOrEqual(t, after.Entries.PayloadBytes, int64(puts*size))
		require.Equal(t, after.Entries.Number, int(after.Entries.Last-after.Entries.First)+1)
		require.Greater(t, after.RaftLog, uint64(puts*size))
		require.Greater(t, after.LiveHeap, after.RaftLog)
		require.Positive(t, after.TreeIndex)
		require.Greater(t, after.DbSizeInUse, int64(puts*size))
		require.GreaterOrEqual(t, after.DbSize, after.DbSizeInUse)
		require.GreaterOrEqual(t, after.PeakAnonymous, after.AnonymousRSS)
	}
	after, err := s.Measure(ctx)
	require.NoError(t, err)
	check(after)
	s.Restart(t)
	after, err = s.Measure(ctx)
	require.NoError(t, err)
	check(after)
}
