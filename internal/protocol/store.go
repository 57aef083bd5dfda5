package protocol

// store is as much of etcd as the protocol needs: one key K, and the chunks and
// anchors of K.
type store struct {
	rev    uint8
	k      record
	cells  [keys]cell
	leases uint8 // bit i is set while lease i is there; bit 0, no lease, always is
}

// Lease 1 is that of puts, the others are those of sessions.
const (
	firstSession = 2
	leases       = 8
)

// record is what stands at K: nothing where mod is 0, a plain value where token
// is 0, else a manifest.
type record struct {
	mod, lease uint8
	token      uint8
	refs       [2]id   // of the chunks that the manifest names
	want       [2]byte // the value: what is in these chunks
	expires    uint8   // lease of the chunks, as the manifest says
	moved      bool    // to another lease by a client that does not know of chunks
}

// cell is a chunk or an anchor, absent where created is 0.
type cell struct{ created, mod, lease, content uint8 }

// id is the key of a chunk, or of an anchor, index 0 of its token. The keys of a
// token follow one another, and all of them below chunkKeys are C(K), the chunk
// range of K. Beyond it are the anchors of unsafe variants.
type id uint8

const (
	tokens    = 7 // numbered from 1, which is that of the first value
	perToken  = 3 // an anchor and two chunks
	chunkKeys = tokens * perToken
	keys      = chunkKeys + tokens
)

func at(token, index uint8) id { return id((token-1)*perToken + index) }

// txn is a transaction: If(ifs) Then(then).
type txn struct {
	ifs  []compare
	then []op
}

type compare struct {
	target target
	key    id
	want   uint8
}

type target uint8

const (
	modOfK     target = iota // the ModRevision of K is want, 0 where it is absent
	tokenOfK                 // K holds the write with this token, 0 where it holds no manifest
	otherToken               // it does not
	createdAt                // the CreateRevision of key is want, 0 where it is absent
	modAt                    // the ModRevision of key is want
	exists                   // key is there
	someExist                // one of the keys from key to want is
)

type op struct {
	do       verb
	key, end id // end of a range, included
	cell     cell
	record   record
	writer   uint8 // of the record, from 1; 0 where that is no writer of the model
}

type verb uint8

const (
	put verb = iota
	deleteRange
	putK
	deleteK
)

type answer uint8

const (
	succeeded answer = iota
	conflict         // nothing was applied, as a comparison did not hold
	leaseGone        // nothing was applied, as the lease of a put is not there
)

func (s *store) holds(c compare) bool {
	switch c.target {
	case modOfK:
		return s.k.mod == c.want
	case tokenOfK:
		return s.k.token == c.want
	case otherToken:
		return s.k.token != c.want
	case createdAt:
		return s.cells[c.key].created == c.want
	case modAt:
		return s.cells[c.key].mod == c.want
	case exists:
		return s.cells[c.key].created != 0
	case someExist:
		for key := c.key; key <= id(c.want); key++ {
			if s.cells[key].created != 0 {
				return true
			}
		}
	}
	return false
}

func (s *store) alive(lease uint8) bool { return s.leases>>lease&1 != 0 }

func (s *store) apply(t txn) answer {
	for _, c := range t.ifs {
		if !s.holds(c) {
			return conflict
		}
	}
	for _, o := range t.then {
		if !s.alive(o.cell.lease) || !s.alive(o.record.lease) {
			return leaseGone
		}
	}
	s.rev++
	for _, o := range t.then {
		switch o.do {
		case put:
			if was := s.cells[o.key].created; was != 0 {
				o.cell.created = was
			} else {
				o.cell.created = s.rev
			}
			o.cell.mod = s.rev
			s.cells[o.key] = o.cell
		case deleteRange:
			for key := o.key; key <= o.end; key++ {
				s.cells[key] = cell{}
			}
		case putK:
			o.record.mod = s.rev
			s.k = o.record
		case deleteK:
			s.k = record{}
		}
	}
	return succeeded
}

// expire ends a lease, and with it what is attached to it.
func (s *store) expire(lease uint8) {
	s.rev++
	s.leases &^= 1 << lease
	if s.k.lease == lease {
		s.k = record{}
	}
	for i := range s.cells {
		if s.cells[i].lease == lease {
			s.cells[i] = cell{}
		}
	}
}

// runs returns the longest runs of keys of a token that the manifest in k does
// not name, as far as there is one of the given keys in them: the whole token
// where none of it is named, anchor included, else gaps.
func runs(token uint8, k record, given func(id) bool) (deletes []op) {
	run := op{do: deleteRange, key: at(token, 0)}
	wanted := false
	for index := uint8(0); index <= perToken; index++ {
		key := at(token, index)
		if index < perToken && !k.names(key) {
			wanted = wanted || given(key)
			continue
		}
		if wanted {
			run.end = key - 1
			deletes = append(deletes, run)
		}
		run.key, wanted = key+1, false
	}
	return deletes
}

func (r record) names(key id) bool { return r.token != 0 && (r.refs[0] == key || r.refs[1] == key) }
