package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/kvwrap/kvwrap/internal/format"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// checker finds out whether every value in chunks is whole, and which chunks no value
// names. It reads the keys of applications and those of chunks side by side: both are in
// the order of the applications' keys, so that it holds a page of each, and the chunks of
// one key, whatever their number.
//
// One revision is read, and a commit is one revision, so a value that it finds is whole
// unless something is damaged. Chunks that no value names are orphans, but for those whose
// token has an anchor: their write is under way, or its process has crashed less than a
// lease ago. A key that is judged stays so: when the revision is compacted meanwhile, it
// goes on with the next key at another one.
type checker struct {
	space     format.Keyspace
	namespace string // of the keys that the pager has
	found     func(finding)
	done      func() // after each key of an application

	from  []byte // the first key that is not judged yet
	stray []byte // the last one that was found
	checkCounts
}

// checkCounts are what a checker has seen.
type checkCounts struct {
	Keys        int `json:"keys"`      // of applications
	Chunked     int `json:"chunked"`   // values in chunks
	Envelopes   int `json:"envelopes"` // values in envelopes
	ValueBytes  int `json:"valueBytes"`
	Chunks      int `json:"chunks"` // that were read
	Writes      int `json:"writesUnderWay"`
	WriteChunks int `json:"writeChunks"` // that those have staged
}

// finding is something that is not as it should be.
type finding struct {
	kind     findingKind
	Key      []byte `json:"key"` // of the application, or where it is stray as it is stored
	Revision int64  `json:"revision,omitempty"`
	Chunks   int    `json:"chunks,omitempty"` // concerned
	Reason   string `json:"reason,omitempty"`
}

type findingKind int

const (
	damaged  findingKind = iota // the value cannot be read
	unread                      // of another version, reserved prefix or namespace
	orphaned                    // chunks that no value names
	leased                      // chunks that will expire at another time than the key
	strange                     // a key below the reserved prefix that is none of kvwrap's
	findingKinds
)

var firstKey = []byte{0}

// run judges the keys from c.from on.
func (c *checker) run(ctx context.Context, p pager) error {
	if c.from == nil {
		c.from = firstKey
	}
	rest := format.Range{Key: c.from, End: []byte{0}}
	keys, stopKeys := iter.Pull2(eachKey(ctx, p, c.space.Logical(rest)))
	defer stopKeys()
	groups, stopGroups := iter.Pull2(c.groups(ctx, p, c.space.Chunks(rest)))
	defer stopGroups()
	kv, err, someKey := keys()
	group, groupErr, someGroup := groups()
	for someKey || someGroup {
		if err := errors.Join(err, groupErr); err != nil {
			return err
		}
		order := 0
		switch {
		case !someGroup:
			order = -1
		case !someKey:
			order = 1
		default:
			order = bytes.Compare(kv.Key, group.key)
		}
		var judged []byte
		switch {
		case order > 0: // chunks without a key
			judged = group.key
			c.orphans(group, nil)
		default:
			judged = kv.Key
			var of chunkGroup
			if order == 0 {
				of = group
			}
			if err := c.value(ctx, p, kv, of); err != nil {
				return err
			}
			c.Keys++
			c.done()
		}
		c.from = append(bytes.Clone(judged), 0)
		if order <= 0 {
			kv, err, someKey = keys()
		}
		if order >= 0 {
			group, groupErr, someGroup = groups()
		}
	}
	return nil
}

// chunkGroup is the chunks that are stored for a key.
type chunkGroup struct {
	key []byte
	ids []format.ID
}

// groups yields the chunks of one key after the other.
func (c *checker) groups(ctx context.Context, p pager, r format.Range) iter.Seq2[chunkGroup, error] {
	return func(yield func(chunkGroup, error) bool) {
		var g chunkGroup
		for kv, err := range inPages(ctx, p, []format.Range{r}, keysPage, nil, true) {
			if err != nil {
				yield(g, err)
				return
			}
			key, id, err := c.space.ParseChunkKey(kv.Key)
			if err != nil {
				c.other(kv.Key)
				continue
			}
			if !bytes.Equal(key, g.key) {
				if g.key != nil && !yield(g, nil) {
					return
				}
				g = chunkGroup{key: key}
			}
			g.ids = append(g.ids, id)
		}
		if g.key != nil {
			yield(g, nil)
		}
	}
}

// other judges a key below the reserved prefix that is no chunk's.
func (c *checker) other(key []byte) {
	if bytes.HasPrefix(key, c.space.Own("")) || c.stray != nil && bytes.Compare(key, c.stray) <= 0 {
		return // kvwrap's own, or found before
	}
	c.stray = bytes.Clone(key)
	c.found(finding{kind: strange, Key: c.stray})
}

// value judges a key of an application, and what is stored for it.
func (c *checker) value(ctx context.Context, p pager, kv *mvccpb.KeyValue, g chunkGroup) error {
	if format.Plain(kv.Value) {
		c.orphans(g, nil)
		return nil
	}
	bad := func(kind findingKind, chunks int, format string, args ...any) error {
		c.found(finding{kind: kind, Key: kv.Key, Revision: kv.ModRevision, Chunks: chunks, Reason: fmt.Sprintf(format, args...)})
		return nil
	}
	literal, m, err := format.Parse(kv.Value, maxValueBytes)
	switch {
	case errors.Is(err, format.ErrDamaged):
		return bad(damaged, 0, "%v", err)
	case err != nil:
		return bad(unread, 0, "%v", err)
	case m == nil:
		c.Envelopes++
		c.ValueBytes += len(literal)
		c.orphans(g, nil)
		return nil
	}
	if flags := elsewhere(c.namespace, c.space, kv.Key, m); flags != "" {
		return bad(unread, 0, "verify it %s", flags)
	}
	if m.KeyDigest != format.KeyDigest(kv.Key) {
		return bad(damaged, 0, "the manifest was written at another key: see whether a tool has copied it without its chunks")
	}
	layout := format.NewLayout(m)
	src := format.Source{Stored: make(map[format.ID][]byte)}
	elsewhere := 0 // chunks on another lease
	for {
		refs := layout.Missing(src)
		if err := eachChunk(ctx, p, c.space, kv.Key, refs, func(id format.ID, chunk *mvccpb.KeyValue) {
			src.Stored[id] = chunk.Value
			c.Chunks++
			if chunk.Lease != kv.Lease {
				elsewhere++
			}
		}); err != nil {
			return err
		}
		if missing := layout.Missing(src); len(missing) > 0 {
			what := "chunks"
			if !layout.Complete() {
				what = "chunks with the list of the others"
			}
			return bad(damaged, len(missing), "%d of %d %s are missing, the first is %v", len(missing), len(layout.Last()), what, missing[0].ID)
		}
		if layout.Complete() {
			break
		}
		if err := layout.Read(src); err != nil {
			return bad(damaged, 0, "%v", err)
		}
	}
	c.Chunked++
	c.ValueBytes += m.Length
	if elsewhere > 0 {
		bad(leased, elsewhere, "%d chunks are on another lease than the key, %x", elsewhere, kv.Lease)
	}
	c.orphans(g, layout.All())
	if _, err := layout.Value(src); err != nil {
		return bad(damaged, 0, "%v", err)
	}
	return nil
}

// orphans judges the chunks of a key that its value does not name.
func (c *checker) orphans(g chunkGroup, named []format.Ref) {
	if len(g.ids) == 0 {
		return
	}
	underWay, names := make(map[format.Token]bool), make(map[format.ID]bool)
	for _, id := range g.ids {
		if id.Index == 0 {
			underWay[id.Token] = true
		}
	}
	for _, r := range named {
		names[r.ID] = true
	}
	orphans := 0
	for _, id := range g.ids {
		switch {
		case id.Index == 0 || names[id]:
		case underWay[id.Token]:
			c.WriteChunks++
		default:
			orphans++
		}
	}
	c.Writes += len(underWay)
	if orphans > 0 {
		c.found(finding{kind: orphaned, Key: g.key, Chunks: orphans})
	}
}
