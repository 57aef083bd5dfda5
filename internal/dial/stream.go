package dial

import (
	"context"
	"io"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

func (i *Interceptors) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	switch method {
	case pb.KV_RangeStream_FullMethodName, pb.Watch_Watch_FullMethodName:
	default:
		return streamer(ctx, desc, cc, method, opts...)
	}
	pass, err := passes(ctx)
	if err != nil {
		return nil, err
	}
	if pass || closed(cc) {
		return streamer(ctx, desc, cc, method, opts...)
	}
	c, err := i.of(cc, nil)
	if err != nil {
		return nil, err
	}
	c.conn.learn(opts)
	if method == pb.Watch_Watch_FullMethodName {
		return newWatchStream(ctx, c, func(ctx context.Context) (grpc.ClientStream, error) {
			return streamer(ctx, desc, cc, method, opts...)
		})
	}
	s := &rangeStream{kv: c.KV()}
	s.ctx, s.cancel = context.WithCancel(context.WithValue(ctx, callKey{}, call{streamer: streamer, opts: opts}))
	return s, nil
}

// rangeStream is a stream of the chain's, in place of the one over the wire. That begins
// when it is first received from.
type rangeStream struct {
	kv     pb.KVClient
	ctx    context.Context
	cancel context.CancelFunc
	req    *pb.RangeRequest

	begin sync.Once
	inner grpc.ServerStreamingClient[pb.RangeStreamResponse]
	err   error
}

func (s *rangeStream) SendMsg(m any) error {
	r, ok := m.(*pb.RangeRequest)
	if !ok {
		return unknown(m)
	}
	s.req = r
	return nil
}

func (s *rangeStream) RecvMsg(m any) error {
	into, ok := m.(*pb.RangeStreamResponse)
	if !ok {
		return unknown(m)
	}
	if s.req == nil {
		return unknown(s.req) // it was to be sent first
	}
	s.begin.Do(func() { s.inner, s.err = s.kv.RangeStream(s.ctx, s.req) })
	if s.err != nil {
		return s.end(s.err)
	}
	resp, err := s.inner.Recv()
	if err != nil {
		return s.end(err)
	}
	move(into, resp)
	return nil
}

func (s *rangeStream) end(err error) error {
	if err != io.EOF {
		err = overTheWire(s.ctx, err)
	}
	s.cancel()
	return err
}

func (s *rangeStream) Context() context.Context     { return s.ctx }
func (s *rangeStream) CloseSend() error             { return nil }
func (s *rangeStream) Header() (metadata.MD, error) { return nil, nil }
func (s *rangeStream) Trailer() metadata.MD         { return nil }
