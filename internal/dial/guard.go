package dial

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// errTwice is the error of a request that has passed one chain and comes to another.
var errTwice = errors.New("kvwrap: New or Install was called with a client that was made with DialOptions: what it writes would be chunked twice. Leave out one of the two; for a KV of such a client call Dialed")

// Guard returns inner, over which there is a chain. Where inner leads to a connection with
// interceptors, these refuse its requests.
func Guard(inner pb.KVClient) pb.KVClient { return guard{inner} }

// guard implements every method by name, so that a new one in pb.KVClient breaks the build.
type guard struct{ inner pb.KVClient }

func guarded(ctx context.Context) context.Context {
	return context.WithValue(ctx, fromKey{}, fromGuard)
}

func (g guard) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	return g.inner.Range(guarded(ctx), r, opts...)
}

func (g guard) RangeStream(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	return g.inner.RangeStream(guarded(ctx), r, opts...)
}

func (g guard) Put(ctx context.Context, r *pb.PutRequest, opts ...grpc.CallOption) (*pb.PutResponse, error) {
	return g.inner.Put(guarded(ctx), r, opts...)
}

func (g guard) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, opts ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return g.inner.DeleteRange(guarded(ctx), r, opts...)
}

func (g guard) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	return g.inner.Txn(guarded(ctx), r, opts...)
}

func (g guard) Compact(ctx context.Context, r *pb.CompactionRequest, opts ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return g.inner.Compact(guarded(ctx), r, opts...)
}

// GuardWatcher is Guard for a Watcher. Watches share streams, and the stream's first decides.
func GuardWatcher(inner clientv3.Watcher) clientv3.Watcher { return guardWatcher{inner} }

type guardWatcher struct{ clientv3.Watcher }

func (g guardWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	return g.Watcher.Watch(guarded(ctx), key, opts...)
}
