package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// shelf is a pager of what it holds, in small pages.
type shelf struct {
	kvs  map[string]*mvccpb.KeyValue
	fail func() error // before each page, or nil
}

func (s *shelf) page(_ context.Context, r format.Range, _ int, keysOnly bool) (kvs []*mvccpb.KeyValue, more bool, err error) {
	if s.fail != nil {
		if err := s.fail(); err != nil {
			return nil, false, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.kvs)) {
		if key < string(r.Key) || !r.Unbounded() && key >= string(r.End) {
			continue
		}
		if len(kvs) == 3 {
			return kvs, true, nil
		}
		kv := proto.CloneOf(s.kvs[key])
		if keysOnly {
			kv.Value = nil
		}
		kvs = append(kvs, kv)
	}
	return kvs, false, nil
}

// check returns what is found on a shelf.
func (s *shelf) check(t *testing.T) (*verifyReport, *checker) {
	t.Helper()
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	r := &verifyReport{}
	c := &checker{space: space, found: r.add, done: func() {}}
	for {
		if err := c.run(t.Context(), s); err == nil {
			return r, c
		} else {
			require.ErrorIs(t, err, rpctypes.ErrCompacted)
		}
	}
}

// TestChecker takes what a cluster holds, and damages it.
func TestChecker(t *testing.T) {
	w := newWrapped(t, chunker.Config{Threshold: 100, MaxValueBytes: 32 << 20}, nil)
	lease, err := w.plain.Grant(t.Context(), 600)
	require.NoError(t, err)
	w.put("a", workload.Text(100e3, "a"))
	w.put("a\x00b", workload.Text(30e3, "b"))
	w.put("envelope", "\xffkvw is how this begins")
	w.put("huge", workload.Incompressible(20<<20, "h")) // whose list of chunks is in chunks
	w.put("leased", workload.Text(1000, "l"), clientv3.WithLease(lease.ID))
	w.put("plain", "value")
	w.put("\x00", "below the reserved prefix")
	w.put("\xff", workload.Text(1000, "z"))
	resp, err := w.plain.Get(t.Context(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	fresh := func() *shelf {
		s := &shelf{kvs: make(map[string]*mvccpb.KeyValue)}
		for _, kv := range resp.Kvs {
			s.kvs[string(kv.Key)] = proto.CloneOf(kv)
		}
		return s
	}
	chunksOf := func(s *shelf, key string) (keys []string) {
		for _, k := range slices.Sorted(maps.Keys(s.kvs)) {
			if of, _, err := space.ParseChunkKey([]byte(k)); err == nil && string(of) == key {
				keys = append(keys, k)
			}
		}
		require.NotEmpty(t, keys)
		return keys
	}
	put := func(s *shelf, key []byte, value string, lease int64) {
		s.kvs[string(key)] = &mvccpb.KeyValue{Key: key, Value: []byte(value), Lease: lease}
	}
	token := format.Token{1, 2, 3}

	r, c := fresh().check(t)
	require.Equal(t, verifyReport{}, *r)
	require.Equal(t, 8, c.Keys)
	require.Equal(t, 5, c.Chunked)
	require.Equal(t, 1, c.Envelopes)
	require.Equal(t, 100_000+30_000+1000+1000+23+20<<20, c.ValueBytes)
	require.Equal(t, len(resp.Kvs)-8, c.Chunks)

	for name, of := range map[string]struct {
		change func(s *shelf)
		kind   findingKind
		key    string
		chunks int
		says   string
	}{
		"a chunk is gone":      {func(s *shelf) { delete(s.kvs, chunksOf(s, "a")[3]) }, damaged, "a", 1, "1 of "},
		"all chunks are gone":  {func(s *shelf) { delete(s.kvs, chunksOf(s, "leased")[0]) }, damaged, "leased", 1, "1 of 1 chunks are missing, the first is "},
		"a chunk is altered":   {func(s *shelf) { s.kvs[chunksOf(s, "a\x00b")[0]].Value[5] ^= 1 }, damaged, "a\x00b", 0, "has checksum"},
		"a list is gone":       {func(s *shelf) { k := chunksOf(s, "huge"); delete(s.kvs, k[len(k)-1]) }, damaged, "huge", 1, "chunks with the list of the others are missing"},
		"a list is altered":    {func(s *shelf) { k := chunksOf(s, "huge"); s.kvs[k[len(k)-1]].Value[5] ^= 1 }, damaged, "huge", 0, "has checksum"},
		"a manifest is cut":    {func(s *shelf) { kv := s.kvs["a"]; kv.Value = kv.Value[:len(kv.Value)-1] }, damaged, "a", 0, "damaged manifest"},
		"a manifest is copied": {func(s *shelf) { put(s, []byte("copy"), string(s.kvs["a"].Value), 0) }, damaged, "copy", 0, "written at another key"},
		"another version":      {func(s *shelf) { s.kvs["a"].Value[4] = 99 }, unread, "a", 0, "99"},
		"another prefix": {func(s *shelf) {
			put(s, []byte("o"), string(otherPrefix(w)), 0)
		}, unread, "o", 0, `verify it with --reserved-prefix 'other/'`},
		"in a namespace":      {func(s *shelf) { put(s, []byte("app/leased"), string(s.kvs["leased"].Value), 0) }, unread, "app/leased", 0, `verify it with --namespace "app/"`},
		"a plain put over it": {func(s *shelf) { s.kvs["\xff"].Value = []byte("plain") }, orphaned, "\xff", 1, ""},
		"a plain delete":      {func(s *shelf) { delete(s.kvs, "a\x00b") }, orphaned, "a\x00b", len(chunksOf(fresh(), "a\x00b")), ""},
		"chunks beside":       {func(s *shelf) { put(s, space.ChunkKey([]byte("a"), format.ID{Token: token, Index: 7}), "x", 0) }, orphaned, "a", 1, ""},
		"chunks of an envelope": {func(s *shelf) {
			put(s, space.ChunkKey([]byte("envelope"), format.ID{Token: token, Index: 7}), "x", 0)
		}, orphaned, "envelope", 1, ""},
		"chunks after all keys": {func(s *shelf) {
			put(s, space.ChunkKey([]byte("\xff\xff"), format.ID{Token: token, Index: 7}), "x", 0)
		}, orphaned, "\xff\xff", 1, ""},
		"another lease": {func(s *shelf) { s.kvs["leased"].Lease++ }, leased, "leased", 1, "1 chunks are on another lease than the key, "},
		"a stray key":   {func(s *shelf) { put(s, []byte("\x00kvw/stray"), "x", 0) }, strange, "\x00kvw/stray", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := fresh()
			of.change(s)
			r, _ := s.check(t)
			all := 0
			for kind := range findingKinds {
				all += r.of(kind).Count
			}
			require.Equal(t, 1, all, "%+v", r)
			found := r.of(of.kind).Listed
			require.Len(t, found, 1)
			require.Equal(t, of.key, string(found[0].Key))
			require.Equal(t, of.chunks, found[0].Chunks)
			require.Contains(t, found[0].Reason, of.says)
		})
	}

	t.Run("a write under way", func(t *testing.T) {
		s := fresh()
		for _, key := range []string{"a", "new", "plain"} {
			for i := range uint32(3) {
				put(s, space.ChunkKey([]byte(key), format.ID{Token: token, Index: i}), "x", 0)
			}
		}
		put(s, space.Own("sequence/x"), "1", 0)
		r, c := s.check(t)
		require.Equal(t, verifyReport{}, *r)
		require.Equal(t, 3, c.Writes)
		require.Equal(t, 6, c.WriteChunks)
	})

	t.Run("compacted meanwhile", func(t *testing.T) {
		s := fresh()
		delete(s.kvs, "huge") // an orphan, by which it comes past twice
		orphans := len(chunksOf(s, "huge"))
		put(s, []byte("\x00kvw/A"), "x", 0)
		put(s, []byte("lost"), string(s.kvs["a"].Value), 0)
		want, all := s.check(t)
		require.Equal(t, orphans, want.Orphaned.Chunks)
		times := 0
		for at := 1; at < 200; at += 7 { // one compaction, at each place
			pages := 0
			s.fail = func() error {
				if pages++; pages == at {
					times++
					return fmt.Errorf("page: %w", rpctypes.ErrCompacted)
				}
				return nil
			}
			got, c := s.check(t)
			require.Equal(t, want, got)
			require.Equal(t, all.Keys, c.Keys)
			require.Equal(t, all.Chunked, c.Chunked)
		}
		require.Greater(t, times, 3)
	})
}

// otherPrefix returns a manifest of a client with another reserved prefix.
func otherPrefix(w *wrapped) []byte {
	w.Helper()
	_, err := w.client(chunker.Config{Threshold: 100, ReservedPrefix: "other/"}, "").Put(w.Context(), "o", workload.Text(1000, "o"))
	require.NoError(w, err)
	resp, err := w.plain.Get(w.Context(), "o")
	require.NoError(w, err)
	return resp.Kvs[0].Value
}

func (w *wrapped) verify(args ...string) (code int, stdout, stderr string) {
	w.Helper()
	return shapecheck(w.T, append([]string{"verify", "--endpoints", strings.Join(w.cluster.Endpoints(), ",")}, args...)...)
}

func TestVerify(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	for i := range 2*pageKeys + 10 {
		w.put(fmt.Sprint("small/", i), "value")
	}
	w.put("kept", workload.Text(200e3, "v"))
	w.put("gone", workload.Text(200e3, "v"))
	w.put("broken", workload.Text(200e3, "v"))
	code, stdout, stderr := w.verify()
	require.Zero(t, code, stdout+stderr)
	require.Regexp(t, `^Keys at revision \d+: 141\. In chunks: 3, in envelopes: 0, together 600 KB\. Chunks read: 123\.\nAll is well\.\n$`, stdout)
	require.Contains(t, stderr, "verifying 141 of 141\n")

	_, err := w.plain.Delete(t.Context(), "gone")
	require.NoError(t, err)
	code, stdout, stderr = w.verify()
	require.Equal(t, exitWarning, code)
	require.Contains(t, stdout, "\nKeys with orphaned chunks: 1. shapecheck sweep deletes these.\n  \"gone\": 41 chunks\n")
	require.Contains(t, stderr, "no value is damaged")

	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	chunks := space.Chunks(format.Range{Key: []byte("broken")})
	found, err := w.plain.Get(t.Context(), string(chunks.Key), clientv3.WithRange(string(chunks.End)), clientv3.WithLimit(2))
	require.NoError(t, err)
	for _, kv := range found.Kvs {
		_, err = w.plain.Delete(t.Context(), string(kv.Key))
		require.NoError(t, err)
	}
	code, stdout, stderr = w.verify()
	require.Equal(t, exitCritical, code)
	require.Regexp(t, `\nDamaged values: 1\. .*\n  "broken", revision \d+: 2 of 41 chunks are missing, the first is [0-9a-f]{32}/1\n`, stdout)
	require.Contains(t, stderr, "shapecheck: 1 values are damaged\n")

	code, stdout, _ = w.verify("-w", "json")
	require.Equal(t, exitCritical, code)
	var report verifyReport
	require.NoError(t, json.Unmarshal([]byte(stdout), &report))
	require.True(t, report.Complete)
	require.Equal(t, 140, report.Keys)
	require.Equal(t, "broken", string(report.Damaged.Listed[0].Key))
	require.Equal(t, findings{Count: 1, Chunks: 41, Listed: []finding{{Key: []byte("gone"), Chunks: 41}}}, report.Orphaned)

	code, stdout, stderr = w.verify("--reserved-prefix", "other/")
	require.Equal(t, exitFailed, code, "which values in chunks there are it cannot tell")
	require.Contains(t, stdout, `"kept", revision `)
	require.Contains(t, stderr, "2 values are for another version, reserved prefix or namespace, and were not verified")

	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	errs := &interrupter{at: "verifying 56 of", interrupt: cancel}
	code = run(ctx, []string{"verify", "--endpoints", w.cluster.Endpoints()[0]}, strings.NewReader(""), &out, errs)
	require.Equal(t, exitInterrupted, code, errs.String())
	require.Contains(t, out.String(), "Partial: not all was read. Keys at revision ")
	require.NotContains(t, out.String(), "All is well")
}

// TestVerifyNamespaces has clients in a namespace and outside: what one reads is no damage
// to the other.
func TestVerifyNamespaces(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	_, err := w.client(chunker.Config{}, "app/").Put(t.Context(), "k", workload.Text(200e3, "v"))
	require.NoError(t, err)
	code, stdout, stderr := w.verify()
	require.Equal(t, exitFailed, code, stdout)
	require.Regexp(t, `\nNot verified, of another version, reserved prefix or namespace: 1\.\n  "app/k", revision \d+: verify it with --namespace "app/"\n$`, stdout)
	require.Equal(t, "shapecheck: 1 values are for another version, reserved prefix or namespace, and were not verified\n", stderr[strings.LastIndex(stderr, "shapecheck: "):])
	code, stdout, _ = w.verify("--namespace", "app/")
	require.Zero(t, code, stdout)

	w.put("app/whole", workload.Text(200e3, "v"))
	code, stdout, _ = w.verify("--namespace", "app/")
	require.Equal(t, exitFailed, code)
	require.Regexp(t, `\n  "whole", revision \d+: verify it without --namespace\n$`, stdout)
	_, err = w.client(chunker.Config{ReservedPrefix: "\x01r/"}, "app/").Put(t.Context(), "both", workload.Text(200e3, "v"))
	require.NoError(t, err)
	_, stdout, _ = w.verify()
	require.Regexp(t, `\n  "app/both", revision \d+: verify it with --reserved-prefix '\\x01r/' and with --namespace "app/"\n`, stdout)
}

// TestVerifyMeanwhile has somebody write all the time: a write under way is no damage.
func TestVerifyMeanwhile(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	w.put("k", workload.Incompressible(2<<20, "0"))
	ctx, stop := context.WithCancel(t.Context())
	wrote := make(chan error, 1)
	go func() {
		for i := 1; ctx.Err() == nil; i++ {
			if _, err := w.cli.Put(t.Context(), "k", workload.Incompressible(2<<20, fmt.Sprint(i))); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}()
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	seen := 0
	for i := 0; i < 300 && (i < 10 || seen == 0); i++ {
		r, err := verified(t.Context(), w.plain, "", space, newProgress(io.Discard))
		require.NoError(t, err)
		require.NoError(t, r.verdict(nil), "%+v", r)
		seen += r.Writes
	}
	stop()
	require.NoError(t, <-wrote)
	require.NotZero(t, seen, "a write under way")
}

// compacting compacts what was read, at the first page of values.
type compacting struct {
	clientv3.KV
	t    *testing.T
	done bool
}

func (c *compacting) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if op := clientv3.OpGet(key, opts...); !c.done && op.Rev() > 0 && !op.IsKeysOnly() && !op.IsCountOnly() && key == "\x00kvw0" {
		c.done = true
		resp, err := c.KV.Put(ctx, "another", "revision")
		require.NoError(c.t, err)
		_, err = c.Compact(ctx, resp.Header.Revision)
		require.NoError(c.t, err)
	}
	return c.KV.Get(ctx, key, opts...)
}

func TestVerifyCompacted(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	w.put("k", workload.Text(200e3, "v"))
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	var said bytes.Buffer
	r, err := verified(t.Context(), &compacting{KV: w.plain, t: t}, "", space, newProgress(&said))
	require.NoError(t, err)
	require.NoError(t, r.verdict(nil))
	require.Equal(t, 1, r.Compacted)
	require.True(t, r.Complete)
	require.Equal(t, 2, r.Keys)
	require.Contains(t, said.String(), "was compacted meanwhile: going on at a newer one\n")
	var out bytes.Buffer
	require.NoError(t, r.print(&out))
	require.Contains(t, out.String(), "\nNot one moment: 1 times a revision was compacted")
}

// crowd is a pager of many keys, each with an orphaned chunk.
type crowd struct {
	space format.Keyspace
	n     int
}

func (c crowd) key(i int) []byte { return fmt.Appendf(nil, "key/%09d", i) }

// first returns the least i of which the key is not below from.
func (c crowd) first(from []byte, key func(i int) []byte) int {
	return sort.Search(c.n, func(i int) bool { return bytes.Compare(key(i), from) >= 0 })
}

func (c crowd) page(_ context.Context, r format.Range, most int, keysOnly bool) (kvs []*mvccpb.KeyValue, more bool, err error) {
	key := c.key
	if keysOnly {
		key = func(i int) []byte { return c.space.ChunkKey(c.key(i), format.ID{Index: 1}) }
	}
	for i := c.first(r.Key, key); i < c.n && len(kvs) < most; i++ {
		if k := key(i); r.Unbounded() || bytes.Compare(k, r.End) < 0 {
			kvs = append(kvs, &mvccpb.KeyValue{Key: k, Value: make([]byte, 100)})
		}
	}
	return kvs, len(kvs) == most, nil
}

// TestCheckerMemory has it go past more keys than it could hold.
func TestCheckerMemory(t *testing.T) {
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	many := crowd{space, 300_000}
	if testing.Short() {
		many.n = 30_000
	}
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before, most := heap(), 0
	r := &verifyReport{}
	c := &checker{space: space, found: r.add}
	c.done = func() {
		if c.Keys%(many.n/5) == 0 {
			most = max(most, heap())
		}
	}
	require.NoError(t, c.run(t.Context(), many))
	require.Equal(t, many.n, c.Keys)
	require.Equal(t, many.n, r.Orphaned.Chunks)
	require.Len(t, r.Orphaned.Listed, mostFindings)
	require.Less(t, most-before, 4<<20, "of keys and values of %d MB", many.n*220>>20)
	var out bytes.Buffer
	require.NoError(t, r.print(&out))
	require.Contains(t, out.String(), fmt.Sprintf("\n  and %d more\n", many.n-mostFindings))
}

// library is a pager of keys with large plain values, which come as they are asked for.
type library struct {
	crowd
	large int
	most  int // bytes of a page
}

func (l *library) page(ctx context.Context, r format.Range, most int, keysOnly bool) ([]*mvccpb.KeyValue, bool, error) {
	if bytes.HasPrefix(r.Key, []byte(l.space.Prefix())) {
		return nil, false, nil
	}
	kvs, more, err := l.crowd.page(ctx, r, most, keysOnly)
	bytes := 0
	for _, kv := range kvs {
		kv.Value = make([]byte, l.large)
		bytes += l.large
	}
	l.most = max(l.most, bytes)
	return kvs, more, err
}

// TestCheckerPages does not hold many large values at a time.
func TestCheckerPages(t *testing.T) {
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	for _, large := range []int{10, 100 << 10, 1536 << 10, 20 << 20} {
		l := &library{crowd: crowd{space, 100}, large: large}
		r := &verifyReport{}
		c := &checker{space: space, found: r.add, done: func() {}}
		require.NoError(t, c.run(t.Context(), l))
		require.Equal(t, 100, c.Keys)
		require.LessOrEqual(t, l.most, max(2*pageBytes, firstKeys*large))
	}
	var pages []int
	for most := firstKeys; len(pages) < 5; most = nextPage(most, []*mvccpb.KeyValue{{Value: make([]byte, 100)}}) {
		pages = append(pages, most)
	}
	require.Equal(t, []int{4, 8, 16, 32, 64}, pages)
	require.Equal(t, 4, nextPage(4, nil), "which says nothing")
	require.Equal(t, 2, nextPage(64, []*mvccpb.KeyValue{{Value: make([]byte, 96<<20)}}))
	require.Equal(t, 1, nextPage(4, []*mvccpb.KeyValue{{Value: make([]byte, 40<<20)}}))
	require.Equal(t, 8, nextPage(8, []*mvccpb.KeyValue{{Value: make([]byte, 3<<20)}}))
}

// forgetful is a KV whose revisions are compacted as soon as they are there.
type forgetful struct{ clientv3.KV }

func (f forgetful) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if op := clientv3.OpGet(key, opts...); op.Rev() > 0 && !op.IsCountOnly() {
		return nil, rpctypes.ErrCompacted
	}
	return f.KV.Get(ctx, key, opts...)
}

func TestVerifyGivesUp(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	w.put("k", "v")
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	r, err := verified(t.Context(), forgetful{w.plain}, "", space, newProgress(io.Discard))
	require.ErrorIs(t, err, rpctypes.ErrCompacted)
	require.ErrorContains(t, err, "again and again: verify when there is less to do, or keep revisions for longer")
	require.False(t, r.Complete)
	require.Equal(t, err, r.verdict(err))
}
