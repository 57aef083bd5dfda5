package coalesce

import (
	"context"
	"slices"
	"strings"

	"github.com/kvwrap/kvwrap/internal/keys"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"
)

// joins reports whether a transaction is coalesced: not where that does not go with what
// is in it, or where it changes a key twice, of which etcd refuses some. Under conditions
// it has to leave room for what it is nested in.
func (s *Stage) joins(ctx context.Context, r *pb.TxnRequest) bool {
	if len(r.Compare) > 0 || len(r.Failure) > 0 || len(r.Success) == 0 || len(r.Success) > defaultMaxTxnOps {
		return false
	}
	if fenceOf(ctx) != nil && len(r.Success) > defaultMaxTxnOps-outerOps {
		return false
	}
	changed := make(map[string]bool, len(r.Success))
	var ranged []keys.Range
	for _, op := range r.Success {
		p, d := op.GetRequestPut(), op.GetRequestDeleteRange()
		if (p == nil || refused(p) != nil) && (d == nil || len(d.Key) == 0) {
			return false
		}
		of, changes := s.rules.of(opKey(op)), opRange(op)
		if !of.Transactions || changes.Single() && changed[string(changes.Key)] {
			return false
		}
		if changes.Single() {
			changed[string(changes.Key)] = true
		} else if ranged = append(ranged, changes); !strings.HasPrefix(string(changes.End), of.Prefix) {
			return false // it goes beyond the rule
		}
	}
	for _, r := range ranged {
		for key := range changed {
			if r.Contains([]byte(key)) {
				return false
			}
		}
	}
	return true
}

// kept returns a copy of r, which is sent after its caller may have left, who is free then
// to use its key and value for something else.
func kept(r *pb.PutRequest) *pb.PutRequest {
	both := slices.Concat(r.Key, r.Value)
	n := len(r.Key)
	return &pb.PutRequest{
		Key: both[:n:n], Value: both[n:], Lease: r.Lease, PrevKv: r.PrevKv, IgnoreValue: r.IgnoreValue, IgnoreLease: r.IgnoreLease,
	}
}

// keptAll is kept for the puts and deletes of a transaction.
func keptAll(ops []*pb.RequestOp) []*pb.RequestOp {
	all := make([]*pb.RequestOp, len(ops))
	for i, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			all[i] = wire.Put(kept(p))
		} else {
			all[i] = proto.CloneOf(op)
		}
	}
	return all
}

// refused returns etcd's error for a put whose form it refuses.
func refused(r *pb.PutRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrEmptyKey
	case r.IgnoreValue && len(r.Value) > 0:
		return rpctypes.ErrValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrLeaseProvided
	}
	return nil
}
