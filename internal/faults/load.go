//go:build unix

package faults

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/servers"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	wrappedClients = 4 // KVs in this process, and one more that only reads
	writerClients  = 3 // with processes of their own
)

// sessionTTL is short, so that a process that is paused loses its session.
const sessionTTL = 2 * time.Second

// load is what the clients of a run are like.
type load struct {
	configs []kvwrap.Config // of the KVs in this process, and of the writer processes; they need not be alike but for what is stored
	reading kvwrap.Config   // of the one that only reads
	share   int             // clients that use one KV of this process
	small   bool            // values are of a few hundred bytes, and some are written behind
}

var loads = map[string]load{
	"chunks":  {configs: chunked, reading: remembersNothing, share: 1},
	"batches": {configs: batched, share: 12, small: true},
}

// chunked are configurations under which large values are written.
var chunked = []kvwrap.Config{
	{},
	{Chunk: chunker.Config{MaxEntryBytes: 16 << 10}}, // stages nearly everything
	{Chunk: chunker.Config{Threshold: 1}},            // chunks everything
	remembersNothing,
	{Chunk: chunker.Config{ChunkBytes: 16 << 10}}, // cuts elsewhere
	{Chunk: chunker.Config{SweepInterval: 2 * time.Second, SweepRate: 1000}},
	{Chunk: chunker.Config{MaxEntryBytes: 1 << 20, ChunkBytes: 1 << 10}}, // stages nearly nothing
}

var remembersNothing = kvwrap.Config{Chunk: chunker.Config{CacheBytes: 1}}

// batched are configurations under which small values are coalesced.
var batched = []kvwrap.Config{
	{Rules: []kvwrap.Rule{{Coalesce: coalesce.GroupCommit, Transactions: true, FlushEvery: 20 * time.Millisecond}}},
	{Rules: []kvwrap.Rule{{Coalesce: coalesce.LastWriteWins, Transactions: true, Linger: 5 * time.Millisecond}}},
	{Rules: []kvwrap.Rule{{Coalesce: coalesce.LastWriteWins, Transactions: true, Retry: true, FlushEvery: 20 * time.Millisecond}}},
	{
		Rules:    []kvwrap.Rule{{Coalesce: coalesce.GroupCommit, Transactions: true, Retry: true, Linger: time.Millisecond}},
		Coalesce: coalesce.Config{RequestTimeout: 300 * time.Millisecond, MaxOps: 3},
	},
	{Rules: []kvwrap.Rule{{Coalesce: coalesce.GroupCommit, Retry: true}}},
	{Rules: []kvwrap.Rule{{Coalesce: coalesce.LastWriteWins, Retry: true, FlushEvery: 50 * time.Millisecond}}},
	{},
}

// run is one run of TestLinearizable.
type run struct {
	*testing.T
	seed uint64
	load
	h        *history
	cluster  *etcdtest.Members
	nemesis  *nemesis
	direct   *clientv3.Client // past the proxies
	clients  []*client        // in this process
	writing  []*client        // in others
	wrapped  []*kvwrap.KV     // of the clients in this process, the last of which sweeps
	seen     *witness         // as etcd tells it
	watching *witness         // as kvwrap does

	sweeps, deleted int // that have come to their end beside the load, and the chunks they have deleted

	coalesced, batches, merged, retries uint64 // of the KVs in this process
}

// newRun starts a cluster, of servers of a version or, where that is "", of this module's, and
// the clients of a load.
func newRun(t *testing.T, seed uint64, name, version string) *run {
	r := &run{T: t, seed: seed, load: loads[name], h: newHistory()}
	program, catchUp := "", "snapshot-catchup-entries"
	if version != "" {
		program = servers.Build(t, version, t.TempDir())
	}
	if version == "3.5" {
		catchUp = "experimental-snapshot-catch-up-entries"
	}
	r.cluster = etcdtest.StartMembersOf(t, program, 3, map[string]any{
		// Members that were away catch up from a snapshot, and logs stay short.
		"snapshot-count": 500, catchUp: 200, "max-wals": 2, "max-snapshots": 2,
		"quota-backend-bytes": 8 << 30,
	})
	r.direct = clientOf(t, r.cluster.Direct()...)
	r.h.epoch /= int64(r.share) // more of them at a time are more orders to search
	r.seen = r.h.witness(t, r.direct, r.h.identifyStored)
	for i := range wrappedClients {
		perform := r.wrap(r.configs[i])
		for range r.share {
			c := r.client(anything, perform)
			r.h.share[c.id] = i
			r.clients = append(r.clients, c)
		}
	}
	r.clients = append(r.clients, r.client(reading, r.wrap(r.reading)))
	r.watching = r.h.witness(t, r.wrapped[0].Watcher(), identify)
	var writers []*writer
	for i := range writerClients {
		w, err := newWriter(assignment{Endpoints: r.cluster.Endpoints(), Load: name, Config: wrappedClients + i})
		require.NoError(t, err)
		t.Cleanup(w.close)
		writers = append(writers, w)
		r.writing = append(r.writing, r.client(anything, w.do))
	}
	cli := clientOf(t, r.cluster.Endpoints()...)
	r.clients = append(r.clients, r.client(plain, performer{cli.KV, cli.Lease}.do))
	r.wrap(kvwrap.Config{Chunk: chunker.Config{SweepRate: 10_000}})
	r.nemesis = &nemesis{
		t: t, h: r.h, cluster: r.cluster, direct: r.direct, seen: r.seen, writers: writers,
		random: rand.New(rand.NewPCG(seed, 1<<32)),
	}
	return r
}

// wrap returns what carries out requests through kvwrap, in this process: over a client, or in
// the connection of one, by turns.
func (r *run) wrap(cfg kvwrap.Config) func(request) result {
	cfg.Chunk.SessionTTL = sessionTTL
	var (
		cli *clientv3.Client
		kv  *kvwrap.KV
		err error
	)
	if len(r.wrapped)%2 == 0 {
		cli = clientOf(r, r.cluster.Endpoints()...)
		kv, err = kvwrap.New(cli, cfg)
	} else {
		cli, err = newClient(r.cluster.Endpoints(), kvwrap.DialOptions(cfg)...)
		require.NoError(r, err)
		r.Cleanup(func() { cli.Close() })
		kv, err = kvwrap.Dialed(cli)
	}
	require.NoError(r, err)
	r.Cleanup(func() { kv.Close() })
	r.wrapped = append(r.wrapped, kv)
	if len(r.wrapped)%2 == 0 {
		return performer{dialed{cli.KV, kv}, cli.Lease}.do
	}
	return performer{kv, kv.Lease()}.do
}

// dialed is the KV of a client, and what its connection has beside it.
type dialed struct {
	clientv3.KV
	of *kvwrap.KV
}

func (d dialed) PutAsync(ctx context.Context, key, val string, promise func(*clientv3.PutResponse, error), opts ...clientv3.OpOption) {
	d.of.PutAsync(ctx, key, val, promise, opts...)
}

func (r *run) client(role role, perform func(request) result) *client {
	id := len(r.clients) + len(r.writing)
	return &client{id: id, h: r.h, perform: perform, role: role, small: r.small, random: rand.New(rand.NewPCG(r.seed, uint64(id)))}
}

// play has the clients and the nemesis work for a while, and ends them all. The
// writer processes are the last: they are killed in mid-write, and nobody cleans up
// after them but a sweep.
func (r *run) play(duration time.Duration) {
	ctx, cancel := context.WithTimeout(r.Context(), duration)
	defer cancel()
	alive, die := context.WithCancel(r.Context())
	defer die()
	var running, writing sync.WaitGroup
	for _, c := range r.clients {
		running.Go(func() { c.run(ctx) })
	}
	for _, c := range r.writing {
		writing.Go(func() { c.run(alive) })
	}
	running.Go(func() { r.keepSweeping(ctx) })
	err := r.nemesis.run(ctx)
	cancel()
	running.Wait()
	for _, w := range r.nemesis.writers {
		w.close()
	}
	die()
	writing.Wait()
	require.NoError(r, err, "-faults.seed %d", r.seed)
	ready, cancel := context.WithTimeout(r.Context(), mostPause)
	defer cancel()
	require.NoError(r, r.cluster.Ready(ready))
	for _, kv := range r.wrapped {
		require.NoError(r, kv.Close())
		s := kv.Stats().Coalesce
		r.batches, r.coalesced, r.merged, r.retries = r.batches+s.Batches, r.coalesced+s.Puts+s.Async+s.Txns, r.merged+s.Merged, r.retries+s.Retries
	}
}

// keepSweeping sweeps again and again, beside all that is under way, until ctx ends.
func (r *run) keepSweeping(ctx context.Context) {
	kv := r.wrapped[len(r.wrapped)-1]
	for ctx.Err() == nil {
		swept, err := kv.Sweep(ctx)
		r.deleted += swept.Deleted
		if err == nil {
			r.sweeps++
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// clientOf returns a client that is closed with the test.
func clientOf(t testing.TB, endpoints ...string) *clientv3.Client {
	cli, err := newClient(endpoints)
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	return cli
}
