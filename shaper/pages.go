package shaper

import (
	"math"
	"sort"
)

// How bbolt stores the records, and etcd has it do so: a leaf is filled to nine tenths
// (bucket.FillPercent in storage/backend/batch_tx.go), since revisions only grow.
const (
	pageBytes      = 4096
	pageHeader     = 16
	leafElement    = 16
	revisionKey    = 17 // of a record in the bucket: revision, '_', revision within it; a delete has one byte more
	minKeysPerPage = 2
	fillBytes      = pageBytes * 9 / 10
	branchBytes    = 37 // of a leaf in the page above it: 16 + 17, filled to nine tenths
)

// element is records of one size, as a leaf has them, and how many of them an entry writes
// on average.
type element struct {
	perEntry float64
	bytes    int
}

// packed returns the bytes of pages that a record takes on average, where so many records
// come between two commits of the backend.
//
// It does what bbolt does: each commit appends to the last leaf and cuts that as node.split
// says, while it has more than four records and more than a page. The rest remains for the
// next commit. So a leaf has the records that fill it to nine tenths, but two at the least,
// and may span pages; and where records come one at a time, those of 300 to 1800 bytes are
// cut earlier, because the cut leaves two at least behind it.
func packed(elements []element, perCommit int) float64 {
	if len(elements) == 1 {
		return cut(sequence(elements), perCommit, 4000)
	}
	return cut(sequence(elements), perCommit, 16_000)
}

// cut plays the cuts of so many records, whose sizes next returns.
func cut(next func() int, perCommit, enough int) float64 {
	var tail []int
	var records, pages, leaves int
	perCommit = min(max(perCommit, 1), 2000)
	enough = max(enough, 4*perCommit)
	for records < enough {
		size := pageHeader
		for range perCommit {
			tail = append(tail, next())
		}
		for _, e := range tail {
			size += e
		}
		left := tail
		for len(left) > 2*minKeysPerPage && size >= pageBytes {
			n, bytes := cutLeaf(left)
			pages += (bytes + pageBytes - 1) / pageBytes
			leaves++
			records += n
			left = left[n:]
			size -= bytes - pageHeader
		}
		tail = append(tail[:0], left...)
	}
	return (pageBytes*float64(pages) + branchBytes*float64(leaves)) / float64(records)
}

// cutLeaf returns how many elements come before the cut, and their bytes with the header of
// a page. It is node.splitIndex of bbolt, whose last step counts an element that comes
// after.
func cutLeaf(elements []int) (cut, bytes int) {
	bytes = pageHeader
	for i := 0; i < len(elements)-minKeysPerPage; i++ {
		if i >= minKeysPerPage && bytes+elements[i] > fillBytes {
			return i, bytes
		}
		cut = i
		if i < len(elements)-minKeysPerPage-1 {
			bytes += elements[i]
		}
	}
	return cut, bytes
}

// sequence returns sizes one after the other, as entries write them: each entry has its
// records of one size together, in the order of elements. What is written less than once in
// an entry begins at different ones.
func sequence(elements []element) func() int {
	elements = coarse(elements)
	var due []float64
	each := 0.0 // of the records, in an entry
	for i, e := range elements {
		_, begins := math.Modf(float64(i) * math.Phi)
		due = append(due, begins)
		each += e.perEntry
	}
	faster := max(1, 1/each) // most entries may have no records at all; these are passed over
	i := 0
	return func() int {
		for {
			if due[i] >= 1 {
				due[i]--
				return elements[i].bytes
			}
			i = (i + 1) % len(elements)
			due[i] += faster * elements[i].perEntry
		}
	}
}

// sortedly is packed for records that come sorted by size, so that leaves have one size each:
// mostly less than in any other order.
func sortedly(elements []element) float64 {
	bytes, number := 0.0, 0.0
	for _, e := range elements {
		n := max(minKeysPerPage, (fillBytes-pageHeader)/e.bytes)
		pages := (pageHeader + n*e.bytes + pageBytes - 1) / pageBytes
		bytes += e.perEntry * float64(pages*pageBytes+branchBytes) / float64(n)
		number += e.perEntry
	}
	return bytes / number
}

// apart is packed for records that come well mixed, whatever entry they are of: a walk along
// the golden section through their shares.
func apart(elements []element) float64 {
	bounds := make([]float64, len(elements))
	sum := 0.0
	for i, e := range elements {
		sum += e.perEntry
		bounds[i] = sum
	}
	at := 0.0
	return cut(func() int {
		_, at = math.Modf(at + math.Phi)
		of := min(sort.SearchFloat64s(bounds, at*sum), len(elements)-1)
		return elements[of].bytes
	}, commitRecords, 16_000)
}

// maxElements bounds the different sizes that are told apart.
const maxElements = 1024

// coarse puts sizes together that differ by less than one in 256, where there are too many
// of them.
func coarse(elements []element) []element {
	if len(elements) <= maxElements {
		return elements
	}
	var merged []element
	places := map[int]int{}
	for _, e := range elements {
		class := int(256 * math.Log2(float64(e.bytes)))
		i, ok := places[class]
		if !ok {
			i = len(merged)
			places[class] = i
			merged = append(merged, element{bytes: e.bytes})
		}
		merged[i].perEntry += e.perEntry
	}
	return merged
}
