package protocol

// writer is one put of a value of two chunks, from its first read to the answer
// and to the end of what it does in the background.
type writer struct {
	phase    phase
	outcome  outcome
	applied  uint8 // how often its manifest was put
	session  uint8 // which of its sessions it has
	attempts uint8 // at a commit that another write came before
	spent    uint8 // tokens
	lost     bool  // whether an answer was, in variants that send again
	known    record
	draft    draft
}

type phase uint8

const (
	idle phase = iota
	writing
	abandoning // in the background; the caller has its answer
	ended
)

type outcome uint8

const (
	open      outcome = iota
	acked             // the caller was told that the value is durable
	failed            // that nothing was written
	contended         // the same, after too many attempts
	unknown           // that the outcome is not known, or nothing
)

// draft is a value on its way to K, as in chunker/draft.go.
type draft struct {
	token  uint8
	lease  uint8
	based  bool    // else the commit does not depend on what is stored
	base   record  // what was found at K
	made   [2]byte // chunks with index 1 and 2, 0 while not made; append-only
	refs   [2]id   // of the manifest
	staged uint8   // how many of made are
	sent   bool    // whether the anchor was
	anchor uint8   // its CreateRevision, 0 while it is not known to be there
	latest uint8   // its ModRevision, that of the last batch
}

func (d *draft) count() (n uint8) {
	for n < 2 && d.made[n] != 0 {
		n++
	}
	return n
}

// anchorKey is the key of the anchor of a token.
func (m *model) anchorKey(token uint8) id {
	switch {
	case m.intentPerClient && token > 1:
		return chunkKeys + id((token-2)/m.tokens)
	case m.anchorOutside || m.intentPerClient:
		return chunkKeys + id(token) - 1
	}
	return at(token, 0)
}

// reusable reports whether the draft may refer to the chunks of its base: those
// are there and expire with K.
func (m *model) reusable(d *draft) bool {
	if !d.based || d.base.token == 0 {
		return false
	}
	return m.reuseAcrossLeases || d.base.lease == d.lease && (d.base.expires == d.lease || m.reuseByKeyLease)
}

// rebase makes the manifest for another base. Chunks that were made keep their
// ids and their content.
func (m *model) rebase(d *draft, value string, based bool, base record) {
	if m.oldManifest && d.refs != [2]id{} {
		d.base = base
		return
	}
	d.based, d.base = based, base
	if !based {
		d.base = record{}
	}
	if m.renumber {
		d.made, d.staged = [2]byte{}, 0
	}
	for part := range d.refs {
		d.refs[part] = m.ref(d, value[part])
	}
}

// ref finds or makes a chunk with the given content.
func (m *model) ref(d *draft, content byte) id {
	n := d.count()
	for i := range n {
		if d.made[i] == content {
			return at(d.token, i+1)
		}
	}
	if m.reusable(d) {
		for part, have := range d.base.want {
			if have == content {
				return d.base.refs[part]
			}
		}
	}
	d.made[n] = content
	return at(d.token, n+1)
}

// proof returns comparisons that hold only while all that was staged is there.
func (m *model) proof(d *draft) (ifs []compare) {
	anchor := m.anchorKey(d.token)
	switch {
	case m.rangeForAnchor:
		return []compare{{target: someExist, key: at(d.token, 1), want: uint8(at(d.token, d.staged))}}
	case m.anchorExists:
		ifs = append(ifs, compare{target: exists, key: anchor})
	case m.anchorCreated || m.intentPerClient:
		ifs = append(ifs, compare{target: createdAt, key: anchor, want: d.anchor})
	default:
		ifs = append(ifs, compare{target: modAt, key: anchor, want: d.latest})
	}
	if d.lease != 0 && !m.firstChunkUnproved {
		ifs = append(ifs, compare{target: createdAt, key: at(d.token, 1), want: d.anchor})
	}
	return ifs
}

// request is what a writer sends. It says all that its transaction is made of, so
// that it can be applied late.
type request struct {
	kind   kind
	writer uint8
	lease  uint8 // of the session
	draft  draft
}

type kind uint8

const (
	nothing kind = iota
	stage        // the next chunk, with the anchor where it is the first
	commit       // the manifest, and what else is not staged
	abandon      // what was staged
)

func (k kind) String() string { return [...]string{"nothing", "stage", "commit", "abandon"}[k] }

// due returns what a writer sends next.
func (m *model) due(s *state, i int) request {
	w := &s.writers[i]
	r := request{writer: uint8(i), lease: m.session(w, i), draft: w.draft}
	inline := w.draft.anchor == 0 && w.draft.count() <= m.puts[i].fits
	switch {
	case w.phase == abandoning:
		r.kind = abandon
	case !inline && w.draft.staged < w.draft.count():
		r.kind = stage
	default:
		r.kind = commit
	}
	return r
}

// session is the lease of a writer's anchors. It may have a second one, and a
// third one where a restore takes that away.
func (m *model) session(w *writer, i int) uint8 {
	return firstSession + uint8(i*(leases-firstSession)/len(m.puts)) + w.session
}

func (m *model) txn(r request) txn {
	switch d := &r.draft; r.kind {
	case stage:
		return m.stageTxn(d, r.lease)
	case commit:
		return m.commitTxn(d, r.writer)
	default:
		return m.abandonTxn(d)
	}
}

func (m *model) stageTxn(d *draft, session uint8) txn {
	n := d.staged
	anchor := op{do: put, key: m.anchorKey(d.token), cell: cell{lease: session}}
	chunk := op{do: put, key: at(d.token, n+1), cell: cell{lease: d.lease, content: d.made[n]}}
	switch {
	case m.rangeForAnchor:
		return txn{nil, []op{chunk}}
	case d.anchor == 0:
		return txn{[]compare{{target: createdAt, key: anchor.key}}, []op{anchor, chunk}}
	case m.anchorExists:
		return txn{[]compare{{target: exists, key: anchor.key}}, []op{chunk}}
	case m.anchorCreated || m.intentPerClient:
		return txn{[]compare{{target: createdAt, key: anchor.key, want: d.anchor}}, []op{chunk}}
	}
	return txn{[]compare{{target: createdAt, key: anchor.key, want: d.anchor}}, []op{anchor, chunk}}
}

func (m *model) commitTxn(d *draft, writer uint8) (t txn) {
	if d.based {
		t.ifs = append(t.ifs, compare{target: modOfK, want: d.base.mod})
		if m.reusable(d) && !m.baseByModAlone {
			t.ifs = append(t.ifs, compare{target: tokenOfK, want: d.base.token})
		}
	}
	k := record{lease: d.lease, token: d.token, refs: d.refs, expires: d.lease}
	for part, content := range m.puts[writer].value {
		k.want[part] = byte(content)
	}
	t.then = append(t.then, op{do: putK, record: k, writer: writer + 1})
	if d.anchor != 0 {
		t.ifs = append(t.ifs, m.proof(d)...)
		if !m.intentPerClient {
			t.then = append(t.then, op{do: deleteRange, key: m.anchorKey(d.token), end: m.anchorKey(d.token)})
		}
	} else {
		for i := range d.count() {
			t.then = append(t.then, op{do: put, key: at(d.token, i+1), cell: cell{lease: d.lease, content: d.made[i]}})
		}
	}
	if m.noRoom {
		return t
	}
	old := func(key id) bool {
		return d.based && d.base.names(key) || key >= at(d.token, 1) && key <= at(d.token, d.staged)
	}
	for token := uint8(1); token <= tokens; token++ {
		t.then = append(t.then, runs(token, k, old)...)
	}
	return t
}

// abandonTxn deletes what was staged if the commit has not been applied, which
// then never is. Where the anchor had no answer, no commit was sent.
func (m *model) abandonTxn(d *draft) (t txn) {
	switch {
	case m.abandonByToken:
		t.ifs = []compare{{target: otherToken, want: d.token}}
	case d.anchor != 0 && !m.rangeForAnchor:
		t.ifs = []compare{{target: createdAt, key: m.anchorKey(d.token), want: d.anchor}}
	}
	t.then = []op{{do: deleteRange, key: at(d.token, 0), end: at(d.token, perToken-1)}}
	if m.anchorOutside {
		t.then = append(t.then, op{do: deleteRange, key: m.anchorKey(d.token), end: m.anchorKey(d.token)})
	}
	return t
}

// begin reads the base.
func (m *model) begin(s *state, i int) {
	s.writers[i].phase = writing
	s.writers[i].known = s.k
	m.plan(&s.writers[i], i)
}

// plan drafts the value for what is known of K, under a fresh token unless some
// of it is staged.
func (m *model) plan(w *writer, i int) {
	if w.draft.anchor == 0 {
		if w.spent == m.tokens {
			w.end(contended)
			return
		}
		w.draft = draft{token: uint8(i)*m.tokens + w.spent + 2, lease: m.puts[i].lease}
		w.spent++
	}
	m.rebase(&w.draft, m.puts[i].value, w.attempts < m.blind, w.known)
}

// end gives the caller its answer, and goes on to abandon what may be staged.
func (w *writer) end(o outcome) {
	w.outcome, w.phase = o, ended
	if o != acked && w.draft.sent {
		w.phase = abandoning
	}
}

// answered goes on with the answer to what the writer has sent.
func (m *model) answered(s *state, i int, r request, a answer) {
	w := &s.writers[i]
	switch {
	case r.kind == abandon:
		w.phase = ended
	case a == leaseGone && r.kind == stage && r.draft.anchor == 0 && !s.alive(r.lease):
		w.session++ // granted anew
		s.leases |= 1 << m.session(w, i)
	case a == leaseGone:
		w.end(failed)
	case r.kind == stage && a == succeeded:
		if w.draft.anchor == 0 {
			w.draft.anchor = s.rev
		}
		w.draft.latest = s.rev
		w.draft.staged++
	case r.kind == commit && a == succeeded:
		w.end(acked)
	case r.kind == stage: // the anchor is gone
		w.attempts = min(w.attempts+1, m.blind)
		w.draft = draft{}
		m.plan(w, i)
	case w.lost && s.k.token == r.draft.token:
		w.end(acked)
	case w.lost:
		w.end(unknown)
	default:
		m.conflicted(s, w, i, r)
	}
}

// conflicted follows a commit that another write came before. The Else branch
// has read K and what proves that the staged chunks are there.
func (m *model) conflicted(s *state, w *writer, i int, r request) {
	w.attempts = min(w.attempts+1, m.blind)
	if !m.deaf {
		w.known = s.k
	}
	if d := &w.draft; d.anchor != 0 {
		for _, c := range m.proof(d) {
			if !s.holds(c) {
				r.kind = abandon
				s.send(r)
				*d = draft{}
				break
			}
		}
	}
	m.plan(w, i)
}
