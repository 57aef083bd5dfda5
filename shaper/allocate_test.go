package shaper

import (
	"testing"
)

// TestAllocated compares sizes with those that the runtime gives to slices of bytes.
func TestAllocated(t *testing.T) {
	for n := 0; n < 300_000; n++ {
		if n > 40_000 {
			n += 500
		}
		if want := cap(append([]byte(nil), make([]byte, n)...)); allocated(n) != want {
			t.Fatalf("%d bytes: allocated %d, want %d", n, allocated(n), want)
		}
	}
}

// TestAppended compares sizes with those that the runtime gives to slices that grow, of
// what etcd has in them: raft entries, pointers to entries, revisions.
func TestAppended(t *testing.T) {
	type entry struct {
		_, _, _ uint64
		_       []byte
	}
	type revision struct{ _, _ int64 }
	for _, start := range []int{1, 2, 100, 256, 501, 5001} {
		grow(t, start, 48, true, make([]entry, start))
		grow(t, start, 8, true, make([]*entry, start))
		grow(t, start, 16, false, make([]revision, start))
	}
}

func grow[E any](t *testing.T, start, elementBytes int, pointers bool, s []E) {
	for len(s) < 20_000 {
		var e E
		s = append(s, e)
		want := cap(s) * elementBytes
		got := appended(start, len(s), elementBytes, pointers)
		// What is left of the allocation is no element, or the header of one with pointers.
		if got < want || got-want >= elementBytes+8 || !pointers && got-want >= elementBytes {
			t.Fatalf("%d elements of %d bytes, from %d: %d bytes, want %d", len(s), elementBytes, start, got, want)
		}
	}
}
