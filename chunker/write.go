package chunker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"
)

// write is one transaction of the application's on its way to etcd; a put or a
// delete is a transaction of one operation. It takes one of two forms.
//
// As it is: each operation is replaced by a few, in its place. That is enough
// for deletes, for small puts, for reads, and for comparisons of anything but
// values.
//
// Guarded: where it depends on what is stored, because it puts a manifest, moves
// a value to another lease or compares values, it is committed as
//
//	If    guards
//	Then  the operations of the branches that were decided on, cleanup
//	Else  reads of what the guards depend on
//
// The first decision is that every comparison holds, with the application's own
// comparisons as guards. Where they do not hold, or would not be enough, the
// decision follows from evidence of what is stored, and guards pin what it
// follows from. So a guard that fails is never mistaken for a comparison that
// fails: it means that the store is not what the decision was made for, and the
// reads of the Else branch are the evidence for the next attempt. A chunked value
// that does not fit in the commit is staged before it and stays staged from
// attempt to attempt.
//
// A write is attempted again only after etcd has answered that nothing was
// applied. A commit without an answer is left alone: its outcome is unknown, and
// the caller gets the error that etcd's client gives.
type write struct {
	s   *Stage
	req *pb.TxnRequest

	evidence  *evidence                 // nil while there was no need
	drafts    map[*pb.PutRequest]*draft // made for earlier attempts
	extra     map[*pb.PutRequest]bool   // to be chunked, though not large, so that the proposal is not
	unchunked bool                      // chunk nothing: it cannot be made to fit
	blind     bool                      // do not build on what is stored
	attempts  int                       // at a commit that another write came before
	rereads   int                       // because chunks were missing
}

// blindAfter is the number of attempts after which a value is committed without
// its old chunks and without regard to what is stored, so that only a delete can
// come between. What it leaves behind is the sweep's.
const blindAfter = 3

// maxAttempts bounds the work of one call. Each attempt failed because somebody
// else's write was applied.
const maxAttempts = 100

// maxRereads bounds how often a read is repeated because chunks were missing:
// overwritten, and compacted, between two reads. In a transaction, a single key
// comes with its chunks in the second one, so that they are there or lost.
const maxRereads = 3

// errAgain asks for another attempt: nothing was applied, and what the last
// attempt failed for has changed.
var errAgain = errors.New("chunker: again")

func newWrite(s *Stage, req *pb.TxnRequest) *write {
	return &write{s: s, req: req, drafts: make(map[*pb.PutRequest]*draft), extra: make(map[*pb.PutRequest]bool)}
}

// run attempts the write until it is done. It may have been applied although
// there is an error, where the error is one after which that is so of a request
// of etcd's client.
func (w *write) run(ctx context.Context) (resp *pb.TxnResponse, err error) {
	defer w.drop()
	if w.dependsOnStore() {
		var end func(error)
		ctx, end = w.s.span(ctx, "kvwrap write", slog.Int("operations", len(w.req.Success)+len(w.req.Failure)))
		defer func() { end(err) }()
	}
	for {
		attempt := w.asItIs
		if w.dependsOnStore() {
			attempt = w.guarded
		}
		if resp, err := attempt(ctx); !errors.Is(err, errAgain) {
			return resp, w.s.denied(ctx, w.req, err)
		}
	}
}

// drop deletes what was staged and not committed.
func (w *write) drop() {
	for p, d := range w.drafts {
		w.s.abandon(d)
		delete(w.drafts, p)
	}
}

// dependsOnStore reports whether the write has to be guarded.
func (w *write) dependsOnStore() bool {
	for c := range anywhere.compares(w.req) {
		if c.Target == pb.Compare_VALUE || !faithful(w.s.space, c) {
			return true
		}
	}
	for p := range anywhere.puts(w.req) {
		if w.wantsState(p) {
			return true
		}
	}
	return false
}

// chunks reports whether the value of p is to be chunked.
func (w *write) chunks(p *pb.PutRequest) bool {
	return !w.unchunked && (w.extra[p] || w.s.large(p))
}

// wantsState reports whether what is sent for p depends on what is stored.
func (w *write) wantsState(p *pb.PutRequest) bool { return p.IgnoreValue || w.chunks(p) }

// asItIs is an attempt without guards.
func (w *write) asItIs(ctx context.Context) (*pb.TxnResponse, error) {
	rw := w.rewriter(&plan{})
	r, fold := rw.txn(w.req)
	if _, err := w.s.limits.reach(ctx, w.s.inner, wire.Width(r)); err != nil {
		return nil, err
	}
	for wire.Width(r) > int(w.s.limits.ops.Load()) && rw.narrow(wire.Writes(r)) {
		r, fold = rw.txn(w.req)
	}
	if err := w.allowed(ctx, r); err != nil {
		return nil, err
	}
	if wire.Writes(r) {
		bytes, entry := wire.ProposalBytes(r), int(w.s.limits.entry.Load())
		if w.chunkMore(anywhere, bytes) {
			return nil, errAgain
		}
		if bytes > entry && wire.ProposalBytes(w.req) <= entry {
			rw.bare = true // then it fits
			r, fold = rw.txn(w.req)
		}
	}
	resp, err := w.send(ctx, r)
	if err != nil {
		return nil, err
	}
	return w.answer(ctx, resp, fold)
}

// allowed returns etcd's error where the server does not allow the application's
// transaction so many operations, whatever r, which is sent for it, has; and an
// error where it does not allow r, which has more.
func (w *write) allowed(ctx context.Context, r *pb.TxnRequest) error {
	asked, sent := wire.Width(w.req), wire.Width(r)
	ok, err := w.s.limits.allow(ctx, w.s.inner, asked, min(sent, int(w.s.limits.ops.Load())))
	switch {
	case err != nil:
		return err
	case !ok:
		return rpctypes.ErrTooManyOps
	case sent > asked && sent > int(w.s.limits.ops.Load()):
		return w.tooWide(r)
	}
	return nil
}

// guarded is an attempt with guards.
func (w *write) guarded(ctx context.Context) (*pb.TxnResponse, error) {
	if !w.informed() {
		if err := w.gather(ctx); err != nil {
			return nil, err
		}
	}
	p, err := w.plan(ctx)
	if err != nil {
		return nil, err
	}
	if p.inlineable(w.s.limits.entry.Load()) {
		if c := w.assemble(p, false); c.fits() {
			if err := w.allowed(ctx, c.req); err != nil {
				return nil, err
			}
			return w.commit(ctx, c)
		}
	}
	c := w.assemble(p, true)
	if !c.narrowEnough() {
		switch ok, err := w.s.limits.reach(ctx, w.s.inner, wire.Width(c.req)); {
		case err != nil:
			return nil, err
		case ok:
			return nil, errAgain // the server allows more than was known
		}
	}
	// What is too wide has less guards, and then no chunks; what is too large has
	// more of its puts chunked.
	if !c.narrowEnough() && w.narrower() || w.chunkMore(p.decided, c.bytes) {
		return nil, errAgain
	}
	if err := w.allowed(ctx, c.req); err != nil {
		return nil, err
	}
	if w.evidence == nil && w.conditional() {
		// Before anything is staged it is worth a read to know that it is for a
		// branch that will run.
		if err := w.gather(ctx); err != nil {
			return nil, err
		}
		return nil, errAgain
	}
	ctx, done, err := w.admit(ctx, p, c)
	if err != nil {
		return nil, err
	}
	defer done()
	for _, d := range p.drafts {
		switch err := w.s.stage(ctx, d); {
		case errors.Is(err, errAnchorGone):
			delete(w.drafts, d.put)
			return nil, w.again()
		case wire.Is(err, rpctypes.ErrLeaseNotFound) && d.put.IgnoreLease:
			// The lease is the one that the key had, and the key has gone with it.
			if err := w.gather(ctx); err != nil {
				return nil, err
			}
			return nil, w.again()
		case err != nil:
			return nil, w.refused(ctx, err, min(stagingOps, int(w.s.limits.ops.Load())), 0, c.entry)
		}
	}
	return w.commit(ctx, w.assemble(p, true))
}

// admit asks Config.Admit for the proposals that stage the drafts of p, and for c.
func (w *write) admit(ctx context.Context, p *plan, c *commit) (context.Context, func(), error) {
	if w.s.cfg.Admit == nil {
		return ctx, func() {}, nil
	}
	proposals, bytes := 0, 0
	for _, d := range p.drafts {
		for _, batch := range w.s.batches(d) {
			proposals++
			for _, op := range batch {
				bytes += quotaOverhead + len(op.GetRequestPut().Key) + len(op.GetRequestPut().Value)
			}
		}
	}
	if proposals == 0 {
		return ctx, func() {}, nil
	}
	return w.s.cfg.Admit(ctx, p.drafts[0].Key, proposals+1, bytes+quotaOverhead+c.bytes)
}

// quotaOverhead is what etcd's quota adds for a put (kvOverhead in server/storage/quota.go).
const quotaOverhead = 256

// conditional reports whether the transaction has branches that may not run.
func (w *write) conditional() bool {
	for range anywhere.compares(w.req) {
		return true
	}
	return false
}

// again asks for another attempt because another write came before.
func (w *write) again() error {
	if w.attempts++; w.attempts == maxAttempts {
		return &ContentionError{Attempts: w.attempts}
	}
	w.blind = w.blind || w.attempts >= blindAfter
	return errAgain
}

// informed reports whether enough is known to decide and to draft.
func (w *write) informed() bool {
	for c := range anywhere.compares(w.req) {
		if w.evidence == nil && (!faithful(w.s.space, c) || c.Target == pb.Compare_VALUE && w.s.cache.get(c.Key) != nil) {
			return false
		}
	}
	for p := range anywhere.puts(w.req) {
		if w.wantsState(p) && w.state(p) == nil {
			return false
		}
	}
	return true
}

// gather reads the evidence.
func (w *write) gather(ctx context.Context) (err error) {
	for range maxRereads {
		if w.evidence, err = w.s.ask(ctx, w.questions(false, true)); !overtaken(err) {
			break
		}
	}
	return err
}

// questions are what the guards of the next commit will depend on, of one whose
// chunks are staged by then or of another; and whether the chunks that it will
// build on are there, where that is to be verified.
func (w *write) questions(anchored, verify bool) []question {
	var qs []question
	for c := range anywhere.compares(w.req) {
		qs = append(qs, w.s.compareQuestion(c, wire.Serializable(w.req)))
	}
	for p := range anywhere.puts(w.req) {
		if w.wantsState(p) {
			qs = append(qs, w.s.stateQuestion(p.Key, verify))
		}
	}
	for _, d := range w.drafts {
		if d.anchor != 0 || anchored && len(d.Chunks) > 0 {
			qs = append(qs, anchorQuestion(d))
		}
	}
	return qs
}

// state returns what is known to be stored at the key of p, nil where nothing
// is. The cache knows enough to build a chunked value on, but not the value.
func (w *write) state(p *pb.PutRequest) *state {
	if w.evidence != nil {
		return w.evidence.states[string(p.Key)]
	}
	if c := w.s.cache.get(p.Key); c != nil && !p.IgnoreValue {
		return &state{mod: c.meta.ModRevision, lease: c.meta.Lease, layout: c.layout, damaged: c.damaged}
	}
	return nil
}

// plan is what an attempt has decided on.
type plan struct {
	decided   decisions
	guards    []*pb.Compare
	listBytes int // that each manifest may have of its list
	drafts    []*draft
	instead   map[*pb.PutRequest]*pb.PutRequest // puts that are sent in place of others
}

// listBytes returns how much of its list each of so many manifests may have, so
// that all of them fit in one proposal beside their guards.
func listBytes(entry, drafts int) int {
	return min(max(entry/4/max(drafts, 1), 256), 8<<10)
}

// inlineable reports whether the plan's chunks may fit in a proposal of the given
// size, beside their manifests. Once some are staged, all have to be.
func (p *plan) inlineable(entry int64) bool {
	for _, d := range p.drafts {
		for _, c := range d.Chunks {
			entry -= int64(len(c.Stored))
		}
		if d.anchor != 0 {
			return false
		}
	}
	return entry >= 0
}

// plan decides on the branches, and on what is sent for the puts in them.
func (w *write) plan(ctx context.Context) (*plan, error) {
	p := &plan{instead: make(map[*pb.PutRequest]*pb.PutRequest)}
	p.decided, p.guards = w.decide()
	drafts := 0
	for put := range p.decided.puts(w.req) {
		if w.wantsState(put) {
			drafts++
		}
	}
	p.listBytes = listBytes(int(w.s.limits.entry.Load()), drafts)
	for put := range p.decided.puts(w.req) {
		switch {
		case put.IgnoreValue:
			if err := w.planMove(ctx, p, put); err != nil {
				return nil, err
			}
		case w.chunks(put):
			w.planDraft(p, put)
		}
	}
	return p, nil
}

// decide returns which branch of each transaction runs, and comparisons that
// hold only while that is so.
func (w *write) decide() (decisions, []*pb.Compare) {
	decided := decisions{}
	var guards []*pb.Compare
	var visit func(t *pb.TxnRequest)
	visit = func(t *pb.TxnRequest) {
		var pins []*pb.Compare
		decided[t] = true
		for _, c := range t.Compare {
			if w.evidence == nil {
				pins = append(pins, c)
				continue
			}
			found := w.evidence.found[c]
			pinned := pin(w.s.space, c, found, w.evidence.revision)
			if ok, _ := holds(c, found); !ok {
				decided[t], pins = false, pinned // one no is enough
				break
			}
			pins = append(pins, pinned...)
		}
		guards = append(guards, pins...)
		for _, branch := range decided.branches(t) {
			for _, op := range branch {
				if nested := op.GetRequestTxn(); nested != nil {
					visit(nested)
				}
			}
		}
	}
	visit(w.req)
	return decided, guards
}

// planDraft plans to put a manifest.
func (w *write) planDraft(p *plan, put *pb.PutRequest) {
	st, lease := w.state(put), put.Lease
	if put.IgnoreLease {
		if st.mod == 0 {
			// etcd refuses it, while there is no key; there is no need to send
			// the value for that.
			p.guards = append(p.guards, compareMod(put.Key, 0))
			p.instead[put] = &pb.PutRequest{Key: put.Key, IgnoreLease: true, PrevKv: put.PrevKv}
			return
		}
		if lease = st.lease; w.blind {
			p.guards = append(p.guards, compareLease(put.Key, lease), exists(put.Key))
		}
	}
	w.draft(p, put, put.Value, lease, st, w.blind)
}

// planMove plans to put a key with the value that it has, to another lease as it
// may be.
func (w *write) planMove(ctx context.Context, p *plan, put *pb.PutRequest) error {
	st, lease := w.state(put), put.Lease
	if put.IgnoreLease {
		lease = st.lease
	}
	if st.kv == nil || format.Plain(st.kv.Value) || st.layout != nil && st.layout.Lease == lease && st.lease == lease {
		p.guards = append(p.guards, compareMod(put.Key, st.mod))
		return nil
	}
	kv := proto.CloneOf(st.kv)
	err := w.s.resolve(ctx, []*mvccpb.KeyValue{kv}, chunkPool{}, snapshot{revision: w.evidence.revision})
	if overtaken(err) && w.rereads < maxRereads {
		w.rereads++
		if err := w.gather(ctx); err != nil {
			return err
		}
		return errAgain
	}
	if err != nil {
		return err
	}
	if st.layout == nil || w.s.cfg.ReadOnly || !w.s.chunkable(put.Key) {
		p.guards = append(p.guards, compareMod(put.Key, st.mod))
		p.instead[put] = &pb.PutRequest{Key: put.Key, Value: kv.Value, Lease: lease, PrevKv: put.PrevKv}
		return nil
	}
	w.draft(p, put, kv.Value, lease, st, false)
	return nil
}

// draft drafts value for put. What earlier attempts have staged is kept, and
// what they have found out about the value.
func (w *write) draft(p *plan, put *pb.PutRequest, value []byte, lease int64, base *state, blind bool) {
	d := w.drafts[put]
	if d != nil && !bytes.Equal(d.value, value) { // to be moved, and replaced meanwhile
		w.s.abandon(d)
		d = nil
	}
	switch {
	case d == nil:
		cut := w.s.cfg.cut(len(value), w.s.chunkLimit(w.s.space.ChunkKeyLen(put.Key)), base.layout)
		d = &draft{put: put, value: value, space: w.s.space, Draft: format.NewDraft(w.s.space, put.Key, value, lease, cut)}
	case d.Lease != lease || d.anchor == 0 && !d.basedOn(base):
		w.s.abandon(d)
		d = &draft{put: put, value: value, space: w.s.space, Draft: d.Renew(lease)}
	}
	if blind {
		base = nil
	}
	d.rebase(base, p.listBytes)
	w.drafts[put] = d
	p.drafts = append(p.drafts, d)
}
