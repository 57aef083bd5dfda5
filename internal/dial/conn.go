package dial

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvwrap/kvwrap/internal/wire"
)

// conn is a connection as a chain has it. It does what etcd's client does of which its
// connection knows nothing: call options, and that reads are tried again. The connection
// itself renews tokens.
type conn struct {
	cc       *grpc.ClientConn
	mostSent atomic.Int64 // bytes
}

var _ grpc.ClientConnInterface = (*conn)(nil)

// client returns a client over c, with a KV, a Watcher and a Lease.
func (c *conn) client() *clientv3.Client {
	cli := clientv3.NewCtxClient(context.Background())
	cli.KV = clientv3.NewKVFromKVClient(pb.NewKVClient(c), cli)
	cli.Watcher = clientv3.NewWatchFromWatchClient(pb.NewWatchClient(c), cli)
	// A second is etcd's for: what etcd chooses.
	cli.Lease = clientv3.NewLeaseFromLeaseClient(pb.NewLeaseClient(c), cli, time.Second)
	return cli
}

// options are those of etcd's client, for what the chain sends without a request of the
// application's: leases, sweeps, reads for watches, batches.
var options = []grpc.CallOption{
	grpc.WaitForReady(true), grpc.MaxCallSendMsgSize(2 << 20), grpc.MaxCallRecvMsgSize(math.MaxInt32),
}

// learn remembers the largest message that the application has allowed itself to send, which
// a batch of its writes may be as long as.
func (c *conn) learn(opts []grpc.CallOption) {
	for _, o := range opts {
		size, ok := o.(grpc.MaxSendMsgSizeCallOption)
		for n := c.mostSent.Load(); ok && int64(size.MaxSendMsgSize) > n; n = c.mostSent.Load() {
			if c.mostSent.CompareAndSwap(n, int64(size.MaxSendMsgSize)) {
				break
			}
		}
	}
}

// options returns the options of what is sent for a request: the request's own, but for those
// that the answer to it is told through; and those of etcd's client where there is none.
func (c *conn) options(of call, opts []grpc.CallOption) (all []grpc.CallOption) {
	if of.opts == nil {
		all = append(all, options...)
		if most := c.mostSent.Load(); most > 2<<20 {
			all = append(all, grpc.MaxCallSendMsgSize(int(most)))
		}
		return append(all, opts...)
	}
	for _, o := range of.opts {
		switch o.(type) {
		case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.PeerCallOption, grpc.OnFinishCallOption:
		default:
			all = append(all, o)
		}
	}
	return append(all, opts...)
}

type fromKey struct{}

// from says which chain has sent a request: one of interceptors, or one above a client.
type from int

const (
	fromBelow from = iota + 1
	fromGuard
)

type callKey struct{}

// call is a request of the application's.
type call struct {
	invoker  grpc.UnaryInvoker // of a read, which the client itself tries again
	streamer grpc.Streamer     // of a stream, which it does not
	opts     []grpc.CallOption
}

// As etcd's client has it.
const (
	attempts    = 100
	backoff     = 25 * time.Millisecond
	backoffPart = 0.1
)

// again reports whether a request may be sent again where it is not known whether it has
// been served.
func again(method string) bool {
	switch method {
	case pb.KV_Range_FullMethodName, pb.Lease_LeaseGrant_FullMethodName, pb.Lease_LeaseRevoke_FullMethodName,
		pb.Lease_LeaseTimeToLive_FullMethodName, pb.Lease_LeaseLeases_FullMethodName:
		return true
	}
	return false
}

func (c *conn) Invoke(ctx context.Context, method string, req, reply any, opts ...grpc.CallOption) error {
	of, _ := ctx.Value(callKey{}).(call)
	ctx = context.WithValue(ctx, fromKey{}, fromBelow)
	if method == pb.KV_Range_FullMethodName && of.invoker != nil {
		// The client tries all of it again, with a new token too. It would be a hundred times a
		// hundred times.
		return of.invoker(ctx, method, req, reply, c.cc, c.options(of, opts)...)
	}
	most := 1
	if again(method) {
		most = attempts
	}
	for n := 1; ; n++ {
		if closed(c.cc) {
			return errClosed
		}
		err := c.cc.Invoke(ctx, method, req, reply, c.options(of, opts)...)
		if n == most || status.Code(err) != codes.Unavailable {
			return err
		}
		select {
		case <-time.After(time.Duration(float64(backoff) * (1 + backoffPart*(2*rand.Float64()-1)))):
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (c *conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if closed(c.cc) {
		return nil, errClosed
	}
	of, _ := ctx.Value(callKey{}).(call)
	ctx = context.WithValue(ctx, fromKey{}, fromBelow)
	if method == pb.KV_RangeStream_FullMethodName && of.streamer != nil {
		// The client has asked for a token for it already, and does not try streams again.
		return of.streamer(ctx, desc, c.cc, method, c.options(of, opts)...)
	}
	return c.cc.NewStream(ctx, desc, method, c.options(of, opts)...)
}

func unknown(m any) error { return fmt.Errorf("%w: %T over a connection", wire.ErrUnknownRequest, m) }
