package budget

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Cost is what a write takes from a budget.
type Cost struct {
	// Revisions is 1 for a request that writes, however many keys, and as many as it
	// has proposals for a write that takes several.
	Revisions int
	// Bytes is what etcd's quota counts: 256, the key and the value of each put (kvOverhead
	// in server/storage/quota.go). Deletes count nothing.
	Bytes int

	largest int // put in it, where that is known
}

// putOverhead is what etcd's quota adds for a put (kvOverhead).
const putOverhead = 256

func (c Cost) plus(d Cost) Cost {
	return Cost{c.Revisions + d.Revisions, c.Bytes + d.Bytes, max(c.largest, d.largest)}
}

func (c Cost) minus(d Cost) Cost {
	return Cost{Revisions: c.Revisions - d.Revisions, Bytes: c.Bytes - d.Bytes}
}

// least returns the smaller of each.
func (c Cost) least(d Cost) Cost {
	return Cost{Revisions: min(c.Revisions, d.Revisions), Bytes: min(c.Bytes, d.Bytes)}
}

func costPut(r *pb.PutRequest) Cost {
	n := putOverhead + len(r.Key) + len(r.Value)
	return Cost{Revisions: 1, Bytes: n, largest: n}
}

// costTxn returns what the dearer branch of r takes, nothing where neither writes.
func costTxn(r *pb.TxnRequest) Cost {
	success, failure := costBranch(r.Success), costBranch(r.Failure)
	return Cost{max(success.Revisions, failure.Revisions), max(success.Bytes, failure.Bytes), max(success.largest, failure.largest)}
}

func costBranch(ops []*pb.RequestOp) (c Cost) {
	for _, op := range ops {
		var d Cost
		switch {
		case op.GetRequestPut() != nil:
			d = costPut(op.GetRequestPut())
		case op.GetRequestDeleteRange() != nil:
			d.Revisions = 1
		case op.GetRequestTxn() != nil:
			d = costTxn(op.GetRequestTxn())
		}
		c = Cost{max(c.Revisions, d.Revisions), c.Bytes + d.Bytes, max(c.largest, d.largest)}
	}
	return c
}

// spentTxn returns what r has taken: the cost of the branches that ran, and no revision
// where they have changed nothing.
func spentTxn(r *pb.TxnRequest, resp *pb.TxnResponse) (c Cost) {
	ops := r.Failure
	if resp.Succeeded {
		ops = r.Success
	}
	for i, op := range ops {
		var d Cost
		switch {
		case op.GetRequestPut() != nil:
			d = costPut(op.GetRequestPut())
		case op.GetRequestDeleteRange() != nil:
			d = spentDelete(resp.Responses[i].GetResponseDeleteRange())
		case op.GetRequestTxn() != nil:
			d = spentTxn(op.GetRequestTxn(), resp.Responses[i].GetResponseTxn())
		}
		c = Cost{max(c.Revisions, d.Revisions), c.Bytes + d.Bytes, max(c.largest, d.largest)}
	}
	return c
}

// spentDelete returns what a delete has taken: a revision, unless there was nothing.
func spentDelete(resp *pb.DeleteRangeResponse) Cost {
	return Cost{Revisions: int(min(resp.GetDeleted(), 1))}
}

// keysOf calls f with each key that the ops write.
func keysOf(ops []*pb.RequestOp, f func(key []byte)) {
	for _, op := range ops {
		switch {
		case op.GetRequestPut() != nil:
			f(op.GetRequestPut().Key)
		case op.GetRequestDeleteRange() != nil:
			f(op.GetRequestDeleteRange().Key)
		case op.GetRequestTxn() != nil:
			keysOf(op.GetRequestTxn().Success, f)
			keysOf(op.GetRequestTxn().Failure, f)
		}
	}
}
