package chunker

import (
	"context"
	"errors"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// state is what was found at a key.
type state struct {
	mod    int64            // ModRevision, 0 where there was nothing
	lease  int64            // of the key
	kv     *mvccpb.KeyValue // as stored; nil where nothing was, or where the cache remembered
	layout *format.Layout   // complete; nil where the value is not chunked, or its lists cannot be read

	// damaged is set where chunks of the value are known to be missing or altered,
	// so that another value cannot be built on them.
	damaged bool

	opaque error              // why it is not known which chunks the value names
	chunks []*mvccpb.KeyValue // keys of all chunks and anchors, where they were asked for
}

// evidence is what a write has found out about the store, and what its next
// attempt is guarded by.
type evidence struct {
	revision int64
	found    map[*pb.Compare][]*mvccpb.KeyValue // with logical values
	states   map[string]*state
	anchored map[*draft]bool // whose anchors are as they were made
}

// question is a part of the evidence: the ranges that answer it, and what to do
// with the keys found in them.
type question struct {
	ranges []*pb.RangeRequest
	answer func(ctx context.Context, e *evidence, found []*mvccpb.KeyValue) error
}

// compareQuestion asks for what a comparison looks at; one member, where that is
// enough for the transaction that it stands in.
func (s *Stage) compareQuestion(c *pb.Compare, serializable bool) question {
	q := question{answer: func(ctx context.Context, e *evidence, found []*mvccpb.KeyValue) error {
		e.found[c] = found
		if c.Target != pb.Compare_VALUE {
			return nil
		}
		return s.resolve(ctx, found, chunkPool{}, snapshot{revision: e.revision, serializable: serializable})
	}}
	for _, p := range s.space.Logical(compared(c)) {
		q.ranges = append(q.ranges, &pb.RangeRequest{
			Key: p.Key, RangeEnd: p.End, Serializable: serializable,
			// Keys alone come without their lease.
			KeysOnly: c.Target != pb.Compare_VALUE && c.Target != pb.Compare_LEASE,
		})
	}
	return q
}

// stateQuestion asks for what is stored at a key; and, where that is to be
// verified, whether its chunks are there. A key that was copied without them, or
// has lost some, would take a new value down with it.
func (s *Stage) stateQuestion(key []byte, verify bool) question {
	ranges := []*pb.RangeRequest{{Key: key}}
	if verify {
		chunks := chunkRequest(s.space.Chunks(format.Range{Key: key}), 0, false)
		chunks.KeysOnly = true
		ranges = append(ranges, chunks)
	}
	return question{
		ranges: ranges,
		answer: func(ctx context.Context, e *evidence, found []*mvccpb.KeyValue) error {
			st := &state{}
			e.states[string(key)] = st
			if st.chunks = found; len(found) == 0 || s.space.Reserved(found[0].Key) {
				return nil
			}
			kv := found[0]
			st.mod, st.lease, st.kv, st.chunks = kv.ModRevision, kv.Lease, kv, found[1:]
			if format.Plain(kv.Value) {
				return nil
			}
			_, layout, err := s.parse(kv, maxMaxValueBytes) // to write over it, it need not be read
			if layout != nil {
				layout, err = s.readLists(ctx, kv, layout, e.revision)
			}
			switch {
			case errors.Is(err, ErrDamaged), wire.Is(err, rpctypes.ErrCompacted), wire.Is(err, rpctypes.ErrFutureRev):
				// What cannot be read can be written over, and what has been
				// overwritten meanwhile will show at the commit.
				st.opaque = err
				return nil
			}
			st.layout = layout
			if verify && layout != nil {
				st.damaged = !allStored(layout, st.chunks)
			}
			return err
		},
	}
}

// allStored reports whether chunks are all that the layout names, and maybe more.
func allStored(l *format.Layout, chunks []*mvccpb.KeyValue) bool {
	stored := make(map[format.ID]bool, len(chunks))
	for _, kv := range chunks {
		if id, ok := format.ChunkID(kv.Key); ok {
			stored[id] = true
		}
	}
	for _, r := range l.All() {
		if !stored[r.ID] {
			return false
		}
	}
	return true
}

// anchorQuestion asks whether what d has staged is there.
func anchorQuestion(d *draft) question {
	q := question{answer: func(_ context.Context, e *evidence, found []*mvccpb.KeyValue) error {
		e.anchored[d] = d.proven(found)
		return nil
	}}
	for _, key := range d.proof() {
		q.ranges = append(q.ranges, &pb.RangeRequest{Key: key, KeysOnly: true})
	}
	return q
}

// readLists completes a layout by reading the lists of chunks that it refers to.
// It leaves the chunks of the value alone.
func (s *Stage) readLists(ctx context.Context, kv *mvccpb.KeyValue, l *format.Layout, revision int64) (*format.Layout, error) {
	pool := chunkPool{}
	for !l.Complete() {
		var ranges []*pb.RangeRequest
		for _, r := range l.Last() {
			ranges = append(ranges, &pb.RangeRequest{Key: s.space.ChunkKey(kv.Key, r.ID)})
		}
		resps, _, err := s.readAll(ctx, ranges, revision)
		if err != nil {
			return nil, err
		}
		for _, r := range resps {
			pool.add(r.Kvs)
		}
		if err := l.Read(pool.source()); err != nil {
			return nil, unreadable(kv.Key, kv.ModRevision, err)
		}
	}
	return l, nil
}

// ask reads the answers to all questions from one snapshot.
func (s *Stage) ask(ctx context.Context, questions []question) (*evidence, error) {
	var ranges []*pb.RangeRequest
	for _, q := range questions {
		ranges = append(ranges, q.ranges...)
	}
	resps, revision, err := s.readAll(ctx, ranges, 0)
	if err != nil {
		return nil, err
	}
	return answerAll(ctx, questions, resps, revision)
}

// readAll answers ranges from one snapshot, at the given revision or, where that
// is 0, at the current one, which it returns. It takes as few read-only
// transactions as the server's limit allows.
func (s *Stage) readAll(ctx context.Context, ranges []*pb.RangeRequest, revision int64) ([]*pb.RangeResponse, int64, error) {
	var resps []*pb.RangeResponse
	for len(resps) < len(ranges) {
		batch := ranges[len(resps):]
		batch = batch[:min(len(batch), int(s.limits.ops.Load()))]
		read := &pb.TxnRequest{}
		for _, r := range batch {
			r.Revision = revision
			read.Success = append(read.Success, wire.Range(r))
		}
		resp, err := s.inner.Txn(ctx, read)
		switch {
		case wire.Is(err, rpctypes.ErrTooManyOps) && len(batch) > 1:
			if err := s.limits.learnOps(ctx, s.inner, len(batch)); err != nil {
				return nil, 0, err
			}
			continue
		case err != nil:
			return nil, 0, err
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, r := range resp.Responses {
			resps = append(resps, r.GetResponseRange())
		}
	}
	return resps, revision, nil
}

// answerAll makes evidence of the answers to questions, which came at the given
// revision.
func answerAll(ctx context.Context, questions []question, resps []*pb.RangeResponse, revision int64) (*evidence, error) {
	e := &evidence{
		revision: revision,
		found:    make(map[*pb.Compare][]*mvccpb.KeyValue),
		states:   make(map[string]*state),
		anchored: make(map[*draft]bool),
	}
	for _, q := range questions {
		var found []*mvccpb.KeyValue
		for range q.ranges {
			found = append(found, resps[0].Kvs...)
			resps = resps[1:]
		}
		if err := q.answer(ctx, e, found); err != nil {
			return nil, err
		}
	}
	return e, nil
}
