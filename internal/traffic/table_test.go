package traffic

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func second(n int) time.Time { return t0.Add(time.Duration(n) * time.Second) }

func put(key string, value int) *mvccpb.Event {
	return &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), Value: make([]byte, value)}}
}

func gone(key string) *mvccpb.Event {
	return &mvccpb.Event{Type: mvccpb.DELETE, Kv: &mvccpb.KeyValue{Key: []byte(key)}}
}

func reserved(t testing.TB) format.Keyspace {
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	return space
}

// windows returns what rows have, by prefix.
func windows(rows []Row) map[string]Counts {
	all := make(map[string]Counts)
	for _, r := range rows {
		name := r.Prefix
		if r.Kind != Prefix {
			name = string(r.Kind)
		}
		all[name] = r.Window
	}
	return all
}

func TestTable(t *testing.T) {
	table := NewTable(Config{}, t0)
	for _, e := range []*mvccpb.Event{put("/a/b/1", 10), put("/a/b/2", 30), put("/a/c/1", 5), gone("/a/c/1"), put("plain", 1)} {
		table.Add(e)
	}
	require.Zero(t, table.Rows(5).Took, "no cell is closed")
	table.Advance(second(1))
	table.Add(put("/a/b/1", 100))
	table.Advance(second(3))

	r := table.Rows(5)
	require.Equal(t, 3*time.Second, r.Took)
	require.Equal(t, Counts{Puts: 5, Deletes: 1, Bytes: 146 + 4*6 + 6 + 5, ValueBytes: 146, Largest: 100}, r.Total.Window)
	require.Equal(t, map[string]Counts{
		"/a/b/":    {Puts: 3, Bytes: 158, ValueBytes: 140, Largest: 100},
		"/a/c/":    {Puts: 1, Deletes: 1, Bytes: 17, ValueBytes: 5, Largest: 5},
		"noPrefix": {Puts: 1, Bytes: 6, ValueBytes: 1, Largest: 1},
	}, windows(r.Group(2)))
	require.Equal(t, Counts{Puts: 4, Deletes: 1, Bytes: 175, ValueBytes: 145, Largest: 100}, windows(r.Group(1))["/a/"])

	r = table.Rows(1)
	require.Equal(t, 2*time.Second, r.Took)
	require.Equal(t, Counts{Puts: 1, Bytes: 106, ValueBytes: 100, Largest: 100}, windows(r.Group(2))["/a/b/"])
	require.Equal(t, Counts{}, windows(r.Group(2))["/a/c/"], "it was busy in the cells that are remembered")
	require.Equal(t, []float64{4, 1}, r.Total.Puts)
}

// TestIdlePrefixesGo when nothing is remembered of them.
func TestIdlePrefixesGo(t *testing.T) {
	table := NewTable(Config{}, t0)
	table.Add(put("/a/1", 1))
	for n := 1; n <= Cells; n++ {
		table.Advance(second(n))
		require.Len(t, table.Rows(1).Group(2), 1, n)
	}
	table.Advance(second(Cells + 1))
	require.Empty(t, table.Rows(1).Group(2))
	require.Empty(t, table.nodes)
	table.Add(put("/a/1", 1))
	table.Advance(second(Cells + 2))
	require.Len(t, table.Rows(1).Group(2), 1)
}

// TestChunks count for the prefix of the key that they are part of.
func TestChunks(t *testing.T) {
	space := reserved(t)
	table := NewTable(Config{Space: space}, t0)
	chunk := space.ChunkKey([]byte("/a/k"), format.ID{Token: format.NewToken(), Index: 1})
	table.Add(put(string(chunk), 1000))
	table.Add(gone(string(chunk)))
	table.Add(put(string(space.Own("sequence/1")), 20))
	table.Add(&mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("/a/l"), Value: format.Literal([]byte("\xffkvw"))}})
	table.Add(&mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("/a/damaged"), Value: []byte("\xffkvw?")}})
	table.Advance(second(1))
	rows := windows(table.Rows(1).Group(2))
	require.Equal(t, Counts{Puts: 2, ChunkWrites: 2, Bytes: uint64(1000 + 2*len(chunk) + 4 + len(format.Literal([]byte("\xffkvw"))) + 10 + 5), ValueBytes: 4 + 5, Largest: 5}, rows["/a/"])
	require.Equal(t, Counts{ChunkWrites: 1, Bytes: uint64(20 + len(space.Own("sequence/1")))}, rows["kvwrap"])
}

// TestNothingIsLost of whatever comes, however little room there is: rows of any depth sum up
// to the total, and what has a row of its own is right.
func TestNothingIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := NewTable(Config{MaxPrefixes: rapid.IntRange(1, 8).Draw(t, "room")}, t0)
		var all Counts
		for n := range rapid.IntRange(1, 20).Draw(t, "cells") {
			for range rapid.IntRange(0, 6).Draw(t, "events") {
				// etcd has no empty key.
				key := cmp.Or(strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", ""}), 1, 5).Draw(t, "key"), "/"), "/")
				size := rapid.IntRange(0, 9).Draw(t, "size")
				table.Add(put(key, size))
				all.add(Counts{Puts: 1, Bytes: uint64(size + len(key)), ValueBytes: uint64(size), Largest: uint64(size)})
			}
			table.Advance(second(n + 1))
			require.LessOrEqual(t, len(table.nodes), table.cfg.MaxPrefixes)
		}
		r := table.Rows(Cells)
		require.Equal(t, all, r.Total.Window)
		for depth := 1; depth <= MaxDepth; depth++ {
			var sum Counts
			puts := make([]float64, len(r.Total.Puts))
			for _, row := range r.Group(depth) {
				sum.add(row.Window)
				for i := range puts {
					puts[i] += row.Puts[i]
				}
			}
			require.Equal(t, all, sum, "depth %d", depth)
			require.Equal(t, r.Total.Puts, puts, "depth %d", depth)
		}
	})
}

// TestABusyPrefixGetsRoom among many that are not, and says what counts in it.
func TestABusyPrefixGetsRoom(t *testing.T) {
	table := NewTable(Config{MaxPrefixes: 100}, t0)
	for n := range 3 {
		for i := range 1000 {
			table.Add(put(fmt.Sprintf("/idle%d/%d/k", n, i), 1))
		}
		for range 50 {
			table.Add(put("/z/busy/k", 100))
		}
		table.Advance(second(n + 1))
	}
	rows := table.Rows(1).Group(2)
	Sort(rows, ByBytes, false)
	i := slices.IndexFunc(rows, func(r Row) bool { return r.Prefix == "/z/busy/" })
	require.GreaterOrEqual(t, i, 0)
	require.EqualValues(t, 50, rows[i].Window.Puts)
	require.False(t, rows[i].Merged)
	idle := slices.IndexFunc(rows, func(r Row) bool { return r.Prefix == "/idle2/" })
	require.GreaterOrEqual(t, idle, 0)
	require.True(t, rows[idle].Merged)
	require.False(t, slices.ContainsFunc(rows, func(r Row) bool { return r.Kind == Other }))
}

// TestFirstComponentsAreRight, however many prefixes there are below them.
func TestFirstComponentsAreRight(t *testing.T) {
	table := NewTable(Config{}, t0)
	for n := range 3 {
		for i := range 20_000 {
			table.Add(put(fmt.Sprintf("/sessions/%d/%d/state", n, i), 1))
			if i%100 == 0 {
				table.Add(put(fmt.Sprintf("/b/%d/k", i), 1))
			}
		}
		table.Advance(second(n + 1))
	}
	rows := windows(table.Rows(3).Group(1))
	require.Len(t, rows, 2)
	require.EqualValues(t, 60_000, rows["/sessions/"].Puts)
	require.EqualValues(t, 600, rows["/b/"].Puts)
}

// TestChunksOfANamespace count for the key with its namespace.
func TestChunksOfANamespace(t *testing.T) {
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	table := NewTable(Config{Space: space}, t0)
	chunk := "/ns/" + string(space.ChunkKey([]byte("/big/k"), format.ID{Index: 1}))
	table.Add(put(chunk, 100))
	table.Advance(second(1))
	rows := windows(table.Rows(1).Group(8))
	require.Equal(t, map[string]Counts{"/ns//big/": {ChunkWrites: 1, Bytes: uint64(100 + len(chunk))}}, rows)
}

// TestMergedRows are marked where finer prefixes were to be shown.
func TestMergedRows(t *testing.T) {
	table := NewTable(Config{MaxPrefixes: 4}, t0)
	for _, key := range []string{"/a/k", "/b/k", "/c/k", "/d/k", "/a/b/k"} {
		table.Add(put(key, 1))
	}
	table.Advance(second(1))
	for depth, merged := range map[int]bool{1: false, 2: true} {
		rows := table.Rows(1).Group(depth)
		i := slices.IndexFunc(rows, func(r Row) bool { return r.Prefix == "/a/" })
		require.Equal(t, merged, rows[i].Merged, depth)
		require.EqualValues(t, 2, rows[i].Window.Puts)
	}
}

// TestMemoryIsBounded by a table of the default size, for a million prefixes and for keys of a
// megabyte.
func TestMemoryIsBounded(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	table := NewTable(Config{}, t0)
	for i := range 1_000_000 {
		table.Add(put(fmt.Sprintf("/a/%d/k", i), 1))
		if i%100_000 == 0 {
			table.Advance(second(i / 100_000))
		}
	}
	for i := range 100 {
		table.Add(put(strings.Repeat("k", 1<<20)+fmt.Sprint("/", i, "/"), 1))
	}
	grown := int64(heap()) - int64(before)
	require.Less(t, grown, int64(20<<20))
	require.GreaterOrEqual(t, len(table.nodes), table.fine())
	require.LessOrEqual(t, len(table.nodes), defaultMaxPrefixes)
	require.EqualValues(t, 1_000_100, table.Rows(Cells).Total.Window.Puts+table.total.cells[table.open%len(table.total.cells)].Puts)
	runtime.KeepAlive(table)
}

func TestSort(t *testing.T) {
	rows := []Row{
		{Prefix: "a", Window: Counts{Puts: 1, Bytes: 9, ValueBytes: 9, Largest: 9, Deletes: 2}},
		{Prefix: "b", Window: Counts{Puts: 3, Bytes: 6, ValueBytes: 6, Largest: 3, ChunkWrites: 1}},
		{Prefix: "c", Window: Counts{Puts: 2, Bytes: 8, ValueBytes: 8, Largest: 5, Deletes: 1}},
	}
	for name, want := range map[string]string{"prefix": "abc", "puts": "bca", "bytes": "acb", "mean": "acb", "largest": "acb", "deletes": "acb", "chunks": "bac"} {
		by, err := ParseColumn(name)
		require.NoError(t, err)
		require.Equal(t, name, by.String())
		order := func(reverse bool) (s string) {
			Sort(rows, by, reverse)
			for _, r := range rows {
				s += r.Prefix
			}
			return s
		}
		require.Equal(t, want, order(false), name)
		backwards := []rune(want)
		slices.Reverse(backwards)
		require.Equal(t, string(backwards), order(true), name)
	}
	_, err := ParseColumn("size")
	require.ErrorContains(t, err, `"size" is no column: choose one of prefix, puts, bytes, mean, largest, deletes, chunks`)
}

func TestTrend(t *testing.T) {
	var cells []float64
	for i := range Cells {
		cells = append(cells, float64(i))
	}
	require.Equal(t, cells, Trend(cells, 59, Cells, Cells))
	four := Trend(cells, 59, Cells, 16) // groups of 4
	require.Len(t, four, 15)
	require.Equal(t, 1.5, four[0])
	later := Trend(append(cells[1:], 60), 60, Cells, 16)
	require.Len(t, later, 16)
	require.Equal(t, []float64{2, 5.5}, later[:2], "the first group has lost a cell, the others are as they were")
	require.Equal(t, 60.0, later[15], "and the last one has one so far")
	require.Equal(t, []float64{7}, Trend([]float64{7}, 0, Cells, 16))
	require.Equal(t, []float64{1.5, 3.5}, Trend([]float64{1, 2, 3, 4}, 3, 4, 3), "of four cells")
	require.Empty(t, Trend(nil, -1, Cells, 16))
	require.Empty(t, Trend(cells, 59, Cells, 1))

	require.Equal(t, " ▁▄█", Sparkline([]float64{0, 1, 4, 8}))
	require.Equal(t, "  ", Sparkline([]float64{0, 0}))
}

func BenchmarkAdd(b *testing.B) {
	table := NewTable(Config{Space: reserved(b)}, t0)
	var events []*mvccpb.Event
	for i := range 1000 {
		events = append(events, put(fmt.Sprintf("/registry/%d/%d", i%50, i), 100))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		table.Add(events[i%1000])
	}
}
