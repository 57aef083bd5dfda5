package chunker

import (
	"math"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// draft is a value on its way to being stored in chunks at a key: cut against
// what is stored there now, its base, and staged where it does not fit in the
// commit.
type draft struct {
	*format.Draft
	put   *pb.PutRequest // of the value
	value []byte
	space format.Keyspace
	base  *state // nil where the commit does not depend on what is stored

	listBytes int // that the manifest may have of its list
	manifest  []byte
	layout    *format.Layout

	sent    bool             // whether the anchor was, with an answer or without
	session clientv3.LeaseID // that the anchor is on
	anchor  int64            // its CreateRevision, 0 while it is not known to be there
	latest  int64            // its ModRevision, that of the last batch
	staged  int              // how many of Chunks are
}

// rebase makes the manifest for another base, unless it is made. Chunks that are
// staged stay so.
func (d *draft) rebase(base *state, listBytes int) {
	if d.manifest != nil && d.basedOn(base) && d.listBytes == listBytes {
		return
	}
	d.base, d.listBytes = base, listBytes
	d.manifest, d.layout = d.Build(d.reusable(), listBytes)
}

// basedOn reports whether the draft was made for this base.
func (d *draft) basedOn(base *state) bool {
	if d.base == nil || base == nil {
		return d.base == base
	}
	return d.base.mod == base.mod && d.base.lease == base.lease && d.base.layout == base.layout && d.base.damaged == base.damaged
}

// reusable returns the layout whose chunks the draft may refer to, which are
// only those that are there and expire with the key. The token proves the manifest's lease to
// be that of its chunks, the base's lease is the key's: a client that does not
// know of chunks may have moved the key alone.
func (d *draft) reusable() *format.Layout {
	if d.base == nil || d.base.layout == nil || d.base.damaged || d.base.lease != d.base.layout.Lease {
		return nil
	}
	return d.base.layout
}

// anchorKey is the key that marks the draft's staged chunks as those of a write
// that may still commit. Because it lies among the chunks of the key, whoever
// deletes these stops the write, too.
func (d *draft) anchorKey() []byte { return d.space.ChunkKey(d.Key, format.ID{Token: d.Token}) }

// guards returns the comparisons under which the manifest may be put:
//
//   - nothing has been written to the key since the base was read;
//   - the base is the write it seems to be, even if the cluster was restored and
//     came to the same revision again;
//   - all that was staged is there, as [draft.proof] says.
//
// For a draft that is to be staged and is not yet they have the size that they
// will have.
func (d *draft) guards(anchored bool) []*pb.Compare {
	var guards []*pb.Compare
	if d.base != nil {
		if l := d.reusable(); l != nil {
			guards = append(guards, sameWrite(d.Key, d.base.mod, l)...)
		} else {
			guards = append(guards, compareMod(d.Key, d.base.mod))
		}
	}
	if anchored && len(d.Chunks) > 0 { // else there is nothing to stage
		latest := d.latest
		if latest == 0 {
			latest = math.MaxInt64
		}
		for _, key := range d.proof() {
			guards = append(guards, compareMod(key, latest))
			latest = d.anchor
		}
	}
	return guards
}

// proof returns the keys that are all there, as they were last put, only while all
// that was staged is:
//
//   - the anchor, which what deletes a key's chunks deletes among them. It is put
//     with each batch, so that a cluster that was restored to a moment between two
//     batches has it at an earlier revision;
//   - the first chunk, which came with the anchor, and goes with the others when
//     their lease ends.
func (d *draft) proof() [][]byte {
	keys := [][]byte{d.anchorKey()}
	if d.Lease != 0 {
		keys = append(keys, d.space.ChunkKey(d.Key, d.Chunks[0].ID))
	}
	return keys
}

// proven reports whether found, which was asked for the keys of the proof, shows
// them as they were put.
func (d *draft) proven(found []*mvccpb.KeyValue) bool {
	if len(found) != len(d.proof()) || found[0].ModRevision != d.latest {
		return false
	}
	for _, kv := range found {
		if kv.CreateRevision != d.anchor {
			return false
		}
	}
	return true
}

// puts returns the put of the manifest, and the puts of the chunks or, where these
// are staged, the end of their anchor.
func (d *draft) puts(anchored bool) []*pb.RequestOp {
	ops := []*pb.RequestOp{wire.Put(&pb.PutRequest{Key: d.Key, Value: d.manifest, Lease: d.Lease, PrevKv: d.put.PrevKv})}
	if !anchored {
		for _, c := range d.Chunks {
			ops = append(ops, d.chunkPut(c))
		}
	} else if len(d.Chunks) > 0 {
		ops = append(ops, wire.DeleteRange(&pb.DeleteRangeRequest{Key: d.anchorKey()}))
	}
	return ops
}

// cleanup returns deletes of what the commit of the draft leaves behind, as far as
// these have room, which it takes from; and whether that was all.
func (d *draft) cleanup(room *int) (ops []*pb.RequestOp, all bool) {
	for _, g := range d.garbage() {
		r := d.space.IDs(d.Key, g.First, g.Last)
		if *room -= len(r.Key) + len(r.End) + putOverhead; *room < 0 {
			return ops, false
		}
		ops = append(ops, wire.DeleteRange(&pb.DeleteRangeRequest{Key: r.Key, RangeEnd: r.End}))
	}
	return ops, true
}

// garbage returns what no manifest will name once the draft is committed: chunks
// of the base, and staged ones that an earlier base had made necessary.
func (d *draft) garbage() []format.IDRange {
	var old []format.Ref
	if d.base != nil && d.base.layout != nil {
		old = d.base.layout.All()
	}
	for _, c := range d.Chunks[:d.staged] {
		old = append(old, c.Ref)
	}
	return format.Garbage(old, d.layout.All())
}

func (d *draft) chunkPut(c format.Chunk) *pb.RequestOp {
	return wire.Put(&pb.PutRequest{Key: d.space.ChunkKey(d.Key, c.ID), Value: c.Stored, Lease: d.Lease})
}
