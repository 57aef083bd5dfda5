package shaper

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestBucketsCoverAllSizes: each size is in one bucket, the bounds of which are as near to
// each other as is said.
func TestBucketsCoverAllSizes(t *testing.T) {
	next := 0
	for i := range numBuckets {
		least, most := boundsOf(i)
		require.Equal(t, next, least, "bucket %d begins where the one before ends", i)
		require.Equal(t, i, bucketOf(least))
		require.Equal(t, i, bucketOf(most))
		require.LessOrEqual(t, float64(most-least), SizeError*float64(least))
		if next = most + 1; i == numBuckets-1 {
			require.Equal(t, maxSize, most)
		}
	}
	require.Equal(t, 0, bucketOf(-1))
	require.Equal(t, numBuckets-1, bucketOf(math.MaxInt))
}

// TestQuantiles compares with the sizes in order.
func TestQuantiles(t *testing.T) {
	require.Zero(t, EntrySizes(nil).Quantile(0.5))
	require.Zero(t, RecordSizes(nil).Quantile(0.5))
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, 70_000), rapid.IntRange(0, 1<<22)), 1, 200).Draw(t, "sizes")
		m, err := NewMeter(MeterConfig{})
		require.NoError(t, err)
		s, sum := m.shards[0], 0
		for _, n := range sizes {
			s.wrote(succeeded, n)
			s.record(m, make([]byte, n/3), n-n/3, 1)
			sum += n
		}
		slices.Sort(sizes)
		got := m.Traffic().Total
		var count, bytes uint64
		for _, b := range got.EntrySizes {
			count, bytes = count+b.Count, bytes+b.Bytes
			require.True(t, uint64(b.Min)*b.Count <= b.Bytes && b.Bytes <= uint64(b.Max)*b.Count, "%+v", b)
		}
		require.EqualValues(t, len(sizes), count)
		require.EqualValues(t, sum, bytes)
		var keys, values uint64
		for _, b := range got.RecordSizes {
			keys, values = keys+b.KeyBytes, values+b.ValueBytes
		}
		require.Equal(t, got.KeyBytes, keys)
		require.Equal(t, got.ValueBytes, values)
		for _, q := range []float64{-1, 0, 0.01, 0.5, 0.9, 0.99, 1, 2} {
			exact := sizes[max(1, int(math.Ceil(min(1, q)*float64(len(sizes)))))-1]
			require.InDelta(t, exact, got.EntrySizes.Quantile(q), SizeError*float64(exact), "q = %v", q)
			require.InDelta(t, exact, got.RecordSizes.Quantile(q), SizeError*float64(exact), "q = %v", q)
		}
	})
}
