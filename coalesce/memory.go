package coalesce

import (
	"container/list"
	"crypto/sha256"
)

// memo is what is known to be stored at a key.
type memo struct {
	lease int64

	// Under a rule with SkipUnchanged, what this process has written.
	revision int64
	sum      [sha256.Size]byte // of the value

	// Under one with Max, what was read or written.
	number bool // that it is known
	absent bool // that there is none
	value  []byte
}

// memory is what is known of keys under rules with SkipUnchanged or Max, of those that
// were used last as much as there is room for, and the last one. It may be wrong: whatever rests on it
// is compared with what is stored.
type memory struct {
	room   int // bytes
	memos  map[string]*list.Element
	recent *list.List // of *remembered, the last used first
}

type remembered struct {
	key string
	memo
}

// memoBytes is about what a memo takes, in maps and lists, beside key and value.
const memoBytes = 240

func (r *remembered) bytes() int { return memoBytes + len(r.key) + len(r.value) }

func newMemory(room int) *memory {
	return &memory{room: room, memos: make(map[string]*list.Element), recent: list.New()}
}

// get returns what is known of a key, nil where that is nothing.
func (m *memory) get(key []byte) *memo {
	e := m.memos[string(key)]
	if e == nil {
		return nil
	}
	m.recent.MoveToFront(e)
	return &e.Value.(*remembered).memo
}

func (m *memory) set(key []byte, r memo) {
	m.forget(key)
	entry := &remembered{string(key), r}
	m.memos[entry.key] = m.recent.PushFront(entry)
	for m.room -= entry.bytes(); m.room < 0 && len(m.memos) > 1; {
		m.forget([]byte(m.recent.Back().Value.(*remembered).key))
	}
}

func (m *memory) forget(key []byte) {
	if e := m.memos[string(key)]; e != nil {
		entry := m.recent.Remove(e).(*remembered)
		delete(m.memos, entry.key)
		m.room += entry.bytes()
	}
}

func (m *memory) clear() {
	for _, e := range m.memos {
		m.room += e.Value.(*remembered).bytes()
	}
	clear(m.memos)
	m.recent.Init()
}
