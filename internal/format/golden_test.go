package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const goldenValues = "testdata/values_v1.golden"

// goldenValue is a key as etcd holds it, and the value that it stands for. Bytes are
// hexadecimal.
type goldenValue struct {
	Name   string
	Prefix string // that is reserved
	Key    string
	Stored string      // at the key
	Chunks [][2]string // keys and values in the range of its chunks, in order
	Length int         // of the value
	SHA256 string      // of the value
}

// TestGoldenValues reads what format version 1 has stored: plain values and envelopes,
// chunks raw and compressed, lists, and chunks that are of no concern. With -update it
// writes it, which is for a new version only.
func TestGoldenValues(t *testing.T) {
	if *update {
		b, err := json.MarshalIndent(makeGoldenValues(t), "", " ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(goldenValues, append(b, '\n'), 0o644))
	}
	b, err := os.ReadFile(goldenValues)
	require.NoError(t, err)
	var all []goldenValue
	require.NoError(t, json.Unmarshal(b, &all))
	require.Len(t, all, 9)
	for _, g := range all {
		t.Run(g.Name, func(t *testing.T) {
			isValue := func(value []byte) {
				require.Len(t, value, g.Length)
				sum := sha256.Sum256(value)
				require.Equal(t, g.SHA256, hex.EncodeToString(sum[:]))
			}
			stored := unhex(t, g.Stored)
			if Plain(stored) {
				isValue(stored)
				return
			}
			literal, m, err := Parse(stored, maxTestValue)
			require.NoError(t, err)
			if m == nil {
				isValue(literal)
				return
			}
			space, err := NewKeyspace(m.Prefix)
			require.NoError(t, err)
			require.Equal(t, unhex(t, g.Prefix), []byte(m.Prefix))
			require.Equal(t, KeyDigest(unhex(t, g.Key)), m.KeyDigest)
			s := store{}
			for _, c := range g.Chunks {
				key, id, err := space.ParseChunkKey(unhex(t, c[0]))
				require.NoError(t, err)
				require.Equal(t, unhex(t, g.Key), key)
				s[id] = unhex(t, c[1])
			}
			isValue(s.read(t, stored))
		})
	}
}

func unhex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}

func makeGoldenValues(t *testing.T) (all []goldenValue) {
	add := func(name, prefix, key string, stored, value []byte, chunks map[string][]byte) {
		sum := sha256.Sum256(value)
		g := goldenValue{
			Name: name, Prefix: hex.EncodeToString([]byte(prefix)), Key: hex.EncodeToString([]byte(key)), Stored: hex.EncodeToString(stored),
			Length: len(value), SHA256: hex.EncodeToString(sum[:]), Chunks: [][2]string{},
		}
		for k, v := range chunks {
			g.Chunks = append(g.Chunks, [2]string{hex.EncodeToString([]byte(k)), hex.EncodeToString(v)})
		}
		slices.SortFunc(g.Chunks, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
		all = append(all, g)
	}
	token := func(s string) Token { return Token([]byte(s)) }
	build := func(prefix, key string, value []byte, tok Token, lease int64, cut CutParams, base *Layout, list int, chunks map[string][]byte) ([]byte, *Layout) {
		space, err := NewKeyspace(prefix)
		require.NoError(t, err)
		d := NewDraft(space, []byte(key), value, lease, cut)
		d.Token = tok
		stored, layout := d.Build(base, list)
		for _, c := range d.Chunks {
			chunks[string(space.ChunkKey([]byte(key), c.ID))] = c.Stored
		}
		return stored, layout
	}
	const prefix = "\x00kvw/"
	small := CutParams{Min: 64, Avg: 256, Max: 1024}
	digits := bytes.Repeat([]byte(`{"count":1234567,"mean":0.25},`), 60)

	add("plain", prefix, "config", []byte(`{"a":1}`), []byte(`{"a":1}`), nil)
	add("literal", prefix, "odd", Literal([]byte(magic+"\x01\x01 is how it begins")), []byte(magic+"\x01\x01 is how it begins"), nil)

	chunks := map[string][]byte{}
	stored, _ := build(prefix, "status", digits, token("0123456789abcdef"), 0, NewCutParams(4<<10, 60<<10), nil, 1<<10, chunks)
	add("one chunk, compressed", prefix, "status", stored, digits, chunks)

	chunks = map[string][]byte{}
	stored, _ = build(prefix, "noise", noise(1000, 1), token("0123456789abcdef"), 0, small, nil, 1<<10, chunks)
	add("several chunks, raw", prefix, "noise", stored, noise(1000, 1), chunks)

	// A second write that keeps most of the first one's chunks; beside them the first one's
	// others, and a write under way.
	chunks = map[string][]byte{}
	first := noise(4000, 2)
	second := slices.Concat(first[:1700], []byte("what has come in"), first[1700:])
	_, layout := build(prefix, "statistics", first, token("the first write "), 0x70cc8f3a6bd20b05, small, nil, 1<<10, chunks)
	stored, _ = build(prefix, "statistics", second, token("the second write"), 0x70cc8f3a6bd20b05, small, layout, 1<<10, chunks)
	space, err := NewKeyspace(prefix)
	require.NoError(t, err)
	chunks[string(space.ChunkKey([]byte("statistics"), ID{Token: token("a write underway")}))] = []byte(`{"host":"a","pid":1,"version":"0.1.0"}`)
	chunks[string(space.ChunkKey([]byte("statistics"), ID{Token: token("a write underway"), Index: 1}))] = encodeChunk(ID{Token: token("a write underway"), Index: 1}, []byte("not yet"))
	add("chunks of two writes, on a lease, beside others", prefix, "statistics", stored, second, chunks)

	chunks = map[string][]byte{}
	long := slices.Concat(digits, noise(3000, 3), digits, noise(1500, 4))
	stored, _ = build(prefix, "listed", long, token("0123456789abcdef"), 0, small, nil, 512, chunks)
	add("a list in chunks, depth 1", prefix, "listed", stored, long, chunks)

	chunks = map[string][]byte{}
	long = slices.Concat(noise(3000, 5), long)
	stored, _ = build(prefix, "listed/twice", long, token("0123456789abcdef"), 0, small, nil, refBytes, chunks)
	add("lists of lists, depth 2", prefix, "listed/twice", stored, long, chunks)

	chunks = map[string][]byte{}
	stored, _ = build(prefix, "a\x00b\x00\x00\xff\x00", noise(900, 6), token("0123456789abcdef"), 0, small, nil, 1<<10, chunks)
	add("a key with bytes 00", prefix, "a\x00b\x00\x00\xff\x00", stored, noise(900, 6), chunks)

	chunks = map[string][]byte{}
	equal := make([]byte, 5000)
	stored, _ = build("~chunks/", "equal", equal, token("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), 0, small, nil, 1<<10, chunks)
	add("another prefix, one chunk named many times", "~chunks/", "equal", stored, equal, chunks)
	return all
}
