package budget

import (
	"github.com/kvwrap/kvwrap/internal/wire"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// KV is a stage as a clientv3.KV.
type KV struct {
	clientv3.KV
	stage *Stage
}

// NewKV returns a KV that writes through inner, at the pace of cfg. It sends nothing
// before it is used.
func NewKV(inner clientv3.KV, cfg Config) (*KV, error) {
	s, err := New(wire.Client(inner), cfg)
	if err != nil {
		return nil, err
	}
	return &KV{KV: clientv3.NewKVFromKVClient(s, nil), stage: s}, nil
}

// Close is [Stage.Close].
func (kv *KV) Close() error { return kv.stage.Close() }

// Stats is [Stage.Stats].
func (kv *KV) Stats() Stats { return kv.stage.Stats() }

// SetRates is [Stage.SetRates].
func (kv *KV) SetRates(r Rates) error { return kv.stage.SetRates(r) }
