package chunker

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sort"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// ChunkRange returns the range of keys, from included and to not, that holds the
// chunks of the keys in a range, and no others: a role that has a permission on the
// one needs the same on the other. The range is given as roles have it: rangeEnd ""
// is the one key, "\x00" all from key on, else the first key after it. Of c it looks
// at ReservedPrefix alone. It sends nothing.
//
// Its errors are those that etcd has for such a range, one that matches
// [ErrReservedKey] for a range that begins among the chunks, and one that matches
// [ErrConfig].
func (c Config) ChunkRange(key, rangeEnd string) (from, to string, err error) {
	space, err := c.space()
	if err != nil {
		return "", "", err
	}
	r := format.Range{Key: []byte(key), End: []byte(rangeEnd)}
	switch {
	case key == "":
		return "", "", rpctypes.ErrEmptyKey
	case r.Empty():
		return "", "", rpctypes.ErrInvalidAuthMgmt
	case space.Reserved(r.Key):
		return "", "", &ReservedKeyError{Key: r.Key, Prefix: space.Prefix()}
	}
	chunks := granted(space, r)
	return string(chunks.Key), string(chunks.End), nil
}

// ChunkPrefix returns the prefix of the keys that hold the chunks of the keys with a
// prefix, and of no others. The configuration has to be valid.
func (c Config) ChunkPrefix(prefix string) string {
	space, _ := c.space()
	return string(space.ChunkPrefix([]byte(prefix)))
}

// granted returns the range of chunks that is to be granted beside r. One key is
// taken as the range that holds it alone, so that what is next to each other stays
// so: etcd allows a request whose range several permissions cover together.
func granted(space format.Keyspace, r format.Range) format.Range {
	if r.Single() {
		r.End = append(bytes.Clone(r.Key), 0)
	}
	return space.Chunks(r)
}

// permit is a permission that a request takes because values are chunked.
type permit struct {
	asked       format.Range // by the application
	keys        format.Range // that it takes a permission on
	read, write bool
}

func (p permit) name() string {
	switch {
	case !p.write:
		return "read"
	case !p.read:
		return "write"
	}
	return "readwrite"
}

// permits returns what r takes in permissions beside its own, and last what it may
// take as well: those on the chunks of values that are not large, and were chunked
// so that the proposal is not.
func (s *Stage) permits(r *pb.TxnRequest) []permit {
	var all, maybe []permit
	chunks := func(r format.Range, read, write bool) permit {
		return permit{asked: r, keys: s.space.Chunks(r), read: read, write: write}
	}
	for c := range anywhere.compares(r) {
		if c.Target == pb.Compare_VALUE {
			all = append(all, chunks(compared(c), true, false))
		}
	}
	for op := range anywhere.ops(r) {
		switch op := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			if r := op.RequestRange; readsValues(r) {
				all = append(all, chunks(format.Range{Key: r.Key, End: r.RangeEnd}, true, false))
			}
		case *pb.RequestOp_RequestDeleteRange:
			d := op.RequestDeleteRange
			all = append(all, chunks(deleted(d), d.PrevKv, true))
		case *pb.RequestOp_RequestPut:
			p := op.RequestPut
			guarded := []permit{{asked: putKey(p), keys: putKey(p), read: true}, chunks(putKey(p), true, true)}
			switch {
			case p.IgnoreValue || s.large(p):
				all = append(all, guarded...)
			case p.PrevKv || s.cache.get(p.Key) != nil:
				all = append(all, chunks(putKey(p), p.PrevKv, true))
			}
			if len(p.Value) >= minExtraBytes && !s.cfg.ReadOnly {
				maybe = append(maybe, guarded...)
			}
		}
	}
	return append(all, maybe...)
}

// denied returns the error of a request of the application's that failed with err:
// where etcd has refused it for want of a permission, and would not have refused it
// without what was added to it, a [*PermissionError]. Else it is err.
func (s *Stage) denied(ctx context.Context, r *pb.TxnRequest, err error) error {
	if !wire.Is(err, rpctypes.ErrPermissionDenied) {
		return err
	}
	var applied *AppliedError
	if errors.As(err, &applied) {
		return &AppliedError{Revision: applied.Revision, Err: s.denied(ctx, r, applied.Err)}
	}
	if s.permitted(ctx, wire.Txn(hollow(r))) != nil {
		return err
	}
	for batch := range slices.Chunk(s.permits(r), int(s.limits.ops.Load()+1)/2) {
		i := sort.Search(len(batch), func(i int) bool {
			return wire.Is(s.permitted(ctx, operations(batch[:i+1])...), rpctypes.ErrPermissionDenied)
		})
		if i < len(batch) {
			return missingPermit(s.space, batch[i])
		}
	}
	return err
}

func missingPermit(space format.Keyspace, p permit) error {
	e := &PermissionError{Key: p.asked.Key, RangeEnd: p.asked.End, Need: p.name(), From: string(p.keys.Key), To: string(p.keys.End)}
	if chunks := granted(space, p.asked); space.Reserved(p.keys.Key) {
		e.From, e.To = string(chunks.Key), string(chunks.End)
	}
	return e
}

// permitted returns an error where etcd does not allow the user so much. Nothing is
// done: etcd checks the permissions of both branches of a transaction before it runs
// one of them (checkTxnPermission in etcdserver/apply/auth.go), and where there is
// nothing to compare that is never the second.
func (s *Stage) permitted(ctx context.Context, ops ...*pb.RequestOp) error {
	_, err := s.inner.Txn(ctx, &pb.TxnRequest{Failure: ops})
	return err
}

// operations returns operations that take the permissions.
func operations(permits []permit) (ops []*pb.RequestOp) {
	for _, p := range permits {
		if p.read {
			ops = append(ops, wire.Range(&pb.RangeRequest{Key: p.keys.Key, RangeEnd: p.keys.End}))
		}
		if p.write {
			ops = append(ops, wire.DeleteRange(&pb.DeleteRangeRequest{Key: p.keys.Key, RangeEnd: p.keys.End}))
		}
	}
	return ops
}

// hollow returns r without values, which takes the same permissions.
func hollow(r *pb.TxnRequest) *pb.TxnRequest {
	branch := func(ops []*pb.RequestOp) []*pb.RequestOp {
		hollowed := slices.Clone(ops)
		for i, op := range ops {
			if p := op.GetRequestPut(); p != nil {
				hollowed[i] = wire.Put(&pb.PutRequest{Key: p.Key, Lease: p.Lease, PrevKv: p.PrevKv})
			} else if t := op.GetRequestTxn(); t != nil {
				hollowed[i] = wire.Txn(hollow(t))
			}
		}
		return hollowed
	}
	h := &pb.TxnRequest{Success: branch(r.Success), Failure: branch(r.Failure)}
	for _, c := range r.Compare {
		h.Compare = append(h.Compare, &pb.Compare{Key: c.Key, RangeEnd: c.RangeEnd})
	}
	return h
}
