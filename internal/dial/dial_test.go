package dial

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kvwrap/kvwrap/internal/wire"
)

func TestMain(m *testing.M) { testutil.MustTestMainWithLeakDetection(m) }

// server answers with an error as often as it is to, and counts.
type server struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer

	mu    sync.Mutex
	fail  error
	times int // that it fails yet
	asked map[string]int
}

func (s *server) answer(method string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[method]++
	if s.times == 0 {
		return nil
	}
	s.times--
	return s.fail
}

// fails has the next requests fail.
func (s *server) fails(err error, times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.times, s.asked = err, times, make(map[string]int)
}

func (s *server) count(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[method]
}

func (s *server) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 7}, Count: 3}, s.answer("Range")
}

func (s *server) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) {
	return &pb.PutResponse{}, s.answer("Put")
}

func (s *server) LeaseGrant(context.Context, *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return &pb.LeaseGrantResponse{ID: 1, TTL: 60}, s.answer("LeaseGrant")
}

// thin is a chain of one stage, which reads before it writes and counts what passes.
type thin struct {
	pb.KVClient
	below *clientv3.Client

	mu     sync.Mutex
	ranges int
	puts   int
}

func (c *thin) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	c.mu.Lock()
	c.ranges++
	c.mu.Unlock()
	return c.KVClient.Range(ctx, r, opts...)
}

func (c *thin) Put(ctx context.Context, r *pb.PutRequest, opts ...grpc.CallOption) (*pb.PutResponse, error) {
	c.mu.Lock()
	c.puts++
	c.mu.Unlock()
	if _, err := c.KVClient.Range(ctx, &pb.RangeRequest{Key: r.Key}); err != nil {
		return nil, err
	}
	return c.KVClient.Put(ctx, r, opts...)
}

func (c *thin) KV() pb.KVClient                             { return c }
func (c *thin) Watcher(w clientv3.Watcher) clientv3.Watcher { return w }
func (c *thin) Lease(l clientv3.Lease) clientv3.Lease       { return l }
func (c *thin) Close() error                                { return nil }

func start(t *testing.T) (*server, *clientv3.Client, *thin) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s, g := &server{}, grpc.NewServer()
	s.fails(nil, 0)
	pb.RegisterKVServer(g, s)
	pb.RegisterLeaseServer(g, s)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	i := New(func(below, _ *clientv3.Client) (Chain, error) {
		return &thin{KVClient: wire.Client(below.KV), below: below}, nil
	})
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: []string{l.Addr().String()}, Logger: zap.NewNop(), DialOptions: i.Options(),
		BackoffWaitBetween: 1, // as short as there is
	})
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	chain, intercepted, err := Of(cli)
	require.NoError(t, err)
	require.True(t, intercepted)
	return s, cli, chain.(*thin)
}

// TestWhatIsTriedAgain holds that reads are tried again as often as the client does it alone,
// and writes never where they may have been served.
func TestWhatIsTriedAgain(t *testing.T) {
	s, cli, chain := start(t)
	ctx := t.Context()
	gone := status.Error(codes.Unavailable, "gone")

	s.fails(gone, 3)
	_, err := cli.Get(ctx, "k")
	require.NoError(t, err)
	require.Equal(t, 4, s.count("Range"))
	require.Equal(t, 4, chain.ranges)

	s.fails(rpctypes.ErrGRPCNoLeader, 1000)
	_, err = cli.Get(ctx, "k")
	require.Equal(t, rpctypes.ErrNoLeader, err)
	require.Equal(t, attempts, s.count("Range"), "and not a hundred times a hundred times")

	s.fails(gone, 2) // what a write reads
	_, err = cli.Put(ctx, "k", "v")
	require.NoError(t, err)
	require.Equal(t, 3, s.count("Range"))
	require.Equal(t, 1, s.count("Put"))
	require.Equal(t, 1, chain.puts)

	s.fails(gone, 0)
	_, err = chain.below.Put(ctx, "k", "v")
	require.NoError(t, err)
	s.fails(gone, 1)
	_, err = chain.below.Put(ctx, "k", "v")
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.Equal(t, 1, s.count("Put"), "a write that may have been made is not made again")
	require.Equal(t, 1, chain.puts, "what the chain sends does not pass the chain")

	s.fails(gone, 2)
	_, err = chain.below.Grant(ctx, 60)
	require.NoError(t, err)
	require.Equal(t, 3, s.count("LeaseGrant"))
}

// TestAClosedConnection finds no chain waiting for what cannot come.
func TestAClosedConnection(t *testing.T) {
	_, cli, chain := start(t)
	require.NoError(t, cli.ActiveConnection().Close())
	for _, kv := range []clientv3.KV{cli, chain.below} {
		_, err := kv.Put(t.Context(), "k", "v")
		require.Equal(t, codes.Canceled, status.Code(err), "%v", err)
	}
	_, intercepted, err := Of(cli)
	require.True(t, intercepted)
	require.Equal(t, codes.Canceled, status.Code(err))
}

// TestMove sets each field of each answer, so that one that a new version of etcd adds is
// moved, too.
func TestMove(t *testing.T) {
	for _, m := range []proto.Message{
		&pb.RangeResponse{}, &pb.PutResponse{}, &pb.DeleteRangeResponse{}, &pb.TxnResponse{}, &pb.CompactionResponse{},
		&pb.RangeStreamResponse{}, &pb.WatchResponse{},
	} {
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			switch {
			case f.IsList():
				m.ProtoReflect().Mutable(f).List().AppendMutable()
			case f.Kind() == protoreflect.MessageKind:
				m.ProtoReflect().Mutable(f)
			case f.Kind() == protoreflect.BoolKind:
				m.ProtoReflect().Set(f, protoreflect.ValueOfBool(true))
			case f.Kind() == protoreflect.Int64Kind:
				m.ProtoReflect().Set(f, protoreflect.ValueOfInt64(42))
			case f.Kind() == protoreflect.StringKind:
				m.ProtoReflect().Set(f, protoreflect.ValueOfString("x"))
			default:
				t.Fatalf("field %s has kind %v", f.FullName(), f.Kind())
			}
		}
		m.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
		want, got := proto.Clone(m), m.ProtoReflect().New().Interface()
		move(got, m)
		require.True(t, proto.Equal(want, got), "%v, %v", want, got)
	}
}
