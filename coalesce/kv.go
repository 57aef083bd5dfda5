package coalesce

import (
	"context"

	"github.com/kvwrap/kvwrap/internal/wire"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// KV is a coalescer as a clientv3.KV.
type KV struct {
	clientv3.KV
	stage *Stage
}

// NewKV returns a KV that writes through inner, in batches. It sends nothing before it
// is used.
func NewKV(inner clientv3.KV, cfg Config) (*KV, error) {
	s, err := New(wire.Client(inner), cfg)
	if err != nil {
		return nil, err
	}
	return &KV{KV: clientv3.NewKVFromKVClient(s, nil), stage: s}, nil
}

// PutAsync is [Stage.PutAsync].
func (kv *KV) PutAsync(ctx context.Context, key, val string, promise func(*clientv3.PutResponse, error), opts ...clientv3.OpOption) {
	kv.stage.PutAsync(ctx, wire.PutRequest(clientv3.OpPut(key, val, opts...)), promise)
}

// Flush is [Stage.Flush].
func (kv *KV) Flush(ctx context.Context) error { return kv.stage.Flush(ctx) }

// Close is [Stage.Close].
func (kv *KV) Close() error { return kv.stage.Close() }

// Pending is [Stage.Pending].
func (kv *KV) Pending() Pending { return kv.stage.Pending() }

// Stats is [Stage.Stats].
func (kv *KV) Stats() Stats { return kv.stage.Stats() }
