// Package format is what kvwrap writes into etcd: the reserved part of the key
// space, the cutter, the chunk and the manifest. docs/format.md describes the
// same for readers in other languages.
//
// Everything here is pure. Nothing talks to etcd, reads a clock or keeps state
// between calls, but for the tokens, which are random.
package format
