package chunker

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// SweepResult is what a sweep has found below the reserved prefix.
type SweepResult struct {
	Keys    int // keys of the application that have chunks there
	Deleted int // chunks that nothing named any more, and that were deleted
	Writes  int // writes under way, whose chunks were left alone
	Left    int // keys left for another sweep: they changed at each attempt, or this client cannot tell which chunks they name
}

// sweepAttempts bounds how often a sweep tries a key that others write to.
const sweepAttempts = 5

// sweepPage is the number of keys in one answer of a listing.
const sweepPage = 10_000

// Sweep deletes the chunks that no value names and that no write can commit any
// more: those of writes that crashed or whose outcome nobody waited for, and
// those that writes left behind under contention or by clients that did not know
// a key to be chunked. When it returns nil, what had become garbage before the
// call is gone, but for the keys counted as Left.
//
// One sweep runs in the cluster at a time. Sweep waits while another one does,
// as long as ctx allows. It sends Config.SweepRate requests a second. After an
// error the result says what was done until then; a sweep that is stopped at any
// point leaves nothing undone but the rest of its work.
//
// A sweep lists the keys below the reserved prefix, and for each key K of the
// application that has some it reads, from one snapshot, what K holds and which
// chunks are there. Chunks of a token are garbage if K's manifest does not name
// them and the token has no anchor. Then nothing can come to name them: a commit
// would have to find the anchor, and no anchor is made twice, or build on a
// manifest that names them. So it sends
//
//	If    K holds what it held, and for each token Create(anchor) = 0
//	Then  Delete(the ranges of its chunks that are not named)
//
// and begins again with K where that fails.
func (s *Stage) Sweep(ctx context.Context) (SweepResult, error) {
	lock, err := s.lockSweep(ctx)
	if err != nil {
		return SweepResult{}, s.sweepDenied(err)
	}
	defer lock.release()
	return s.sweep(ctx, lock)
}

// sweepDenied says what a sweep takes in permissions, where err is that it lacks one.
func (s *Stage) sweepDenied(err error) error {
	if !wire.Is(err, rpctypes.ErrPermissionDenied) {
		return err
	}
	all := s.space.All()
	return fmt.Errorf("chunker: a sweep takes readwrite permission on all keys from %q to %q, and read permission on every key with a large value: grant them, or run \"shapecheck sweep\" as root: %w", all.Key, all.End, err)
}

// sweep sweeps under a lock.
func (s *Stage) sweep(ctx context.Context, lock *sweepLock) (result SweepResult, err error) {
	defer func() { s.stats.swept.Add(uint64(result.Deleted)) }()
	err = s.eachChunkedKey(ctx, func(key []byte) error {
		result.Keys++
		return s.sweepKey(ctx, key, lock, &result)
	})
	return result, s.sweepDenied(err)
}

// eachChunkedKey visits the keys of the application that have chunks, in order.
func (s *Stage) eachChunkedKey(ctx context.Context, visit func(key []byte) error) error {
	all := s.space.All()
	page := &pb.RangeRequest{Key: all.Key, RangeEnd: all.End, Limit: sweepPage, KeysOnly: true}
	var last []byte
	for {
		if err := s.paceSweep(ctx); err != nil {
			return err
		}
		resp, err := s.inner.Range(ctx, page)
		if err != nil {
			return err
		}
		for _, kv := range resp.Kvs {
			page.Key = append(kv.Key, 0)
			key, _, err := s.space.ParseChunkKey(kv.Key)
			if err != nil || bytes.Equal(key, last) {
				continue // one of kvwrap's own, or of somebody who should not be here
			}
			last = key
			if err := visit(key); err != nil {
				return err
			}
		}
		if !resp.More {
			return nil
		}
	}
}

// sweepKey deletes the garbage among the chunks of a key.
func (s *Stage) sweepKey(ctx context.Context, key []byte, lock *sweepLock, result *SweepResult) error {
	for attempt := 0; attempt < sweepAttempts; {
		if err := s.paceSweep(ctx); err != nil {
			return err
		}
		e, err := s.ask(ctx, []question{s.stateQuestion(key, true), lock.question()})
		if errors.Is(err, ErrUnknownFormat) || errors.Is(err, ErrPrefixMismatch) || errors.Is(err, ErrValueTooLarge) || wire.Is(err, rpctypes.ErrPermissionDenied) {
			break
		}
		if err != nil {
			return err
		}
		st := e.states[string(key)]
		if st.opaque != nil {
			attempt++
			continue
		}
		garbage, writes := st.garbage()
		if len(garbage) == 0 {
			result.Writes += writes
			return nil
		}
		if err := s.paceSweep(ctx); err != nil {
			return err
		}
		entry := s.limits.entry.Load()
		txn := s.sweepTxn(key, st, garbage, lock)
		resp, err := s.inner.Txn(ctx, txn)
		switch {
		case wire.Is(err, rpctypes.ErrTooManyOps) && len(txn.Success) > 1:
			if err := s.limits.learnOps(ctx, s.inner, wire.Width(txn)); err != nil {
				return err
			}
			continue
		case wire.Is(err, rpctypes.ErrRequestTooLarge) && len(txn.Success) > 1 && s.limits.lowerEntry(entry):
			continue
		case err != nil:
			return err
		case !resp.Succeeded:
			attempt++
			continue
		}
		for _, r := range resp.Responses {
			result.Deleted += int(r.GetResponseDeleteRange().Deleted)
		}
		if len(txn.Success) == len(garbage) {
			result.Writes += writes
			return nil
		}
	}
	result.Left++
	return nil
}

// garbage returns the chunks that were found stored and are not named, and cannot
// be: without those of writes under way, of which it returns the number.
func (st *state) garbage() (garbage []format.IDRange, writes int) {
	underWay := make(map[format.Token]bool)
	for _, kv := range st.chunks {
		if id, ok := format.ChunkID(kv.Key); ok && id.Index == 0 {
			underWay[id.Token] = true
		}
	}
	var stored, named []format.Ref
	for _, kv := range st.chunks {
		if id, ok := format.ChunkID(kv.Key); ok && !underWay[id.Token] {
			stored = append(stored, format.Ref{ID: id})
		}
	}
	if st.layout != nil {
		named = st.layout.All()
	}
	return format.Garbage(stored, named), len(underWay)
}

// sweepTxn returns the transaction that deletes garbage of a key, as much of it as
// fits in a proposal.
func (s *Stage) sweepTxn(key []byte, st *state, garbage []format.IDRange, lock *sweepLock) *pb.TxnRequest {
	r := &pb.TxnRequest{Compare: append(st.unchanged(key), lock.held())}
	most := int(s.limits.ops.Load())
	room := int(s.limits.entry.Load()) - proposalOverhead - 4*(len(key)+putOverhead)
	guarded := make(map[format.Token]bool)
	for _, g := range garbage {
		ids := s.space.IDs(key, g.First, g.Last)
		room -= 3 * (len(ids.End) + putOverhead) // the range and the anchor
		full := len(r.Compare) >= most || len(r.Success) >= most || room < 0
		if full && len(r.Success) > 0 {
			break
		}
		if token := g.First.Token; !guarded[token] {
			guarded[token] = true
			r.Compare = append(r.Compare, compareCreate(s.space.ChunkKey(key, format.ID{Token: token}), 0))
		}
		r.Success = append(r.Success, wire.DeleteRange(&pb.DeleteRangeRequest{Key: ids.Key, RangeEnd: ids.End}))
	}
	return r
}

// unchanged returns comparisons that hold only while the key holds what it held,
// or at least no manifest where it held none: a cluster that was restored may
// come to a revision again with another write.
func (st *state) unchanged(key []byte) []*pb.Compare {
	switch {
	case st.layout != nil:
		return sameWrite(key, st.mod, st.layout)
	case st.mod == 0:
		return []*pb.Compare{compareMod(key, 0)}
	}
	below, bound := format.NoManifest(st.kv.Value)
	result := pb.Compare_GREATER
	if below {
		result = pb.Compare_LESS
	}
	return []*pb.Compare{compareMod(key, st.mod), compareValue(key, result, bound)}
}

// paceSweep waits until the sweep may send another request.
func (s *Stage) paceSweep(ctx context.Context) error {
	if err := s.sweepPace.Wait(ctx); err != nil {
		if ctx.Err() == nil { // the wait would be longer than the context
			err = context.DeadlineExceeded
		}
		return fmt.Errorf("chunker: the sweep is not done: %w: call it again, or raise Config.SweepRate, which is %d", err, s.cfg.SweepRate)
	}
	return nil
}
