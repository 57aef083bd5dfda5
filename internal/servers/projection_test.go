//go:build unix

package servers

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/kvwrap/kvwrap/shaper"
)

var full = flag.Bool("servers.full", false, "compare the projection with servers of all versions, under all workloads")

// cell is a workload, and a server that it is written to. What the model was fitted to had
// other sizes: 100 B, 1000 B, 2500 B, 4100 B, 9000 B, 16 KiB, 30,000 B, 64 KiB, 256 KiB, 1 MB.
type cell struct {
	name     string
	catchUp  uint64 // 0: etcd's default
	settings map[string]any
	compact  shaper.Compaction
	short    uint64 // the same in the short comparison; 0: it is not part of that
	// write writes, and returns the load that was; nil where what is observed is the load.
	write func(ctx context.Context, t *testing.T, w writer) *shaper.Load
	// slow is a load that came one put at a time, with a commit after each.
	slow bool
}

// writer is where a cell writes to.
type writer struct {
	cli    *clientv3.Client
	number int // of entries: so many that the raft log is full, and in the middle between two compactions
	sample func()
}

// oneByOne makes n calls from so many goroutines.
func oneByOne(t *testing.T, n, callers int, call func(i int) error) {
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := c; i < n; i += callers {
				if err := call(i); err != nil {
					t.Errorf("call %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// putsOf is puts of one size.
func putsOf(keys, value, callers int) func(context.Context, *testing.T, writer) *shaper.Load {
	return func(ctx context.Context, t *testing.T, w writer) *shaper.Load {
		v := strings.Repeat("v", value)
		key := func(i int) string { return fmt.Sprintf("/some/keys/%06d", i%keys) }
		began := time.Now()
		oneByOne(t, w.number, callers, func(i int) error {
			_, err := w.cli.Put(ctx, key(i), v)
			return err
		})
		took := time.Since(began)
		l := shaper.PutLoad(float64(w.number)/took.Seconds(), keys, len(key(0)), value)
		l.For = took
		return &l
	}
}

// txnsOf is transactions of puts.
func txnsOf(puts, keys, value, callers int) func(context.Context, *testing.T, writer) *shaper.Load {
	return func(ctx context.Context, t *testing.T, w writer) *shaper.Load {
		v := strings.Repeat("v", value)
		key := func(i int) string { return fmt.Sprintf("/some/keys/%06d", i%keys) }
		began := time.Now()
		oneByOne(t, w.number, callers, func(i int) error {
			var ops []clientv3.Op
			for j := range puts {
				ops = append(ops, clientv3.OpPut(key(i*puts+j), v))
			}
			_, err := w.cli.Txn(ctx).Then(ops...).Commit()
			return err
		})
		took := time.Since(began)
		l := shaper.TxnLoad(float64(w.number)/took.Seconds(), puts, keys, len(key(0)), value)
		l.For = took
		return &l
	}
}

// statistics are published through kvwrap, which cuts them into chunks.
func statistics(ctx context.Context, t *testing.T, w writer) *shaper.Load {
	kv, err := kvwrap.New(w.cli, kvwrap.Config{})
	require.NoError(t, err)
	defer kv.Close()
	g := workload.NewGateway(1000, 1)
	for range w.number / 3 { // a publish is three entries, about
		_, err := kv.Put(ctx, "/statistics", string(g.Publish(0.03)))
		require.NoError(t, err)
	}
	return nil
}

// offsets are committed through kvwrap, which has many share a transaction.
func offsets(ctx context.Context, t *testing.T, w writer) *shaper.Load {
	kv, err := kvwrap.New(w.cli, kvwrap.Config{Rules: []kvwrap.Rule{{
		Prefix: workload.OffsetsPrefix, Coalesce: coalesce.LastWriteWins,
	}}})
	require.NoError(t, err)
	defer kv.Close()
	b := workload.NewBroker(500, 1)
	type commit struct {
		partition int
		offset    string
	}
	commits := make(chan commit)
	go func() {
		defer close(commits)
		for range 60 * w.number { // about as many share a transaction
			var c commit
			c.partition, c.offset = b.Commit()
			commits <- c
		}
	}()
	var wg sync.WaitGroup
	for range 128 {
		wg.Go(func() {
			for c := range commits {
				if _, err := kv.Put(ctx, workload.OffsetKey(c.partition), c.offset); err != nil {
					t.Errorf("%v", err)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// paced is puts at a rate, with a look at the backend again and again.
func paced(rate, keys, value int, over time.Duration) func(context.Context, *testing.T, writer) *shaper.Load {
	return func(ctx context.Context, t *testing.T, w writer) *shaper.Load {
		v := strings.Repeat("v", value)
		key := func(i int) string { return fmt.Sprintf("/some/keys/%06d", i%keys) }
		began := time.Now()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		done, looked := 0, began
		for now := range tick.C {
			if now.Sub(began) > over {
				break
			}
			due := int(now.Sub(began).Seconds() * float64(rate))
			oneByOne(t, due-done, 8, func(i int) error {
				_, err := w.cli.Put(ctx, key(done+i), v)
				return err
			})
			done = due
			if now.Sub(looked) > 100*time.Millisecond {
				looked = now
				w.sample()
			}
		}
		took := time.Since(began)
		l := shaper.PutLoad(float64(done)/took.Seconds(), keys, len(key(0)), value)
		l.For = took
		return &l
	}
}

func cells() []cell {
	periodic := shaper.Compaction{Mode: shaper.CompactPeriodic, Retention: 4 * time.Second}
	compacting := map[string]any{"auto-compaction-mode": "periodic", "auto-compaction-retention": "4s"}
	each := map[string]any{"backend-batch-limit": 1}
	return []cell{
		{name: "one key, 40 B", catchUp: 2000, write: putsOf(1, 40, 16)},
		{name: "one key, 300 B", catchUp: 2000, write: putsOf(1, 300, 16)},
		{name: "one key, 1200 B", catchUp: 2000, short: 1000, write: putsOf(1, 1200, 16)},
		{name: "one key, 3000 B", catchUp: 2000, write: putsOf(1, 3000, 16)},
		{name: "one key, 12,000 B", catchUp: 2000, write: putsOf(1, 12_000, 8)},
		{name: "one key, 50,000 B, etcd's defaults", write: putsOf(1, 50_000, 8)},
		{name: "one key, 120,000 B", catchUp: 2000, write: putsOf(1, 120_000, 4)},
		{name: "one key, 700,000 B", catchUp: 500, write: putsOf(1, 700_000, 1)},
		{name: "5000 keys, 200 B, etcd's defaults", write: putsOf(5000, 200, 16)},
		{name: "3000 keys, 1500 B", catchUp: 2000, write: putsOf(3000, 1500, 16)},
		{name: "20 puts of 250 B, 1000 keys", catchUp: 2000, write: txnsOf(20, 1000, 250, 8)},
		{name: "100 puts of 60 B, 100 keys", catchUp: 1000, short: 200, write: txnsOf(100, 100, 60, 8)},
		{name: "2 MB of statistics, through kvwrap", catchUp: 1000, short: 100, write: statistics},
		{name: "offsets of 500 partitions, through kvwrap", catchUp: 1000, short: 200, write: offsets},
		{name: "a commit for each put, 700 B", catchUp: 1000, settings: each, slow: true, write: putsOf(1, 700, 1)},
		{name: "a commit for each put, 20,000 B", catchUp: 1000, settings: each, slow: true, write: putsOf(1, 20_000, 1)},
		{name: "800 puts a second, 1100 B, kept for 4 s", catchUp: 500, settings: compacting, compact: periodic, write: paced(800, 200, 1100, 30*time.Second)},
		{name: "100 puts a second, 40,000 B, kept for 4 s", catchUp: 500, settings: compacting, compact: periodic, write: paced(100, 20, 40_000, 30*time.Second)},
	}
}

// result is what one server had, and what was projected.
type result struct {
	cell      cell
	version   string
	measured  Measurement
	plain     Measurement // of a server that does not record its allocations
	projected shaper.Projection
	inUse     []float64 // samples
	mean      float64   // size of an entry
}

// TestProjection compares what is projected with what servers measure, under workloads that
// the model was not fitted to. What the raft log takes is told by the heap profile, which
// knows nothing of entries. Without -servers.full it is a few workloads on etcd 3.7.
func TestProjection(t *testing.T) {
	versions := []string{"3.7"}
	if *full {
		versions = Versions
	}
	var results []result
	for _, c := range cells() {
		if !*full {
			if c.catchUp = c.short; c.short == 0 {
				continue
			}
		}
		for _, version := range versions {
			t.Run(c.name+", etcd "+version, func(t *testing.T) {
				r := compare(t, c, version)
				results = append(results, r)
				check(t, r)
			})
		}
	}
	printTable(results)
}

func compare(t *testing.T, c cell, version string) result {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	r := result{cell: c, version: version}
	var load shaper.Load
	r.measured, load, r.inUse = play(ctx, t, c, version, true)
	if *full {
		r.plain, _, _ = play(ctx, t, c, version, false)
	}
	for _, e := range load.Entries {
		r.mean += e.PerSecond * float64(e.Bytes)
	}
	rate := 0.0
	for _, e := range load.Entries {
		rate += e.PerSecond
	}
	r.mean /= rate
	if c.slow { // the same, and a commit for each
		slower := rate / 5
		load.For = time.Duration(float64(load.For) * slower)
		for i := range load.Entries {
			load.Entries[i].PerSecond /= slower
		}
		for i := range load.Records {
			load.Records[i].PerSecond /= slower
		}
	}
	server := shaper.Server{Version: r.measured.Version, CatchUpEntries: c.catchUp, Compaction: c.compact}
	if version == "3.5" {
		server.SnapshotCount = c.catchUp
	}
	var err error
	r.projected, err = shaper.Project(server, load)
	require.NoError(t, err)
	return r
}

// play writes what a cell does to a server, and measures it.
func play(ctx context.Context, t *testing.T, c cell, version string, exact bool) (m Measurement, l shaper.Load, inUse []float64) {
	config := Config{CatchUpEntries: c.catchUp, Exact: exact, Settings: map[string]any{"quota-backend-bytes": 8 << 30}}
	if version == "3.5" {
		config.SnapshotCount = c.catchUp
	}
	for k, v := range c.settings {
		config.Settings[k] = v
	}
	s := Start(t, version, config)
	defer s.Stop()
	cli := s.Client(t)
	seen := observe(cli)
	catchUp := max(c.catchUp, 5000)
	if c.catchUp > 0 {
		catchUp = c.catchUp
	}
	// Of 3.5, in the middle between two compactions too; of the others, which compact every
	// 101 entries, where one caller writes.
	number := int(catchUp*5/2)/101*101 + 46
	sample := func() {
		st, err := cli.Status(ctx, s.Endpoint) // a measurement would hold the server up
		require.NoError(t, err)
		inUse = append(inUse, float64(st.DbSizeInUse))
	}
	began := time.Now()
	known := c.write(ctx, t, writer{cli: cli, number: number, sample: sample})
	took := time.Since(began)
	m, err := s.Measure(ctx)
	require.NoError(t, err)
	if known != nil {
		return m, *known, inUse
	}
	return m, seen.load(took), inUse
}

// check holds that what was measured is within the range, and near what is expected where
// entries are of 1 KiB or more.
func check(t *testing.T, r result) {
	for _, v := range r.values() {
		f := r.projected.Get(v.name)
		if !f.Contains(v.measured) {
			t.Errorf("%s: measured %.0f, projected %.0f .. %.0f .. %.0f %s", v.name, v.measured, f.Low, f.Expected, f.High, f.Unit)
		}
		if !v.near || r.mean < 1024 {
			continue
		}
		low, high := f.Expected*0.95, f.Expected*1.05
		if c := r.cell.catchUp; v.name == shaper.RaftLog && c > 0 && c < 2000 {
			// Where in the interval between two compactions of the log it ends is chance, and
			// more than 5 % of so few entries. What is compared is an entry: of those that there
			// are, and up to an interval more, since the server refers to the array from before
			// the last compaction until it applies something again.
			each := f.Expected / r.projected.Get(shaper.RaftEntries).Expected
			low, high = 0.95*each*float64(r.measured.Entries.Number), 1.05*each*float64(r.measured.Entries.Number+101)
		}
		if v.measured < low || v.measured > high {
			t.Errorf("%s: measured %.0f, which is not within 5 %% of %.0f .. %.0f %s", v.name, v.measured, low/0.95, high/1.05, f.Unit)
		}
	}
}

type value struct {
	name     shaper.FigureName
	measured float64
	near     bool // it is to be near what is expected
}

// values are what is compared.
func (r result) values() []value {
	m := r.measured
	values := []value{
		{shaper.RaftEntries, float64(m.Entries.Number), false},
		{shaper.RaftLog, float64(m.RaftLog), true},
		{shaper.TreeIndex, float64(m.TreeIndex), false},
		{shaper.LiveHeap, float64(m.LiveHeap), false},
	}
	if r.plain.PeakAnonymous > 0 {
		values = append(values, value{shaper.PeakAnonymous, float64(r.plain.PeakAnonymous), false})
	}
	if len(r.inUse) == 0 {
		return append(values,
			value{shaper.InUse, float64(m.DbSizeInUse), true},
			// What lies unused where each put is a commit depends on how pages happen to fit.
			value{shaper.FileSize, float64(m.DbSize), !r.cell.slow})
	}
	// After the second compaction: the least and the most of all, and their middle.
	steady := r.inUse[len(r.inUse)*2/5:]
	low, high := steady[0], steady[0]
	for _, v := range steady {
		low, high = min(low, v), max(high, v)
	}
	return append(values,
		value{shaper.InUse, low, false}, value{shaper.InUse, high, false}, value{shaper.InUse, (low + high) / 2, true},
		value{shaper.FileSize, float64(m.DbSize), false})
}

// printTable writes the table of docs/benchmarks.md.
func printTable(results []result) {
	var b strings.Builder
	columns := []shaper.FigureName{shaper.RaftEntries, shaper.RaftLog, shaper.TreeIndex, shaper.LiveHeap, shaper.PeakAnonymous, shaper.InUse, shaper.FileSize}
	fmt.Fprintf(&b, "%s, %s/%s, %d processors\n\n| workload | etcd |", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", c)
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, r := range results {
		fmt.Fprintf(&b, "| %s | %s |", r.cell.name, r.measured.Version)
		for _, c := range columns {
			cell := ""
			for _, v := range r.values() {
				if v.name == c {
					f := r.projected.Get(c)
					cell = fmt.Sprintf("%s, %+.1f %%", short(v.measured, f.Unit), 100*(v.measured/f.Expected-1))
					if !f.Contains(v.measured) {
						cell += " (!)"
					}
				}
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		b.WriteByte('\n')
	}
	fmt.Println(b.String())
}

func short(v float64, u shaper.Unit) string {
	switch {
	case u == shaper.Entries:
		return fmt.Sprintf("%.0f", v)
	case v >= 1e9:
		return fmt.Sprintf("%.2f GB", v/1e9)
	case v >= 1e6:
		return fmt.Sprintf("%.1f MB", v/1e6)
	}
	return fmt.Sprintf("%.0f KB", v/1e3)
}
