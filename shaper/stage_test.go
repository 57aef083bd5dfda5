package shaper

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/contract"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/record"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestContract: a metered client does what a client does.
func TestContract(t *testing.T) {
	t.Parallel()
	contract.Run(t, func(t *testing.T, cli *clientv3.Client) contract.Stack {
		m := newMeter(t, MeterConfig{Window: 10 * time.Millisecond, Slots: 10})
		s := contract.Plain(cli)
		s.KV = clientv3.NewKVFromKVClient(m.Stage(wire.Client(cli.KV)), nil)
		return s
	})
}

// TestCountsAreEtcds compares what was counted with the revisions and events of a server.
func TestCountsAreEtcds(t *testing.T) {
	t.Parallel()
	cli := etcdtest.Start(t, 1, nil).Client(t)
	ctx := t.Context()
	m := newMeter(t, MeterConfig{Depth: 1})
	sent := record.Over(wire.Client(cli.KV))
	kv := clientv3.NewKVFromKVClient(m.Stage(sent), nil)
	before, err := cli.Get(ctx, "k")
	require.NoError(t, err)

	r := rand.New(rand.NewPCG(3, 4))
	key := func() string { return fmt.Sprintf("%c/%d", 'a'+r.IntN(5), r.IntN(20)) }
	value := func() string { return strings.Repeat("v", r.IntN(3000)) }
	txn := func(depth int) (ops []clientv3.Op) {
		used := map[string]bool{}
		for range r.IntN(6) {
			k := key()
			if used[k] {
				continue // etcd refuses it
			}
			used[k] = true
			switch r.IntN(3) {
			case 0:
				ops = append(ops, clientv3.OpPut(k, value()))
			case 1:
				ops = append(ops, clientv3.OpDelete(k))
			case 2:
				ops = append(ops, clientv3.OpGet(k))
			}
		}
		if depth > 0 && len(ops) == 0 {
			ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Version(key()), ">", 1)},
				[]clientv3.Op{clientv3.OpPut("nested/then", value()), clientv3.OpGet("a", clientv3.WithPrefix())},
				[]clientv3.Op{clientv3.OpDelete("nested/", clientv3.WithPrefix(), clientv3.WithPrevKV())}))
		}
		return ops
	}
	failed, refused := uint64(0), uint64(0)
	for range 1500 {
		var err error
		switch r.IntN(8) {
		case 0:
			_, err = kv.Delete(ctx, key())
		case 1:
			_, err = kv.Delete(ctx, key(), clientv3.WithPrefix(), clientv3.WithPrevKV())
		case 2, 3:
			_, err = kv.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key()), "=", 0)).Then(txn(1)...).Else(txn(1)...).Commit()
		case 4:
			_, err = kv.Get(ctx, key())
		case 5:
			if r.IntN(10) == 0 {
				_, err = kv.Put(ctx, key(), "v", clientv3.WithLease(12345))
				require.ErrorIs(t, err, rpctypes.ErrLeaseNotFound)
				_, err = kv.Put(ctx, "absent", "", clientv3.WithIgnoreValue())
				require.ErrorIs(t, err, rpctypes.ErrKeyNotFound)
				_, err = kv.Txn(ctx).Then(clientv3.OpPut("twice", ""), clientv3.OpPut("twice", "")).Commit()
				require.ErrorIs(t, err, rpctypes.ErrDuplicateKey)
				failed, refused, err = failed+2, refused+1, nil
			}
		default:
			_, err = kv.Put(ctx, key(), value())
		}
		require.NoError(t, err)
	}
	resp, err := cli.Get(ctx, "", clientv3.WithFromKey())
	require.NoError(t, err)
	got := m.Traffic()

	var want Counts
	keys := map[string]bool{}
	first, last := before.Header.Revision, resp.Header.Revision
	for watched := range cli.Watch(ctx, "", clientv3.WithFromKey(), clientv3.WithRev(first+1)) {
		require.NoError(t, watched.Err())
		for _, e := range watched.Events {
			want.Records++
			want.KeyBytes += uint64(len(e.Kv.Key))
			want.ValueBytes += uint64(len(e.Kv.Value))
			if e.Type == clientv3.EventTypeDelete {
				want.Tombstones++
			} else {
				keys[string(e.Kv.Key)] = true
			}
		}
		if watched.Events[len(watched.Events)-1].Kv.ModRevision == last {
			break
		}
	}
	c := got.Total.Counts
	require.EqualValues(t, last-first, c.Revisions)
	require.Equal(t, want, Counts{Records: c.Records, KeyBytes: c.KeyBytes, ValueBytes: c.ValueBytes, Tombstones: c.Tombstones})
	require.InDelta(t, len(keys), got.Keys, 1)
	require.Positive(t, c.Tombstones)
	require.Positive(t, c.Ranges)
	require.Equal(t, failed, c.Failed)
	require.Equal(t, refused, c.Refused)
	require.Zero(t, c.Unknown)
	require.Equal(t, c.Puts+c.Deletes+c.Txns-c.Refused, c.Entries)

	counts := sent.Take()
	require.EqualValues(t, len(counts.Proposals), c.Entries+c.Refused)
	require.Equal(t, counts.Largest(), got.LargestEntryBytes)
	var records, bytes uint64
	for _, p := range got.Heaviest {
		require.Zero(t, p.MissedBytes)
		records, bytes = records+p.Records, bytes+p.Bytes
	}
	require.Equal(t, c.Records, records)
	require.Equal(t, c.KeyBytes+c.ValueBytes, bytes)
}
