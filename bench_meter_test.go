package kvwrap

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkMeteredSmall is a small value through two meters, as in the chain: the one that
// counts what is asked, and the one that counts what is proposed. Run it with -benchtime
// 20000x.
func BenchmarkMeteredSmall(b *testing.B) {
	s := newSide(b)
	metered := wire.Client(s.cli.KV)
	for range 2 {
		m, err := shaper.NewMeter(shaper.MeterConfig{Rules: []string{"statistics/", "leaders/", "offsets/"}})
		require.NoError(b, err)
		metered = m.Stage(metered)
	}
	as := func(c pb.KVClient) clientv3.KV { return clientv3.NewKVFromKVClient(c, nil) }
	bare, kv := as(wire.Client(s.cli.KV)), as(metered)
	const value = "a value of some dozens of bytes, as most are in etcd"
	put := func(kv clientv3.KV) func() {
		return func() {
			if _, err := kv.Put(b.Context(), "offsets/small", value); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("Put", func(b *testing.B) { paired.Benchmark(b, nil, put(bare), put(kv)) })
	b.Run("Get", func(b *testing.B) {
		paired.Benchmark(b, nil, func() { get(b, bare, "offsets/small") }, func() { get(b, kv, "offsets/small") })
	})
}
