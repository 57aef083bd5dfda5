package audit

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/kvwrap/kvwrap/internal/audit/audittest"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/stretchr/testify/require"
)

// whoever may put a key may put what is here.

func auditOf(t *testing.T, g *audittest.Generator, cfg Config) *Report {
	cfg.Space = testSpace(t)
	r, err := open(t, g.Close()).Audit(t.Context(), cfg, nil)
	require.NoError(t, err)
	return r
}

// claim is a manifest, with a right checksum, of a value that nobody has written.
func claim(key string, length, refs uint64) []byte {
	b := append([]byte("\xffkvw\x01\x01"), make([]byte, 16)...)
	b = append(binary.AppendUvarint(b, 5), "\x00kvw/"...)
	b = binary.BigEndian.AppendUint64(b, xxhash.Sum64String(key))
	for _, n := range []uint64{0, 64, 64, 64, length} { // lease, cutting, length
		b = binary.AppendUvarint(b, n)
	}
	b = binary.BigEndian.AppendUint64(b, 0)
	b = binary.AppendUvarint(b, 0)
	b = binary.AppendUvarint(b, refs)
	return binary.BigEndian.AppendUint64(b, xxhash.Sum64(b))
}

// TestManifestsThatClaimMuch cost nothing, and count for nothing that they cannot be.
func TestManifestsThatClaimMuch(t *testing.T) {
	g := audittest.New(t)
	for i := range 100 {
		key := fmt.Sprint("/claims/", i)
		g.Put(key, claim(key, 256<<20, 4<<20), 0)
	}
	g.Put("/tera", claim("/tera", 1<<40, 1<<34), 0)
	g.Put("/copied", claim("/claims/1", 256<<20, 4<<20), 0)
	g.Put("ns/claims/1", claim("/claims/1", 1000, 1), 0) // of a client in the namespace "ns"
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := auditOf(t, g, Config{})
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(16<<20))
	require.Equal(t, uint64(101), r.Chunked.Keys)
	require.Equal(t, uint64(2), r.Chunked.Unreadable)
	require.Equal(t, uint64(256<<20), r.Values.Max)
}

// TestChunksOfANamespace belong to the key with its namespace.
func TestChunksOfANamespace(t *testing.T) {
	g, space := audittest.New(t), testSpace(t)
	value := []byte(strings.Repeat("some text ", 50_000))
	d := format.NewDraft(space, []byte("large"), value, 0, format.NewCutParams(8<<10, 32<<10))
	manifest, _ := d.Build(nil, 64<<10)
	for _, c := range d.Chunks {
		g.Put("app/"+string(space.ChunkKey([]byte("large"), c.ID)), c.Stored, 0)
	}
	g.Put("app/large", manifest, 0)
	r := auditOf(t, g, Config{})
	require.Equal(t, uint64(1), r.Totals.Keys)
	require.Equal(t, Key("app/large"), r.BySize[0].Key)
	require.Equal(t, uint64(len(value)), r.BySize[0].ValueBytes)
	require.Equal(t, uint64(len(d.Chunks)), r.BySize[0].Chunks)
	require.Len(t, r.Prefixes, 1)
}

// TestALargeValueBesideAChunkedOne is found.
func TestALargeValueBesideAChunkedOne(t *testing.T) {
	g := audittest.New(t)
	for i := range 5 {
		key := fmt.Sprint("/chunked/", i)
		g.Put(key, claim(key, 100<<20, 1), 0)
	}
	g.Put("/raw", make([]byte, 1_400_000), 0)
	r := auditOf(t, g, Config{})
	r.Judge(Assume{})
	require.Equal(t, Warning, r.Verdict)
	require.Equal(t, Key("/raw"), r.Findings[0].About)
}

// TestKeysThatComeAndGo are not keys that are put over and over.
func TestKeysThatComeAndGo(t *testing.T) {
	g := audittest.New(t)
	for i := range 6000 {
		key := fmt.Sprint("/events/ns/", i)
		g.Put(key, []byte("v"), 0)
		g.Delete(key)
	}
	g.Put("/events/ns/last", []byte("v"), 0)
	r := auditOf(t, g, Config{})
	r.Judge(Assume{})
	require.Empty(t, r.Findings)
	require.InDelta(t, 2, r.Prefixes[0].PerKey, .01)
	require.InDelta(t, 2, mostRevisions(r), 0)
}

// TestManyPrefixesHideNone: what is counted together is passed by, not the end of the list.
func TestManyPrefixesHideNone(t *testing.T) {
	g := audittest.New(t)
	for i := range 12_001 {
		g.Put("/churn/x/k", fmt.Append(nil, i), 0)
	}
	for i := range maxPrefixes + 500 {
		g.Put(fmt.Sprintf("/p/%d/k", i), make([]byte, 1500), 0)
	}
	g.Put("/churn/x/k", []byte("last"), 0) // the newest has its place
	r := auditOf(t, g, Config{})
	r.Judge(Assume{})
	require.True(t, r.Prefixes[0].Rest)
	require.Len(t, r.Findings, 1)
	require.Equal(t, Key("/churn/x/"), r.Findings[0].About)
}

// TestLongNames are cut, and say so.
func TestLongNames(t *testing.T) {
	g := audittest.New(t)
	for i := range 300 {
		g.Put(strings.Repeat("x", 50_000)+fmt.Sprint("/", i, "/k"), []byte("v"), 0)
	}
	r := auditOf(t, g, Config{})
	require.Len(t, r.Prefixes, 1)
	require.Len(t, r.Prefixes[0].Prefix, maxName)
	require.Len(t, r.BySize[0].Key, maxShown)
	require.Greater(t, r.BySize[0].KeyBytes, uint64(50_000))
}

// TestManyWriters are all counted.
func TestManyWriters(t *testing.T) {
	g, space := audittest.New(t), testSpace(t)
	for i := range maxStaging + 50 {
		g.Put(string(space.ChunkKey(fmt.Append(nil, "/k/", i), format.ID{Token: format.Token{byte(i)}})), []byte(`{"host":"evil\u001b]0;x\u0007\nCRITICAL","pid":1}`), 0)
	}
	r := auditOf(t, g, Config{})
	r.Judge(Assume{})
	conditions, err := ParseConditions(fmt.Sprintf("staging>%d", maxStaging+49))
	require.NoError(t, err)
	broken, _ := r.Broken(conditions)
	require.Len(t, broken, 1)
	r.Members = []Member{{Name: "\x1b[31m", Error: "\x1b[32m", Alarms: []string{"\x1b"}}}
	r.Source.Version = "\x1b"
	old := healthy()
	old.Findings = []Finding{{Reason: "\x1b\nOK. All is well", Do: "\x1b"}}
	r.Compare(old)
	var text strings.Builder
	require.NoError(t, r.Text(&text))
	require.NotContains(t, text.String(), "\x1b")
	require.NotContains(t, text.String(), "\x07")
	require.NotContains(t, text.String(), "\nCRITICAL")
	require.NotContains(t, text.String(), "\nOK. All")
	require.Contains(t, text.String(), "150 large values are being written")
	require.Contains(t, text.String(), "and 50 more")
}

// TestFull: a cluster that refuses writes is not one that has time.
func TestFull(t *testing.T) {
	within, err := ParseConditions("time-to-quota<24h")
	require.NoError(t, err)
	for name, spoil := range map[string]func(r *Report, a *Assume){
		"size":  func(r *Report, a *Assume) { a.Quota = r.Backend.Size },
		"alarm": func(r *Report, _ *Assume) { r.Members = []Member{{Alarms: []string{"NOSPACE"}}} },
	} {
		r, a := healthy(), Assume{Measured: 2}
		spoil(r, &a)
		r.Judge(a)
		broken, unknown := r.Broken(within)
		require.Len(t, broken, 1, name)
		require.Empty(t, unknown)
	}

	// What cannot be projected is not known.
	for name, spoil := range map[string]func(r *Report, a *Assume){
		"nothing to go by": func(r *Report, _ *Assume) { r.Totals = Totals{} },
		"too fast":         func(_ *Report, a *Assume) { a.RevisionsPerSecond = 1e12 },
	} {
		r, a := healthy(), Assume{RevisionsPerSecond: 1000}
		spoil(r, &a)
		r.Judge(a)
		broken, unknown := r.Broken(within)
		require.Empty(t, broken, name)
		require.Len(t, unknown, 1, name)
		require.NotEmpty(t, r.Notes)
	}

	// No live key, and a lock that comes and goes.
	r := healthy()
	r.Totals.Keys, r.Totals.KeyBytes = 0, 0
	r.Judge(Assume{RevisionsPerSecond: 1e6})
	broken, _ := r.Broken(within)
	require.Len(t, broken, 1)

	// A quota that a member has switched off.
	r = healthy()
	r.Source.Kind = "live"
	r.Backend.Size, r.Backend.Quota = 3<<30, 0
	r.Judge(Assume{})
	require.Equal(t, OK, r.Verdict)
	require.Contains(t, r.headline(), "There is no quota")

	// One of etcd 3.5, which does not say.
	r.Backend.Quota, r.Backend.QuotaAssumed = 8<<30, true
	r.Judge(Assume{})
	require.Contains(t, strings.Join(r.Estimates, "\n"), "8.59 GB, is etcd's default")
}

// TestLogsThatEndEarly are partial.
func TestLogsThatEndEarly(t *testing.T) {
	sample := writtenLog(t)
	for name, spoil := range map[string]func(content []byte) []byte{
		"empty":   func([]byte) []byte { return nil },
		"cut":     func(b []byte) []byte { return b[:20_001] },
		"damaged": func(b []byte) []byte { b[10_000] ^= 1; return b },
	} {
		dir := filepath.Join(t.TempDir(), "wal[1]") // which is a pattern, too
		require.NoError(t, os.Mkdir(dir, 0o700))
		content, err := os.ReadFile(sample)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "0000000000000000-0000000000000000.wal"), spoil(content), 0o600))
		if name == "cut" {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "0000000000000001-0000000000000020.wal"), nil, 0o600))
			content, err := os.ReadFile(sample)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "0000000000000001-0000000000000020.wal"), content, 0o600))
		}
		l, err := ReadWAL(t.Context(), dir, Config{Space: testSpace(t)})
		require.NoError(t, err, name)
		require.NotEmpty(t, l.Incomplete, name)
		r := healthy()
		r.SetRaftLog(l)
		require.True(t, r.Partial)
		require.Contains(t, r.Notes[0], "was not read to its end")
	}
}
