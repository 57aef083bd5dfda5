// Package traffic counts what is written to an etcd, by prefix, as it happens. It is pure: it
// reads no clock and talks to nobody.
package traffic

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/keys"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Cells is for how many cells of time a table remembers what was in each, beside the one that
// is open.
const Cells = 60

// MaxDepth is how many components of a key a table tells apart.
const MaxDepth = 8

const (
	defaultMaxPrefixes = 4096
	maxWaiting         = 64
	maxNameBytes       = 256       // of a prefix; components that end behind it do not count
	maxValueBytes      = 256 << 20 // of the largest value that a client may be configured to write
)

// Config says how a table counts. The zero value has the defaults.
type Config struct {
	Separator   byte            // of the components of keys; '/'
	MaxPrefixes int             // that are told apart at a time; 4096
	Space       format.Keyspace // where chunks are
}

// Counts is what was written.
type Counts struct {
	Puts        uint64 // of keys of applications
	Deletes     uint64 // of keys of applications
	ChunkWrites uint64 // puts and deletes of chunk keys, which a put of a large value consists of
	Bytes       uint64 // of keys and values as they are stored, those of chunks included
	ValueBytes  uint64 // of the values that were put, as applications have written them
	Largest     uint64 // of these, in bytes
}

func (c *Counts) add(o Counts) {
	c.Puts += o.Puts
	c.Deletes += o.Deletes
	c.ChunkWrites += o.ChunkWrites
	c.Bytes += o.Bytes
	c.ValueBytes += o.ValueBytes
	c.Largest = max(c.Largest, o.Largest)
}

// Table counts events by the prefix of their keys, in cells of time that Advance begins.
//
// It keeps a node for each prefix of MaxDepth components, so that any depth up to that can be
// shown at any time, of what has happened before as well. A key without a separator is of no
// prefix. A chunk counts for the prefix of the key whose value it is part of, which its own
// key tells; a manifest counts as a value as long as the one that it stands for.
//
// Memory is bounded: there are MaxPrefixes nodes of Cells+1 cells at the most, about 3 KB each,
// whatever keys there are. A node whose cells are all empty goes. When there is no room, a new
// prefix counts with the longest prefix of it that has a node, or with its first component,
// for which an eighth of the room is kept; and for Other where that is used up. The busiest of
// those are remembered, and at the next Advance the nodes with the least traffic are merged
// into theirs and make room for them. What is merged is in its parent's row: nothing is lost
// but the finer name.
//
// The simpler design, a map of the prefixes at the depth that is shown, has to begin anew
// when the depth changes. One that counts a sample of the events has rows that are wrong for
// what is written seldom, which is what large values are.
//
// A table is not safe for concurrent use.
type Table struct {
	cfg   Config
	nodes map[string]*node
	total node
	other node // prefixes for which there is no room
	own   node // of kvwrap's own, below the reserved prefix, and of no key of an application

	waiting map[string]uint64 // bytes of prefixes for which there was no room since the last Advance

	open   int                  // number of the open cell
	starts [Cells + 1]time.Time // of cells, by number modulo their number

	last     *node // the one of the event before
	lastName []byte
}

type node struct {
	cells  [Cells + 1]Counts // by number modulo their number
	empty  int               // cells in a row, up to the last one closed
	merged bool              // finer prefixes count here
}

// NewTable returns a table whose first cell begins at the given time.
func NewTable(cfg Config, at time.Time) *Table {
	cfg.Separator = cmp.Or(cfg.Separator, '/')
	cfg.MaxPrefixes = cmp.Or(cfg.MaxPrefixes, defaultMaxPrefixes)
	t := &Table{cfg: cfg, nodes: make(map[string]*node), waiting: make(map[string]uint64)}
	t.starts[0] = at
	return t
}

// Add counts an event in the open cell.
func (t *Table) Add(e *mvccpb.Event) {
	var c Counts
	key, deleted := e.Kv.Key, e.Type == mvccpb.DELETE
	c.Bytes = uint64(len(key) + len(e.Kv.Value))
	var n *node
	logical, _, isChunk := t.cfg.Space.FindChunk(key)
	switch {
	case isChunk:
		c.ChunkWrites = 1
		n = t.node(logical, c.Bytes)
	case t.cfg.Space.Prefix() != "" && t.cfg.Space.Reserved(key):
		c.ChunkWrites = 1
		n = &t.own
	case deleted:
		c.Deletes = 1
		n = t.node(key, c.Bytes)
	default:
		c.Puts = 1
		c.ValueBytes = valueBytes(e.Kv.Value)
		c.Largest = c.ValueBytes
		n = t.node(key, c.Bytes)
	}
	at := t.open % len(n.cells)
	n.cells[at].add(c)
	t.total.cells[at].add(c)
}

// valueBytes returns the length of a value as the application has written it.
func valueBytes(stored []byte) uint64 {
	if format.Plain(stored) {
		return uint64(len(stored))
	}
	switch literal, m, err := format.Head(stored, maxValueBytes); {
	case err != nil: // of another version, or damaged
		return uint64(len(stored))
	case m == nil:
		return uint64(len(literal))
	default:
		return uint64(m.Length)
	}
}

// node returns where a key counts, with so many bytes.
func (t *Table) node(key []byte, bytes uint64) *node {
	name := keys.Prefix(key[:min(len(key), maxNameBytes)], t.cfg.Separator, MaxDepth)
	if t.last != nil && string(name) == string(t.lastName) {
		return t.last
	}
	n := t.nodes[string(name)]
	switch {
	case n != nil:
	case len(t.nodes) < t.fine():
		n = &node{}
		t.nodes[string(name)] = n
	default:
		t.wait(name, bytes)
		n = t.parent(name)
		n.merged = true
		return n // the next one waits, too
	}
	t.last, t.lastName = n, append(t.lastName[:0], name...)
	return n
}

// wait remembers the busiest prefixes that wait for room, by the Space-Saving algorithm: one
// that is new takes the place of the least and goes on from its count, so that none that has
// more than a share of 1 in maxWaiting is missed.
func (t *Table) wait(name []byte, bytes uint64) {
	if n, ok := t.waiting[string(name)]; ok || len(t.waiting) < maxWaiting {
		t.waiting[string(name)] = n + bytes
		return
	}
	least, of := "", uint64(math.MaxUint64)
	for name, n := range t.waiting {
		if n < of {
			least, of = name, n
		}
	}
	delete(t.waiting, least)
	t.waiting[string(name)] = of + bytes
}

// fine is for how many prefixes there is room, but for first components.
func (t *Table) fine() int { return t.cfg.MaxPrefixes - t.cfg.MaxPrefixes/8 }

// parent returns the node of the longest prefix of name that has one, or makes one for its
// first component.
func (t *Table) parent(name []byte) *node {
	for depth := MaxDepth - 1; depth > 0; depth-- {
		shorter := keys.Prefix(name, t.cfg.Separator, depth)
		if len(shorter) == len(name) {
			continue
		}
		n := t.nodes[string(shorter)]
		if n == nil && depth == 1 && len(t.nodes) < t.cfg.MaxPrefixes {
			n = &node{}
			t.nodes[string(shorter)] = n
		}
		if n != nil {
			return n
		}
	}
	return &t.other
}

// coarse reports whether a prefix is a first component, which has no parent.
func (t *Table) coarse(name string) bool {
	return len(keys.Prefix([]byte(name), t.cfg.Separator, 1)) == len(name)
}

// Advance closes the open cell at the given time and begins the next one.
func (t *Table) Advance(at time.Time) {
	closed := t.open % len(t.starts)
	t.open++
	t.last = nil
	opened := t.open % len(t.starts)
	t.starts[opened] = at
	step := func(n *node) {
		if n.empty++; n.cells[closed] != (Counts{}) {
			n.empty = 0
		}
		n.cells[opened] = Counts{}
	}
	for _, n := range []*node{&t.total, &t.other, &t.own} {
		step(n)
	}
	for name, n := range t.nodes {
		if step(n); n.empty >= Cells {
			delete(t.nodes, name)
		}
	}
	if len(t.waiting) > 0 {
		t.makeRoom()
		busiest := slices.SortedFunc(maps.Keys(t.waiting), func(a, b string) int {
			return cmp.Or(cmp.Compare(t.waiting[b], t.waiting[a]), cmp.Compare(a, b))
		})
		for _, name := range busiest[:min(len(busiest), max(0, t.fine()-len(t.nodes)))] {
			if t.nodes[name] == nil {
				t.nodes[name] = &node{}
			}
		}
		clear(t.waiting)
	}
}

// makeRoom merges the nodes with the least traffic into those of shorter prefixes, until a
// quarter of the room is free.
func (t *Table) makeRoom() {
	type load struct {
		name   string
		bytes  uint64
		coarse int // these go last
	}
	var loads []load
	for name, n := range t.nodes {
		l := load{name: name}
		if t.coarse(name) {
			l.coarse = 1
		}
		for _, c := range n.cells {
			l.bytes += c.Bytes
		}
		loads = append(loads, l)
	}
	slices.SortFunc(loads, func(a, b load) int {
		return cmp.Or(cmp.Compare(a.coarse, b.coarse), cmp.Compare(a.bytes, b.bytes), cmp.Compare(b.name, a.name))
	})
	for _, l := range loads[:max(0, len(loads)-t.fine()*3/4)] {
		n := t.nodes[l.name]
		delete(t.nodes, l.name)
		into := t.parent([]byte(l.name))
		for i := range n.cells {
			into.cells[i].add(n.cells[i])
		}
		into.merged, into.empty = true, min(into.empty, n.empty)
	}
}
