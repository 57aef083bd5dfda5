package format_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// This file reads chunked values by what docs/format.md says, in the order in which it says
// it, and uses nothing of kvwrap's. It is there so that the page stays enough: whoever has to
// look into the code to mend it has found something to write there.

// etcd is keys and what they hold, at one revision.
type etcd map[string][]byte

var errRefused = errors.New("refused")

func refuse(format string, args ...any) ([]byte, error) {
	return nil, fmt.Errorf("%w: %s", errRefused, fmt.Sprintf(format, args...))
}

// readByTheBook returns the value of a key. (Reading a value)
func readByTheBook(store etcd, key string, prefix string) ([]byte, error) {
	stored := store[key]

	// Which values are chunked
	if !bytes.HasPrefix(stored, []byte("\xff\x6b\x76\x77")) {
		return stored, nil
	}
	if len(stored) < 6 {
		return refuse("an envelope of %d bytes", len(stored))
	}
	if stored[4] != 1 {
		return refuse("format version %d", stored[4])
	}
	switch stored[5] {
	case 0:
		return stored[6:], nil
	case 1:
	default:
		return refuse("kind %d", stored[5])
	}

	// The manifest
	if len(stored) < 6+8 {
		return refuse("a manifest of %d bytes", len(stored))
	}
	sealed, checksum := stored[:len(stored)-8], binary.BigEndian.Uint64(stored[len(stored)-8:])
	if xxhash.Sum64(sealed) != checksum {
		return refuse("the manifest's checksum")
	}
	rest := sealed[6:]
	bad := false
	take := func(n uint64) []byte {
		if n > uint64(len(rest)) {
			bad = true
			return make([]byte, 8)
		}
		b := rest[:n]
		rest = rest[n:]
		return b
	}
	varint := func() uint64 {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			bad = true
			return 0
		}
		rest = rest[n:]
		return v
	}
	take(16) // the token
	storedUnder := string(take(varint()))
	keyDigest := binary.BigEndian.Uint64(take(8))
	varint() // the lease
	least, avg, most := varint(), varint(), varint()
	length := varint()
	digest := binary.BigEndian.Uint64(take(8))
	depth := varint()
	refs := varint()
	switch {
	case bad:
		return refuse("the manifest is too short")
	case storedUnder != prefix:
		return refuse("chunks below %q", storedUnder)
	case keyDigest != xxhash.Sum64String(key):
		return refuse("it is another key's manifest")
	case depth > 8 || least < 64 || avg < least || most < avg || most > 1<<20 || refs > length/64+1:
		return refuse("bounds")
	}
	list, err := unpackByTheBook(rest, 40*refs)
	if err != nil {
		return nil, err
	}

	// Chunks: escape(K)
	escaped := strings.ReplaceAll(key, "\x00", "\x00\xff")

	// Each level of lists from the top; the last gives the value.
	for level := depth; ; level-- {
		if len(list)%40 != 0 {
			return refuse("a list of %d bytes", len(list))
		}
		var content []byte
		for ; len(list) > 0; list = list[40:] {
			token, index, n := list[:16], list[16:20], uint64(binary.BigEndian.Uint32(list[20:24]))
			if binary.BigEndian.Uint32(index) == 0 || n == 0 || n > 1<<20 || uint64(len(content))+n > length+40 {
				return refuse("a ref")
			}
			chunk := store[prefix+escaped+"\x00\x01"+string(token)+string(index)]
			if len(chunk) < 8 {
				return refuse("a chunk that is missing")
			}
			packed, checksum := chunk[:len(chunk)-8], binary.BigEndian.Uint64(chunk[len(chunk)-8:])
			if xxhash.Sum64(bytes.Join([][]byte{token, index, packed}, nil)) != checksum {
				return refuse("a chunk's checksum")
			}
			plain, err := unpackByTheBook(packed, n)
			if err != nil {
				return nil, err
			}
			content = append(content, plain...)
		}
		if level == 0 {
			if uint64(len(content)) != length || xxhash.Sum64(content) != digest {
				return refuse("the value's length or digest")
			}
			return content, nil
		}
		list = content
	}
}

// unpackByTheBook decodes what is packed. (The manifest)
func unpackByTheBook(packed []byte, n uint64) ([]byte, error) {
	if len(packed) == 0 {
		return refuse("nothing is packed")
	}
	plain := packed[1:]
	switch packed[0] {
	case 0:
	case 1:
		decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20))
		if err != nil {
			return nil, err
		}
		defer decoder.Close()
		if plain, err = decoder.DecodeAll(packed[1:], nil); err != nil {
			return refuse("zstd: %v", err)
		}
	default:
		return refuse("codec %d", packed[0])
	}
	if uint64(len(plain)) != n {
		return refuse("%d bytes decode to %d, not %d", len(packed), len(plain), n)
	}
	return plain, nil
}

type goldenKey struct {
	Name, Prefix, Key, Stored string
	Chunks                    [][2]string
	Length                    int
	SHA256                    string
}

func (g goldenKey) etcd(t *testing.T) (store etcd, key, prefix string) {
	text := func(s string) string {
		b, err := hex.DecodeString(s)
		require.NoError(t, err)
		return string(b)
	}
	store = etcd{text(g.Key): []byte(text(g.Stored))}
	for _, c := range g.Chunks {
		store[text(c[0])] = []byte(text(c[1]))
	}
	return store, text(g.Key), text(g.Prefix)
}

func goldenKeys(t *testing.T) (all []goldenKey) {
	b, err := os.ReadFile("testdata/values_v1.golden")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &all))
	return all
}

// TestTheFormatIsEnoughToReadBy reads the golden values by docs/format.md alone.
func TestTheFormatIsEnoughToReadBy(t *testing.T) {
	all := goldenKeys(t)
	require.NotEmpty(t, all)
	for _, g := range all {
		t.Run(g.Name, func(t *testing.T) {
			store, key, prefix := g.etcd(t)
			value, err := readByTheBook(store, key, prefix)
			require.NoError(t, err)
			require.Len(t, value, g.Length)
			sum := sha256.Sum256(value)
			require.Equal(t, g.SHA256, hex.EncodeToString(sum[:]))
		})
	}
}

// TestTheFormatIsEnoughToRefuseBy alters each byte of what is stored, and looks under other
// keys and prefixes: by the document a reader returns the value or refuses, and never
// something else.
func TestTheFormatIsEnoughToRefuseBy(t *testing.T) {
	for _, g := range goldenKeys(t) {
		store, key, prefix := g.etcd(t)
		value, err := readByTheBook(store, key, prefix)
		require.NoError(t, err)
		if g.Name == "plain" || g.Name == "literal" {
			continue // nothing is checked of these
		}
		for k, stored := range store {
			step := max(1, len(stored)/10)
			for i := 0; i < len(stored); i += step {
				if k == key && i < 6 {
					continue // the envelope: another kind, another version or a plain value
				}
				stored[i] ^= 0x40
				got, err := readByTheBook(store, key, prefix)
				if err != nil {
					require.ErrorIs(t, err, errRefused)
				} else {
					require.True(t, bytes.Equal(value, got), "%s: byte %d of %q", g.Name, i, k)
				}
				stored[i] ^= 0x40
			}
		}
		store["another"] = store[key]
		_, err = readByTheBook(store, "another", prefix)
		require.ErrorIs(t, err, errRefused, g.Name)
		_, err = readByTheBook(store, key, "other/")
		require.ErrorIs(t, err, errRefused, g.Name)
	}
}

// TestTheReaderInPython runs docs/reader.py, where there are a Python and a zstd.
func TestTheReaderInPython(t *testing.T) {
	for _, needed := range []string{"python3", "zstd"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skip(err)
		}
	}
	golden, err := os.Open("testdata/values_v1.golden")
	require.NoError(t, err)
	defer golden.Close()
	reader := exec.Command("python3", "../../docs/reader.py")
	reader.Stdin = golden
	out, err := reader.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, len(goldenKeys(t)), bytes.Count(out, []byte("\n")), "%s", out)
}
