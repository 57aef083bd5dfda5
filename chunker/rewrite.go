package chunker

import (
	"math"
	"slices"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// rewriter turns the operations of the application into those that etcd is sent.
// An operation becomes one or a few, in its place:
//
//	Range        a range below and one above the reserved prefix, where it
//	             covers that; the range of the chunks of a single key that is
//	             known to have some, or has them deleted in the same transaction
//	Put          first the range of the old value's chunks, where it or a range
//	             of the same transaction returns that; the put, of a manifest
//	             where the value was drafted; what the commit adds
//	DeleteRange  first the ranges of the chunks, likewise; the delete; the delete
//	             of the chunks
//	Txn          the same for its operations
//
// It is pure: what it has to know stands in its fields.
type rewriter struct {
	space    format.Keyspace
	known    func(key []byte) bool             // likely to be chunked
	decided  decisions                         // the one branch of transactions that is sent, without comparisons
	drafts   []*draft                          // puts of manifests
	anchored bool                              // whether the drafts' chunks are staged
	instead  map[*pb.PutRequest]*pb.PutRequest // puts that take the place of others
	unlinks  []format.Range                    // keys whose chunks may be deleted
	ranges   []format.Range                    // of many keys, whose values are read
	whole    bool                              // range chunks with every single key
	grouped  bool                              // pack operations into nested transactions
	bare     bool                              // let chunks be, to save operations
}

// narrow makes the rewriter's next transaction narrower, and reports whether it
// can. Operations are packed into nested transactions, but last where it only
// reads: those make it a proposal. Operations on chunks are left out; what was to
// be read can be read afterwards, and what was to be deleted stays for the sweep.
func (rw *rewriter) narrow(writes bool) bool {
	switch {
	case !rw.grouped && (writes || rw.whole || rw.bare):
		rw.grouped = true
	case !rw.bare:
		rw.bare = true
	default:
		return false
	}
	return true
}

// answer collects what etcd answered to one transaction until it can be told to
// the application.
type answer struct {
	chunks    chunkPool
	reads     []read           // whose values may have to be put together
	committed []*pb.PutRequest // of drafts
	written   [][]byte         // keys
	finish    []func()         // what is left to do once values are whole
}

// branch is one branch of a rewritten transaction: the operations to send, and
// fold, which takes etcd's answers to them back into answers to the
// application's operations.
type branch struct {
	ops  []*pb.RequestOp
	fold func(a *answer, resps []*pb.ResponseOp) []*pb.ResponseOp
}

// step is a branch made of one operation.
type step struct {
	ops  []*pb.RequestOp
	fold func(a *answer, resps []*pb.ResponseOp) *pb.ResponseOp
}

// branch rewrites the operations of one branch, beside a given number of
// comparisons, and appends a tail of which nobody wants to know the outcome.
func (rw *rewriter) branch(in []*pb.RequestOp, compares int, tail ...*pb.RequestOp) branch {
	steps := make([]step, len(in))
	var out []*pb.RequestOp
	for i, op := range in {
		steps[i] = rw.step(op)
		out = append(out, steps[i].ops...)
	}
	out = append(out, tail...)
	b := branch{ops: out, fold: func(a *answer, resps []*pb.ResponseOp) []*pb.ResponseOp {
		folded := make([]*pb.ResponseOp, len(steps))
		for i, s := range steps {
			folded[i] = s.fold(a, resps[:len(s.ops)])
			resps = resps[len(s.ops):]
		}
		return folded
	}}
	if rw.grouped {
		return b.group(compares)
	}
	return b
}

// group packs the operations into nested transactions without comparisons, so
// that more of them fit: the server counts the operations of each level, and a
// nested transaction may have what its parent leaves. About as many groups as
// operations in one keep the sum of both small, beside comparisons there may be
// as many groups as these for nothing.
func (b branch) group(compares int) branch {
	n := len(b.ops)
	if n < 4 {
		return b
	}
	groups := min(max(int(math.Ceil(math.Sqrt(float64(n)))), compares), n)
	size := (n + groups - 1) / groups
	if size == 1 {
		return b
	}
	var packed []*pb.RequestOp
	for rest := b.ops; len(rest) > 0; {
		k := min(size, len(rest))
		packed = append(packed, wire.Txn(&pb.TxnRequest{Success: rest[:k:k]}))
		rest = rest[k:]
	}
	return branch{ops: packed, fold: func(a *answer, resps []*pb.ResponseOp) []*pb.ResponseOp {
		flat := make([]*pb.ResponseOp, 0, n)
		for _, r := range resps {
			flat = append(flat, r.GetResponseTxn().Responses...)
		}
		return b.fold(a, flat)
	}}
}

func (rw *rewriter) step(op *pb.RequestOp) step {
	switch op := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return rw.rangeStep(op.RequestRange)
	case *pb.RequestOp_RequestPut:
		return rw.putStep(op.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return rw.deleteStep(op.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return rw.txnStep(op.RequestTxn)
	}
	panic("chunker: an operation that checkTxn let pass") // it does not
}

func (rw *rewriter) rangeStep(r *pb.RangeRequest) step {
	all := format.Range{Key: r.Key, End: r.RangeEnd}
	parts := rw.space.Logical(all)
	send, arranged := r, len(parts) > 1 && !r.CountOnly
	if sortsByValue(r) || arranged && (limitsFirst(r) || r.Limit == 0) {
		send, arranged = unsorted(r), true
	}
	var s step
	for _, p := range parts {
		s.ops = append(s.ops, wire.Range(part(send, p.Key, p.End)))
	}
	valued := readsValues(r)
	if valued && !rw.bare && all.Single() && (rw.whole || rw.known(r.Key) || rw.deletesChunks(r.Key)) {
		s.ops = append(s.ops, wire.Range(chunkRequest(rw.space.Chunks(all), r.Revision, r.Serializable)))
	}
	s.fold = func(a *answer, resps []*pb.ResponseOp) *pb.ResponseOp {
		found := make([]*pb.RangeResponse, len(parts))
		for i := range parts {
			found[i] = resps[i].GetResponseRange()
		}
		for _, chunks := range resps[len(parts):] {
			a.chunks.add(chunks.GetResponseRange().Kvs)
		}
		resp := concat(found)
		if valued {
			a.reads = append(a.reads, read{revision: r.Revision, kvs: resp.Kvs})
		}
		if arranged {
			a.finish = append(a.finish, func() { arrange(r, resp) })
		}
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: resp}}
	}
	return s
}

// readsValues reports whether the answer to r depends on values.
func readsValues(r *pb.RangeRequest) bool {
	return !r.CountOnly && (!r.KeysOnly || sortsByValue(r))
}

// deletesChunks reports whether the transaction deletes chunks of key, so that
// they have to be read inside it.
func (rw *rewriter) deletesChunks(key []byte) bool {
	for _, u := range rw.unlinks {
		if u.Contains(key) {
			return true
		}
	}
	return false
}

// beforeUnlink returns reads of the chunks that an operation is about to delete
// with the keys in u, as far as they are returned: by the operation, or by a range
// beside it.
func (rw *rewriter) beforeUnlink(u format.Range, prevKv bool) (reads []*pb.RequestOp) {
	switch {
	case rw.bare:
		return nil
	case prevKv:
		return []*pb.RequestOp{wire.Range(chunkRequest(rw.space.Chunks(u), 0, false))}
	}
	var parts []format.Range
	for _, r := range rw.ranges {
		if r.Overlaps(u) && !slices.ContainsFunc(parts, func(p format.Range) bool { return p.Covers(r.Intersect(u)) }) {
			parts = append(parts, r.Intersect(u))
		}
	}
	for _, p := range parts {
		reads = append(reads, wire.Range(chunkRequest(rw.space.Chunks(p), 0, false)))
	}
	return reads
}

func (rw *rewriter) putStep(p *pb.PutRequest) step {
	chunks := rw.space.Chunks(putKey(p))
	d := rw.draftOf(p)
	var s step
	if p.PrevKv || rw.unlinksChunks(p) {
		s.ops = rw.beforeUnlink(putKey(p), p.PrevKv)
	}
	at := len(s.ops)
	if d != nil {
		s.ops = append(s.ops, d.puts(rw.anchored)...)
	} else {
		send := p
		if other := rw.instead[p]; other != nil {
			send = other
		}
		s.ops = append(s.ops, wire.Put(storedPut(send)))
		if rw.unlinksOld(send) {
			s.ops = append(s.ops, wire.DeleteRange(&pb.DeleteRangeRequest{Key: chunks.Key, RangeEnd: chunks.End}))
		}
	}
	s.fold = func(a *answer, resps []*pb.ResponseOp) *pb.ResponseOp {
		for _, chunks := range resps[:at] {
			a.chunks.add(chunks.GetResponseRange().Kvs)
		}
		if prev := resps[at].GetResponsePut().PrevKv; prev != nil {
			a.reads = append(a.reads, read{kvs: []*mvccpb.KeyValue{prev}})
		}
		a.written = append(a.written, p.Key)
		if d != nil {
			a.committed = append(a.committed, p)
		}
		return resps[at]
	}
	return s
}

// cleanup returns deletes of what the drafts leave behind, up to a number of
// bytes, and whether that is all.
func (rw *rewriter) cleanup(bytes int) (ops []*pb.RequestOp, all bool) {
	if rw.bare {
		bytes = 0
	}
	all = true
	for _, d := range rw.drafts {
		some, clean := d.cleanup(&bytes)
		ops, all = append(ops, some...), all && clean
	}
	return ops, all
}

// draftOf returns the draft of the value of p, nil where p is sent as it is.
func (rw *rewriter) draftOf(p *pb.PutRequest) *draft {
	for _, d := range rw.drafts {
		if d.put == p {
			return d
		}
	}
	return nil
}

// unlinksOld reports whether a put of a plain value deletes the chunks of the old
// one: where there may well be some. IgnoreValue keeps the value, and so its
// chunks.
func (rw *rewriter) unlinksOld(p *pb.PutRequest) bool {
	return !rw.bare && !p.IgnoreValue && (p.PrevKv || rw.known(p.Key))
}

// unlinksChunks reports whether the commit of p deletes chunks of its key.
func (rw *rewriter) unlinksChunks(p *pb.PutRequest) bool {
	return rw.draftOf(p) != nil || rw.instead[p] != nil || rw.unlinksOld(p)
}

// note notes the keys whose chunks op deletes, and the ranges that it reads.
func (rw *rewriter) note(op *pb.RequestOp) {
	switch op := op.GetRequest().(type) {
	case *pb.RequestOp_RequestDeleteRange:
		rw.unlinks = append(rw.unlinks, deleted(op.RequestDeleteRange))
	case *pb.RequestOp_RequestPut:
		if rw.unlinksChunks(op.RequestPut) {
			rw.unlinks = append(rw.unlinks, putKey(op.RequestPut))
		}
	case *pb.RequestOp_RequestRange:
		if r := op.RequestRange; len(r.RangeEnd) > 0 && r.Revision == 0 && readsValues(r) {
			rw.ranges = append(rw.ranges, format.Range{Key: r.Key, End: r.RangeEnd})
		}
	}
}

// storedPut returns p as etcd is sent it: a value that could be taken for a
// manifest stands in an envelope.
func storedPut(p *pb.PutRequest) *pb.PutRequest {
	if format.Plain(p.Value) {
		return p
	}
	return &pb.PutRequest{
		Key: p.Key, Value: format.Literal(p.Value), Lease: p.Lease,
		PrevKv: p.PrevKv, IgnoreValue: p.IgnoreValue, IgnoreLease: p.IgnoreLease,
	}
}

func (rw *rewriter) deleteStep(d *pb.DeleteRangeRequest) step {
	all := deleted(d)
	chunks := rw.space.Chunks(all)
	parts := rw.space.Logical(all)
	s := step{ops: rw.beforeUnlink(all, d.PrevKv)}
	at := len(s.ops)
	for _, p := range parts {
		s.ops = append(s.ops, wire.DeleteRange(&pb.DeleteRangeRequest{Key: p.Key, RangeEnd: p.End, PrevKv: d.PrevKv}))
	}
	if !rw.bare && !rw.puts(all) {
		s.ops = append(s.ops, wire.DeleteRange(&pb.DeleteRangeRequest{Key: chunks.Key, RangeEnd: chunks.End}))
	}
	s.fold = func(a *answer, resps []*pb.ResponseOp) *pb.ResponseOp {
		for _, chunks := range resps[:at] {
			a.chunks.add(chunks.GetResponseRange().Kvs)
		}
		all := resps[at].GetResponseDeleteRange()
		for _, r := range resps[at+1 : at+len(parts)] {
			r := r.GetResponseDeleteRange()
			all.Deleted += r.Deleted
			all.PrevKvs = append(all.PrevKvs, r.PrevKvs...)
			all.Header = r.Header
		}
		a.reads = append(a.reads, read{kvs: all.PrevKvs})
		a.written = append(a.written, d.Key)
		for _, kv := range all.PrevKvs {
			a.written = append(a.written, kv.Key)
		}
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: all}}
	}
	return s
}

// puts reports whether a manifest is put at a key in r. etcd refuses most
// transactions that delete and put a key, but not all, for instance not after a
// delete from a key on. The chunks of the deleted value then stay for the sweep,
// because those of the new one stand beside them.
func (rw *rewriter) puts(r format.Range) bool {
	for _, d := range rw.drafts {
		if r.Contains(d.Key) {
			return true
		}
	}
	return false
}

func (rw *rewriter) txnStep(t *pb.TxnRequest) step {
	r, fold := rw.txn(t)
	return step{
		ops: []*pb.RequestOp{wire.Txn(r)},
		fold: func(a *answer, resps []*pb.ResponseOp) *pb.ResponseOp {
			return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: fold(a, resps[0].GetResponseTxn())}}
		},
	}
}

// txn rewrites a transaction with its comparisons, or to the one branch that was
// decided on.
func (rw *rewriter) txn(t *pb.TxnRequest) (*pb.TxnRequest, func(*answer, *pb.TxnResponse) *pb.TxnResponse) {
	folded := func(succeeded bool, b branch) func(*answer, *pb.TxnResponse) *pb.TxnResponse {
		return func(a *answer, resp *pb.TxnResponse) *pb.TxnResponse {
			return &pb.TxnResponse{Header: resp.Header, Succeeded: succeeded, Responses: b.fold(a, resp.Responses)}
		}
	}
	if succeeded, ok := rw.decided[t]; ok {
		b := rw.branch(taken(t, succeeded), 0)
		return &pb.TxnRequest{Success: b.ops}, folded(succeeded, b)
	}
	success := rw.branch(t.Success, len(t.Compare))
	failure := rw.branch(t.Failure, len(t.Compare))
	r := &pb.TxnRequest{Compare: t.Compare, Success: success.ops, Failure: failure.ops}
	return r, func(a *answer, resp *pb.TxnResponse) *pb.TxnResponse {
		if resp.Succeeded {
			return folded(true, success)(a, resp)
		}
		return folded(false, failure)(a, resp)
	}
}

// taken returns the branch that runs.
func taken(t *pb.TxnRequest, succeeded bool) []*pb.RequestOp {
	if succeeded {
		return t.Success
	}
	return t.Failure
}

// chunkRequest asks for chunks. A revision of 0 is the current one.
func chunkRequest(r format.Range, revision int64, serializable bool) *pb.RangeRequest {
	return &pb.RangeRequest{Key: r.Key, RangeEnd: r.End, Revision: revision, Serializable: serializable}
}
