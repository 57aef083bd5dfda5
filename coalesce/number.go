package coalesce

import (
	"bytes"
	"cmp"
)

// order compares numbers: unsigned decimals of any length, or values of one length
// byte by byte, which is by number for big endian ones. The two agree on decimals of
// one length. It is not ok where neither applies.
func order(a, b []byte) (c int, ok bool) {
	if decimal(a) && decimal(b) {
		a, b = bytes.TrimLeft(a, "0"), bytes.TrimLeft(b, "0")
		return cmp.Or(cmp.Compare(len(a), len(b)), bytes.Compare(a, b)), true
	}
	return bytes.Compare(a, b), len(a) == len(b)
}

// number reports whether v may be one: it is not empty, and no decimal with a sign, since
// the order of bytes would have -1 be less than -9.
func number(v []byte) bool {
	signed := len(v) > 1 && (v[0] == '-' || v[0] == '+') && decimal(v[1:])
	return len(v) > 0 && !signed
}

func decimal(b []byte) bool {
	for _, d := range b {
		if d < '0' || d > '9' {
			return false
		}
	}
	return len(b) > 0
}
