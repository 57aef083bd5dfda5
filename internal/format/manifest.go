package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/cespare/xxhash/v2"
)

// magic begins every value that is not stored as it is. 0xff begins no UTF-8,
// no JSON and no protobuf message, so that a client that does not know kvwrap
// fails to parse such a value instead of misreading it.
const magic = "\xffkvw"

const version = 1

// kind says what follows magic, version and kind.
type kind byte

const (
	kindLiteral  kind = 0 // the value itself, which begins with the magic
	kindManifest kind = 1
)

const envelopeBytes = len(magic) + 2

// Plain reports whether stored is a value as the application wrote it, not a
// manifest and not an envelope.
func Plain(stored []byte) bool { return !bytes.HasPrefix(stored, []byte(magic)) }

// PlainBelow is the least value that is not plain: every stored value that sorts
// before it is a value as the application wrote it.
func PlainBelow() []byte { return []byte(magic) }

// Literal returns value in an envelope, for a value that is not [Plain].
func Literal(value []byte) []byte {
	return append(envelope(kindLiteral), value...)
}

func envelope(k kind) []byte { return append([]byte(magic), version, byte(k)) }

// Ref names a chunk, its length and its content.
type Ref struct {
	ID
	Length   uint32 // bytes, before compression
	Identity Identity
}

// Manifest is what is stored at a key in place of a chunked value.
//
//	magic (4) version (1) kind (1)
//	token (16)
//	length and bytes of the reserved prefix
//	xxhash64 of the key (8)
//	lease
//	cutting parameters: min, avg, max
//	length of the value, xxhash64 of the value (8)
//	depth, number of refs
//	refs: codec (1) and payload
//	xxhash64 of all before (8)
//
// Numbers without a size are unsigned varints, the others big endian. The token
// stands at a fixed place behind a fixed beginning: two comparisons on the
// stored value prove which write a key holds, without sending the manifest.
//
// A ref is token (16), index (4), length (4), identity (16). At depth 0 the refs
// are those of the value's chunks, in order. At depth d they are those of chunks
// that hold, one after the other, the encoded refs of depth d-1: the list of a
// large value is cut and stored like a value.
type Manifest struct {
	Token     Token
	Prefix    string // reserved prefix its chunks are stored under
	KeyDigest uint64 // of the logical key: a manifest copied to another key is no manifest there
	Lease     int64  // that its chunks are attached to
	Cut       CutParams
	Length    int    // of the value, bytes
	Digest    uint64 // of the value
	Depth     int
	Refs      []Ref
}

const (
	refBytes = 16 + 4 + 4 + 16

	// maxDepth is far above need: a level holds at least as many refs as fit in
	// a chunk, see MinChunkBytes.
	maxDepth = 8
)

// KeyDigest returns what the manifest at key carries as its KeyDigest.
func KeyDigest(key []byte) uint64 { return xxhash.Sum64(key) }

// TokenBounds returns two values between which, both excluded, lies every
// manifest with this token and no other stored value.
func TokenBounds(t Token) (above, below []byte) {
	above = append(envelope(kindManifest), t[:]...)
	return above, prefixEnd(above)
}

// NoManifest returns a bound for a stored value that is no manifest: those on its
// side of it, below or above, are none either.
func NoManifest(stored []byte) (below bool, bound []byte) {
	for _, bound := range [][]byte{PlainBelow(), envelope(kindManifest)} {
		if bytes.Compare(stored, bound) < 0 {
			return true, bound
		}
	}
	return false, append(PlainBelow(), 0xff) // no version has this number
}

func (m *Manifest) encode() []byte {
	b := append(envelope(kindManifest), m.Token[:]...)
	b = binary.AppendUvarint(b, uint64(len(m.Prefix)))
	b = append(b, m.Prefix...)
	b = binary.BigEndian.AppendUint64(b, m.KeyDigest)
	b = binary.AppendUvarint(b, uint64(m.Lease))
	b = binary.AppendUvarint(b, uint64(m.Cut.Min))
	b = binary.AppendUvarint(b, uint64(m.Cut.Avg))
	b = binary.AppendUvarint(b, uint64(m.Cut.Max))
	b = binary.AppendUvarint(b, uint64(m.Length))
	b = binary.BigEndian.AppendUint64(b, m.Digest)
	b = binary.AppendUvarint(b, uint64(m.Depth))
	b = binary.AppendUvarint(b, uint64(len(m.Refs)))
	b = pack(b, encodeRefs(m.Refs))
	return binary.BigEndian.AppendUint64(b, xxhash.Sum64(b))
}

func encodeRefs(refs []Ref) []byte {
	b := make([]byte, 0, len(refs)*refBytes)
	for _, r := range refs {
		b = append(b, r.Token[:]...)
		b = binary.BigEndian.AppendUint32(b, r.Index)
		b = binary.BigEndian.AppendUint32(b, r.Length)
		b = append(b, r.Identity[:]...)
	}
	return b
}

func decodeRefs(b []byte) ([]Ref, error) {
	if len(b)%refBytes != 0 {
		return nil, fmt.Errorf("list of refs has %d bytes, not a multiple of %d", len(b), refBytes)
	}
	refs := make([]Ref, len(b)/refBytes)
	for i := range refs {
		r := &refs[i]
		copy(r.Token[:], b)
		r.Index = binary.BigEndian.Uint32(b[16:])
		r.Length = binary.BigEndian.Uint32(b[20:])
		copy(r.Identity[:], b[24:])
		if r.Index == 0 || r.Length == 0 {
			return nil, fmt.Errorf("ref %d names chunk %v of %d bytes", i, r.ID, r.Length)
		}
		b = b[refBytes:]
	}
	return refs, nil
}

// ErrDamaged is in every error that says that stored bytes are not what kvwrap
// wrote.
var ErrDamaged = errors.New("damaged")

// VersionError is a value of a format version that this package does not read.
type VersionError struct{ Stored, Read byte }

func (e *VersionError) Error() string {
	return fmt.Sprintf("format version %d, this client reads version %d", e.Stored, e.Read)
}

// TooLongError is a value longer than the reader allows.
type TooLongError struct{ Length, Most int }

func (e *TooLongError) Error() string {
	return fmt.Sprintf("the value has %d bytes, the limit is %d", e.Length, e.Most)
}

// Parse reads stored, which is not [Plain]. It returns the value of an envelope
// or else a manifest. No value longer than maxLength is accepted, so that what
// it and [Decode] allocate is bounded whatever stored says.
func Parse(stored []byte, maxLength int) (literal []byte, m *Manifest, err error) {
	if len(stored) < envelopeBytes || Plain(stored) {
		return nil, nil, fmt.Errorf("%w: %d bytes are less than an envelope", ErrDamaged, len(stored))
	}
	if v := stored[len(magic)]; v != version {
		return nil, nil, &VersionError{Stored: v, Read: version}
	}
	switch k := kind(stored[len(magic)+1]); k {
	case kindLiteral:
		return stored[envelopeBytes:], nil, nil
	case kindManifest:
		m, list, err := parseManifest(stored, maxLength)
		if err != nil {
			return nil, nil, err
		}
		if err := m.parseRefs(list); err != nil {
			return nil, nil, err
		}
		return nil, m, nil
	default:
		return nil, nil, fmt.Errorf("%w: unknown kind %d", ErrDamaged, k)
	}
}

// Head is [Parse] without the manifest's refs, whose list may be much longer than stored. It
// is for who wants to know of which value a manifest is, and does not read that.
func Head(stored []byte, maxLength int) (literal []byte, m *Manifest, err error) {
	if len(stored) >= envelopeBytes && !Plain(stored) && stored[len(magic)] == version && kind(stored[len(magic)+1]) == kindManifest {
		m, _, err := parseManifest(stored, maxLength)
		return nil, m, err
	}
	return Parse(stored, maxLength)
}

func damagedManifest(format string, args ...any) error {
	return fmt.Errorf("%w manifest: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// packedRefs is a list of refs as a manifest holds it.
type packedRefs struct {
	count uint64
	bytes []byte
}

func parseManifest(stored []byte, maxLength int) (*Manifest, packedRefs, error) {
	damaged := func(format string, args ...any) (*Manifest, packedRefs, error) {
		return nil, packedRefs{}, damagedManifest(format, args...)
	}
	n := len(stored) - checksumBytes
	if n < envelopeBytes {
		return damaged("cut short at %d bytes", len(stored))
	}
	if got, want := xxhash.Sum64(stored[:n]), binary.BigEndian.Uint64(stored[n:]); got != want {
		return damaged("%d bytes have checksum %016x, should have %016x", len(stored), got, want)
	}

	r := reader{b: stored[envelopeBytes:n]}
	m := &Manifest{}
	copy(m.Token[:], r.bytes(len(m.Token)))
	m.Prefix = string(r.bytes(r.number(maxPrefixBytes)))
	m.KeyDigest = r.uint64()
	m.Lease = int64(r.uvarint())
	m.Cut = CutParams{Min: r.number(maxChunkBytes), Avg: r.number(maxChunkBytes), Max: r.number(maxChunkBytes)}
	length := r.uvarint()
	m.Digest = r.uint64()
	m.Depth = r.number(maxDepth)
	count := r.uvarint()
	if r.short {
		return damaged("a field is cut short or out of bounds")
	}
	if length > uint64(maxLength) {
		return nil, packedRefs{}, &TooLongError{Length: int(min(length, math.MaxInt)), Most: maxLength}
	}
	m.Length = int(length)
	if err := m.Cut.Check(); err != nil {
		return damaged("%v", err)
	}
	if count > maxRefs(m.Length) {
		return damaged("%d refs for %d bytes", count, length)
	}
	return m, packedRefs{count, r.b}, nil
}

func (m *Manifest) parseRefs(packed packedRefs) (err error) {
	list := make([]byte, packed.count*refBytes)
	if err := unpack(list, packed.bytes); err != nil {
		return damagedManifest("%d refs: %v", packed.count, err)
	}
	if m.Refs, err = decodeRefs(list); err != nil {
		return damagedManifest("%v", err)
	}
	return nil
}

// maxRefs is the most refs on one level of a value of the given length. Every
// chunk but the last has MinChunkBytes.
func maxRefs(length int) uint64 { return uint64(length)/MinChunkBytes + 1 }

// reader takes a manifest's fields off b; short is set where one is missing or
// out of bounds.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) bytes(n int) []byte {
	if len(r.b) < n {
		r.short = true
		return make([]byte, n)
	}
	head := r.b[:n]
	r.b = r.b[n:]
	return head
}

func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.bytes(8)) }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.short = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

// number reads a varint that is at most limit.
func (r *reader) number(limit int) int {
	v := r.uvarint()
	if v > uint64(limit) {
		r.short = true
		return 0
	}
	return int(v)
}
