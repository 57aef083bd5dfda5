package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kvwrap/kvwrap/internal/audit/audittest"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/keys"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func testSpace(t testing.TB) format.Keyspace {
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	return space
}

func open(t testing.TB, path string) *DB {
	d, err := OpenDB(path)
	require.NoError(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// churned writes a keyspace with puts of many sizes, over and over, and deletes.
func churned(t testing.TB, seed uint64) *audittest.Generator {
	g := audittest.New(t)
	random := rand.New(rand.NewPCG(seed, 1))
	for range 6000 {
		key := audittest.KeyName(int(min(random.ExpFloat64()*300, 2000)))
		if k := g.Keys[key]; k != nil && k.Live != nil && random.IntN(5) == 0 {
			g.Delete(key)
			continue
		}
		g.Put(key, make([]byte, 1<<random.IntN(13)+random.IntN(50)), int64(random.IntN(4)*100))
	}
	return g
}

// TestKnownAnswers compares an audit with what was written, in one pass and in several.
func TestKnownAnswers(t *testing.T) {
	for seed, most := range []int{maxKeys, 400, 100, 17} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			g := churned(t, uint64(seed))
			path := g.Close()
			tally := newTally(Config{Space: testSpace(t), Depth: 2, Top: 15}, false)
			tally.maxKeys = most
			r, err := open(t, path).audit(t.Context(), tally, nil)
			require.NoError(t, err)
			require.Equal(t, most < maxKeys, r.Source.Passes > 1)
			require.False(t, r.Partial)
			require.Equal(t, g.Revision, r.Source.Revision)
			require.Equal(t, g.Records, r.Source.Records)

			var want Totals
			prefixes := make(map[Key]*Prefix)
			gone := make(map[Key]uint64)
			leases := make(map[int64]uint64)
			var lengths []uint64
			var bySize, byHistory []KeyReport
			var bytes float64
			for key, k := range g.Keys {
				name := Key(keys.Prefix([]byte(key), '/', 2))
				p := prefixes[name]
				if p == nil {
					p = &Prefix{Prefix: name}
					prefixes[name] = p
				}
				want.HistoryRecords += k.History
				want.HistoryBytes += k.HistoryBytes
				want.Tombstones += k.Tombstones
				p.HistoryBytes += k.HistoryBytes
				p.Tombstones += k.Tombstones
				p.Revisions += k.History
				bytes += float64(k.HistoryBytes + k.Bytes)
				if k.History > 0 {
					byHistory = append(byHistory, KeyReport{Key: Key(key), Revisions: k.Kept(), HistoryBytes: k.HistoryBytes})
				}
				if k.Live == nil {
					want.Deleted++
					gone[name]++
					continue
				}
				length := uint64(len(k.Live.Value))
				want.Keys++
				want.LiveRecords++
				want.KeyBytes += uint64(len(key))
				want.ValueBytes += length
				want.LiveBytes += k.Bytes
				p.Keys++
				p.Revisions++
				p.LiveBytes += k.Bytes
				p.Max = max(p.Max, length)
				lengths = append(lengths, length)
				bySize = append(bySize, KeyReport{Key: Key(key), ValueBytes: length})
				if k.Live.Lease != 0 {
					leases[k.Live.Lease]++
					p.Leased++
				}
			}
			require.NotZero(t, want.Deleted)
			require.Equal(t, want, r.Totals)
			require.Len(t, r.Prefixes, len(prefixes))
			for _, got := range r.Prefixes {
				p := prefixes[got.Prefix]
				require.InDelta(t, float64(p.LiveBytes+p.HistoryBytes)/bytes, got.Share, 1e-9)
				require.InDelta(t, float64(p.Revisions)/float64(p.Keys+gone[got.Prefix]), got.PerKey, 1e-9)
				got.Share, got.PerKey, got.P99, got.Mean = 0, 0, 0, 0
				require.Equal(t, *p, got)
			}
			require.Equal(t, len(leases), r.Leases.WithKeys)
			for _, l := range r.Leases.Largest {
				require.Contains(t, []string{"64", "c8", "12c"}, l.ID)
			}

			slices.Sort(lengths)
			require.Equal(t, lengths[len(lengths)-1], r.Values.Max)
			for q, got := range map[float64]uint64{.5: r.Values.P50, .9: r.Values.P90, .99: r.Values.P99, .999: r.Values.P999} {
				exact := lengths[min(int(q*float64(len(lengths))+.999999), len(lengths))-1]
				require.GreaterOrEqual(t, got, exact)
				require.LessOrEqual(t, float64(got), float64(exact)*(1+SizeError))
			}

			weights := func(keys []KeyReport, weight func(KeyReport) uint64) (w []uint64) {
				for _, k := range keys {
					w = append(w, weight(k))
				}
				slices.SortFunc(w, func(a, b uint64) int { return cmp.Compare(b, a) })
				return w[:min(len(w), 15)]
			}
			size := func(k KeyReport) uint64 { return k.ValueBytes }
			revisions := func(k KeyReport) uint64 { return k.Revisions }
			history := func(k KeyReport) uint64 { return k.HistoryBytes }
			require.Equal(t, weights(bySize, size), weights(r.BySize, size))
			require.Equal(t, weights(byHistory, revisions), weights(r.ByChurn, revisions))
			require.Equal(t, weights(byHistory, history), weights(r.ByHistory, history))
			for _, k := range r.BySize {
				require.Len(t, g.Keys[string(k.Key)].Live.Value, int(k.ValueBytes))
				require.Equal(t, g.Keys[string(k.Key)].Kept(), k.Revisions, k.Key)
			}
			for _, k := range slices.Concat(r.ByChurn, r.ByHistory) {
				require.Equal(t, g.Keys[string(k.Key)].Kept(), k.Revisions, k.Key)
				require.Equal(t, g.Keys[string(k.Key)].HistoryBytes, k.HistoryBytes, k.Key)
			}
		})
	}
}

// TestTheFileStaysAsItIs is about tools that modify what they read.
func TestTheFileStaysAsItIs(t *testing.T) {
	path := churned(t, 9).Close()
	require.NoError(t, os.Chmod(path, 0o400))
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	d := open(t, path)
	_, err = d.Audit(t.Context(), Config{Space: testSpace(t)}, nil)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(before), sha256.Sum256(after))
	again, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, info.ModTime(), again.ModTime())
}

func TestOpenDBRefuses(t *testing.T) {
	dir := t.TempDir()
	whole, err := os.ReadFile(churned(t, 3).Close())
	require.NoError(t, err)
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	other := filepath.Join(dir, "other")
	db, err := bolt.Open(other, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Close())
	for _, c := range []struct{ path, says string }{
		{filepath.Join(dir, "none"), "no such file or directory: give a snapshot"},
		{dir, "it is a directory or a device"},
		{file("empty", nil), "it has 0 bytes"},
		{file("text", bytes.Repeat([]byte("no database"), 9999)), "not a database of etcd: invalid database"},
		{file("half", whole[:len(whole)/2]), "it is cut off: it should have"},
		{file("page", whole[:8192]), "not a database of etcd"},
		{other, `without the buckets "key" and "meta"`},
	} {
		_, err := OpenDB(c.path)
		require.ErrorContains(t, err, c.says, c.path)
	}
	// An empty file stays empty.
	info, err := os.Stat(filepath.Join(dir, "empty"))
	require.NoError(t, err)
	require.Zero(t, info.Size())
}

// TestAFileThatIsDamaged has pages that are no pages: the error says so, whatever is in them.
func TestAFileThatIsDamaged(t *testing.T) {
	whole, err := os.ReadFile(churned(t, 4).Close())
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "db")
	refused := 0
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 2))
		damaged := slices.Clone(whole)
		for range 20 {
			at := 4*4096 + random.IntN(len(whole)/4096-5)*4096
			for i := range 64 {
				damaged[at+i] = byte(random.Uint32())
			}
		}
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		d, err := OpenDB(path)
		if err == nil {
			_, err = d.Audit(t.Context(), Config{Space: testSpace(t)}, nil)
			d.Close()
		}
		if err != nil {
			require.ErrorIs(t, err, ErrNotDB)
			refused++
		}
	}
	require.NotZero(t, refused)
}

// TestAFileThatGetsShorter is cut while it is read.
func TestAFileThatGetsShorter(t *testing.T) {
	path := churned(t, 5).Close()
	d := open(t, path)
	require.NoError(t, os.Truncate(path, 16384))
	_, err := d.Audit(t.Context(), Config{Space: testSpace(t)}, nil)
	require.ErrorIs(t, err, ErrNotDB)
	require.ErrorContains(t, err, "a page is damaged or missing")
}

func TestInterruptedIsPartial(t *testing.T) {
	g := audittest.New(t)
	for i := range 3 * checkEvery {
		g.Put(audittest.KeyName(i), []byte("v"), 0)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := open(t, g.Close()).Audit(ctx, Config{Space: testSpace(t)}, func(done, all uint64, pass, passes int) {
		require.Equal(t, [2]uint64{checkEvery, 3 * checkEvery}, [2]uint64{done, all})
		require.Equal(t, [2]int{1, 1}, [2]int{pass, passes})
		cancel()
	})
	require.NoError(t, err)
	require.True(t, r.Partial)
	require.GreaterOrEqual(t, r.Totals.Keys, uint64(checkEvery))
	require.Less(t, r.Totals.Keys, uint64(checkEvery+4096/17), "it ends with the page")
	require.Contains(t, r.Notes[0], fmt.Sprintf("interrupted: only the newest %d records were read", r.Source.Records))
}

// TestChunkedKeys are shown as their logical values, whatever order they were written in.
func TestChunkedKeys(t *testing.T) {
	g := audittest.New(t)
	space := testSpace(t)
	var stored uint64
	store := func(key string, n int) {
		value := make([]byte, n)
		rand.NewChaCha8([32]byte{byte(n)}).Read(value)
		d := format.NewDraft(space, []byte(key), value, 0, format.NewCutParams(8<<10, 32<<10))
		manifest, _ := d.Build(nil, 64<<10)
		for _, c := range d.Chunks {
			name := string(space.ChunkKey([]byte(key), c.ID))
			g.Put(name, c.Stored, 0)
			stored += g.Keys[name].Bytes
		}
		g.Put(key, manifest, 0)
		stored += g.Keys[key].Bytes
	}
	store("/a/large", 500_000)
	store("/a/larger", 700_000)
	g.Put("/a/small", []byte("v"), 0)
	g.Put("/b/raw", format.Literal([]byte("\xffkvw raw")), 0)
	anchor := space.ChunkKey([]byte("/b/staged"), format.ID{Token: format.NewToken()})
	g.Put(string(anchor), []byte(`{"host":"h1","pid":42,"version":"v1"}`), 0xabc)
	g.Put(string(space.Own("lock")), []byte("x"), 0)

	r, err := open(t, g.Close()).Audit(t.Context(), Config{Space: space}, nil)
	require.NoError(t, err)
	require.Equal(t, uint64(5), r.Totals.Keys) // the lock is a key, too
	require.Equal(t, uint64(1_200_000+1+len("\xffkvw raw")+1), r.Totals.ValueBytes)
	require.Equal(t, uint64(2), r.Chunked.Keys)
	require.Equal(t, uint64(1_200_000), r.Chunked.ValueBytes)
	require.Equal(t, stored, r.Chunked.StoredBytes)
	require.Equal(t, Key("/a/larger"), r.BySize[0].Key)
	require.Equal(t, uint64(700_000), r.BySize[0].ValueBytes)
	require.NotZero(t, r.BySize[0].Chunks)
	require.Equal(t, r.Chunked.Chunks, r.BySize[0].Chunks+r.BySize[1].Chunks)
	require.Equal(t, stored, r.BySize[0].StoredBytes+r.BySize[1].StoredBytes)
	require.Equal(t, Key("/a/"), r.Prefixes[0].Prefix)
	require.Equal(t, uint64(3), r.Prefixes[0].Keys)
	require.Equal(t, []Staging{{Key: "/b/staged", Host: "h1", PID: 42, Version: "v1", Lease: "abc"}}, r.Staging)
}

// TestHistoryOfChunks is that of their logical key, and adds none to its revisions, in parts as
// well.
func TestHistoryOfChunks(t *testing.T) {
	g, space := audittest.New(t), testSpace(t)
	var want uint64
	for i := range 10 {
		logical := fmt.Sprint("/a/", i)
		for index := range uint32(3) {
			chunk := string(space.ChunkKey([]byte(logical), format.ID{Token: format.NewToken(), Index: index + 1}))
			g.Put(chunk, make([]byte, 100*(i+1)), 0)
			g.Delete(chunk)
			if i == 9 {
				want += g.Keys[chunk].HistoryBytes
			}
		}
		g.Put(logical, []byte("v"), 0)
		g.Put(logical, []byte("w"), 0)
	}
	want += g.Keys["/a/9"].HistoryBytes
	path := g.Close()
	for _, most := range []int{maxKeys, 10} {
		tally := newTally(Config{Space: space}, false)
		tally.maxKeys = most
		r, err := open(t, path).audit(t.Context(), tally, nil)
		require.NoError(t, err)
		require.Equal(t, most < maxKeys, r.Source.Passes > 1)
		require.Equal(t, KeyReport{Key: "/a/9", Revisions: 2, HistoryBytes: want}, r.ByHistory[0])
		require.Equal(t, uint64(2), r.ByChurn[0].Revisions)
		require.Len(t, r.Prefixes, 1)
		require.Equal(t, uint64(20), r.Prefixes[0].Revisions)
		require.Equal(t, r.Totals.HistoryBytes, r.Prefixes[0].HistoryBytes)
		require.Zero(t, r.Totals.Deleted)
	}
}

// TestKeyTable against a map.
func TestKeyTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table keyTable
		want := make(map[uint64][2]uint64)
		hashes := rapid.SliceOfN(rapid.OneOf(rapid.Uint64(), rapid.Uint64Range(0, 5000)), 1, 3000).Draw(t, "hashes")
		for i, h := range hashes {
			h = max(h, 1)
			s := table.find(h)
			_, seen := want[h]
			require.Equal(t, seen, s.seen())
			s.see(!seen && h%2 == 0)
			s.add(1, uint64(i))
			want[h] = [2]uint64{want[h][0] + 1, want[h][1] + uint64(i)}
		}
		require.Equal(t, len(want), table.keys)
		for h, w := range want {
			s := table.find(h)
			require.Equal(t, w, [2]uint64{s.revisions(), s.bytes()})
			require.Equal(t, w[0]+1-h%2, s.kept())
		}
	})
	var s slot
	s.see(true)
	s.add(maxHistory, maxHistoryBytes)
	s.add(1, 1)
	require.Equal(t, [2]uint64{maxHistory, maxHistoryBytes}, [2]uint64{s.revisions(), s.bytes()})
	require.True(t, s.seen())
	require.EqualValues(t, maxHistory+1, s.kept())
}

func TestDistinct(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{10, 1000, 20_000, 1_000_000} {
		var d distinct
		for range n {
			d.add(random.Uint64())
		}
		require.InEpsilon(t, float64(n), d.count(), .06)
	}
}

// FuzzRecord holds the reader of records to the real one.
func FuzzRecord(f *testing.F) {
	kv := &mvccpb.KeyValue{Key: []byte("k"), Value: make([]byte, 300), Lease: 1 << 40, ModRevision: 1 << 20, CreateRevision: 7, Version: 3}
	whole, err := proto.Marshal(kv)
	require.NoError(f, err)
	f.Add(whole)
	f.Add(whole[:len(whole)-2])
	f.Add([]byte{10, 1, 'k'})
	f.Add([]byte{10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	revision := []byte("\x00\x00\x00\x00\x00\x00\x00\x05_\x00\x00\x00\x00\x00\x00\x00\x00")
	f.Fuzz(func(t *testing.T, b []byte) {
		var r record
		var want mvccpb.KeyValue
		if parseRecord(&r, revision, b) != nil || proto.Unmarshal(b, &want) != nil {
			return
		}
		require.Equal(t, string(want.Key), string(r.key))
		require.Equal(t, string(want.Value), string(r.value))
		require.Equal(t, []int64{want.CreateRevision, want.Version, want.Lease}, []int64{r.create, r.version, r.lease})
	})
}

func TestJSONComesBack(t *testing.T) {
	r, err := open(t, churned(t, 6).Close()).Audit(t.Context(), Config{Space: testSpace(t)}, nil)
	require.NoError(t, err)
	r.BySize[0].Key = "\x00\xff\"\\é"
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var again Report
	require.NoError(t, json.Unmarshal(b, &again))
	require.Equal(t, r.BySize, again.BySize)
	require.Equal(t, r.Totals, again.Totals)
	require.Equal(t, Schema, again.Schema)
}
