package format

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/kvwrap/kvwrap/internal/keys"
)

// Token names one attempt to write one value: 128 random bits, never used
// again.
type Token [16]byte

// NewToken draws a fresh token.
func NewToken() Token {
	var t Token
	rand.Read(t[:]) // never fails since Go 1.24
	return t
}

func (t Token) String() string { return hex.EncodeToString(t[:]) }

// ID names one chunk of one key. Index 0 is not a chunk but the anchor of the
// write; chunks count from 1.
type ID struct {
	Token Token
	Index uint32
}

func (id ID) String() string { return fmt.Sprintf("%s/%d", id.Token, id.Index) }

// Keyspace is the part of etcd's key space that is reserved for chunks: all
// keys that begin with the prefix. It maps logical keys, the keys of the
// application, to the keys of their chunks.
//
//	chunk key = prefix + escape(logical key) + 00 01 + token (16) + index (4, big endian)
//
// The escape writes each 00 of a key as 00 FF. Because 00 01 sorts before 00 FF
// and before any other byte that may follow, chunk keys sort as their logical
// keys do: a logical range is one chunk range, whatever bytes the keys hold and
// even where one key is a prefix of another.
//
//	prefix + 00 02 ...         kvwrap's own keys, which no logical range maps to
type Keyspace struct {
	prefix, end []byte // all keys k with prefix <= k < end
}

const (
	maxPrefixBytes = 128
	idBytes        = 16 + 4
)

var (
	terminator = []byte{0x00, 0x01} // ends an escaped key
	afterKey   = []byte{0x00, 0x02} // the bound above all that follows a terminator
)

// NewKeyspace returns the key space reserved by prefix.
func NewKeyspace(prefix string) (Keyspace, error) {
	if prefix == "" || len(prefix) > maxPrefixBytes {
		return Keyspace{}, fmt.Errorf("reserved prefix %q has %d bytes: choose 1 to %d bytes", prefix, len(prefix), maxPrefixBytes)
	}
	if prefix == "\x00" {
		return Keyspace{}, fmt.Errorf("reserved prefix %q is what etcd reads as \"no end\" of a range: choose another, as \"\\x00kvw/\"", prefix)
	}
	end := prefixEnd([]byte(prefix))
	if end == nil {
		return Keyspace{}, fmt.Errorf("reserved prefix %q has no byte but 0xff, so nothing sorts after it: choose another, as \"\\x00kvw/\"", prefix)
	}
	return Keyspace{prefix: []byte(prefix), end: end}, nil
}

// prefixEnd returns the least key above every key that begins with prefix, or
// nil where there is none.
func prefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			end := bytes.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}

// Prefix returns the reserved prefix.
func (k Keyspace) Prefix() string { return string(k.prefix) }

// Reserved reports whether key lies in the reserved part.
func (k Keyspace) Reserved(key []byte) bool { return bytes.HasPrefix(key, k.prefix) }

// Range is a range of keys as etcd's requests give it.
type Range = keys.Range

// Meets reports whether r and the reserved part have keys in common.
func (k Keyspace) Meets(r Range) bool { return r.Overlaps(k.All()) }

// Logical returns r without the reserved part, in order: r itself where the two
// do not meet, else what lies below and what lies above.
func (k Keyspace) Logical(r Range) []Range {
	if !k.Meets(r) {
		return []Range{r}
	}
	if r.Single() {
		return nil
	}
	var parts []Range
	if below := (Range{Key: r.Key, End: k.prefix}); !below.Empty() {
		parts = append(parts, below)
	}
	if above := (Range{Key: k.end, End: r.End}); !above.Empty() {
		parts = append(parts, above)
	}
	return parts
}

// Chunks returns the range that holds the chunks and anchors of the logical
// keys in r, and of no other key.
func (k Keyspace) Chunks(r Range) Range {
	escaped := func(key []byte) []byte { return escape(bytes.Clone(k.prefix), key) }
	switch {
	case r.Single():
		return Range{Key: append(escaped(r.Key), terminator...), End: append(escaped(r.Key), afterKey...)}
	case r.Unbounded():
		return Range{Key: escaped(r.Key), End: k.end}
	}
	return Range{Key: escaped(r.Key), End: escaped(r.End)}
}

// ChunkPrefix returns the prefix of the keys of the chunks of all logical keys with a
// prefix.
func (k Keyspace) ChunkPrefix(prefix []byte) []byte {
	return escape(bytes.Clone(k.prefix), prefix)
}

// ChunkKey returns the key of a chunk of the logical key.
func (k Keyspace) ChunkKey(key []byte, id ID) []byte {
	b := make([]byte, 0, k.ChunkKeyLen(key))
	b = escape(append(b, k.prefix...), key)
	b = append(b, terminator...)
	b = append(b, id.Token[:]...)
	return binary.BigEndian.AppendUint32(b, id.Index)
}

// ChunkKeyLen returns the length of the key of each chunk of the logical key.
func (k Keyspace) ChunkKeyLen(key []byte) int {
	return len(k.prefix) + len(key) + bytes.Count(key, []byte{0}) + len(terminator) + idBytes
}

// All returns the reserved range.
func (k Keyspace) All() Range { return Range{Key: k.prefix, End: k.end} }

// Own returns a key of kvwrap's own, to which no logical key maps.
func (k Keyspace) Own(name string) []byte {
	return slices.Concat(k.prefix, afterKey, []byte(name))
}

// IDs returns the range of the chunk keys from first to last, both included.
func (k Keyspace) IDs(key []byte, first, last ID) Range {
	return Range{Key: k.ChunkKey(key, first), End: append(k.ChunkKey(key, last), 0)}
}

// ChunkID returns the id at the end of a chunk key. It does not look at the rest.
func ChunkID(b []byte) (id ID, ok bool) {
	if len(b) < idBytes {
		return ID{}, false
	}
	tail := b[len(b)-idBytes:]
	copy(id.Token[:], tail)
	id.Index = binary.BigEndian.Uint32(tail[len(id.Token):])
	return id, true
}

var errChunkKey = errors.New("not a chunk key")

// FindChunk returns the logical key and the id of a chunk key, also of one of a client in a
// namespace, which stands before the reserved prefix and before the logical key. Its results
// share no memory with b.
func (k Keyspace) FindChunk(b []byte) (key []byte, id ID, ok bool) {
	at := bytes.Index(b, k.prefix)
	if at < 0 || len(k.prefix) == 0 {
		return nil, ID{}, false
	}
	key, id, err := k.ParseChunkKey(b[at:])
	if err != nil {
		return nil, ID{}, false
	}
	if at > 0 {
		key = append(b[:at:at], key...)
	}
	return key, id, true
}

// ParseChunkKey takes a chunk key apart. Its results share no memory with b.
func (k Keyspace) ParseChunkKey(b []byte) (key []byte, id ID, err error) {
	if !k.Reserved(b) {
		return nil, ID{}, errChunkKey
	}
	key, rest, ok := unescape(b[len(k.prefix):])
	if !ok || len(key) == 0 || len(rest) != idBytes {
		return nil, ID{}, errChunkKey
	}
	id, _ = ChunkID(rest)
	return key, id, nil
}

// escape appends key to b with each 00 as 00 FF.
func escape(b, key []byte) []byte {
	for {
		i := bytes.IndexByte(key, 0)
		if i < 0 {
			return append(b, key...)
		}
		b = append(b, key[:i]...)
		b = append(b, 0x00, 0xff)
		key = key[i+1:]
	}
}

// unescape reads an escaped key up to its terminator and returns what follows.
func unescape(b []byte) (key, rest []byte, ok bool) {
	for {
		i := bytes.IndexByte(b, 0)
		if i < 0 || i+1 == len(b) {
			return nil, nil, false
		}
		key = append(key, b[:i]...)
		switch b[i+1] {
		case terminator[1]:
			return key, b[i+2:], true
		case 0xff:
			key = append(key, 0)
		default:
			return nil, nil, false
		}
		b = b[i+2:]
	}
}
