package chunker

import (
	"context"
	"io"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
//
// Until the first message is delivered a stream that was overtaken, its revision
// compacted, begins again.
func (s *Stage) RangeStream(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	if err := s.checkRange(r); err != nil {
		return nil, err
	}
	all := format.Range{Key: r.Key, End: r.RangeEnd}
	if !s.space.Meets(all) && (r.KeysOnly || r.CountOnly) {
		return s.inner.RangeStream(ctx, r)
	}
	st := &stream{stage: s, req: r, parts: s.space.Logical(all)}
	st.ctx, st.cancel = context.WithCancel(ctx)
	if err := st.begin(); err != nil {
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
	parts  []format.Range

	revision     int64 // that is read, 0 while the member chooses it
	serializable bool  // whether any member will do

	open      []format.Range // parts, the first of which is being received
	inner     grpc.ServerStreamingClient[pb.RangeStreamResponse]
	kvs       int64 // received
	count     int64 // of the parts before
	delivered bool  // whether there was a message
	begun     int
}

// begin begins with the first part.
func (st *stream) begin() error {
	st.begun++
	st.open, st.kvs, st.count = st.parts, 0, 0
	st.revision, st.serializable = st.req.Revision, st.req.Serializable
	if st.revision == 0 && !st.serializable {
		now, err := st.stage.inner.Range(st.ctx, &pb.RangeRequest{Key: st.req.Key, CountOnly: true})
		if err != nil {
			return err
		}
		st.revision = now.Header.Revision
	}
	return st.next()
}

// next opens the stream of a part. Once the limit is reached, parts are only
// counted.
func (st *stream) next() error {
	r := part(st.req, st.open[0].Key, st.open[0].End)
	r.Revision, r.Serializable = st.revision, st.serializable
	if r.Limit > 0 {
		if r.Limit -= st.kvs; r.Limit <= 0 {
			r.Limit, r.CountOnly = 0, true
		}
	}
	inner, err := st.stage.inner.RangeStream(st.ctx, r)
	if err == nil {
		st.inner = inner
	}
	return err
}

// Recv returns the next message with whole values. As etcd's, only the last one
// has a header and the count.
func (st *stream) Recv() (*pb.RangeStreamResponse, error) {
	resp, err := st.receive()
	for overtaken(err) && !st.delivered && st.req.Revision == 0 && st.begun < maxRereads {
		if err = st.begin(); err == nil {
			resp, err = st.receive()
		}
	}
	if err != nil {
		err = st.stage.denied(st.ctx, asTxn(st.req), err)
		st.cancel()
		return nil, err
	}
	st.delivered = true
	return resp, nil
}

func (st *stream) receive() (*pb.RangeStreamResponse, error) {
	resp, err := st.inner.Recv()
	for {
		switch {
		case err == io.EOF && len(st.open) > 1:
			st.open = st.open[1:]
		case wire.Is(err, rpctypes.ErrFutureRev) && st.serializable && st.req.Revision == 0:
			st.serializable = false // this member is behind the one that the part before came from
		case err != nil:
			return nil, err
		default:
			return resp, st.whole(resp.RangeResponse)
		}
		if err = st.next(); err == nil {
			resp, err = st.inner.Recv()
		}
	}
}

// whole makes a message what it would be in the stream of the whole range, with
// whole values.
func (st *stream) whole(found *pb.RangeResponse) error {
	st.kvs += int64(len(found.Kvs))
	if found.Header != nil { // the last message of its part
		if st.revision == 0 {
			st.revision = found.Header.Revision // and so that of the parts that follow
		}
		if st.req.Revision == 0 {
			found.Header.Revision = st.revision // as without a revision in the request
		}
		st.count += found.Count
		found.Count = st.count
		found.More = st.req.Limit > 0 && st.count > st.kvs && !st.req.CountOnly
		if len(st.open) > 1 {
			found.Header, found.Count, found.More = nil, 0, false
		}
	}
	if st.req.KeysOnly {
		return nil
	}
	at := snapshot{revision: st.revision, serializable: st.serializable}
	if at.revision == 0 {
		for _, kv := range found.Kvs {
			at.revision = max(at.revision, kv.ModRevision)
		}
	}
	return st.stage.resolve(st.ctx, found.Kvs, chunkPool{}, at)
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
