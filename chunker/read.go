package chunker

import (
	"bytes"
	"context"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Range implements pb.KVClient. A range goes through as it is, and where a
// manifest comes back its chunks are read from the same snapshot. A key that is
// known to be chunked is read with its chunks in one transaction, and one whose
// value is kept only as far as it has changed.
func (s *Stage) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	if err := s.checkRange(r); err != nil {
		return nil, err
	}
	all := format.Range{Key: r.Key, End: r.RangeEnd}
	var (
		known   *chunked
		rereads int
	)
	if all.Single() {
		known = s.cache.get(r.Key)
	}
	switch {
	case s.space.Meets(all):
	case known != nil && !r.KeysOnly && !r.CountOnly:
		if r.Revision == 0 && !filtered(r) {
			resp, err := s.readKnown(ctx, r, known)
			if !overtaken(err) {
				return resp, s.denied(ctx, asTxn(r), err)
			}
			rereads++
		}
	case sortsByValue(r):
		if resp, err := s.rangeUnchunked(ctx, r); resp != nil || err != nil {
			return resp, err
		}
	default:
		resp, err := s.inner.Range(ctx, r)
		if err != nil || r.KeysOnly {
			return resp, err
		}
		err = s.resolve(ctx, resp.Kvs, chunkPool{}, snapshotOf(r, resp))
		if err == nil {
			return resp, nil
		}
		if !overtaken(err) {
			return nil, s.denied(ctx, asTxn(r), err)
		}
		rereads++
	}
	w := newWrite(s, asTxn(r))
	w.rereads = rereads
	resp, err := w.run(ctx)
	if err != nil {
		return nil, err
	}
	found := resp.Responses[0].GetResponseRange()
	found.Header = resp.Header
	return found, nil
}

func asTxn(r *pb.RangeRequest) *pb.TxnRequest {
	return &pb.TxnRequest{Success: []*pb.RequestOp{wire.Range(r)}}
}

// snapshotOf returns where r found resp.
func snapshotOf(r *pb.RangeRequest, resp *pb.RangeResponse) snapshot {
	at := snapshot{revision: r.Revision, serializable: r.Serializable}
	if at.revision == 0 {
		at.revision = resp.Header.Revision
	}
	return at
}

func filtered(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

// readKnown reads a single key that was chunked when it was last seen, as
//
//	If    the key is as it was
//	Then  nothing, where its value is kept
//	Else  the manifest, and the chunks written since
//
// in one transaction that is not proposed. A chunk of the new value that was
// staged before the old one was committed is not among these, and is read
// afterwards.
func (s *Stage) readKnown(ctx context.Context, r *pb.RangeRequest, known *chunked) (*pb.RangeResponse, error) {
	chunks := chunkRequest(s.space.Chunks(format.Range{Key: r.Key}), 0, r.Serializable)
	read := &pb.TxnRequest{}
	src := format.Source{Stored: chunkPool{}}
	if known.value != nil {
		read.Compare = sameWrite(r.Key, known.meta.ModRevision, known.layout)
		chunks.MinModRevision = known.meta.ModRevision + 1
		read.Failure = []*pb.RequestOp{wire.Range(r), wire.Range(chunks)}
	} else {
		read.Success = []*pb.RequestOp{wire.Range(r), wire.Range(chunks)}
	}
	resp, err := s.inner.Txn(ctx, read)
	if err != nil {
		return nil, err
	}
	if known.value != nil {
		if resp.Succeeded {
			kv := proto.CloneOf(known.meta)
			kv.Value = bytes.Clone(known.value)
			return &pb.RangeResponse{Header: resp.Header, Kvs: []*mvccpb.KeyValue{kv}, Count: 1}, nil
		}
		src.Plain = known.layout.Pieces(known.value)
	}
	found := resp.Responses[0].GetResponseRange()
	found.Header = resp.Header
	chunkPool(src.Stored).add(resp.Responses[1].GetResponseRange().Kvs)
	if len(found.Kvs) == 0 || format.Plain(found.Kvs[0].Value) {
		s.cache.forget(r.Key, known.meta.ModRevision)
	}
	open, err := s.parseAll(found.Kvs)
	if err != nil {
		return nil, err
	}
	if err := s.complete(ctx, open, src, snapshotOf(r, found)); err != nil {
		return nil, err
	}
	for _, u := range open {
		s.cache.keep(newChunked(u.kv, u.layout), u.kv.Value)
	}
	return found, nil
}

// rangeUnchunked reads a range that is sorted by value, and returns nil where a
// value in it may be chunked. These are among the last in the order of stored
// values, so that the last one tells.
func (s *Stage) rangeUnchunked(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	last := part(r, r.Key, r.RangeEnd)
	last.SortOrder, last.Limit, last.KeysOnly = pb.RangeRequest_DESCEND, 1, false
	resp, err := s.inner.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{wire.Range(r), wire.Range(last)}})
	if err != nil {
		return nil, err
	}
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		if bytes.Compare(kv.Value, format.PlainBelow()) >= 0 {
			return nil, nil
		}
	}
	found := resp.Responses[0].GetResponseRange()
	found.Header = resp.Header
	return found, nil
}
