package coalesce

import (
	"context"
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/record"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

func TestMain(m *testing.M) { testutil.MustTestMainWithLeakDetection(m) }

// env is a cluster, a plain client of it, and a coalescer over a recorder over another
// one.
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
	e.kv, e.sent = e.another(cfg, nil)
	return e
}

// another returns a coalescer as of another process, and what it sends. Under, where it
// is not nil, goes below the coalescer.
func (e *env) another(cfg Config, under func(pb.KVClient) pb.KVClient) (*KV, *record.Stage) {
	cli := e.cluster.Client(e)
	inner := wire.Client(cli.KV)
	if under != nil {
		inner = under(inner)
	}
	sent := record.Over(inner)
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

// holds checks the value of a key, as a plain client sees it.
func (e *env) holds(key, value string) {
	e.Helper()
	resp, err := e.cli.Get(e.ctx, key)
	require.NoError(e, err)
	require.Len(e, resp.Kvs, 1, "key %q", key)
	require.Equal(e, value, string(resp.Kvs[0].Value))
}
