package etcdtest

import (
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/internal/record"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestThreeMembersAgree(t *testing.T) {
	c := Start(t, 3, nil)
	_, err := c.Client(t).Put(t.Context(), "k", "v")
	require.NoError(t, err)
	for _, endpoint := range c.Endpoints() {
		cli := c.ClientOf(t, endpoint)
		resp, err := cli.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "v", string(resp.Kvs[0].Value))
		members, err := cli.MemberList(t.Context())
		require.NoError(t, err)
		require.Len(t, members.Members, 3)
	}
	c.Wipe(t)
	resp, err := c.Client(t).Get(t.Context(), "k")
	require.NoError(t, err)
	require.Empty(t, resp.Kvs)
}

// TestProposalsAreAsRecorded compares what a recording stage says with what
// stands in the server's log.
func TestProposalsAreAsRecorded(t *testing.T) {
	c := Start(t, 1, nil)
	r := record.Over(wire.Client(c.Client(t).KV))
	kv := clientv3.NewKVFromKVClient(r, nil)
	ctx := t.Context()
	for _, n := range []int{0, 1, 100, 127, 128, 1000, 16383, 16384, 65000, 70000, 1 << 20} {
		v := strings.Repeat("x", n)
		_, err := kv.Put(ctx, "key", v)
		require.NoError(t, err)
		_, err = kv.Txn(ctx).If(clientv3.Compare(clientv3.Version("key"), ">", 0)).
			Then(clientv3.OpPut("key", v), clientv3.OpGet("other")).Else(clientv3.OpDelete("key")).Commit()
		require.NoError(t, err)
		_, err = kv.Get(ctx, "key")
		require.NoError(t, err)
		_, err = kv.Txn(ctx).Then(clientv3.OpGet("key")).Commit()
		require.NoError(t, err)
	}
	_, err := kv.Delete(ctx, "key")
	require.NoError(t, err)
	counts := r.Take()
	require.Len(t, counts.Proposals, 23)
	require.Equal(t, 4*11+1, counts.Requests)

	logged := c.EntryBytes(t)
	logged = logged[len(logged)-len(counts.Proposals):] // after those of the start
	for i := range logged {
		// The server draws the request's id, which may be shorter by a byte or two.
		require.InDelta(t, counts.Proposals[i], logged[i], 3)
		require.LessOrEqual(t, logged[i], counts.Proposals[i])
	}
}
