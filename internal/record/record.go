// Package record measures what is sent to etcd: a stage to be put under the
// others.
package record

import (
	"context"
	"sync"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Stage passes every request on and counts it. It is safe for concurrent use.
type Stage struct {
	inner pb.KVClient

	mu     sync.Mutex
	counts Counts
}

var _ pb.KVClient = (*Stage)(nil)

// Counts is what was sent since the last [Stage.Take].
type Counts struct {
	Requests      int   // of all kinds: round trips, but for those that overlap
	Proposals     []int // the size of the raft entry of each write, in bytes
	ResponseBytes int   // of reads and transactions, marshalled
}

// ProposedBytes returns the sum of the proposals.
func (c Counts) ProposedBytes() (sum int) {
	for _, n := range c.Proposals {
		sum += n
	}
	return sum
}

// Largest returns the largest proposal, 0 where there was none.
func (c Counts) Largest() (most int) {
	for _, n := range c.Proposals {
		most = max(most, n)
	}
	return most
}

// Over returns a stage over inner.
func Over(inner pb.KVClient) *Stage { return &Stage{inner: inner} }

// Take returns the counts and begins anew.
func (s *Stage) Take() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts
	s.counts = Counts{}
	return c
}

// wrote counts a request that is proposed; before it is sent, since who sent it
// may not wait for the answer.
func (s *Stage) wrote(r proto.Message) {
	n := wire.ProposalBytes(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Requests++
	s.counts.Proposals = append(s.counts.Proposals, n)
}

// read counts a request that is not proposed, with its response.
func (s *Stage) read(resp proto.Message) {
	s.mu.Lock()
	s.counts.Requests++
	s.mu.Unlock()
	s.answered(resp)
}

func (s *Stage) answered(resp proto.Message) {
	n := proto.Size(resp)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.ResponseBytes += n
}

// Range implements pb.KVClient.
func (s *Stage) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	resp, err := s.inner.Range(ctx, r, opts...)
	s.read(resp)
	return resp, err
}

// RangeStream implements pb.KVClient. It counts as one request, without its
// responses.
func (s *Stage) RangeStream(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	s.read(nil)
	return s.inner.RangeStream(ctx, r, opts...)
}

// Put implements pb.KVClient.
func (s *Stage) Put(ctx context.Context, r *pb.PutRequest, opts ...grpc.CallOption) (*pb.PutResponse, error) {
	s.wrote(r)
	return s.inner.Put(ctx, r, opts...)
}

// DeleteRange implements pb.KVClient.
func (s *Stage) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, opts ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	s.wrote(r)
	return s.inner.DeleteRange(ctx, r, opts...)
}

// Txn implements pb.KVClient.
func (s *Stage) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if wire.Writes(r) {
		s.wrote(r)
		resp, err := s.inner.Txn(ctx, r, opts...)
		s.answered(resp)
		return resp, err
	}
	resp, err := s.inner.Txn(ctx, r, opts...)
	s.read(resp)
	return resp, err
}

// Compact implements pb.KVClient. A compaction is proposed, but is no write.
func (s *Stage) Compact(ctx context.Context, r *pb.CompactionRequest, opts ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return s.inner.Compact(ctx, r, opts...)
}
