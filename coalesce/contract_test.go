package coalesce

import (
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/contract"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestContract runs what does not need a sequence, whose key a client can see that has no
// chunker above. The other rules are tested with all of kvwrap.
func TestContract(t *testing.T) {
	for name, cfg := range map[string]Config{
		"off":    {},
		"group":  {Rules: []Rule{{Mode: GroupCommit, Transactions: true}}, InFlight: 4},
		"linger": {Rules: []Rule{{Mode: LastWriteWins, Transactions: true, Linger: time.Millisecond}}},
		"mixed":  {Rules: []Rule{{Prefix: "a", Mode: LastWriteWins}, {Mode: GroupCommit}, {Prefix: "b"}}, MaxOps: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.Run(t, open(cfg))
		})
	}
}

func open(cfg Config) contract.Open {
	return func(t *testing.T, cli *clientv3.Client) contract.Stack {
		return stack(cli, newKV(t, cli, cfg))
	}
}

func newKV(t *testing.T, cli *clientv3.Client, cfg Config) *KV {
	cfg.Lease = cli.Lease
	kv, err := NewKV(cli.KV, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kv.Close()) })
	return kv
}

func stack(cli *clientv3.Client, kv clientv3.KV) contract.Stack {
	s := contract.Plain(cli)
	s.KV = kv
	return s
}
