// Package dial puts a chain of stages into a gRPC connection, as interceptors of etcd's
// client, so that everything goes through it that goes over the connection.
//
// The client's own interceptor, which tries again and renews tokens, comes first, and the
// chain below it:
//
//	clientv3.KV, Watcher, Lease -> retry -> [Interceptors] -> the wire
//	                                 ^            |
//	                                 |          chain
//	                                 |            v
//	                                 +--------- below
//
// What the chain sends goes through the whole connection once more, so that it is tried
// again and has the client's token as well, in a context by which the interceptors know it
// and let it pass.
//
// A connection has a chain of its own, which is made at the first request that concerns it,
// and closed after the connection. Connections that a client makes to single members, to ask
// how they are, have none.
package dial

import (
	"context"
	"errors"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Chain is what the requests of a connection pass.
type Chain interface {
	// KV is the outermost stage.
	KV() pb.KVClient
	// Watcher and Lease return a Watcher and a Lease as the application is to see them.
	Watcher(clientv3.Watcher) clientv3.Watcher
	Lease(clientv3.Lease) clientv3.Lease
	// Close is called once, after the connection was closed: nothing can be sent.
	Close() error
}

// Interceptors are those of any number of connections.
type Interceptors struct {
	open   func(below, above *clientv3.Client) (Chain, error)
	chains sync.Map   // *grpc.ClientConn to *chain
	mu     sync.Mutex // held while one is made
}

type chain struct {
	Chain
	conn  *conn
	below *clientv3.Client
}

// New returns interceptors. Open makes the chain of a connection over below, a client with
// the KV, the Watcher and the Lease of the connection, and nothing else. Above is the client
// whose connection it is, and nil where that is not known. Where open returns an error,
// that is the answer to the request, and the next one has it called again.
func New(open func(below, above *clientv3.Client) (Chain, error)) *Interceptors {
	return &Interceptors{open: open}
}

// Options returns the interceptors as options of connections.
func (i *Interceptors) Options() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(i.unary), grpc.WithChainStreamInterceptor(i.stream)}
}

// methodOf is a method that no server has: the interceptors answer it.
const methodOf = "/kvwrap.Dial/Of"

type ofKey struct{}

// of is a question for the chain of a client's connection, and its answer.
type of struct {
	cli   *clientv3.Client
	asked bool
	chain Chain
	err   error
}

// Of returns the chain of a client's connection, which it makes where there is none yet, and
// whether there are interceptors at all. Nothing is sent.
func Of(cli *clientv3.Client) (Chain, bool, error) {
	if cli == nil || cli.ActiveConnection() == nil {
		return nil, false, nil
	}
	question := &of{cli: cli}
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), ofKey{}, question))
	cancel() // so that it ends here where there are no interceptors
	if err := cli.ActiveConnection().Invoke(ctx, methodOf, &emptypb.Empty{}, &emptypb.Empty{}); err != nil && !question.asked {
		return nil, false, nil
	}
	return question.chain, true, question.err
}

// closed reports whether a connection was closed, for good.
func closed(cc *grpc.ClientConn) bool { return cc.GetState() == connectivity.Shutdown }

// of returns the chain of a connection.
func (i *Interceptors) of(cc *grpc.ClientConn, above *clientv3.Client) (*chain, error) {
	if c, ok := i.chains.Load(cc); ok {
		return c.(*chain), nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if c, ok := i.chains.Load(cc); ok {
		return c.(*chain), nil
	}
	if closed(cc) {
		return nil, errClosed
	}
	c := &chain{conn: &conn{cc: cc}}
	c.below = c.conn.client()
	var err error
	if c.Chain, err = i.open(c.below, above); err != nil {
		c.below.Close()
		return nil, err
	}
	i.chains.Store(cc, c)
	go i.closeAfter(cc, c)
	return c, nil
}

// closeAfter closes the chain of a connection when that was closed.
func (i *Interceptors) closeAfter(cc *grpc.ClientConn, c *chain) {
	for state := cc.GetState(); state != connectivity.Shutdown; state = cc.GetState() {
		cc.WaitForStateChange(context.Background(), state)
	}
	i.chains.Delete(cc)
	c.Close()       // its error is that nothing can be sent
	c.below.Close() // and this one's that it was canceled
}

// passes reports whether what comes with a context was sent by a chain of interceptors and
// goes on as it is. An error says that it comes from another chain.
func passes(ctx context.Context) (bool, error) {
	switch ctx.Value(fromKey{}) {
	case fromBelow:
		return true, nil
	case fromGuard:
		return false, errTwice
	}
	return false, nil
}

func (i *Interceptors) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	switch method {
	case pb.KV_Range_FullMethodName, pb.KV_Put_FullMethodName, pb.KV_DeleteRange_FullMethodName, pb.KV_Txn_FullMethodName,
		pb.KV_Compact_FullMethodName, pb.Lease_LeaseTimeToLive_FullMethodName:
	case methodOf:
		question, ok := ctx.Value(ofKey{}).(*of)
		if !ok || question.asked {
			break
		}
		question.asked = true
		if c, err := i.of(cc, question.cli); err != nil {
			question.err = err
		} else {
			question.chain = c.Chain
		}
		return nil
	default:
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	pass, err := passes(ctx)
	if err != nil {
		return err
	}
	if pass || closed(cc) {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	c, err := i.of(cc, nil)
	if err != nil {
		return err
	}
	c.conn.learn(opts)
	asked := call{opts: opts}
	if method == pb.KV_Range_FullMethodName {
		asked.invoker = invoker
	}
	resp, err := c.answer(context.WithValue(ctx, callKey{}, asked), req, func() error {
		return invoker(ctx, method, req, reply, cc, opts...)
	}, reply)
	if err != nil {
		return overTheWire(ctx, err)
	}
	if resp != nil {
		move(reply.(proto.Message), resp)
	}
	return nil
}

// answer returns the chain's answer to a request, nil where pass has filled in reply.
func (c *chain) answer(ctx context.Context, req any, pass func() error, reply any) (proto.Message, error) {
	kv := c.KV()
	switch r := req.(type) {
	case *pb.RangeRequest:
		return message(kv.Range(ctx, r))
	case *pb.PutRequest:
		return message(kv.Put(ctx, r))
	case *pb.DeleteRangeRequest:
		return message(kv.DeleteRange(ctx, r))
	case *pb.TxnRequest:
		return message(kv.Txn(ctx, r))
	case *pb.CompactionRequest:
		return message(kv.Compact(ctx, r))
	case *pb.LeaseTimeToLiveRequest:
		if err := pass(); err != nil {
			return nil, err
		}
		return nil, c.attached(ctx, reply)
	}
	return nil, unknown(req)
}

// message returns an answer as any message, and none beside an error.
func message[M proto.Message](m M, err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return m, nil
}

// attached makes the keys that are attached to a lease those that the application knows.
func (c *chain) attached(ctx context.Context, reply any) error {
	resp, ok := reply.(*pb.LeaseTimeToLiveResponse)
	if !ok {
		return unknown(reply)
	}
	if len(resp.Keys) == 0 {
		return nil
	}
	shown, err := c.Lease(told{keys: resp.Keys}).TimeToLive(ctx, clientv3.LeaseID(resp.ID))
	if err != nil {
		return err
	}
	resp.Keys = shown.Keys
	return nil
}

// told is a Lease that was told what is attached to one.
type told struct {
	clientv3.Lease
	keys [][]byte
}

func (t told) TimeToLive(context.Context, clientv3.LeaseID, ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	return &clientv3.LeaseTimeToLiveResponse{Keys: t.keys}, nil
}

// move fills in reply with what resp has, which is not copied: nobody else has it.
func move(reply, resp proto.Message) {
	into := reply.ProtoReflect()
	resp.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		into.Set(field, v)
		return true
	})
	into.SetUnknown(resp.ProtoReflect().GetUnknown())
}

// overTheWire returns an error as it comes over a connection: those of etcd, which its client
// has turned into its own, and the end of a context. Others are of stages, and stay as they
// are. The client turns it back.
func overTheWire(ctx context.Context, err error) error {
	if e, ok := err.(rpctypes.EtcdError); ok {
		return status.Error(e.Code(), e.Error())
	}
	if end := ctx.Err(); end != nil && errors.Is(err, end) {
		return status.FromContextError(end).Err()
	}
	return err
}

// errClosed is the error of gRPC for a connection that was closed.
var errClosed = status.Error(codes.Canceled, "grpc: the client connection is closing")
