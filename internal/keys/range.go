// Package keys has ranges of keys, as etcd's requests give them.
package keys

import "bytes"

// Range is a range of keys as etcd's requests give it: one key where End is
// empty, all keys from Key on where End is a single 00, else Key <= k < End.
type Range struct {
	Key, End []byte
}

// Single reports whether r is one key.
func (r Range) Single() bool { return len(r.End) == 0 }

// Unbounded reports whether r is all keys from Key on.
func (r Range) Unbounded() bool { return len(r.End) == 1 && r.End[0] == 0 }

// Empty reports whether no key can lie in r.
func (r Range) Empty() bool {
	return !r.Single() && !r.Unbounded() && bytes.Compare(r.Key, r.End) >= 0
}

// Contains reports whether key lies in r.
func (r Range) Contains(key []byte) bool {
	if r.Single() {
		return bytes.Equal(r.Key, key)
	}
	return bytes.Compare(r.Key, key) <= 0 && (r.Unbounded() || bytes.Compare(key, r.End) < 0)
}

// Overlaps reports whether a key can lie in both r and o.
func (r Range) Overlaps(o Range) bool {
	switch {
	case r.Empty() || o.Empty():
		return false
	case r.Single():
		return o.Contains(r.Key)
	case o.Single():
		return r.Contains(o.Key)
	}
	return (r.Unbounded() || bytes.Compare(o.Key, r.End) < 0) &&
		(o.Unbounded() || bytes.Compare(r.Key, o.End) < 0)
}

// Covers reports whether all keys of o are in r.
func (r Range) Covers(o Range) bool {
	if o.Single() {
		return r.Contains(o.Key)
	}
	return !r.Single() && bytes.Compare(r.Key, o.Key) <= 0 &&
		(r.Unbounded() || !o.Unbounded() && bytes.Compare(o.End, r.End) <= 0)
}

// Intersect returns the keys that are in both r and o, which overlap.
func (r Range) Intersect(o Range) Range {
	switch {
	case r.Single():
		return r
	case o.Single():
		return o
	}
	both := r
	if bytes.Compare(o.Key, r.Key) > 0 {
		both.Key = o.Key
	}
	if r.Unbounded() || !o.Unbounded() && bytes.Compare(o.End, r.End) < 0 {
		both.End = o.End
	}
	return both
}
