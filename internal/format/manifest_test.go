package format

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden is a manifest with a value in every field.
var golden = Manifest{
	Token: Token([]byte("0123456789abcdef")), Prefix: "\x00kvw/", KeyDigest: KeyDigest([]byte("/gateway/status")), Lease: 0x70cc8f3a6bd20b05,
	Cut: CutParams{Min: 1024, Avg: 4096, Max: 16384}, Length: 12288, Digest: 0x0123456789abcdef, Depth: 0,
	Refs: []Ref{
		{ID: ID{Token: Token([]byte("0123456789abcdef")), Index: 1}, Length: 4096, Identity: Identity([]byte("identity of no.1"))},
		{ID: ID{Token: Token([]byte("an older token!!")), Index: 70000}, Length: 8192, Identity: Identity([]byte("identity of no.2"))},
	},
}

// TestGoldenManifest holds format version 1 to its bytes: manifests live as long
// as the clusters that hold them.
func TestGoldenManifest(t *testing.T) {
	const file = "testdata/manifest_v1.golden"
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(hex.Dump(golden.encode())), 0o644))
	}
	dump, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(dump), hex.Dump(golden.encode()))
	literal, m, err := Parse(golden.encode(), 1<<20)
	require.NoError(t, err)
	require.Nil(t, literal)
	require.Equal(t, &golden, m)
}

func TestDamagedManifestsAreRefused(t *testing.T) {
	stored := golden.encode()
	for n := len(magic); n < len(stored); n++ {
		_, _, err := Parse(stored[:n], 1<<20)
		require.ErrorIs(t, err, ErrDamaged, "cut to %d bytes", n)
	}
	for i := len(magic); i < len(stored); i++ {
		for bit := range 8 {
			altered := bytes.Clone(stored)
			altered[i] ^= 1 << bit
			_, m, err := Parse(altered, 1<<20)
			require.Nil(t, m)
			if i > len(magic)+1 { // version and kind have errors of their own
				require.ErrorIs(t, err, ErrDamaged, "bit %d of byte %d", bit, i)
			}
		}
	}
}

// TestFieldsOutOfBoundsAreRefused seals manifests that are wrong on purpose.
func TestFieldsOutOfBoundsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Manifest){
		"no minimum":        func(m *Manifest) { m.Cut.Min = 0 },
		"min over avg":      func(m *Manifest) { m.Cut.Min = 5000 },
		"chunks too long":   func(m *Manifest) { m.Cut.Max = maxChunkBytes + 1 },
		"too deep":          func(m *Manifest) { m.Depth = maxDepth + 1 },
		"too many refs":     func(m *Manifest) { m.Length = 63 },
		"chunk 0":           func(m *Manifest) { m.Refs = []Ref{{ID: ID{Index: 0}, Length: 1}} },
		"an empty chunk":    func(m *Manifest) { m.Refs = []Ref{{ID: ID{Index: 1}}} },
		"a prefix too long": func(m *Manifest) { m.Prefix = strings.Repeat("x", maxPrefixBytes+1) },
	} {
		m := golden
		change(&m)
		_, _, err := Parse(m.encode(), 1<<20)
		require.ErrorIs(t, err, ErrDamaged, name)
	}
	stored := golden.encode()
	stored = append(stored[:len(stored)-checksumBytes], 0)
	stored = binary.BigEndian.AppendUint64(stored, xxhash.Sum64(stored))
	_, _, err := Parse(stored, 1<<20)
	require.ErrorIs(t, err, ErrDamaged, "a byte too many")
}

func TestOtherVersionsAreToldApart(t *testing.T) {
	stored := golden.encode()
	stored[len(magic)] = 2
	_, _, err := Parse(stored, 1<<20)
	var v *VersionError
	require.ErrorAs(t, err, &v)
	require.Equal(t, VersionError{Stored: 2, Read: 1}, *v)
	require.NotErrorIs(t, err, ErrDamaged)
	stored = golden.encode()
	stored[len(magic)+1] = 9
	_, _, err = Parse(stored, 1<<20)
	require.ErrorContains(t, err, "unknown kind 9")
}

func TestTooLongIsToldApart(t *testing.T) {
	_, _, err := Parse(golden.encode(), 12287)
	var long *TooLongError
	require.ErrorAs(t, err, &long)
	require.Equal(t, TooLongError{Length: 12288, Most: 12287}, *long)
}

func TestLiterals(t *testing.T) {
	for _, value := range []string{magic, magic + "\x01\x01", string(golden.encode())} {
		require.False(t, Plain([]byte(value)))
		stored := Literal([]byte(value))
		require.False(t, Plain(stored))
		literal, m, err := Parse(stored, 1<<20)
		require.NoError(t, err)
		require.Nil(t, m)
		require.Equal(t, value, string(literal))
	}
	for _, value := range []string{"", "x", "\xff", magic[:3], "{}"} {
		require.True(t, Plain([]byte(value)))
	}
	require.False(t, Plain(PlainBelow()))
}

func TestTokenBoundsHoldTheManifestsOfOneToken(t *testing.T) {
	for _, last := range []byte{0, 1, 0xfe, 0xff} {
		m := golden
		m.Token[15] = last
		above, below := TokenBounds(m.Token)
		within := func(stored []byte) bool { return bytes.Compare(stored, above) > 0 && bytes.Compare(stored, below) < 0 }
		require.True(t, within(m.encode()))
		for other := range 256 {
			o := golden
			o.Token[15] = byte(other)
			require.Equal(t, byte(other) == last, within(o.encode()), "token %v in the bounds of %v", o.Token, m.Token)
		}
		require.False(t, within(Literal([]byte(magic))))
		require.False(t, within([]byte("plain")))
		require.False(t, within([]byte("\xff\xff")))
	}
}

// The seeds of the fuzz targets are in testdata/fuzz, each named for what it is.

// FuzzParse reads any bytes as a manifest, and then the value that it stands for
// from lists and chunks of any bytes. It must not panic, nor allocate beyond the
// limit, nor return a value of another length or checksum than the manifest says.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, stored, chunk []byte) {
		const limit = 1 << 16
		sealed := func(b []byte, sum func([]byte) uint64) []byte { // so that it is the fields that are fuzzed
			if len(b) < checksumBytes {
				return b
			}
			b = bytes.Clone(b[:len(b)-checksumBytes])
			return binary.BigEndian.AppendUint64(b, sum(b))
		}
		for _, stored := range [][]byte{stored, sealed(stored, xxhash.Sum64)} {
			if Plain(stored) {
				continue
			}
			_, m, err := Parse(stored, limit)
			if err != nil || m == nil {
				continue
			}
			l, all := NewLayout(m), Source{Stored: map[ID][]byte{}}
			chunks := func() {
				for _, r := range l.Last() {
					all.Stored[r.ID] = sealed(chunk, func(b []byte) uint64 { return chunkChecksum(r.ID, b) })
				}
			}
			chunks()
			for err == nil && !l.Complete() {
				err = l.Read(all)
				chunks()
			}
			var value []byte
			if err == nil {
				value, err = l.Value(all)
			}
			if err == nil && (len(value) != m.Length || len(value) > limit || xxhash.Sum64(value) != m.Digest) {
				t.Fatalf("%d bytes for a manifest of %d", len(value), m.Length)
			}
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Fatalf("an error of another kind: %v", err)
			}
		}
	})
}

// FuzzRefs reads any bytes as a list of refs, and writes what it read.
func FuzzRefs(f *testing.F) {
	f.Fuzz(func(t *testing.T, list []byte) {
		refs, err := decodeRefs(list)
		if err == nil && !bytes.Equal(encodeRefs(refs), list) {
			t.Fatalf("%x is read as %v", list, refs)
		}
	})
}

// FuzzChunk reads any bytes as a chunk, under its own checksum and under the right
// one.
func FuzzChunk(f *testing.F) {
	f.Fuzz(func(t *testing.T, stored []byte, length uint16) {
		backing := bytes.Repeat([]byte{0xaa}, int(length)+16)
		dst := backing[:length]
		sealed := binary.BigEndian.AppendUint64(bytes.Clone(stored), chunkChecksum(testID, stored))
		for _, stored := range [][]byte{stored, sealed} {
			if decodeChunk(dst, testID, stored) != nil {
				continue
			}
			again := make([]byte, length)
			if err := decodeChunk(again, testID, encodeChunk(testID, dst)); err != nil || !bytes.Equal(dst, again) {
				t.Fatalf("%d bytes come back as others, or not: %v", length, err)
			}
		}
		if !bytes.Equal(backing[length:], bytes.Repeat([]byte{0xaa}, 16)) {
			t.Fatal("written past the end")
		}
	})
}

// FuzzChunkKey reads any bytes as a chunk key, and writes what it read.
func FuzzChunkKey(f *testing.F) {
	space := must(NewKeyspace("\x00kvw/"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, id, err := space.ParseChunkKey(b)
		if err == nil && !bytes.Equal(space.ChunkKey(key, id), b) {
			t.Fatalf("%q is read as chunk %v of %q", b, id, key)
		}
	})
}
