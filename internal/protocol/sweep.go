package protocol

// sweeper is about to delete what it has found unnamed of one token, in the
// snapshot in which K held k. It deletes that of other tokens likewise.
type sweeper struct {
	token  uint8 // 0 where it has not looked yet
	k      record
	listed uint8 // bit i is set where index i was there
}

// look reads K and the ids of a token's chunks in one snapshot.
func look(s *store, token uint8) sweeper {
	sw := sweeper{token: token, k: s.k}
	for index := range uint8(perToken) {
		if s.cells[at(token, index)].created != 0 {
			sw.listed |= 1 << index
		}
	}
	return sw
}

// moved reports whether K is not any more what the token's write has found there.
func (s *state) moved(token uint8) bool {
	for _, w := range s.writers {
		if w.draft.token == token && w.known.mod == s.k.mod {
			return false
		}
	}
	return true
}

// finds reports whether something listed is not named.
func (sw sweeper) finds() bool { return len(sw.deletes()) > 0 }

func (sw sweeper) deletes() []op {
	return runs(sw.token, sw.k, func(key id) bool { return sw.listed>>(key-at(sw.token, 0))&1 != 0 })
}

// sweepTxn deletes what is unnamed: K is as it was, and no write that may still
// commit has staged it.
func (m *model) sweepTxn(sw sweeper) txn {
	var t txn
	if !m.sweepUnguarded {
		t.ifs = append(t.ifs, compare{target: modOfK, want: sw.k.mod})
		if !m.sweepByModAlone {
			t.ifs = append(t.ifs, compare{target: tokenOfK, want: sw.k.token})
		}
	}
	if !m.sweepMoved {
		t.ifs = append(t.ifs, compare{target: createdAt, key: m.anchorKey(sw.token)})
	}
	t.then = sw.deletes()
	switch first := at(sw.token, 0); {
	case m.sweepWhole:
		t.then = []op{{do: deleteRange, key: first, end: first + perToken - 1}}
	case m.sweepWholeOnly && len(t.then) > 0 && t.then[0].end-t.then[0].key != perToken-1:
		t.then = nil
	case m.sweepSparesAnchor:
		for i := range t.then {
			t.then[i].key = max(t.then[i].key, first+1)
		}
	}
	return t
}
