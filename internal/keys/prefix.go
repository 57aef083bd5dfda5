package keys

import "bytes"

// Prefix returns the first components of key, as many as depth says, up to the last separator
// among them. One at the very beginning belongs to the first component. It shares memory
// with key.
func Prefix(key []byte, separator byte, depth int) []byte {
	end := 0
	for at := min(1, len(key)); depth > 0; depth-- {
		i := bytes.IndexByte(key[at:], separator)
		if i < 0 {
			break
		}
		at += i + 1
		end = at
	}
	return key[:end]
}
