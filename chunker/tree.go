package chunker

import (
	"iter"

	"github.com/kvwrap/kvwrap/internal/format"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A transaction is a tree: its operations may be transactions. decisions say of
// the transactions in it which branch runs; without one, either may.
type decisions map[*pb.TxnRequest]bool

// branches returns the branches of t that may run.
func (d decisions) branches(t *pb.TxnRequest) [][]*pb.RequestOp {
	succeeds, ok := d[t]
	switch {
	case !ok:
		return [][]*pb.RequestOp{t.Success, t.Failure}
	case succeeds:
		return [][]*pb.RequestOp{t.Success}
	}
	return [][]*pb.RequestOp{t.Failure}
}

// ops yields the operations that may run, but for the transactions among them.
func (d decisions) ops(t *pb.TxnRequest) iter.Seq[*pb.RequestOp] {
	return func(yield func(*pb.RequestOp) bool) { d.visit(t, nil, yield) }
}

// puts yields the puts that may run.
func (d decisions) puts(t *pb.TxnRequest) iter.Seq[*pb.PutRequest] {
	return func(yield func(*pb.PutRequest) bool) {
		for op := range d.ops(t) {
			if p := op.GetRequestPut(); p != nil && !yield(p) {
				return
			}
		}
	}
}

// compares yields the comparisons of the transactions that may run.
func (d decisions) compares(t *pb.TxnRequest) iter.Seq[*pb.Compare] {
	return func(yield func(*pb.Compare) bool) { d.visit(t, yield, nil) }
}

func (d decisions) visit(t *pb.TxnRequest, compare func(*pb.Compare) bool, op func(*pb.RequestOp) bool) bool {
	if compare != nil {
		for _, c := range t.Compare {
			if !compare(c) {
				return false
			}
		}
	}
	for _, branch := range d.branches(t) {
		for _, o := range branch {
			if nested := o.GetRequestTxn(); nested != nil {
				if !d.visit(nested, compare, op) {
					return false
				}
			} else if op != nil && !op(o) {
				return false
			}
		}
	}
	return true
}

// anywhere decides nothing: all branches may run.
var anywhere decisions

func putKey(p *pb.PutRequest) format.Range { return format.Range{Key: p.Key} }

func deleted(d *pb.DeleteRangeRequest) format.Range {
	return format.Range{Key: d.Key, End: d.RangeEnd}
}
