package shaper

import (
	"math"
	"math/bits"
)

// Sizes are counted in log-linear buckets: one for each size below 32 bytes, and above that
// 16 for each power of two, up to 2 GiB, which is more than gRPC sends. So a bucket is less
// than a 16th as wide as the sizes in it are large, and their number is fixed. Each keeps the
// sum of what is in it: a model that takes a bucket for so many things of its mean size makes
// no error in the sum.
const (
	subBits    = 4
	subBuckets = 1 << subBits
	maxSize    = 1<<31 - 1
	numBuckets = (31-subBits)*subBuckets + subBuckets

	// SizeError is the most by which a quantile of sizes is wrong, as a share of it.
	SizeError = 1.0 / subBuckets
)

// bucketOf returns the bucket of a size. What is larger than maxSize is in the last one.
func bucketOf(size int) int {
	n := uint32(min(max(size, 0), maxSize))
	if n < subBuckets {
		return int(n)
	}
	shift := bits.Len32(n) - 1 - subBits
	return shift<<subBits + int(n>>shift)
}

// boundsOf returns the smallest and the largest size in a bucket.
func boundsOf(bucket int) (least, most int) {
	if bucket < 2*subBuckets {
		return bucket, bucket
	}
	shift := bucket>>subBits - 1
	n := bucket - shift<<subBits
	return n << shift, int(uint64(n+1)<<shift - 1)
}

// EntrySizes are raft entries by their size: the buckets that are not empty, the smallest
// sizes first.
type EntrySizes []EntryBucket

// EntryBucket counts raft entries of Min to Max bytes.
type EntryBucket struct {
	Min   int    `json:"min"`
	Max   int    `json:"max"`
	Count uint64 `json:"count"`
	Bytes uint64 `json:"bytes"` // of all of them
}

// Quantile returns the size in bytes that the share q of the entries, 0 to 1, have at the
// most: 0.5 is the median, 1 the largest. It is wrong by at most [SizeError] of it. Without
// entries it is 0.
func (s EntrySizes) Quantile(q float64) int {
	return quantile(len(s), q, func(i int) (count, bytes uint64) { return s[i].Count, s[i].Bytes })
}

// RecordSizes are records in the backend by the length of key and value: the buckets that
// are not empty, the smallest sizes first.
type RecordSizes []RecordBucket

// RecordBucket counts records whose key and value are Min to Max bytes together. A deleted
// key is a record without a value.
type RecordBucket struct {
	Min        int    `json:"min"`
	Max        int    `json:"max"`
	Count      uint64 `json:"count"`
	KeyBytes   uint64 `json:"keyBytes"`   // of all of them
	ValueBytes uint64 `json:"valueBytes"` // of all of them
}

// Quantile returns the length of key and value in bytes, as [EntrySizes.Quantile].
func (s RecordSizes) Quantile(q float64) int {
	return quantile(len(s), q, func(i int) (count, bytes uint64) { return s[i].Count, s[i].KeyBytes + s[i].ValueBytes })
}

// quantile returns the mean of the bucket, one of n, that the share q of everything is in or
// before.
func quantile(n int, q float64, bucket func(int) (count, bytes uint64)) int {
	var all uint64
	for i := range n {
		count, _ := bucket(i)
		all += count
	}
	rank := uint64(max(1, math.Ceil(min(q, 1)*float64(all))))
	for i := range n {
		count, bytes := bucket(i)
		if rank <= count || i == n-1 {
			return int(bytes / count)
		}
		rank -= count
	}
	return 0
}

// recordCell is what is counted in one bucket of records.
type recordCell struct{ count, keys, values uint64 }

// entryCell is that of entries.
type entryCell struct{ count, bytes uint64 }

func entrySizes(cells *[numBuckets]entryCell) (s EntrySizes) {
	for i, c := range cells {
		if c.count > 0 {
			b := EntryBucket{Count: c.count, Bytes: c.bytes}
			b.Min, b.Max = boundsOf(i)
			s = append(s, b)
		}
	}
	return s
}

func recordSizes(cells *[numBuckets]recordCell) (s RecordSizes) {
	for i, c := range cells {
		if c.count > 0 {
			b := RecordBucket{Count: c.count, KeyBytes: c.keys, ValueBytes: c.values}
			b.Min, b.Max = boundsOf(i)
			s = append(s, b)
		}
	}
	return s
}
