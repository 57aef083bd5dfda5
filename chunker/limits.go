package chunker

import (
	"context"
	"sync/atomic"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// limits are what the server accepts. etcd does not tell; they begin as its
// defaults and are learned from its refusals. It refuses before it proposes
// anything, so that a refused request has done nothing.
type limits struct {
	entry  atomic.Int64 // bytes of a proposal, Config.MaxEntryBytes at the most
	ops    atomic.Int64 // --max-txn-ops
	proven atomic.Int64 // operations that it is known to allow
	beyond atomic.Int64 // operations that it is known to refuse, 0 while none are
}

const defaultMaxTxnOps = 128

func (l *limits) init(entry int) {
	l.entry.Store(int64(entry))
	l.ops.Store(defaultMaxTxnOps)
}

// lowerEntry follows the refusal of a proposal that was within the given entry
// size. It reports whether smaller proposals are worth a try.
func (l *limits) lowerEntry(entry int64) bool {
	lower := max(entry/2, minMaxEntryBytes)
	return l.entry.CompareAndSwap(entry, lower) && lower < entry || l.entry.Load() < entry
}

// learnOps finds the server's --max-txn-ops, which is less than refused.
func (l *limits) learnOps(ctx context.Context, inner pb.KVClient, refused int) error {
	least, most := 1, refused-1
	for least < most {
		n := (least + most + 1) / 2
		ok, err := accepts(ctx, inner, n)
		if err != nil {
			return err
		}
		if ok {
			least = n
		} else {
			most = n - 1
		}
	}
	l.ops.Store(int64(least))
	return nil
}

// allow reports whether the server allows the application a transaction of the
// width asked. The server is asked for its limit where that is not known and would
// not show, because what it is sent has the width sent, which is less.
func (l *limits) allow(ctx context.Context, inner pb.KVClient, asked, sent int) (bool, error) {
	if asked <= sent || int64(asked) <= l.proven.Load() {
		return true, nil
	}
	ok, err := accepts(ctx, inner, asked)
	if ok {
		raise(&l.proven, int64(asked))
		raise(&l.ops, int64(asked))
	}
	return ok, err
}

// reach reports whether the server allows so many operations. It is asked where
// they are more than it allows by default, and more than is known.
func (l *limits) reach(ctx context.Context, inner pb.KVClient, ops int) (bool, error) {
	n := int64(ops)
	if n <= l.ops.Load() {
		return true, nil
	}
	if beyond := l.beyond.Load(); beyond != 0 && n >= beyond {
		return false, nil
	}
	ok, err := accepts(ctx, inner, ops)
	switch {
	case ok:
		raise(&l.proven, n)
		raise(&l.ops, n)
	case err == nil:
		l.beyond.Store(n)
	}
	return ok, err
}

// raise sets v to n unless it is more already.
func raise(v *atomic.Int64, n int64) {
	for {
		old := v.Load()
		if n <= old || v.CompareAndSwap(old, n) {
			return
		}
	}
}

// accepts asks the server whether it accepts a transaction of the given width,
// with one that compares and does nothing.
func accepts(ctx context.Context, inner pb.KVClient, width int) (bool, error) {
	probe := &pb.TxnRequest{Compare: make([]*pb.Compare, width)}
	for i := range probe.Compare {
		probe.Compare[i] = &pb.Compare{Key: []byte{0}, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{}}
	}
	_, err := inner.Txn(ctx, probe)
	switch {
	case wire.Is(err, rpctypes.ErrTooManyOps):
		return false, nil
	case wire.Is(err, rpctypes.ErrPermissionDenied): // which is checked after the width
		return true, nil
	}
	return err == nil, err
}
