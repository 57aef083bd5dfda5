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
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	wrappedClients = 4 // in this process, and one more that only reads
	writerClients  = 3 // with processes of their own
)

// run is one run of TestLinearizable.
type run struct {
	*testing.T
	seed     uint64
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
}

func newRun(t *testing.T, seed uint64) *run {
	r := &run{T: t, seed: seed, h: newHistory()}
	r.cluster = etcdtest.StartMembers(t, 3, map[string]any{
		// Members that were away catch up from a snapshot, and logs stay short.
		"snapshot-count": 500, "snapshot-catchup-entries": 200, "max-wals": 2, "max-snapshots": 2,
		"quota-backend-bytes": 8 << 30,
	})
	r.direct = clientOf(t, r.cluster.Direct()...)
	r.seen = r.h.witness(t, r.direct, r.h.identifyStored)
	for i := range wrappedClients {
		r.clients = append(r.clients, r.client(anything, r.wrap(configs[i])))
	}
	r.clients = append(r.clients, r.client(reading, r.wrap(remembersNothing)))
	r.watching = r.h.witness(t, r.wrapped[0].Watcher(), identify)
	var writers []*writer
	for i := range writerClients {
		w, err := newWriter(assignment{Endpoints: r.cluster.Endpoints(), Config: wrappedClients + i})
		require.NoError(t, err)
		t.Cleanup(w.close)
		writers = append(writers, w)
		r.writing = append(r.writing, r.client(anything, w.do))
	}
	cli := clientOf(t, r.cluster.Endpoints()...)
	r.clients = append(r.clients, r.client(plain, performer{cli.KV, cli.Lease}.do))
	r.wrap(chunker.Config{SessionTTL: sessionTTL, SweepRate: 10_000})
	r.nemesis = &nemesis{
		t: t, h: r.h, cluster: r.cluster, direct: r.direct, seen: r.seen, writers: writers,
		random: rand.New(rand.NewPCG(seed, 1<<32)),
	}
	return r
}

// wrap returns what carries out requests through kvwrap, in this process.
func (r *run) wrap(cfg chunker.Config) func(request) result {
	cli := clientOf(r, r.cluster.Endpoints()...)
	kv, err := kvwrap.New(cli, kvwrap.Config{Chunk: cfg})
	require.NoError(r, err)
	r.Cleanup(func() { kv.Close() })
	r.wrapped = append(r.wrapped, kv)
	return performer{kv, kv.Lease()}.do
}

func (r *run) client(role role, perform func(request) result) *client {
	id := len(r.clients) + len(r.writing)
	return &client{id: id, h: r.h, perform: perform, role: role, random: rand.New(rand.NewPCG(r.seed, uint64(id)))}
}

// load has the clients and the nemesis work for a while, and ends them all. The
// writer processes are the last: they are killed in mid-write, and nobody cleans up
// after them but a sweep.
func (r *run) load(duration time.Duration) {
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
	cli, err := newClient(endpoints...)
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	return cli
}
