package format

import (
	"bytes"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Draft is one value on its way to a key: its cuts, and the chunks that had to
// be made for it so far, all under one token.
//
// [Draft.Build] may be called again with another base, after a conflict. What
// was made before keeps its id and its bytes, so that chunks that are stored
// already stay good; ids only grow.
type Draft struct {
	Key    []byte
	Token  Token
	Lease  int64
	Cut    CutParams
	Chunks []Chunk // made so far, Chunks[i] has index i+1; append-only

	space  Keyspace
	value  []byte
	pieces []piece
	digest uint64
	own    map[Identity]Ref
}

// Chunk is a chunk to be put under the key of its ID.
type Chunk struct {
	Ref
	Stored []byte
}

type piece struct {
	plain    []byte
	identity Identity
}

// NewDraft cuts value, which must not change while the draft is in use, under a
// fresh token.
func NewDraft(space Keyspace, key, value []byte, lease int64, cut CutParams) *Draft {
	return &Draft{
		Key: key, Token: NewToken(), Lease: lease, Cut: cut,
		space: space, value: value, pieces: pieces(value, cut), digest: xxhash.Sum64(value),
		own: make(map[Identity]Ref),
	}
}

// Renew returns a draft of the same value under a fresh token, with nothing
// made yet.
func (d *Draft) Renew(lease int64) *Draft {
	fresh := *d
	fresh.Token, fresh.Lease = NewToken(), lease
	fresh.Chunks, fresh.own = nil, make(map[Identity]Ref)
	return &fresh
}

func pieces(b []byte, cut CutParams) []piece {
	ps := make([]piece, 0, len(b)/cut.Avg+1)
	for total := len(b); len(b) > 0; {
		n := cut.Next(b)
		if len(ps) == cap(ps) { // the cuts so far foretell the number of the rest
			ps = append(make([]piece, 0, len(ps)*total/(total-len(b))+len(ps)/8+1), ps...)
		}
		ps = append(ps, piece{plain: b[:n:n]})
		b = b[n:]
	}
	total := 0
	for _, p := range ps {
		total += len(p.plain)
	}
	inParallel(len(ps), total, func(i int) error {
		ps[i].identity = identify(ps[i].plain)
		return nil
	})
	return ps
}

// listCut returns how the lists of a value are cut whose own chunks have up to max
// bytes.
func listCut(max int) CutParams {
	p := CutParams{Min: 512, Avg: 2 << 10, Max: min(8<<10, max)}
	p.Avg = min(p.Avg, p.Max)
	p.Min = min(p.Min, p.Avg)
	return p
}

// Build returns the stored form of a manifest for the value and its layout. It
// reuses the draft's own chunks, then those of base, and makes the rest, which
// it appends to d.Chunks. A base with another lease is not reused: its chunks
// would expire apart from the key. Base may be nil. The manifest has up to
// maxListBytes of its list, at least one ref.
func (d *Draft) Build(base *Layout, maxListBytes int) (stored []byte, l *Layout) {
	have := make(map[Identity]Ref)
	if base != nil && base.Lease == d.Lease {
		for _, r := range base.All() {
			have[r.Identity] = r
		}
	}
	top := d.refs(d.pieces, have)
	levels := [][]Ref{top}
	for len(top) > 1 && len(top)*refBytes > maxListBytes {
		top = d.refs(pieces(encodeRefs(top), listCut(d.Cut.Max)), have)
		levels = slices.Insert(levels, 0, top)
	}
	l = &Layout{levels: levels, Manifest: Manifest{
		Token: d.Token, Prefix: d.space.Prefix(), KeyDigest: KeyDigest(d.Key), Lease: d.Lease,
		Cut: d.Cut, Length: len(d.value), Digest: d.digest, Depth: len(levels) - 1, Refs: top,
	}}
	return l.encode(), l
}

// refs finds or makes a chunk for each piece.
func (d *Draft) refs(ps []piece, have map[Identity]Ref) []Ref {
	made, bytesMade := len(d.Chunks), 0
	var fresh []piece
	refs := make([]Ref, len(ps))
	for i, p := range ps {
		r, ok := d.own[p.identity]
		if !ok {
			r, ok = have[p.identity]
		}
		if !ok {
			r = Ref{
				ID:       ID{Token: d.Token, Index: uint32(len(d.Chunks) + 1)},
				Length:   uint32(len(p.plain)),
				Identity: p.identity,
			}
			d.own[p.identity] = r
			d.Chunks = append(d.Chunks, Chunk{Ref: r})
			fresh = append(fresh, p)
			bytesMade += len(p.plain)
		}
		refs[i] = r
	}
	inParallel(len(fresh), bytesMade, func(i int) error {
		c := &d.Chunks[made+i]
		c.Stored = bytes.Clone(encodeChunk(c.ID, fresh[i].plain))
		return nil
	})
	return refs
}
