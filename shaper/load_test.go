package shaper

import (
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"pgregory.net/rapid"

	"github.com/kvwrap/kvwrap/internal/wire"
)

// TestProposals compares sizes with what etcd's own messages marshal to.
func TestProposals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 70_000))
		put := &pb.PutRequest{Key: make([]byte, size.Draw(t, "key")), Value: make([]byte, size.Draw(t, "value"))}
		leased := rapid.Bool().Draw(t, "leased")
		if leased {
			put.Lease = rapid.Int64Range(1<<56, 1<<62).Draw(t, "lease")
		}
		require.Equal(t, wire.ProposalBytes(put), PutProposal(len(put.Key), len(put.Value), leased))
		txn := &pb.TxnRequest{}
		for range rapid.IntRange(0, 20).Draw(t, "puts") {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		}
		require.Equal(t, wire.ProposalBytes(txn), TxnProposal(len(txn.Success), len(put.Key), len(put.Value), leased))
	})
}
