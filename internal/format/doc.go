// Package format is what kvwrap writes into etcd: the reserved part of the key
// space, the cutter, the chunk and the manifest. docs/format.md describes the
// same for readers in other languages.
//
// Everything here is pure. Nothing talks to etcd, reads a clock or keeps state
// between calls, but for the tokens, which are random.
//
// # How it works
//
// A [Draft] is a value on its way in. It cuts the value into pieces, names those that a
// base has already by their [Identity], makes chunks of the others, and builds the
// manifest. A [Layout] is a value on its way out: [Parse] reads a manifest, [Layout.Read]
// the lists that it refers to, and [Layout.Value] puts the chunks together. Whatever is not
// as it was written matches [ErrDamaged]. What a decoder allocates is bounded, whatever
// stored bytes say; fuzz targets hold it to that.
//
//   - keyspace.go maps keys to the keys of their chunks.
//   - gear.go says where a value is cut, gear_table.go is the table for it.
//   - chunk.go encodes and decodes chunks, manifest.go manifests and envelopes.
//   - draft.go goes from a value to chunks and manifest, layout.go the other way, and
//     says which chunks are garbage then; parallel.go uses all processors for either.
//
// # What must not change
//
// Format version 1 is frozen: manifests live as long as the clusters that hold them. The
// golden files in testdata and the vectors in gear_test.go hold it. Where values are cut is
// not needed to read them, but writers that cut differently find none of each other's
// chunks again.
package format
