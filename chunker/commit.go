package chunker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// commit is a guarded transaction as it is sent.
type commit struct {
	req   *pb.TxnRequest
	bytes int  // of the proposal, 0 where nothing is proposed
	entry int  // the most that it should have
	ops   int  // the most operations that the server allows
	clean bool // whether it deletes all that the old values leave behind

	fold func(*answer, *pb.TxnResponse) *pb.TxnResponse // after Then

	flat      func([]*pb.ResponseOp) []*pb.ResponseOp // after Else: rider and answers, one after the other
	rider     *branch                                 // the application's Else branch, where it came along before the questions
	questions []question                              // nil where there was no room
}

// narrowEnough reports whether the server allows so many operations.
func (c *commit) narrowEnough() bool { return wire.Width(c.req) <= c.ops }

func (c *commit) fits() bool { return c.narrowEnough() && c.bytes <= c.entry && c.clean }

// assemble makes the commit of a plan, with the chunks of its drafts beside their
// manifests, or staged under anchors.
func (w *write) assemble(p *plan, anchored bool) *commit {
	c := &commit{entry: int(w.s.limits.entry.Load()), ops: int(w.s.limits.ops.Load())}
	if w.build(c, p, anchored, 0); !c.clean && c.bytes < c.entry {
		w.build(c, p, anchored, c.entry-c.bytes)
	}
	return c
}

// build builds c with deletes of up to cleanup bytes.
func (w *write) build(c *commit, p *plan, anchored bool, cleanup int) {
	rw := w.rewriter(p)
	rw.anchored = anchored
	c.req = &pb.TxnRequest{Compare: slices.Clone(p.guards)}
	for _, d := range p.drafts {
		c.req.Compare = append(c.req.Compare, d.guards(anchored)...)
	}
	for more := true; more; more = !c.narrowEnough() && rw.narrow(wire.Writes(c.req)) {
		var tail []*pb.RequestOp
		tail, c.clean = rw.cleanup(cleanup)
		b := rw.branch(taken(w.req, p.decided[w.req]), len(c.req.Compare), tail...)
		c.req.Success = b.ops
		c.fold = func(a *answer, resp *pb.TxnResponse) *pb.TxnResponse {
			return &pb.TxnResponse{Header: resp.Header, Succeeded: p.decided[w.req], Responses: b.fold(a, resp.Responses)}
		}
	}
	c.bytes = 0
	if w.addElse(c, p, anchored); !wire.Writes(c.req) {
		return
	}
	if c.bytes = wire.ProposalBytes(c.req); c.bytes > c.entry && c.req.Failure != nil {
		// The evidence can be read afterwards, if need be.
		c.req.Failure, c.questions, c.rider = nil, nil, nil
		c.bytes = wire.ProposalBytes(c.req)
	}
}

// addElse adds the Else branch: the application's own, where it only reads and is
// the one that would run if a comparison failed, and the questions; less of that
// where the server does not allow so many operations.
func (w *write) addElse(c *commit, p *plan, anchored bool) {
	if len(c.req.Compare) == 0 {
		return // it never runs
	}
	questions := branch{fold: func(_ *answer, resps []*pb.ResponseOp) []*pb.ResponseOp { return resps }}
	c.questions = w.questions(anchored, false)
	for _, q := range c.questions {
		for _, r := range q.ranges {
			questions.ops = append(questions.ops, wire.Range(r))
		}
	}
	all := questions
	c.rider = nil
	if elseOnly := (&pb.TxnRequest{Failure: w.req.Failure}); p.decided[w.req] && len(w.req.Compare) > 0 && !wire.Writes(elseOnly) && !readsHistory(w.req.Failure) {
		rider := w.rewriter(nil).branch(w.req.Failure, 0)
		all.ops, c.rider = slices.Concat(rider.ops, questions.ops), &rider
	}
	fits := func(b branch) bool {
		c.req.Failure = b.ops
		c.flat = func(resps []*pb.ResponseOp) []*pb.ResponseOp { return b.fold(nil, resps) }
		return c.narrowEnough()
	}
	switch {
	case fits(all):
	case wire.Writes(c.req) && fits(all.group(len(c.req.Compare))):
	default:
		if c.rider = nil; !fits(questions) {
			c.questions = nil
			fits(branch{})
		}
	}
}

// readsHistory reports whether any of the ranges is of a revision, which may be compacted:
// etcd says so only where the branch is taken.
func readsHistory(ops []*pb.RequestOp) bool {
	return slices.ContainsFunc(ops, func(op *pb.RequestOp) bool { return op.GetRequestRange().GetRevision() != 0 })
}

// commit sends c.
func (w *write) commit(ctx context.Context, c *commit) (*pb.TxnResponse, error) {
	spanned, end := w.s.span(ctx, "kvwrap commit", slog.Int("attempt", w.attempts+1), slog.Int("bytes", c.bytes))
	resp, err := w.s.inner.Txn(spanned, c.req)
	end(err)
	if err != nil {
		return nil, w.refused(ctx, err, wire.Width(c.req), c.bytes, c.entry)
	}
	if resp.Succeeded {
		if c.bytes > c.entry {
			w.s.stats.oversized.Add(1)
		}
		return w.answer(ctx, resp, c.fold)
	}
	return w.conflict(ctx, c, resp)
}

// conflict follows a commit whose guards failed, of which nothing was applied.
func (w *write) conflict(ctx context.Context, c *commit, resp *pb.TxnResponse) (*pb.TxnResponse, error) {
	w.s.stats.conflicts.Add(1)
	again := w.again()
	if !errors.Is(again, errAgain) {
		return nil, again
	}
	for p := range anywhere.puts(w.req) {
		if st := w.state(p); st != nil {
			w.s.cache.forget(p.Key, st.mod)
		}
	}
	riders, err := w.learn(ctx, c, resp)
	if err != nil {
		return nil, err
	}
	if c.rider != nil && !w.holds(w.req) {
		// It was a comparison that failed, and here is what the application
		// wanted in that case.
		answered, err := w.answer(ctx, resp, func(a *answer, resp *pb.TxnResponse) *pb.TxnResponse {
			return &pb.TxnResponse{Header: resp.Header, Responses: c.rider.fold(a, riders)}
		})
		if !errors.Is(err, errAgain) {
			return answered, err
		}
	}
	for p, d := range w.drafts {
		if d.anchor != 0 && !w.evidence.anchored[d] {
			w.s.abandon(d) // of what was staged, the anchor may be left
			delete(w.drafts, p)
		}
	}
	return nil, again
}

// learn takes the evidence from the Else branch of c, or reads it, and returns
// the answers to the rider.
func (w *write) learn(ctx context.Context, c *commit, resp *pb.TxnResponse) (riders []*pb.ResponseOp, err error) {
	if c.questions == nil {
		return nil, w.gather(ctx)
	}
	resps := c.flat(resp.Responses)
	if c.rider != nil {
		riders, resps = resps[:len(c.rider.ops)], resps[len(c.rider.ops):]
	}
	ranges := make([]*pb.RangeResponse, len(resps))
	for i, r := range resps {
		ranges[i] = r.GetResponseRange()
	}
	evidence, err := answerAll(ctx, c.questions, ranges, resp.Header.Revision)
	if overtaken(err) {
		c.rider = nil
		return nil, w.gather(ctx)
	}
	w.evidence = evidence
	return riders, err
}

// holds answers the comparisons of t from the evidence.
func (w *write) holds(t *pb.TxnRequest) bool {
	for _, c := range t.Compare {
		if ok, _ := holds(c, w.evidence.found[c]); !ok {
			return false
		}
	}
	return true
}

// refused follows an error of etcd's to a request of the given width and size,
// which was made to be within the limits as they were known then, entry among
// them. It returns errAgain where they are smaller than thought, else the error.
func (w *write) refused(ctx context.Context, err error, asked, bytes, entry int) error {
	switch {
	case wire.Is(err, rpctypes.ErrTooManyOps) && asked > wire.Width(w.req):
		if err := w.s.limits.learnOps(ctx, w.s.inner, asked); err != nil {
			return err
		}
		return errAgain
	case wire.Is(err, rpctypes.ErrRequestTooLarge) && bytes <= entry && !w.s.cfg.ReadOnly && w.s.limits.lowerEntry(int64(entry)):
		w.drop() // their chunks may be too large now
		return errAgain
	}
	return err
}

// narrower finds a form of a commit that needs less operations than the server
// allows: less guards need less, and without chunks there are none but the
// application's own.
func (w *write) narrower() bool {
	switch {
	case !w.blind && len(w.drafts) > 0:
		w.blind = true
	case !w.unchunked && len(w.drafts) > 0:
		w.unchunked = true
		w.drop()
	default:
		return false
	}
	return true
}

func (w *write) tooWide(r *pb.TxnRequest) error {
	return &TxnTooWideError{Ops: wire.Width(r), Most: int(w.s.limits.ops.Load())}
}

// minExtraBytes is the length from which on a manifest is worth it in place of a
// value.
const minExtraBytes = 1 << 10

// chunkMore chooses puts to be chunked beside the large ones, the largest first,
// so that a proposal of the given size shrinks to what it should have. It reports
// whether it has found any.
func (w *write) chunkMore(decided decisions, bytes int) bool {
	excess := bytes - int(w.s.limits.entry.Load())
	if excess <= 0 || w.unchunked || w.s.cfg.ReadOnly {
		return false
	}
	var more []*pb.PutRequest
	for p := range decided.puts(w.req) {
		if len(p.Value) >= minExtraBytes && !w.chunks(p) && w.s.chunkable(p.Key) {
			more = append(more, p)
		}
	}
	slices.SortFunc(more, func(a, b *pb.PutRequest) int { return cmp.Compare(len(b.Value), len(a.Value)) })
	for i, p := range more {
		if excess <= 0 {
			more = more[:i]
			break
		}
		w.extra[p] = true
		excess -= len(p.Value) - minExtraBytes/4 // less than manifest and guards take: what is still too much comes back
	}
	return len(more) > 0
}

// rewriter returns the rewriter of the next attempt, p nil where it has no plan.
func (w *write) rewriter(p *plan) *rewriter {
	known := make(map[string]bool) // the first answer counts: all that is sent has to agree
	rw := &rewriter{
		space: w.s.space,
		known: func(key []byte) bool {
			is, asked := known[string(key)]
			if !asked {
				is = w.s.cache.get(key) != nil
				known[string(key)] = is
			}
			return is
		},
		whole: w.rereads > 0,
	}
	if p == nil {
		return rw
	}
	rw.decided, rw.drafts, rw.instead = p.decided, p.drafts, p.instead
	for op := range p.decided.ops(w.req) {
		rw.note(op)
	}
	return rw
}

// send sends a transaction without guards.
func (w *write) send(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	bytes, entry := 0, int(w.s.limits.entry.Load())
	if wire.Writes(r) {
		bytes = wire.ProposalBytes(r)
	}
	resp, err := w.s.inner.Txn(ctx, r)
	if err != nil {
		return nil, w.refused(ctx, err, wire.Width(r), bytes, entry)
	}
	if bytes > entry {
		w.s.stats.oversized.Add(1)
	}
	return resp, nil
}

// answer tells the application what etcd has answered. Where nothing was written,
// values that are incomplete are read again; else an error says that it was.
func (w *write) answer(ctx context.Context, resp *pb.TxnResponse, fold func(*answer, *pb.TxnResponse) *pb.TxnResponse) (*pb.TxnResponse, error) {
	a := &answer{chunks: chunkPool{}}
	for _, d := range w.drafts {
		for _, c := range d.Chunks {
			a.chunks[c.ID] = c.Stored // of values that were read after they were put
		}
	}
	folded := fold(a, resp)
	for _, put := range a.committed {
		d := w.drafts[put]
		delete(w.drafts, put)
		w.s.committed(d, resp.Header.Revision)
	}
	for _, key := range a.written {
		w.s.cache.forget(key, resp.Header.Revision-1)
	}
	for _, r := range a.reads {
		at := snapshot{revision: r.revision, serializable: wire.Serializable(w.req)}
		if at.revision == 0 {
			at.revision = resp.Header.Revision
		}
		if err := w.s.resolve(ctx, r.kvs, a.chunks, at); err != nil {
			switch {
			case wrote(resp.Responses):
				return nil, &AppliedError{Revision: resp.Header.Revision, Err: err}
			case overtaken(err) && w.rereads < maxRereads:
				w.rereads++
				return nil, errAgain
			}
			return nil, err
		}
	}
	for _, f := range a.finish {
		f()
	}
	return folded, nil
}

// wrote reports whether what was answered has changed anything.
func wrote(resps []*pb.ResponseOp) bool {
	for _, r := range resps {
		if r.GetResponsePut() != nil || r.GetResponseDeleteRange().GetDeleted() > 0 || wrote(r.GetResponseTxn().GetResponses()) {
			return true
		}
	}
	return false
}

// committed remembers where the chunks of a draft are.
func (s *Stage) committed(d *draft, revision int64) {
	if d.anchor != 0 {
		s.stats.staged.Add(1)
	} else {
		s.stats.inline.Add(1)
	}
	s.cache.put(newChunked(&mvccpb.KeyValue{Key: d.Key, ModRevision: revision, Lease: d.Lease}, d.layout))
}

// read is what a request has found at a revision, 0 for that of its response.
type read struct {
	revision int64
	kvs      []*mvccpb.KeyValue
}
