package chunker

import (
	"context"
	"io"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// RangeStream implements pb.KVClient.
//
// The revision that a stream reads at is known only at its end, and the chunks of
// its manifests are wanted before. So the stream is told its revision, which a
// read of one key just before it has found. A serializable stream is not, since
// the next member may be behind the one that was read from; its chunks are looked
// for where its keys were last written, and then at the current revision.
func (s *Stage) RangeStream(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	if err := s.checkRange(r); err != nil {
		return nil, err
	}
	parts := s.space.Logical(format.Range{Key: r.Key, End: r.RangeEnd})
	if len(parts) == 1 && (r.KeysOnly || r.CountOnly) {
		return s.inner.RangeStream(ctx, r)
	}
	st := &stream{stage: s, req: r, parts: parts}
	if r.Revision == 0 && !r.Serializable {
		now, err := s.inner.Range(ctx, &pb.RangeRequest{Key: r.Key, CountOnly: true})
		if err != nil {
			return nil, err
		}
		st.pinned = now.Header.Revision
	}
	st.ctx, st.cancel = context.WithCancel(ctx)
	if err := st.open(); err != nil {
		st.cancel()
		return nil, err
	}
	return st, nil
}

// stream is a stream over the parts of a range, one stream of etcd's after the
// other. It has no goroutine: what is received is what is asked for.
type stream struct {
	stage  *Stage
	ctx    context.Context
	cancel context.CancelFunc
	req    *pb.RangeRequest
	pinned int64 // the revision that the request was given, 0 where it has its own or none

	parts []format.Range // the first of which is being received
	inner grpc.ServerStreamingClient[pb.RangeStreamResponse]
	kvs   int64 // received
	count int64 // of the parts before
}

// open begins with the first part. Once the limit is reached, parts are only
// counted.
func (st *stream) open() (err error) {
	r := part(st.req, st.parts[0].Key, st.parts[0].End)
	r.Revision = max(r.Revision, st.pinned)
	if r.Limit > 0 {
		if r.Limit -= st.kvs; r.Limit <= 0 {
			r.Limit, r.CountOnly = 0, true
		}
	}
	st.inner, err = st.stage.inner.RangeStream(st.ctx, r)
	return err
}

// Recv returns the next message with whole values. As etcd's, only the last one
// has a header and the count.
func (st *stream) Recv() (*pb.RangeStreamResponse, error) {
	resp, err := st.receive()
	if err != nil {
		st.cancel()
	}
	return resp, err
}

func (st *stream) receive() (*pb.RangeStreamResponse, error) {
	resp, err := st.inner.Recv()
	for err == io.EOF && len(st.parts) > 1 {
		st.parts = st.parts[1:]
		if err = st.open(); err == nil {
			resp, err = st.inner.Recv()
		}
	}
	if err != nil {
		return nil, err
	}
	found := resp.RangeResponse
	st.kvs += int64(len(found.Kvs))
	if found.Header != nil { // the last message of its part
		st.count += found.Count
		found.Count = st.count
		found.More = st.req.Limit > 0 && st.count > st.kvs
		if st.pinned != 0 {
			found.Header.Revision = st.pinned // as without the request's
		}
		if len(st.parts) > 1 {
			found.Header, found.Count, found.More = nil, 0, false
		}
	}
	if !st.req.KeysOnly {
		at := snapshot{revision: max(st.req.Revision, st.pinned), serializable: st.req.Serializable}
		if at.revision == 0 {
			for _, kv := range found.Kvs {
				at.revision = max(at.revision, kv.ModRevision)
			}
		}
		if err := st.stage.resolve(st.ctx, found.Kvs, chunkPool{}, at); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// CloseSend ends the stream.
func (st *stream) CloseSend() error {
	st.cancel()
	return st.inner.CloseSend()
}

func (st *stream) Context() context.Context     { return st.ctx }
func (st *stream) Header() (metadata.MD, error) { return st.inner.Header() }
func (st *stream) Trailer() metadata.MD         { return st.inner.Trailer() }
func (st *stream) SendMsg(m any) error          { return st.inner.SendMsg(m) }

// RecvMsg is Recv into m.
func (st *stream) RecvMsg(m any) error { return wire.RecvMsg(st, m) }
