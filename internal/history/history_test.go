package history

import (
	"context"
	"testing"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// scripted answers every request with the next header, after it has done what
// happens in the meantime.
type scripted struct {
	pb.KVClient
	header    *pb.ResponseHeader
	meanwhile func()
}

func (s *scripted) next() *pb.ResponseHeader {
	h := s.header
	if do := s.meanwhile; do != nil {
		s.meanwhile = nil
		do()
	}
	return h
}

func (s *scripted) Range(context.Context, *pb.RangeRequest, ...grpc.CallOption) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{Header: s.next()}, nil
}

func (s *scripted) Put(context.Context, *pb.PutRequest, ...grpc.CallOption) (*pb.PutResponse, error) {
	return &pb.PutResponse{Header: s.next()}, nil
}

func (s *scripted) DeleteRange(context.Context, *pb.DeleteRangeRequest, ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return &pb.DeleteRangeResponse{Header: s.next()}, nil
}

func (s *scripted) Txn(context.Context, *pb.TxnRequest, ...grpc.CallOption) (*pb.TxnResponse, error) {
	return &pb.TxnResponse{Header: s.next()}, nil
}

func (s *scripted) Compact(context.Context, *pb.CompactionRequest, ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return &pb.CompactionResponse{Header: s.next()}, nil
}

func TestRestarts(t *testing.T) {
	ctx := t.Context()
	local := &pb.RangeRequest{Serializable: true}
	for _, call := range []struct {
		name         string
		serializable bool
		do           func(pb.KVClient) error
	}{
		{"range", false, func(c pb.KVClient) error { _, err := c.Range(ctx, &pb.RangeRequest{}); return err }},
		{"put", false, func(c pb.KVClient) error { _, err := c.Put(ctx, &pb.PutRequest{}); return err }},
		{"delete", false, func(c pb.KVClient) error { _, err := c.DeleteRange(ctx, &pb.DeleteRangeRequest{}); return err }},
		{"compact", false, func(c pb.KVClient) error { _, err := c.Compact(ctx, &pb.CompactionRequest{}); return err }},
		{"txn", false, func(c pb.KVClient) error {
			_, err := c.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{wire.Put(&pb.PutRequest{})}})
			return err
		}},
		{"serializable range", true, func(c pb.KVClient) error { _, err := c.Range(ctx, local); return err }},
		{"serializable txn", true, func(c pb.KVClient) error {
			_, err := c.Txn(ctx, &pb.TxnRequest{Failure: []*pb.RequestOp{wire.Range(local)}})
			return err
		}},
		{"comparisons alone", true, func(c pb.KVClient) error { _, err := c.Txn(ctx, &pb.TxnRequest{}); return err }},
	} {
		t.Run(call.name, func(t *testing.T) {
			restarts := 0
			s := &scripted{}
			c := Over(s, func() { restarts++ })
			answer := func(cluster uint64, revision int64) {
				s.header = &pb.ResponseHeader{ClusterId: cluster, Revision: revision}
				require.NoError(t, call.do(c))
			}
			answer(1, 100)
			answer(1, 100)
			answer(1, 105)
			require.Zero(t, restarts)

			// A response that was overtaken by a later one.
			s.meanwhile = func() { answer(1, 110) }
			answer(1, 107)
			require.Zero(t, restarts)

			answer(1, 109)
			if call.serializable {
				require.Zero(t, restarts) // the member may be behind
			} else {
				require.Equal(t, 1, restarts)
				answer(1, 109)
				require.Equal(t, 1, restarts) // once it is known
			}

			restarts = 0
			answer(2, 300)
			require.Equal(t, 1, restarts)
			answer(2, 301)
			require.Equal(t, 1, restarts)
		})
	}
}
