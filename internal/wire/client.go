// Package wire turns a clientv3.KV back into the wire interface that it was
// made from, pb.KVClient, which is what kvwrap's stages are middleware over.
//
// clientv3.NewKVFromKVClient goes the other way. Together they let a stage see
// every option of a call as a field of a request, and still sit on top of any
// KV: a namespaced one, a leasing one, or the client's own.
package wire

import (
	"context"
	"errors"
	"fmt"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// ErrUnknownRequest is in the error for a request, or a part of one, that this
// version of kvwrap does not know. It is refused rather than passed on, because
// it could read or write what the stages would have shaped.
var ErrUnknownRequest = errors.New("kvwrap: unknown request")

// Client returns kv as a pb.KVClient, nil where it is nil. Call options are ignored: they
// belong to the connection below kv. Errors are those of kv, as they are.
func Client(kv clientv3.KV) pb.KVClient {
	if kv == nil {
		return nil
	}
	return client{kv}
}

// client implements every method by name, so that a new one in pb.KVClient
// breaks the build.
type client struct{ kv clientv3.KV }

var _ pb.KVClient = client{}

func (c client) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	resp, err := c.kv.Do(ctx, rangeOp(r))
	if err != nil {
		return nil, err
	}
	return (*pb.RangeResponse)(resp.Get()), nil
}

func (c client) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	resp, err := c.kv.Do(ctx, putOp(r))
	if err != nil {
		return nil, err
	}
	return (*pb.PutResponse)(resp.Put()), nil
}

func (c client) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	resp, err := c.kv.Do(ctx, deleteOp(r))
	if err != nil {
		return nil, err
	}
	return (*pb.DeleteRangeResponse)(resp.Del()), nil
}

func (c client) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	success, err := operations(r.Success)
	if err != nil {
		return nil, err
	}
	failure, err := operations(r.Failure)
	if err != nil {
		return nil, err
	}
	resp, err := c.kv.Txn(ctx).If(compares(r.Compare)...).Then(success...).Else(failure...).Commit()
	if err != nil {
		return nil, err
	}
	return (*pb.TxnResponse)(resp), nil
}

func (c client) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	var opts []clientv3.CompactOption
	if r.Physical {
		opts = append(opts, clientv3.WithCompactPhysical())
	}
	resp, err := c.kv.Compact(ctx, r.Revision, opts...)
	if err != nil {
		return nil, err
	}
	return (*pb.CompactionResponse)(resp), nil
}

// RangeStream returns a stream over the channel of kv.GetStream. The sender of
// that channel ends only when somebody reads it to its end, so the stream does
// that by itself when its context ends. Where the server has no streams, one before 3.7, or
// kv has none, as etcd's namespaces, it is read in pages.
func (c client) RangeStream(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	key, opts := rangeOptions(r)
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	responses, err := c.kv.GetStream(ctx, key, opts...)
	if err != nil {
		cancel()
		if streamable(r) && status.Code(err) == codes.Unimplemented { // by what kv is, a namespace
			return newPages(outer, c, r), nil
		}
		return nil, err
	}
	s := &stream{ctx: ctx, cancel: cancel, responses: responses}
	context.AfterFunc(ctx, func() {
		for range responses {
		}
	})
	if !streamable(r) {
		return s, nil
	}
	return &fallback{ServerStreamingClient: s, ctx: outer, c: c, req: r}, nil
}

type stream struct {
	ctx       context.Context
	cancel    context.CancelFunc
	responses clientv3.GetStreamChan
}

func (s *stream) Recv() (*pb.RangeStreamResponse, error) {
	resp, ok := <-s.responses
	if err := s.ctx.Err(); err != nil {
		return nil, err // the end of the channel may not be that of the stream
	}
	if !ok {
		s.cancel()
		return nil, io.EOF
	}
	if err := resp.Err(); err != nil {
		s.cancel()
		return nil, err
	}
	return &pb.RangeStreamResponse{RangeResponse: resp.RangeResponse}, nil
}

// CloseSend ends the stream.
func (s *stream) CloseSend() error {
	s.cancel()
	return nil
}

func (s *stream) Context() context.Context     { return s.ctx }
func (s *stream) Header() (metadata.MD, error) { return nil, nil }
func (s *stream) Trailer() metadata.MD         { return nil }

// SendMsg refuses: the one request of the stream was sent when it was made.
func (s *stream) SendMsg(m any) error { return errOneRequest(m) }

func errOneRequest(m any) error {
	return fmt.Errorf("%w: %T on a stream of one request", ErrUnknownRequest, m)
}

// RecvMsg is Recv into m.
func (s *stream) RecvMsg(m any) error { return RecvMsg(s, m) }

// RecvMsg receives the next message of s into m, a *pb.RangeStreamResponse.
func RecvMsg(s grpc.ServerStreamingClient[pb.RangeStreamResponse], m any) error {
	into, ok := m.(*pb.RangeStreamResponse)
	if !ok {
		return fmt.Errorf("%w: a range stream has no message %T", ErrUnknownRequest, m)
	}
	resp, err := s.Recv()
	if err != nil {
		return err
	}
	into.RangeResponse = resp.RangeResponse
	return nil
}

func rangeOp(r *pb.RangeRequest) clientv3.Op {
	key, opts := rangeOptions(r)
	return clientv3.OpGet(key, opts...)
}

func rangeOptions(r *pb.RangeRequest) (key string, opts []clientv3.OpOption) {
	opts = make([]clientv3.OpOption, 0, 4)
	add := func(set bool, opt clientv3.OpOption) {
		if set {
			opts = append(opts, opt)
		}
	}
	add(len(r.RangeEnd) > 0, clientv3.WithRange(string(r.RangeEnd)))
	add(r.Limit != 0, clientv3.WithLimit(r.Limit))
	add(r.Revision != 0, clientv3.WithRev(r.Revision))
	add(r.SortOrder != 0 || r.SortTarget != 0, clientv3.WithSort(clientv3.SortTarget(r.SortTarget), clientv3.SortOrder(r.SortOrder)))
	add(r.Serializable, clientv3.WithSerializable())
	add(r.KeysOnly, clientv3.WithKeysOnly())
	add(r.CountOnly, clientv3.WithCountOnly())
	add(r.MinModRevision != 0, clientv3.WithMinModRev(r.MinModRevision))
	add(r.MaxModRevision != 0, clientv3.WithMaxModRev(r.MaxModRevision))
	add(r.MinCreateRevision != 0, clientv3.WithMinCreateRev(r.MinCreateRevision))
	add(r.MaxCreateRevision != 0, clientv3.WithMaxCreateRev(r.MaxCreateRevision))
	return string(r.Key), opts
}

func putOp(r *pb.PutRequest) clientv3.Op {
	opts := make([]clientv3.OpOption, 0, 2)
	if r.Lease != 0 {
		opts = append(opts, clientv3.WithLease(clientv3.LeaseID(r.Lease)))
	}
	if r.PrevKv {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if r.IgnoreValue {
		opts = append(opts, clientv3.WithIgnoreValue())
	}
	if r.IgnoreLease {
		opts = append(opts, clientv3.WithIgnoreLease())
	}
	op := clientv3.OpPut("", "", opts...)
	op.WithKeyBytes(r.Key) // key and value without a copy through strings
	op.WithValueBytes(r.Value)
	return op
}

func deleteOp(r *pb.DeleteRangeRequest) clientv3.Op {
	var opts []clientv3.OpOption
	if len(r.RangeEnd) > 0 {
		opts = append(opts, clientv3.WithRange(string(r.RangeEnd)))
	}
	if r.PrevKv {
		opts = append(opts, clientv3.WithPrevKV())
	}
	return clientv3.OpDelete(string(r.Key), opts...)
}

func operations(requests []*pb.RequestOp) ([]clientv3.Op, error) {
	ops := make([]clientv3.Op, len(requests))
	for i, r := range requests {
		switch r := r.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			ops[i] = rangeOp(r.RequestRange)
		case *pb.RequestOp_RequestPut:
			ops[i] = putOp(r.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			ops[i] = deleteOp(r.RequestDeleteRange)
		case *pb.RequestOp_RequestTxn:
			success, err := operations(r.RequestTxn.Success)
			if err != nil {
				return nil, err
			}
			failure, err := operations(r.RequestTxn.Failure)
			if err != nil {
				return nil, err
			}
			ops[i] = clientv3.OpTxn(compares(r.RequestTxn.Compare), success, failure)
		default:
			return nil, fmt.Errorf("%w: operation %T in a transaction", ErrUnknownRequest, r)
		}
	}
	return ops, nil
}

func compares(cs []*pb.Compare) []clientv3.Cmp {
	cmps := make([]clientv3.Cmp, len(cs))
	for i, c := range cs {
		cmps[i] = clientv3.FromCompare(c)
	}
	return cmps
}
