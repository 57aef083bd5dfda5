// Package history notices when the cluster behind a client is no longer the one
// that it was: restored from a snapshot, or another one at the same address.
package history

import (
	"context"
	"sync"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// Over returns inner with an eye on the headers of its responses. Restarted is
// called before a response is returned that does not belong to the history of
// those before:
//
//   - it comes from another cluster; or
//   - it has a revision below one that was known when the request was sent,
//     which in one history no response has that a quorum stands behind. Responses
//     may overtake each other, so a revision that became known while the request
//     was under way says nothing. Nor does a serializable read, which any member
//     may answer that is behind.
//
// A cluster that was restored and has come to higher revisions in the meantime
// passes unnoticed, so that nothing may be wrong that rests on this, only slow.
// Restarted may be called more often than once for one restore.
func Over(inner pb.KVClient, restarted func()) *Stage {
	return &Stage{KVClient: inner, restarted: restarted}
}

// Stage passes every request on. It is safe for concurrent use.
type Stage struct {
	pb.KVClient // RangeStream, which has its header at the end, is left alone
	restarted   func()

	mu      sync.Mutex
	cluster uint64 // 0 while none is known
	highest int64  // revision
}

func (o *Stage) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	return observe(o, r.Serializable, func() (*pb.RangeResponse, error) { return o.KVClient.Range(ctx, r, opts...) })
}

func (o *Stage) Put(ctx context.Context, r *pb.PutRequest, opts ...grpc.CallOption) (*pb.PutResponse, error) {
	return observe(o, false, func() (*pb.PutResponse, error) { return o.KVClient.Put(ctx, r, opts...) })
}

func (o *Stage) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, opts ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return observe(o, false, func() (*pb.DeleteRangeResponse, error) { return o.KVClient.DeleteRange(ctx, r, opts...) })
}

func (o *Stage) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return observe(o, wire.Serializable(r), func() (*pb.TxnResponse, error) { return o.KVClient.Txn(ctx, r, opts...) })
}

func (o *Stage) Compact(ctx context.Context, r *pb.CompactionRequest, opts ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return observe(o, false, func() (*pb.CompactionResponse, error) { return o.KVClient.Compact(ctx, r, opts...) })
}

// Revision returns the highest revision that is known, 0 where none is.
func (o *Stage) Revision() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.highest
}

// observe makes a call and looks at the header of its response.
func observe[R interface{ GetHeader() *pb.ResponseHeader }](o *Stage, serializable bool, call func() (R, error)) (R, error) {
	o.mu.Lock()
	known := o.highest
	o.mu.Unlock()
	resp, err := call()
	if err == nil && o.restartedBy(resp.GetHeader(), known, serializable) {
		o.restarted()
	}
	return resp, err
}

// restartedBy takes note of a header, and reports whether it is of another history
// than that in which the revision known was.
func (o *Stage) restartedBy(h *pb.ResponseHeader, known int64, serializable bool) bool {
	if h == nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	other := o.cluster != 0 && h.ClusterId != o.cluster || !serializable && h.Revision < known
	if other {
		o.highest = 0
	}
	o.cluster, o.highest = h.ClusterId, max(o.highest, h.Revision)
	return other
}
