package shaper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// answers is a pb.KVClient that answers each request in the same way, at once.
type answers struct {
	put       pb.PutResponse
	del       pb.DeleteRangeResponse
	txn       pb.TxnResponse
	get       pb.RangeResponse
	compacted pb.CompactionResponse
	err       error
}

func (a *answers) Put(context.Context, *pb.PutRequest, ...grpc.CallOption) (*pb.PutResponse, error) {
	return &a.put, a.err
}

func (a *answers) DeleteRange(context.Context, *pb.DeleteRangeRequest, ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return &a.del, a.err
}

func (a *answers) Txn(context.Context, *pb.TxnRequest, ...grpc.CallOption) (*pb.TxnResponse, error) {
	return &a.txn, a.err
}

func (a *answers) Range(context.Context, *pb.RangeRequest, ...grpc.CallOption) (*pb.RangeResponse, error) {
	return &a.get, a.err
}

func (a *answers) Compact(context.Context, *pb.CompactionRequest, ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return &a.compacted, a.err
}

func (a *answers) RangeStream(context.Context, *pb.RangeRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	return &parts{get: &a.get}, a.err
}

// parts is a stream of one part.
type parts struct {
	grpc.ServerStreamingClient[pb.RangeStreamResponse]
	get *pb.RangeResponse
}

func (p *parts) Recv() (*pb.RangeStreamResponse, error) {
	if p.get == nil {
		return nil, io.EOF
	}
	get := p.get
	p.get = nil
	return &pb.RangeStreamResponse{RangeResponse: get}, nil
}

// manyPuts returns puts of a thousand prefixes, more than are followed.
func manyPuts() (puts []*pb.PutRequest) {
	for i := range 1 << 12 {
		puts = append(puts, &pb.PutRequest{
			Key:   fmt.Appendf(nil, "/kafscale/topics-%d/orders/partitions/%d/next_offset", i%1000, i),
			Value: []byte(strings.Repeat("7", 20+i%100)),
		})
	}
	return puts
}

// txnOf returns a transaction of all puts, and the answer to it.
func txnOf(puts []*pb.PutRequest) (*pb.TxnRequest, *pb.TxnResponse) {
	r, resp := &pb.TxnRequest{}, &pb.TxnResponse{Succeeded: true}
	for _, p := range puts {
		r.Success = append(r.Success, wire.Put(p))
		resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}})
	}
	return r, resp
}

var fiveRules = []string{"/registry/", "/kafscale/consumers/", "/kafscale/topics", "/statuses/", "/leaders/"}

// BenchmarkMeter is what a stage takes for a request, over one that answers at once.
func BenchmarkMeter(b *testing.B) {
	puts := manyPuts()
	newStage := func(b *testing.B, a *answers) *Stage {
		m, err := NewMeter(MeterConfig{Rules: fiveRules})
		require.NoError(b, err)
		for _, p := range puts {
			m.Observe(p)
		}
		b.ReportAllocs()
		return m.Stage(a)
	}
	ctx := context.Background()
	b.Run("Put", func(b *testing.B) {
		s := newStage(b, &answers{})
		for i := 0; b.Loop(); i++ {
			s.Put(ctx, puts[i%len(puts)])
		}
	})
	b.Run("Put/parallel", func(b *testing.B) {
		s := newStage(b, &answers{})
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				s.Put(ctx, puts[i%len(puts)])
			}
		})
	})
	b.Run("Put/one-key/parallel", func(b *testing.B) {
		s := newStage(b, &answers{})
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				s.Put(ctx, puts[0])
			}
		})
	})
	b.Run("Put/failed", func(b *testing.B) {
		s := newStage(b, &answers{err: errors.New("no answer")})
		for i := 0; b.Loop(); i++ {
			s.Put(ctx, puts[i%len(puts)])
		}
	})
	b.Run("Txn/ops=100", func(b *testing.B) {
		r, resp := txnOf(puts[:100])
		s := newStage(b, &answers{txn: pb.TxnResponse{Succeeded: true, Responses: resp.Responses}})
		for b.Loop() {
			s.Txn(ctx, r)
		}
	})
	b.Run("Range", func(b *testing.B) {
		s := newStage(b, &answers{get: pb.RangeResponse{Kvs: []*mvccpb.KeyValue{{Key: []byte("k"), Value: []byte("v")}}}})
		r := &pb.RangeRequest{Key: []byte("k")}
		for b.Loop() {
			s.Range(ctx, r)
		}
	})
	b.Run("turn", func(b *testing.B) { // what a request in a new slot takes more
		s := newStage(b, &answers{})
		for now := s.meter.now(); b.Loop(); {
			now += s.meter.slot
			s.meter.turn(now)
		}
	})
	b.Run("Traffic", func(b *testing.B) {
		s := newStage(b, &answers{})
		for b.Loop() {
			s.meter.Traffic()
		}
	})
}
