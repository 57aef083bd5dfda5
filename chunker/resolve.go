package chunker

import (
	"context"
	"errors"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// chunkPool holds stored chunks by their id, which no two chunks share.
type chunkPool map[format.ID][]byte

func (p chunkPool) add(kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		if id, ok := format.ChunkID(kv.Key); ok {
			p[id] = kv.Value
		}
	}
}

func (p chunkPool) source() format.Source { return format.Source{Stored: p} }

// snapshot is where a read found manifests, and so where their chunks are.
type snapshot struct {
	revision     int64
	serializable bool
}

// unresolved is a manifest whose chunks are not all at hand.
type unresolved struct {
	kv     *mvccpb.KeyValue
	layout *format.Layout
}

// resolve replaces manifests and envelopes among the values of kvs by the values
// they stand for. Chunks that are not in the pool are read: at the snapshot,
// where they exist unless it has been compacted; and if they are not there, at
// the current revision, since chunks do not change and ids are not used again.
//
// A value that stays incomplete is a [*DamagedError], or ErrCompacted where that
// is the snapshot's fate. The value may have been overwritten meanwhile, so that
// a reader that can asks for value and chunks once more, in one transaction.
func (s *Stage) resolve(ctx context.Context, kvs []*mvccpb.KeyValue, pool chunkPool, at snapshot) error {
	open, err := s.parseAll(kvs)
	if err != nil {
		return err
	}
	return s.complete(ctx, open, pool.source(), at)
}

// parseAll replaces the envelopes among the values of kvs by the values in them,
// and returns the manifests.
func (s *Stage) parseAll(kvs []*mvccpb.KeyValue) (open []unresolved, err error) {
	for _, kv := range kvs {
		if format.Plain(kv.Value) {
			continue
		}
		literal, layout, err := s.parse(kv, s.cfg.MaxValueBytes)
		if err != nil {
			return nil, err
		}
		if layout == nil {
			kv.Value = literal
			continue
		}
		open = append(open, unresolved{kv, layout})
	}
	return open, nil
}

// complete replaces manifests by the values that they stand for.
func (s *Stage) complete(ctx context.Context, open []unresolved, src format.Source, at snapshot) error {
	open, err := s.assemble(open, src)
	var pinned error
	for _, at := range []snapshot{at, {}} { // the second one not from any one member: it may be behind
		for had := -1; err == nil && len(open) > 0 && len(src.Stored) > had; {
			had = len(src.Stored)
			err = s.fetch(ctx, open, src, at)
			if at.revision != 0 && (wire.Is(err, rpctypes.ErrCompacted) || wire.Is(err, rpctypes.ErrFutureRev)) {
				pinned, err = err, nil
				break
			}
			if err == nil {
				open, err = s.assemble(open, src)
			}
		}
	}
	switch {
	case err != nil || len(open) == 0:
		return err
	case wire.Is(pinned, rpctypes.ErrCompacted):
		return pinned // and what is missing need not be damaged
	}
	_, err = open[0].layout.Value(src)
	return s.damaged(open[0], err)
}

// damaged returns the error for a value whose chunks are not as they were written,
// and remembers not to build another one on them.
func (s *Stage) damaged(u unresolved, err error) error {
	if u.layout.Complete() {
		known := newChunked(u.kv, u.layout)
		known.damaged = true
		s.cache.put(known)
	}
	return unreadable(u.kv.Key, u.kv.ModRevision, err)
}

// missing reports whether err says that a chunk is missing.
func missing(err error) bool {
	var damaged *DamagedError
	return errors.As(err, &damaged) && damaged.missing
}

// overtaken reports whether err may be because the value was overwritten between
// the read of the key and that of its chunks, so that it may help to read again.
func overtaken(err error) bool { return missing(err) || wire.Is(err, rpctypes.ErrCompacted) }

// parse reads what is stored at a key and is not plain: the value of an envelope,
// or the layout of a chunked value of most bytes or less, as far as its manifest
// goes.
func (s *Stage) parse(kv *mvccpb.KeyValue, most int) (literal []byte, l *format.Layout, err error) {
	literal, m, err := format.Parse(kv.Value, most)
	var long *format.TooLongError
	switch {
	case errors.As(err, &long):
		return nil, nil, &ValueTooLargeError{Key: kv.Key, Bytes: long.Length, Most: most}
	case err != nil:
		return nil, nil, unreadable(kv.Key, kv.ModRevision, err)
	case m == nil:
		return literal, nil, nil
	case m.Prefix != s.space.Prefix():
		return nil, nil, &PrefixMismatchError{Key: kv.Key, Revision: kv.ModRevision, Stored: m.Prefix, Expected: s.space.Prefix()}
	case m.KeyDigest != format.KeyDigest(kv.Key):
		return nil, nil, &DamagedError{Key: kv.Key, Revision: kv.ModRevision,
			Reason: "the manifest was written at another key and copied here without its chunks, as by a mirror to another prefix; or it was written through a client with another namespace, which can read it"}
	}
	return nil, format.NewLayout(m), nil
}

// assemble puts the values together whose chunks are in the pool, and returns
// the others.
func (s *Stage) assemble(all []unresolved, src format.Source) (open []unresolved, err error) {
	for _, u := range all {
		value, err := u.layout.Value(src)
		var chunk *format.ChunkError
		switch {
		case errors.As(err, &chunk) && chunk.Missing:
			open = append(open, u)
			continue
		case err != nil:
			return nil, s.damaged(u, err)
		}
		u.kv.Value = value
		s.cache.put(newChunked(u.kv, u.layout))
	}
	return open, nil
}

// fetch reads chunks of what is unresolved into src, with a bounded number of
// bytes in one answer.
func (s *Stage) fetch(ctx context.Context, all []unresolved, src format.Source, at snapshot) error {
	const maxBytes = 32 << 20 // before compression
	for len(all) > 0 {
		var ranges []*pb.RangeRequest
		for bytes := 0; len(all) > 0; all = all[1:] {
			wanted, n := s.chunksOf(all[0], src, at.serializable)
			if bytes += n; bytes > maxBytes && len(ranges) > 0 {
				break
			}
			ranges = append(ranges, wanted...)
		}
		resps, _, err := s.readAll(ctx, ranges, at.revision)
		if err != nil {
			return err
		}
		for _, r := range resps {
			chunkPool(src.Stored).add(r.Kvs)
		}
	}
	return nil
}

// maxFetchedRuns is the number of ranges of chunks up to which they are read alone.
const maxFetchedRuns = 100

// chunksOf asks for the chunks that are missing of a value, and says how many
// bytes these have about. Where others are at hand it asks for those that are
// missing, most of which have one token and follow each other; else for all chunks
// of the key, so that no list has to be read first.
func (s *Stage) chunksOf(u unresolved, src format.Source, serializable bool) (ranges []*pb.RangeRequest, bytes int) {
	missing := u.layout.Missing(src)
	runs := format.Runs(missing)
	if len(src.Plain) == 0 || len(runs) > maxFetchedRuns {
		return []*pb.RangeRequest{chunkRequest(s.space.Chunks(format.Range{Key: u.kv.Key}), 0, serializable)}, u.layout.Length
	}
	for _, r := range runs {
		ranges = append(ranges, chunkRequest(s.space.IDs(u.kv.Key, r.First, r.Last), 0, serializable))
	}
	for _, r := range missing {
		bytes += int(r.Length)
	}
	return ranges, bytes
}
