package chunker

import (
	"fmt"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// The checks of this file come before anything is sent, so that a refused
// request leaves nothing behind. Those of etcd's own are here as well, in its
// order and with its errors (etcdserver/api/v3rpc/key.go): the server would make
// them only at the commit, after the chunks of a large value have been staged,
// and on a transaction that has been rewritten.

func (s *Stage) checkRange(r *pb.RangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrEmptyKey
	}
	if pb.RangeRequest_SortOrder_name[int32(r.SortOrder)] == "" || pb.RangeRequest_SortTarget_name[int32(r.SortTarget)] == "" {
		return rpctypes.ErrInvalidSortOption
	}
	return s.checkKey(r.Key)
}

func (s *Stage) checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrLeaseProvided
	case len(r.Value) > s.cfg.MaxValueBytes:
		return &ValueTooLargeError{Key: r.Key, Bytes: len(r.Value), Most: s.cfg.MaxValueBytes}
	}
	return s.checkKey(r.Key)
}

func (s *Stage) checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrEmptyKey
	}
	return s.checkKey(r.Key)
}

func (s *Stage) checkKey(key []byte) error {
	if s.space.Reserved(key) {
		return &ReservedKeyError{Key: key, Prefix: s.space.Prefix()}
	}
	return nil
}

// checkTxn checks all of r but its width.
func (s *Stage) checkTxn(r *pb.TxnRequest) error {
	if err := s.checkOps(r); err != nil {
		return err
	}
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		if _, _, err := checkOverlaps(branch); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stage) checkOps(r *pb.TxnRequest) error {
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return rpctypes.ErrEmptyKey
		}
		if err := s.checkKey(c.Key); err != nil {
			return err
		}
	}
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			var err error
			switch op := op.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				err = s.checkRange(op.RequestRange)
			case *pb.RequestOp_RequestPut:
				err = s.checkPut(op.RequestPut)
			case *pb.RequestOp_RequestDeleteRange:
				err = s.checkDelete(op.RequestDeleteRange)
			case *pb.RequestOp_RequestTxn:
				err = s.checkOps(op.RequestTxn)
			default:
				err = fmt.Errorf("%w: operation %T in a transaction", wire.ErrUnknownRequest, op)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// checkOverlaps refuses what checkIntervals of etcd refuses: a key put twice, or
// put and deleted. It returns the keys that are put and the ranges that are
// deleted, nested ones included.
func checkOverlaps(ops []*pb.RequestOp) (puts map[string]bool, deletes []format.Range, err error) {
	deleted := func(key string) bool {
		for _, d := range deletes {
			// A delete from a key on has the end "\x00" here, and so no key in it.
			if d.Single() && string(d.Key) == key || string(d.Key) <= key && key < string(d.End) {
				return true
			}
		}
		return false
	}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			deletes = append(deletes, format.Range{Key: d.Key, End: d.RangeEnd})
		}
	}
	puts = make(map[string]bool)
	for _, op := range ops {
		t := op.GetRequestTxn()
		if t == nil {
			continue
		}
		thenPuts, thenDeletes, err := checkOverlaps(t.Success)
		if err != nil {
			return nil, nil, err
		}
		elsePuts, elseDeletes, err := checkOverlaps(t.Failure)
		if err != nil {
			return nil, nil, err
		}
		for key := range elsePuts {
			thenPuts[key] = true // both branches may put a key, only one runs
		}
		for key := range thenPuts {
			if puts[key] || deleted(key) {
				return nil, nil, rpctypes.ErrDuplicateKey
			}
			puts[key] = true
		}
		deletes = append(append(deletes, thenDeletes...), elseDeletes...)
	}
	for _, op := range ops {
		p := op.GetRequestPut()
		if p == nil {
			continue
		}
		if key := string(p.Key); puts[key] || deleted(key) {
			return nil, nil, rpctypes.ErrDuplicateKey
		} else {
			puts[key] = true
		}
	}
	return puts, deletes, nil
}
