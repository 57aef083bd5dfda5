package wire

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// ProposalBytes returns the size of the raft entry that a write request, a
// [pb.PutRequest], [pb.DeleteRangeRequest] or [pb.TxnRequest], becomes on a
// server without authentication: the request in an InternalRaftRequest, as
// etcdserver marshals it. With authentication the entry also holds the user's
// name and a revision.
func ProposalBytes(r proto.Message) int {
	switch r.(type) {
	case *pb.PutRequest, *pb.DeleteRangeRequest, *pb.TxnRequest: // fields 4, 5 and 6: a byte of a tag
	default:
		panic(fmt.Sprintf("wire: %T is not a write request", r))
	}
	return proposalHeaderBytes + 1 + protowire.SizeBytes(proto.Size(r))
}

var proposalHeaderBytes = proto.Size(&pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 1 << 63}}) // the longest varint

// Writes reports whether etcd proposes the transaction to raft: whether it holds
// anything but ranges, in either branch. The server asks the same question in
// the same way (etcdserver/txn.IsTxnReadonly): a nested transaction counts as a
// write even where it only reads.
func Writes(r *pb.TxnRequest) bool {
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			if op.GetRequestRange() == nil {
				return true
			}
		}
	}
	return false
}

// Serializable reports whether one member alone may answer the transaction, which
// may be behind: whether it holds nothing but serializable ranges
// (etcdserver/txn.IsTxnSerializable).
func Serializable(r *pb.TxnRequest) bool {
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			if !op.GetRequestRange().GetSerializable() {
				return false
			}
		}
	}
	return true
}

// Width returns the least --max-txn-ops with which a server accepts r: the most
// comparisons or operations of one branch, and below them the width of a nested
// transaction, which gets what its parent leaves (checkTxnRequest in
// etcdserver/api/v3rpc/key.go).
func Width(r *pb.TxnRequest) int {
	nested := 0
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			if t := op.GetRequestTxn(); t != nil {
				nested = max(nested, Width(t))
			}
		}
	}
	return max(len(r.Compare), len(r.Success), len(r.Failure)) + nested
}
