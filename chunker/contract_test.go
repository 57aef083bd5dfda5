package chunker

import (
	"context"
	"testing"

	"github.com/kvwrap/kvwrap/internal/contract"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// everything chunks every value of one byte or more, into tiny chunks.
var everything = Config{Threshold: 1, ChunkBytes: minChunkBytes}

func TestContractByDefault(t *testing.T) {
	t.Parallel()
	contract.Run(t, open(Config{}))
}

func TestContractEverything(t *testing.T) {
	t.Parallel()
	cfg := everything
	if testing.Short() {
		cfg.ChunkBytes = 2 << 10 // the race detector makes hundreds of chunks a value slow
	}
	contract.Run(t, open(cfg))
}

func open(cfg Config) contract.Open {
	return func(t *testing.T, cli *clientv3.Client) contract.Stack {
		cfg.Lease = cli.Lease
		kv, err := NewKV(cli.KV, cfg)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, kv.Close()) })
		return contract.Stack{
			KV:      kv,
			Watcher: kv.stage.Watcher(cli.Watcher),
			Lease:   kv.stage.Lease(cli.Lease),
			Disturb: func(ctx context.Context) error { return disturb(ctx, kv.stage, cli) },
		}
	}
}

// disturb revokes the lease of unfinished writes, as if it had expired in a
// partition, and sweeps.
func disturb(ctx context.Context, s *Stage, cli *clientv3.Client) error {
	if _, err := cli.Revoke(ctx, s.session.Held()); err != nil && !wire.Is(err, rpctypes.ErrLeaseNotFound) {
		return err
	}
	_, err := s.Sweep(ctx)
	return err
}
