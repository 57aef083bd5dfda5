package wire

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// recorder answers every request and remembers it.
type recorder struct {
	got  proto.Message
	err  error
	sent []*pb.RangeStreamResponse
}

func (r *recorder) Range(_ context.Context, in *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	r.got = in
	return &pb.RangeResponse{Count: 7}, r.err
}

func (r *recorder) Put(_ context.Context, in *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	r.got = in
	return &pb.PutResponse{}, r.err
}

func (r *recorder) DeleteRange(_ context.Context, in *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	r.got = in
	return &pb.DeleteRangeResponse{}, r.err
}

func (r *recorder) Txn(_ context.Context, in *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	r.got = in
	return &pb.TxnResponse{}, r.err
}

func (r *recorder) Compact(_ context.Context, in *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	r.got = in
	return &pb.CompactionResponse{}, r.err
}

func (r *recorder) RangeStream(ctx context.Context, in *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	r.got = in
	return &sender{ctx: ctx, r: r}, r.err
}

// sender is a stream of the recorder's messages.
type sender struct {
	grpc.ServerStreamingClient[pb.RangeStreamResponse]
	ctx context.Context
	r   *recorder
}

func (s *sender) Recv() (*pb.RangeStreamResponse, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	if len(s.r.sent) == 0 {
		return nil, io.EOF
	}
	m := s.r.sent[0]
	s.r.sent = s.r.sent[1:]
	return m, nil
}

// through sends a request to the adapter over a KV over the recorder, and returns
// what arrived.
func through(t *testing.T, m proto.Message) proto.Message {
	r := &recorder{}
	c := Client(clientv3.NewKVFromKVClient(r, nil))
	ctx := t.Context()
	var err error
	switch m := m.(type) {
	case *pb.RangeRequest:
		_, err = c.Range(ctx, m)
	case *pb.PutRequest:
		_, err = c.Put(ctx, m)
	case *pb.DeleteRangeRequest:
		_, err = c.DeleteRange(ctx, m)
	case *pb.TxnRequest:
		_, err = c.Txn(ctx, m)
	case *pb.CompactionRequest:
		_, err = c.Compact(ctx, m)
	}
	require.NoError(t, err)
	return r.got
}

// TestEveryFieldArrives sets each field of each request in turn, so that a field
// that a new version of etcd adds fails the test until it is mapped.
func TestEveryFieldArrives(t *testing.T) {
	for _, request := range []proto.Message{
		&pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("z")},
		&pb.PutRequest{Key: []byte("k")},
		&pb.DeleteRangeRequest{Key: []byte("k")},
		&pb.CompactionRequest{Revision: 1},
	} {
		fields := request.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			field := fields.Get(i)
			m := proto.Clone(request)
			m.ProtoReflect().Set(field, sample(t, field))
			require.True(t, proto.Equal(m, through(t, m)), "field %s: sent %v, arrived %v", field.FullName(), m, through(t, m))

			// In a transaction as well.
			var op *pb.RequestOp
			switch m := m.(type) {
			case *pb.RangeRequest:
				op = Range(m)
			case *pb.PutRequest:
				op = Put(m)
			case *pb.DeleteRangeRequest:
				op = DeleteRange(m)
			default:
				continue
			}
			nested := &pb.TxnRequest{Success: []*pb.RequestOp{op}, Failure: []*pb.RequestOp{op, op}}
			txn := &pb.TxnRequest{Success: []*pb.RequestOp{Txn(nested)}, Failure: []*pb.RequestOp{op}}
			require.True(t, proto.Equal(txn, through(t, txn)), "field %s in a transaction", field.FullName())
		}
	}
}

func sample(t *testing.T, field protoreflect.FieldDescriptor) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("sample"))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(42)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(2)
	}
	t.Fatalf("field %s has kind %v", field.FullName(), field.Kind())
	panic("unreachable")
}

func TestEveryComparisonArrives(t *testing.T) {
	for target := range pb.Compare_CompareTarget_name {
		for result := range pb.Compare_CompareResult_name {
			c := &pb.Compare{Key: []byte("k"), RangeEnd: []byte("l"), Target: pb.Compare_CompareTarget(target), Result: pb.Compare_CompareResult(result)}
			switch c.Target {
			case pb.Compare_VALUE:
				c.TargetUnion = &pb.Compare_Value{Value: []byte("v")}
			case pb.Compare_VERSION:
				c.TargetUnion = &pb.Compare_Version{Version: 1}
			case pb.Compare_CREATE:
				c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: 1}
			case pb.Compare_MOD:
				c.TargetUnion = &pb.Compare_ModRevision{ModRevision: 1}
			case pb.Compare_LEASE:
				c.TargetUnion = &pb.Compare_Lease{Lease: 1}
			}
			txn := &pb.TxnRequest{Compare: []*pb.Compare{c}, Success: []*pb.RequestOp{Txn(&pb.TxnRequest{Compare: []*pb.Compare{c}})}}
			require.True(t, proto.Equal(txn, through(t, txn)), "%v", c)
		}
	}
}

func TestUnknownOperationsAreRefused(t *testing.T) {
	r := &recorder{}
	c := Client(clientv3.NewKVFromKVClient(r, nil))
	unknown := &pb.RequestOp{}
	for _, txn := range []*pb.TxnRequest{
		{Success: []*pb.RequestOp{unknown}},
		{Failure: []*pb.RequestOp{unknown}},
		{Success: []*pb.RequestOp{Txn(&pb.TxnRequest{Success: []*pb.RequestOp{unknown}})}},
		{Success: []*pb.RequestOp{Txn(&pb.TxnRequest{Failure: []*pb.RequestOp{unknown}})}},
	} {
		_, err := c.Txn(t.Context(), txn)
		require.ErrorIs(t, err, ErrUnknownRequest)
	}
	require.Nil(t, r.got)
}

func TestErrorsPassThrough(t *testing.T) {
	boom := errors.New("boom")
	c := Client(clientv3.NewKVFromKVClient(&recorder{err: boom}, nil))
	ctx := t.Context()
	_, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("k")})
	require.Equal(t, boom, err)
	_, err = c.Put(ctx, &pb.PutRequest{Key: []byte("k")})
	require.Equal(t, boom, err)
	_, err = c.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k")})
	require.Equal(t, boom, err)
	_, err = c.Txn(ctx, &pb.TxnRequest{})
	require.Equal(t, boom, err)
	_, err = c.Compact(ctx, &pb.CompactionRequest{})
	require.Equal(t, boom, err)
	_, err = c.RangeStream(ctx, &pb.RangeRequest{Key: []byte("k")})
	require.Equal(t, boom, err)
}

func messages(n int) []*pb.RangeStreamResponse {
	ms := make([]*pb.RangeStreamResponse, n)
	for i := range ms {
		ms[i] = &pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Count: int64(i)}}
	}
	return ms
}

func TestStreamsArrive(t *testing.T) {
	for _, recvMsg := range []bool{false, true} {
		c := Client(clientv3.NewKVFromKVClient(&recorder{sent: messages(5)}, nil))
		s, err := c.RangeStream(t.Context(), &pb.RangeRequest{Key: []byte("k"), Limit: 3})
		require.NoError(t, err)
		for i := range 5 {
			m := &pb.RangeStreamResponse{}
			if recvMsg {
				err = s.RecvMsg(m)
			} else {
				m, err = s.Recv()
			}
			require.NoError(t, err)
			require.EqualValues(t, i, m.RangeResponse.Count)
		}
		_, err = s.Recv()
		require.Equal(t, io.EOF, err)
	}
}

// TestAnAbandonedStreamEnds sees that nobody waits for a reader that has gone.
func TestAnAbandonedStreamEnds(t *testing.T) {
	kv := &endless{done: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	s, err := Client(kv).RangeStream(ctx, &pb.RangeRequest{Key: []byte("k")})
	require.NoError(t, err)
	_, err = s.Recv()
	require.NoError(t, err)
	cancel()
	<-kv.done
	_, err = s.Recv()
	require.Equal(t, context.Canceled, err)

	kv = &endless{done: make(chan struct{})}
	s, err = Client(kv).RangeStream(t.Context(), &pb.RangeRequest{Key: []byte("k")})
	require.NoError(t, err)
	require.NoError(t, s.CloseSend())
	<-kv.done
}

// endless is a KV whose stream, as that of etcd's client, waits for its reader
// whatever has become of the context, and ends with it.
type endless struct {
	clientv3.KV
	done chan struct{}
}

func (e *endless) GetStream(ctx context.Context, _ string, _ ...clientv3.OpOption) (clientv3.GetStreamChan, error) {
	ch := make(chan clientv3.RangeStreamResponse)
	go func() {
		defer close(e.done)
		defer close(ch)
		for ctx.Err() == nil {
			ch <- clientv3.RangeStreamResponse{RangeResponse: &pb.RangeResponse{}}
		}
		ch <- clientv3.RangeStreamResponse{} // as the error of a context is sent
	}()
	return ch, nil
}

func TestProposalBytes(t *testing.T) {
	put := &pb.PutRequest{Key: []byte("key"), Value: make([]byte, 1000), Lease: 5}
	// Header of 14 bytes, tag and length of the put: evidence of what a server
	// proposes is in the tests of the cluster, this is the arithmetic.
	require.Equal(t, 14+1+2+proto.Size(put), ProposalBytes(put))
	require.Positive(t, ProposalBytes(&pb.DeleteRangeRequest{Key: []byte("k")}))
	txn := &pb.TxnRequest{Success: []*pb.RequestOp{Put(put)}}
	require.Greater(t, ProposalBytes(txn), ProposalBytes(put))
}

// TestProposalBytesIsMarshalled compares with the message that a server marshals, where
// lengths take more bytes.
func TestProposalBytesIsMarshalled(t *testing.T) {
	for _, n := range []int{0, 1, 100, 124, 126, 128, 16_370, 16_380, 16_390, 2_097_140, 2_097_160} {
		put := &pb.PutRequest{Key: []byte("key"), Value: make([]byte, n), Lease: 5}
		del := &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: make([]byte, n)}
		txn := &pb.TxnRequest{Success: []*pb.RequestOp{Put(put), DeleteRange(del)}}
		for r, p := range map[proto.Message]*pb.InternalRaftRequest{put: {Put: put}, del: {DeleteRange: del}, txn: {Txn: txn}} {
			p.Header = &pb.RequestHeader{ID: 1<<64 - 1}
			bytes, err := proto.Marshal(p)
			require.NoError(t, err)
			require.Equal(t, len(bytes), ProposalBytes(r))
			require.Zero(t, testing.AllocsPerRun(10, func() { ProposalBytes(r) }))
		}
	}
}

func TestWritesIsWhatTheServerProposes(t *testing.T) {
	get := Range(&pb.RangeRequest{Key: []byte("k")})
	put := Put(&pb.PutRequest{Key: []byte("k")})
	for _, c := range []struct {
		txn  *pb.TxnRequest
		want bool
	}{
		{&pb.TxnRequest{}, false},
		{&pb.TxnRequest{Success: []*pb.RequestOp{get}, Failure: []*pb.RequestOp{get}}, false},
		{&pb.TxnRequest{Success: []*pb.RequestOp{get, put}}, true},
		{&pb.TxnRequest{Failure: []*pb.RequestOp{DeleteRange(&pb.DeleteRangeRequest{})}}, true},
		{&pb.TxnRequest{Success: []*pb.RequestOp{Txn(&pb.TxnRequest{})}}, true},
	} {
		require.Equal(t, c.want, Writes(c.txn), "%v", c.txn)
	}
}
