package shaper

import (
	"context"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// Stage is a pb.KVClient that passes every request on as it is, and has a [Meter] count it
// when it has ended. It returns what the one below returns. It is safe for concurrent use.
type Stage struct {
	meter *Meter
	inner pb.KVClient
}

// Every method is implemented by name, so that a new one in pb.KVClient breaks the build.
var _ pb.KVClient = (*Stage)(nil)

// Stage returns a stage over inner. A meter may have several, and counts what passes any of
// them.
func (m *Meter) Stage(inner pb.KVClient) *Stage { return &Stage{meter: m, inner: inner} }

// Put implements pb.KVClient.
func (s *Stage) Put(ctx context.Context, r *pb.PutRequest, opts ...grpc.CallOption) (*pb.PutResponse, error) {
	resp, err := s.inner.Put(ctx, r, opts...)
	s.meter.put(s.meter.now(), r, err)
	return resp, err
}

// DeleteRange implements pb.KVClient.
func (s *Stage) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, opts ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	resp, err := s.inner.DeleteRange(ctx, r, opts...)
	s.meter.deleteRange(s.meter.now(), r, resp, err)
	return resp, err
}

// Txn implements pb.KVClient.
func (s *Stage) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	resp, err := s.inner.Txn(ctx, r, opts...)
	s.meter.txn(s.meter.now(), r, resp, err)
	return resp, err
}

// Range implements pb.KVClient.
func (s *Stage) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	resp, err := s.inner.Range(ctx, r, opts...)
	if err == nil {
		s.meter.read(s.meter.now(), 1, resp)
	}
	return resp, err
}

// RangeStream implements pb.KVClient. It counts as one range, and its bytes as they come.
func (s *Stage) RangeStream(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	inner, err := s.inner.RangeStream(ctx, r, opts...)
	if err != nil {
		return nil, err
	}
	s.meter.read(s.meter.now(), 1, nil)
	return stream{inner, s.meter}, nil
}

// Compact implements pb.KVClient.
func (s *Stage) Compact(ctx context.Context, r *pb.CompactionRequest, opts ...grpc.CallOption) (*pb.CompactionResponse, error) {
	resp, err := s.inner.Compact(ctx, r, opts...)
	if err == nil {
		s.meter.compacted(s.meter.now())
	}
	return resp, err
}

// stream counts what is received.
type stream struct {
	grpc.ServerStreamingClient[pb.RangeStreamResponse]
	meter *Meter
}

func (s stream) Recv() (*pb.RangeStreamResponse, error) {
	resp, err := s.ServerStreamingClient.Recv()
	if err == nil {
		s.meter.read(s.meter.now(), 0, resp.GetRangeResponse())
	}
	return resp, err
}

// RecvMsg is Recv into m.
func (s stream) RecvMsg(m any) error { return wire.RecvMsg(s, m) }
