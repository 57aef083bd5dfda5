package protocol

// model is one configuration: who takes part, what may happen, and what is
// different from the protocol as built.
type model struct {
	first    string // the value in chunks that K holds at first, a letter a chunk; "" where K is absent
	lease    uint8  // of it: 0, or 1, the one lease of puts
	puts     []putSpec
	sweepers int
	readers  int   // and watchers, which do the same
	tokens   uint8 // that one writer may take
	blind    uint8 // attempts after which a commit is blind
	noRoom   bool  // commits have no room for the deletes of garbage
	env      budget
	variant

	next state // what moves yields
}

// putSpec is a put of the application's.
type putSpec struct {
	value string // a letter a chunk; the same letters are the same content
	lease uint8
	fits  uint8 // up to so many new chunks fit in the commit
}

// budget is how often each step of the environment may happen.
type budget struct {
	plainPut, plainDelete     uint8 // by clients that do not know of chunks
	plainMove                 uint8 // of K to another lease, by such a client
	wrapperPut, wrapperDelete uint8 // small, over a key known to be chunked
	timeout, crash            uint8
	sessionEnd, leaseEnd      uint8
	compact, restore          uint8
}

// state is the whole world at one time. It is comparable.
type state struct {
	store
	saved    store // the snapshot that may be restored; rev 0 where there is none
	writers  [3]writer
	late     [3]request // without an answer, to be applied at any time or never
	sweepers [2]sweeper
	readers  [2]reader
	left     budget
	mixed    bool // somebody has read what nobody wrote
}

// reader has read a manifest, or a watcher has received one, and is about to read
// its chunks at the same revision. While that is not compacted they are there, if
// invariant I1 held. After that it looks for them by id among the current ones;
// where one is missing, a reader reads key and chunks in one transaction, which
// is right if I1 holds then, and a watcher ends.
type reader struct {
	holds     record // mod is 0 where it reads nothing
	compacted bool
}

func (m *model) start() state {
	s := state{left: m.env}
	s.leases = 1 | 1<<1
	for i := range m.puts {
		s.leases |= 1 << m.session(&s.writers[i], i)
	}
	if m.first != "" {
		s.rev = 1
		s.k = record{mod: 1, lease: m.lease, token: 1, refs: [2]id{at(1, 1), at(1, 2)}, want: [2]byte{m.first[0], m.first[1]}, expires: m.lease}
		for i, content := range s.k.want {
			s.cells[s.k.refs[i]] = cell{created: 1, lease: m.lease, content: content}
		}
	}
	return s
}

// apply applies a transaction and counts the manifests of each writer.
func (s *state) apply(t txn) answer {
	a := s.store.apply(t)
	for _, o := range t.then {
		if a == succeeded && o.writer != 0 {
			s.writers[o.writer-1].applied++
		}
	}
	return a
}

// send leaves a request to be applied at any time, or never; so does a lack of
// room for it.
func (s *state) send(r request) {
	for i := range s.late {
		if s.late[i].kind == nothing {
			s.late[i] = r
			return
		}
	}
}

// after returns a copy of s to be changed, which is good until the next one.
func (m *model) after(s *state) *state {
	m.next = *s
	return &m.next
}

// step says what happened between two states.
type step struct {
	who    string
	number int
	what   string
	more   any
}

// moves calls yield with every state that may follow s.
func (m *model) moves(s *state, yield func(step, *state)) {
	for i := range m.puts {
		m.writerMoves(s, i, yield)
	}
	for i, r := range s.late {
		if r.kind != nothing {
			n := m.after(s)
			n.late[i] = request{}
			n.apply(m.txn(r))
			yield(step{"writer", i, "is late with", r.kind}, n)
		}
	}
	for i := range m.sweepers {
		m.sweeperMoves(s, i, yield)
	}
	for i := range m.readers {
		m.readerMoves(s, i, yield)
	}
	m.environment(s, yield)
}

func (m *model) writerMoves(s *state, i int, yield func(step, *state)) {
	w := &s.writers[i]
	if w.phase == ended {
		return
	}
	n := m.after(s)
	if w.phase == idle {
		m.begin(n, i)
		yield(step{"writer", i, "reads", ""}, n)
		return
	}
	r := m.act(n, i)
	yield(step{"writer", i, "sends", r.kind}, n)
	if n := m.after(s); spend(&n.left.timeout) {
		m.timeout(n, i)
		yield(step{"writer", i, "has no answer to", r.kind}, n)
	}
	if n := m.after(s); spend(&n.left.crash) {
		n.writers[i].phase = ended
		if w.phase == writing {
			n.writers[i].outcome = unknown
		}
		yield(step{"writer", i, "crashes", ""}, n)
	}
}

// act sends the next request of a writer, and takes its answer.
func (m *model) act(s *state, i int) request {
	r := m.sent(s, i)
	m.answered(s, i, r, s.apply(m.txn(r)))
	return r
}

func (m *model) sent(s *state, i int) request {
	r := m.due(s, i)
	if d := &s.writers[i].draft; r.kind == stage {
		d.sent = true
		r.draft = *d
	}
	return r
}

// timeout is a request without an answer. The writer does not send it again: it
// tells the caller so and gives up.
func (m *model) timeout(s *state, i int) {
	w, r := &s.writers[i], m.sent(s, i)
	s.send(r)
	switch {
	case r.kind == abandon: // again
	case r.kind == stage && m.stageAgain:
	case r.kind == commit && m.commitAgain:
		w.lost = true
	default:
		w.end(unknown)
	}
}

func (m *model) sweeperMoves(s *state, i int, yield func(step, *state)) {
	if sw := s.sweepers[i]; sw.token != 0 {
		n := m.after(s)
		n.sweepers[i] = sweeper{}
		n.apply(m.sweepTxn(sw))
		yield(step{"sweeper", i, "deletes of token", sw.token}, n)
		return
	}
	for token := uint8(1); token <= tokens; token++ {
		if sw := look(&s.store, token); sw.finds() && (!m.sweepMoved || s.moved(token)) {
			n := m.after(s)
			n.sweepers[i] = sw
			yield(step{"sweeper", i, "lists token", token}, n)
		}
	}
}

func (m *model) readerMoves(s *state, i int, yield func(step, *state)) {
	if r := s.readers[i]; r.compacted {
		n := m.after(s)
		n.readers[i] = reader{}
		if m.readByPlace {
			r.holds.refs[1] = s.k.refs[1]
		}
		n.mixed = s.missing(r.holds) == 0 && !s.holdsValue(r.holds)
		yield(step{"reader", i, "reads by id", ""}, n)
	} else if s.k.token != 0 && r.holds != s.k {
		n := m.after(s)
		n.readers[i].holds = s.k
		yield(step{"reader", i, "reads the manifest", ""}, n)
	}
}

// missing returns how many chunks of a manifest are not there.
func (s *store) missing(k record) (n int) {
	for _, key := range k.refs {
		if s.cells[key].created == 0 {
			n++
		}
	}
	return n
}

// holdsValue reports whether the chunks of a manifest are what it was made for.
func (s *store) holdsValue(k record) bool {
	return s.cells[k.refs[0]].content == k.want[0] && s.cells[k.refs[1]].content == k.want[1]
}

func spend(left *uint8) bool {
	if *left == 0 {
		return false
	}
	*left--
	return true
}

func (m *model) environment(s *state, yield func(step, *state)) {
	all := op{do: deleteRange, key: 0, end: chunkKeys - 1}
	if n := m.after(s); spend(&n.left.plainPut) {
		n.apply(txn{nil, []op{{do: putK}}})
		yield(step{what: "a plain client puts K"}, n)
	}
	if n := m.after(s); s.k.mod != 0 && spend(&n.left.plainDelete) {
		n.apply(txn{nil, []op{{do: deleteK}}})
		yield(step{what: "a plain client deletes K"}, n)
	}
	if n := m.after(s); s.k.token != 0 && spend(&n.left.plainMove) {
		moved := s.k
		moved.lease, moved.moved = 1-moved.lease, true
		if n.apply(txn{nil, []op{{do: putK, record: moved}}}) == succeeded {
			yield(step{what: "a plain client moves K to another lease"}, n)
		}
	}
	if n := m.after(s); spend(&n.left.wrapperPut) {
		n.apply(txn{nil, []op{{do: putK}, all}})
		yield(step{what: "a client puts a small value at K"}, n)
	}
	if n := m.after(s); spend(&n.left.wrapperDelete) {
		n.apply(txn{nil, []op{{do: deleteK}, all}})
		yield(step{what: "a client deletes K"}, n)
	}
	for i := range m.puts {
		w := &s.writers[i]
		if n := m.after(s); w.session == 0 && w.phase != idle && spend(&n.left.sessionEnd) {
			n.expire(m.session(w, i))
			yield(step{"writer", i, "loses its session", ""}, n)
		}
	}
	if n := m.after(s); !s.alive(1) {
		n.leases |= 1 << 1
		yield(step{what: "the lease is granted again"}, n)
	} else if spend(&n.left.leaseEnd) {
		n.expire(1)
		yield(step{what: "the lease ends"}, n)
	}
	if n := m.after(s); spend(&n.left.compact) {
		n.compact()
		yield(step{what: "compaction"}, n)
	}
	if n := m.after(s); n.left.restore == 2 && spend(&n.left.restore) {
		n.saved = s.store
		yield(step{what: "a snapshot is saved"}, n)
	} else if spend(&n.left.restore) {
		n.store, n.saved = s.saved, store{}
		n.compact() // what is at a reader's revision now is something else
		yield(step{what: "the snapshot is restored"}, n)
	}
}

func (s *state) compact() {
	for i := range s.readers {
		s.readers[i].compacted = s.readers[i].holds.mod != 0
	}
}
