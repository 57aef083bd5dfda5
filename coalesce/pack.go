package coalesce

import (
	"math"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A batch is one transaction. The server bounds the operations of a transaction, 128
// by default, and gives a transaction that is nested in it what its own level leaves.
// So a batch of more operations packs them into nested transactions without
// comparisons: about as many groups as operations in one keep the sum of both small,
// and 128 are enough for 64 groups of 64. To etcd it is one transaction all the same,
// of one revision.

// shape is what a batch is made of, as far as its size depends on it.
type shape struct {
	ops   int  // that are sent
	items int  // operations, and transactions with guards around some
	width int  // of the widest of these transactions
	bytes int  // of all
	outer bool // whether the transaction compares and puts the sequence of this process
}

// plus returns s with another plan: its operations, or one transaction with the guards.
func (s shape) plus(p *plan) shape {
	s.ops, s.bytes = s.ops+len(p.ops), s.bytes+p.bytes
	if len(p.guards) == 0 {
		s.items += len(p.ops)
	} else {
		s.items, s.width = s.items+1, max(s.width, len(p.ops), len(p.guards))
	}
	return s
}

// groups returns how many items each nested transaction gets, 0 where there is no need
// for nesting, and whether a server that allows so many operations accepts that.
func (s shape) groups(most int) (size int, ok bool) {
	spare := most - s.width
	if s.outer {
		spare-- // the put of the sequence
	}
	if s.items <= spare {
		return 0, true
	}
	size = int(math.Ceil(math.Sqrt(float64(s.items))))
	return size, size+(s.items+size-1)/size <= spare
}

// proposalBytes returns a bound of the size of the raft entry.
func (s shape) proposalBytes(size, sequenceBytes int) int {
	n := s.bytes + proposalOverhead
	if size > 0 {
		n += (s.items + size - 1) / size * nestedBytes
	}
	if s.outer {
		n += sequenceBytes
	}
	return n
}

// fits reports whether the batch fits in a transaction within the limits.
func (s shape) fits(l limits, sequenceBytes int) bool {
	size, ok := s.groups(l.txnOps)
	return ok && s.ops <= l.maxOps && s.proposalBytes(size, sequenceBytes) <= l.entryBytes
}

// limits bound a batch.
type limits struct {
	maxOps     int // of Config
	entryBytes int // of Config, or what the server has turned out to accept
	txnOps     int // what the server has turned out to accept
}

// pack returns items, packed into groups of size.
func pack(items []*pb.RequestOp, size int) []*pb.RequestOp {
	if size == 0 {
		return items
	}
	var groups []*pb.RequestOp
	for len(items) > 0 {
		n := min(size, len(items))
		groups = append(groups, wire.Txn(&pb.TxnRequest{Success: items[:n:n]}))
		items = items[n:]
	}
	return groups
}

// unpack returns the responses to the items that were packed into groups of size.
func unpack(resps []*pb.ResponseOp, size int) []*pb.ResponseOp {
	if size == 0 {
		return resps
	}
	var items []*pb.ResponseOp
	for _, r := range resps {
		items = append(items, r.GetResponseTxn().Responses...)
	}
	return items
}

// proposalOverhead is what a raft entry has beside the operations of its transaction.
var proposalOverhead = wire.ProposalBytes(&pb.TxnRequest{Success: []*pb.RequestOp{{}}}) + 4

// nestedBytes bounds what it takes to nest a transaction: two tags, and two lengths of
// at most a megabyte.
const nestedBytes = 2 * (1 + 3)

// itemBytes returns what an operation takes in a transaction.
func itemBytes(op *pb.RequestOp) int {
	if p := op.GetRequestPut(); p != nil {
		return 1 + protowire.SizeBytes(1+protowire.SizeBytes(putBytes(p)))
	}
	return 1 + protowire.SizeBytes(proto.Size(op))
}

// putBytes is proto.Size of a put, which is asked for every one, in a tenth of its time.
func putBytes(p *pb.PutRequest) (n int) {
	for _, b := range [][]byte{p.Key, p.Value} {
		if len(b) > 0 {
			n += 1 + protowire.SizeBytes(len(b))
		}
	}
	if p.Lease != 0 {
		n += 1 + protowire.SizeVarint(uint64(p.Lease))
	}
	for _, set := range []bool{p.PrevKv, p.IgnoreValue, p.IgnoreLease} {
		if set {
			n += 2
		}
	}
	return n
}

// compareBytes returns what a comparison takes in a transaction.
func compareBytes(c *pb.Compare) int { return 1 + protowire.SizeBytes(proto.Size(c)) }
