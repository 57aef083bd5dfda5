package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestRollout takes a fleet of processes from the plain client to kvwrap and back, one
// process after the other, as docs/operations.md has it. All the while each of them
// counts up the same numbers, which stand in large values, under a guard on the key's
// revision: where an update is lost, a number is too small in the end.
func TestRollout(t *testing.T) {
	f := newFleet(t, 3)
	f.add("idle")
	f.everyone(plain)
	f.everyone(readOnly)
	f.requireStored(func(chunked int) bool { return chunked == 0 }, "by clients that are to read only")
	f.everyone(writing)
	f.bump(f.processes[0].cli, "idle")
	f.requireStored(func(chunked int) bool { return chunked > 0 }, "by clients with kvwrap") // idle is; the numbers of others may be small

	// A process that was forgotten can do no harm: it cannot read.
	forgotten := f.cluster.Client(t)
	_, err := increment(t.Context(), forgotten, "idle")
	require.ErrorContains(t, err, `invalid character 'ÿ' looking for beginning of value`)

	f.everyone(readOnly)
	code, stdout, stderr := shapecheck(t, "unwrap", "--endpoints", strings.Join(f.cluster.Endpoints(), ","))
	require.Equal(t, exitOK, code, stderr)
	require.Regexp(t, `Unwrapped: values: \d+, together`, stdout)
	require.Contains(t, stdout, "Keys below \"\\x00kvw/\": 0.\n")
	f.everyone(plain)
	f.bump(forgotten, "idle")
	f.stop()
	f.requireCounts()
}

// mode is how a process reaches etcd.
type mode string

const (
	plain    mode = "plain"
	readOnly mode = "read-only"
	writing  mode = "writing"
)

// fleet is a number of processes that all count up the numbers at the same keys.
type fleet struct {
	*testing.T
	cluster   *etcdtest.Cluster
	keys      []string // that are counted up all the time
	processes []*process

	mu      sync.Mutex
	changed sync.Cond      // what follows has
	counted map[string]int // what was acknowledged, by key
	failed  error
}

type process struct {
	cli    *clientv3.Client
	mode   mode
	stop   chan struct{}
	rounds int // guarded by the fleet's mu
	done   sync.WaitGroup
}

func newFleet(t *testing.T, processes int) *fleet {
	f := &fleet{T: t, cluster: etcdtest.Start(t, 1, nil), counted: make(map[string]int), processes: make([]*process, processes)}
	f.changed.L = &f.mu
	for i := range 2 {
		f.keys = append(f.keys, fmt.Sprint("busy/", i))
		f.add(f.keys[i])
	}
	for i := range f.processes {
		f.processes[i] = f.start(plain)
	}
	t.Cleanup(f.stop)
	return f
}

// add adds a key with the number 0.
func (f *fleet) add(key string) {
	f.Helper()
	_, err := f.cluster.Client(f).Put(f.Context(), key, number{}.String())
	require.NoError(f, err)
}

// number is the value of a key: large, but for every fifth time.
type number struct {
	Count   int
	Padding string
}

func (n number) String() string {
	if n.Padding = workload.Text(80<<10, fmt.Sprint(n.Count)); n.Count%5 == 4 {
		n.Padding = ""
	}
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // strings and numbers marshal
	}
	return string(b)
}

// increment counts up, as an application does that knows nothing of kvwrap. It
// reports whether nobody came first.
func increment(ctx context.Context, cli *clientv3.Client, key string) (bool, error) {
	resp, err := cli.Get(ctx, key)
	if err != nil {
		return false, err
	}
	var n number
	if err := json.Unmarshal(resp.Kvs[0].Value, &n); err != nil {
		return false, err
	}
	n.Count++
	txn, err := cli.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", resp.Kvs[0].ModRevision)).
		Then(clientv3.OpPut(key, n.String())).Commit()
	return err == nil && txn.Succeeded, err
}

// start starts a process, which counts up one number after the other.
func (f *fleet) start(m mode) *process {
	p := &process{cli: f.cluster.Client(f), mode: m, stop: make(chan struct{})}
	if m != plain {
		_, err := kvwrap.Install(p.cli, kvwrap.Config{Chunk: chunker.Config{ReadOnly: m == readOnly}})
		require.NoError(f, err)
	}
	p.done.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-p.stop:
				return
			default:
			}
			key := f.keys[i%len(f.keys)]
			ok, err := increment(context.Background(), p.cli, key)
			f.note(func() {
				switch {
				case err != nil:
					f.failed = fmt.Errorf("a %s process, at %q: %w", m, key, err)
				case ok:
					f.counted[key]++
					p.rounds++
				}
			})
			if err != nil {
				return
			}
		}
	})
	return p
}

// note changes what waits may be for.
func (f *fleet) note(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.changed.Broadcast()
}

// end ends a process, once it knows what has become of its last write.
func (p *process) end() error {
	close(p.stop)
	p.done.Wait()
	return p.cli.Close()
}

// everyone replaces one process after the other, and waits each time until all have
// written something beside the new one.
func (f *fleet) everyone(m mode) {
	f.Helper()
	for i, p := range f.processes {
		require.NoError(f, p.end())
		f.processes[i] = f.start(m)
		f.progress(len(f.keys))
	}
}

// progress waits until every process has counted up so many times more.
func (f *fleet) progress(times int) {
	f.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.processes {
		for until := p.rounds + times; p.rounds < until && f.failed == nil; {
			f.changed.Wait()
		}
	}
	require.NoError(f, f.failed)
}

// bump counts up a number that nobody else does.
func (f *fleet) bump(cli *clientv3.Client, key string) {
	f.Helper()
	ok, err := increment(f.Context(), cli, key)
	require.NoError(f, err)
	require.True(f, ok)
	f.note(func() { f.counted[key]++ })
}

func (f *fleet) stop() {
	for i, p := range f.processes {
		require.NoError(f, p.end())
		f.processes[i] = nil
	}
	f.processes = nil
}

// requireStored checks how many values are stored in chunks.
func (f *fleet) requireStored(want func(chunked int) bool, by string) {
	f.Helper()
	resp, err := f.cluster.Client(f).Get(f.Context(), "a", clientv3.WithFromKey())
	require.NoError(f, err)
	chunked := 0
	for _, kv := range resp.Kvs {
		if strings.HasPrefix(string(kv.Value), "\xffkvw") {
			chunked++
		}
	}
	require.True(f, want(chunked), "%d of %d values are chunked %s", chunked, len(resp.Kvs), by)
}

// requireCounts checks that every update is there, with a client without kvwrap.
func (f *fleet) requireCounts() {
	f.Helper()
	resp, err := f.cluster.Client(f).Get(f.Context(), "\x00", clientv3.WithFromKey())
	require.NoError(f, err)
	require.Len(f, resp.Kvs, len(f.counted))
	for _, kv := range resp.Kvs {
		var n number
		require.NoError(f, json.Unmarshal(kv.Value, &n))
		require.Equal(f, f.counted[string(kv.Key)], n.Count, "%q", kv.Key)
		require.Greater(f, n.Count, 1)
	}
	f.Logf("updates: %v", f.counted)
}
