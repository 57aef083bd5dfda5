package chunker

import (
	"context"
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/record"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

func TestMain(m *testing.M) { testutil.MustTestMainWithLeakDetection(m) }

// env is a cluster, a plain client of it, and a chunker over a recorder over
// another one.
type env struct {
	*testing.T
	cluster *etcdtest.Cluster
	cli     *clientv3.Client
	sent    *record.Stage
	kv      *KV
	ctx     context.Context
}

func newEnv(t *testing.T, cfg Config, edit func(*embed.Config)) *env {
	e := &env{T: t, cluster: etcdtest.Start(t, 1, edit), ctx: t.Context()}
	e.cli = e.cluster.Client(t)
	e.kv, e.sent = e.another(cfg)
	return e
}

// at returns e for a subtest.
func (e *env) at(t *testing.T) *env {
	at := *e
	at.T, at.ctx = t, t.Context()
	return &at
}

// another returns a chunker as of another process, and what it sends.
func (e *env) another(cfg Config) (*KV, *record.Stage) {
	cli := e.cluster.Client(e)
	sent := record.Over(wire.Client(cli.KV))
	if cfg.Lease == nil {
		cfg.Lease = cli.Lease
	}
	kv, err := NewKV(clientv3.NewKVFromKVClient(sent, nil), cfg)
	require.NoError(e, err)
	e.Cleanup(func() { require.NoError(e, kv.Close()) })
	return kv, sent
}

func (e *env) put(key, value string, opts ...clientv3.OpOption) *clientv3.PutResponse {
	e.Helper()
	resp, err := e.kv.Put(e.ctx, key, value, opts...)
	require.NoError(e, err)
	return resp
}

// holds checks the value of a key.
func (e *env) holds(key, value string) {
	e.Helper()
	resp, err := e.kv.Get(e.ctx, key)
	require.NoError(e, err)
	require.Len(e, resp.Kvs, 1)
	require.True(e, value == string(resp.Kvs[0].Value), "%q holds another value: %d bytes, want %d", key, len(resp.Kvs[0].Value), len(value))
}

// stored returns all keys as they are stored.
func (e *env) stored() map[string]string {
	e.Helper()
	resp, err := e.cli.Get(e.ctx, "\x00", clientv3.WithFromKey())
	require.NoError(e, err)
	all := make(map[string]string)
	for _, kv := range resp.Kvs {
		all[string(kv.Key)] = string(kv.Value)
	}
	return all
}

// orphans returns the keys under the reserved prefix that no manifest names, once
// abandoned writes are cleaned up.
func (e *env) orphans() (keys []string) {
	e.Helper()
	e.kv.stage.background.Wait()
	all := e.stored()
	named := make(map[string]bool)
	for key, value := range all {
		if format.Plain([]byte(value)) || e.kv.stage.space.Reserved([]byte(key)) {
			continue
		}
		_, m, err := format.Parse([]byte(value), maxMaxValueBytes)
		require.NoError(e, err)
		if m == nil {
			continue
		}
		pool := chunkPool{}
		for k, v := range all {
			if id, ok := format.ChunkID([]byte(k)); ok {
				pool[id] = []byte(v)
			}
		}
		l := format.NewLayout(m)
		_, err = l.Value(pool.source())
		require.NoError(e, err)
		for _, r := range l.All() {
			named[string(e.kv.stage.space.ChunkKey([]byte(key), r.ID))] = true
		}
	}
	for key := range all {
		if e.kv.stage.space.Reserved([]byte(key)) && !named[key] {
			keys = append(keys, key)
		}
	}
	return keys
}

// Values: see there.
var (
	text           = workload.Text
	incompressible = workload.Incompressible
)
