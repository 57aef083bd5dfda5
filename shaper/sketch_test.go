package shaper

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestKeysAreEstimated for one to a million distinct keys, each put more than once.
func TestKeysAreEstimated(t *testing.T) {
	const samples = 40
	var squares float64
	for sample := range samples {
		var k keySketch
		n := 0
		for _, upTo := range []int{1, 2, 10, 100, 1000, 10_000, 100_000, 1_000_000} {
			if upTo == 1_000_000 && sample >= 3 {
				break
			}
			for ; n < upTo; n++ {
				hash := xxhash.Sum64(fmt.Appendf(nil, "%d/registry/pods/%d", sample, n))
				k.add(hash)
				k.add(hash)
			}
			got := k.estimate()
			require.InDelta(t, n, got, max(0.5, 4*KeysError*float64(n)), "%d keys", n)
			if n == 100_000 {
				squares += math.Pow(got/float64(n)-1, 2)
			}
		}
	}
	require.Less(t, math.Sqrt(squares/samples), 1.3*KeysError, "the standard error")
}

// TestKeysOfParts: sketches of parts of the keys are that of all.
func TestKeysOfParts(t *testing.T) {
	var all, merged keySketch
	var parts [4]keySketch
	require.Zero(t, all.estimate())
	for i := range 10_000 {
		hash := xxhash.Sum64(fmt.Append(nil, i))
		all.add(hash)
		parts[i%4].add(hash)
		parts[i*7%4].add(hash)
	}
	for i := range parts {
		merged.merge(&parts[i])
	}
	require.Equal(t, all, merged)
}

func TestRanks(t *testing.T) {
	var full keySketch
	for i := range full {
		full[i] = maxRank
	}
	require.Greater(t, full.estimate(), 1e18)
	require.False(t, math.IsInf(full.estimate(), 0))
	var one keySketch
	one.add(0)
	require.EqualValues(t, maxRank, one[0])
	one.add(math.MaxUint64)
	require.EqualValues(t, 1, one[keyRegisters-1])
}

func TestPrefixes(t *testing.T) {
	for _, c := range []struct {
		key   string
		depth int
		want  string
	}{
		{"", 2, ""}, {"k", 2, ""}, {"/", 2, "/"}, {"/k", 2, "/"}, {"a/", 2, "a/"}, {"a/b", 2, "a/"}, {"a/b/", 2, "a/b/"},
		{"/a/b/c", 2, "/a/b/"}, {"/a/b/c", 1, "/a/"}, {"/a/b/c", 3, "/a/b/"}, {"/a/b/c", math.MaxInt32, "/a/b/"},
		{"a//b/c", 2, "a//"}, {"\x00kvw/gateway/x", 2, "\x00kvw/gateway/"},
	} {
		require.Equal(t, c.want, string(prefixOf([]byte(c.key), '/', c.depth)), "%q", c.key)
	}
	long := make([]byte, 1000)
	long[999] = '/'
	require.Len(t, prefixOf(long, '/', 1), maxPrefixBytes)
}

// valid fails t unless the heap and the table of s are what they are said to be.
func (s *prefixSketch) valid(t require.TestingT) {
	require.Len(t, s.heap, len(s.entries))
	for i, e := range s.heap {
		require.Equal(t, i, s.entries[e].at)
		require.LessOrEqual(t, s.entries[s.heap[(i-min(i, 1))/2]].weight, s.entries[e].weight)
	}
	used := 0
	for _, e := range s.table {
		if e > 0 {
			used++
			require.Equal(t, e, s.table[s.find(s.entries[e-1].hash)])
		}
	}
	require.Equal(t, len(s.entries), used)
}

// TestPrefixSketch compares sketches of the parts of a stream, alone and put together, with
// what was added, held in a map.
func TestPrefixSketch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(1, 12).Draw(t, "k")
		narrow := rapid.Bool().Draw(t, "narrow") // hashes that want the same places in the table
		parts := make([]prefixSketch, rapid.IntRange(1, 3).Draw(t, "parts"))
		for i := range parts {
			parts[i] = newPrefixSketch(k)
		}
		type sum struct{ records, bytes, weight uint64 }
		all, total := map[string]sum{}, uint64(0)
		exact := make([]map[string]sum, len(parts))
		weights := make([]uint64, len(parts))
		for i := range exact {
			exact[i] = map[string]sum{}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				part := rapid.IntRange(0, len(parts)-1).Draw(t, "part")
				p := fmt.Sprint(rapid.IntRange(0, 40).Draw(t, "prefix"))
				records, bytes := rapid.Uint64Range(1, 3).Draw(t, "records"), rapid.Uint64Range(0, 5000).Draw(t, "bytes")
				hash := xxhash.Sum64String(p)
				if narrow {
					hash = hash<<3&^(1<<32-1) | hash&1
				}
				parts[part].add(hash, []byte(p), records, bytes)
				weight := bytes + recordOverhead*records
				for _, m := range []map[string]sum{all, exact[part]} {
					s := m[p]
					m[p] = sum{s.records + records, s.bytes + bytes, s.weight + weight}
				}
				weights[part] += weight
				total += weight
			},
			"": func(t *rapid.T) {
				for i := range parts {
					s := &parts[i]
					s.valid(t)
					require.LessOrEqual(t, s.lightest(), weights[i]/uint64(k))
					found := map[string]bool{}
					for _, e := range s.entries {
						found[string(e.prefix)] = true
						was := exact[i][string(e.prefix)]
						require.LessOrEqual(t, e.records, was.records)
						require.LessOrEqual(t, e.bytes, was.bytes)
						require.Equal(t, e.weight, e.bytes+recordOverhead*e.records+e.missed)
						require.LessOrEqual(t, was.weight, e.weight)
					}
					for p, was := range exact[i] {
						require.True(t, found[p] || was.weight <= s.lightest(), "%s is missing", p)
					}
				}
			},
		})
		var copies []followed
		for i := range parts {
			copies = append(copies, parts[i].copy())
		}
		found := map[string]bool{}
		list := heaviest(math.MaxInt, copies)
		for i, p := range list {
			found[p.Prefix] = true
			was := all[p.Prefix]
			require.LessOrEqual(t, p.Records, was.records)
			require.LessOrEqual(t, p.Bytes, was.bytes)
			require.LessOrEqual(t, was.weight, p.Weight()+p.MissedBytes)
			require.LessOrEqual(t, p.MissedBytes, total/uint64(k))
			require.True(t, i == 0 || list[i-1].Weight() >= p.Weight())
		}
		for p, was := range all {
			require.True(t, found[p] || was.weight <= total/uint64(k), "%s is missing", p)
		}
	})
}

// TestACopyStays as it is when other prefixes take the places of those that it has.
func TestACopyStays(t *testing.T) {
	s := newPrefixSketch(2)
	for i := range 2 {
		s.add(uint64(i), fmt.Appendf(nil, "before-%d/", i), 1, 1)
	}
	before := heaviest(2, []followed{s.copy()})
	copied := s.copy()
	for i := range 10 {
		s.add(uint64(i+2), fmt.Appendf(nil, "after-%d/", i), 1, 1)
	}
	require.Equal(t, before, heaviest(2, []followed{copied}))
}

// TestHeavyPrefixes: of a hundred thousand prefixes, ten have half of everything.
func TestHeavyPrefixes(t *testing.T) {
	m, err := NewMeter(MeterConfig{Heaviest: 10})
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(1, 2))
	exact := map[string]uint64{}
	var weight uint64
	for range 200_000 {
		p := fmt.Sprintf("/tenants/%d/", r.IntN(100_000))
		if r.IntN(2) == 0 {
			p = fmt.Sprintf("/heavy/%d/", r.IntN(10))
		}
		key := p + fmt.Sprint(r.IntN(1000))
		exact[p]++
		weight += uint64(len(key)) + 100 + recordOverhead
		m.Observe(put(key, 100))
	}
	got := m.Traffic().Heaviest
	require.Len(t, got, 10)
	for _, p := range got {
		require.Contains(t, p.Prefix, "/heavy/")
		require.LessOrEqual(t, p.MissedBytes, weight/(16*10))
		require.LessOrEqual(t, p.Records, exact[p.Prefix])
		require.GreaterOrEqual(t, p.Records+p.MissedBytes/recordOverhead, exact[p.Prefix])
	}
}
