package format

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
)

// Identity decides whether two chunks hold the same bytes: the first half of
// the SHA-256 of the bytes. A checksum could be forged and would then lose
// data, so checksums find corruption only.
type Identity [16]byte

func identify(b []byte) Identity {
	sum := sha256.Sum256(b)
	return Identity(sum[:16])
}

// Codec says how stored bytes encode plain ones.
type codec byte

const (
	codecRaw  codec = 0 // the bytes themselves
	codecZstd codec = 1 // one zstd frame
)

// Both are safe for concurrent use; a call takes one of their coders and waits
// where all are taken. The decoder writes no byte past the capacity of its
// destination, whatever a frame says.
var (
	encoder = must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true)))
	decoder = must(zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true)))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // an option above is wrong
	}
	return v
}

// pack appends plain to dst, compressed unless that makes it no smaller, behind
// a byte that says which.
func pack(dst, plain []byte) []byte {
	start := len(dst)
	dst = encoder.EncodeAll(plain, append(dst, byte(codecZstd)))
	if len(dst)-start <= len(plain) {
		return dst
	}
	return append(append(dst[:start], byte(codecRaw)), plain...)
}

var errUnpack = errors.New("does not decode")

// unpack decodes packed into the whole of dst.
func unpack(dst, packed []byte) error {
	if len(packed) == 0 {
		return errUnpack
	}
	switch payload := packed[1:]; codec(packed[0]) {
	case codecRaw:
		if len(payload) == len(dst) {
			copy(dst, payload)
			return nil
		}
	case codecZstd:
		// The capacity is the limit, so that a frame that decodes to more than
		// it should fails, and one that decodes to less is told by its length.
		out, err := decoder.DecodeAll(payload, dst[:0:len(dst)])
		if err == nil && len(out) == len(dst) {
			return nil
		}
	}
	return errUnpack
}

// ChunkOverhead is by how much a stored chunk is longer than its bytes at the
// most.
const ChunkOverhead = 1 + checksumBytes

const checksumBytes = 8

// encodeChunk returns what is stored under the key of the chunk id:
//
//	codec (1) + payload + xxhash64 of id, codec and payload (8, big endian)
//
// The id is under the checksum, so that a chunk found under the key of another
// one is not taken for it.
func encodeChunk(id ID, plain []byte) []byte {
	b := pack(make([]byte, 0, len(plain)+ChunkOverhead), plain)
	return binary.BigEndian.AppendUint64(b, chunkChecksum(id, b))
}

// decodeChunk decodes what is stored under id into the whole of dst.
func decodeChunk(dst []byte, id ID, stored []byte) error {
	n := len(stored) - checksumBytes
	if n < 0 {
		return fmt.Errorf("has %d bytes, less than a checksum", len(stored))
	}
	if got, want := chunkChecksum(id, stored[:n]), binary.BigEndian.Uint64(stored[n:]); got != want {
		return fmt.Errorf("has checksum %016x, should have %016x", got, want)
	}
	if err := unpack(dst, stored[:n]); err != nil {
		return fmt.Errorf("%w to %d bytes", err, len(dst))
	}
	return nil
}

func chunkChecksum(id ID, packed []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	var b [idBytes]byte
	copy(b[:], id.Token[:])
	binary.BigEndian.PutUint32(b[len(id.Token):], id.Index)
	d.Write(b[:])
	d.Write(packed)
	return d.Sum64()
}
