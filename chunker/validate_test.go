package chunker

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestUnknownOperationsAreRefused sends an operation of a kind that a later etcd
// may have.
func TestUnknownOperationsAreRefused(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	later := []*pb.RequestOp{{}}
	for _, r := range []*pb.TxnRequest{
		{Success: later},
		{Failure: later},
		{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Failure: later}}}}},
	} {
		_, err := e.kv.stage.Txn(e.ctx, r)
		require.ErrorIs(t, err, wire.ErrUnknownRequest)
		require.ErrorContains(t, err, "transaction")
	}
	require.Zero(t, e.sent.Take().Requests)
}
