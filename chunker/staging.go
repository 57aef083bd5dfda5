package chunker

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	stagingOps      = 100 // chunks in one proposal at the most
	stagingInFlight = 4   // proposals of one write at a time
)

// errAnchorGone says that somebody has deleted the chunks that were staged: the
// key was deleted or overwritten, or the session was lost.
var errAnchorGone = errors.New("chunker: the anchor is gone")

// stage puts the draft's chunks that are not staged yet, under its anchor.
// Nothing refers to them before the commit.
//
// The anchor is made with the first chunks, under a token that was never sent
// before, and put again with each batch that follows, so that its revision says
// that they are all there. No batch is sent again when its outcome is unknown: it
// might come late, after the writer has gone.
func (s *Stage) stage(ctx context.Context, d *draft) (err error) {
	batches := s.batches(d)
	ctx, end := s.span(ctx, "kvwrap stage", slog.String("key", string(d.Key)), slog.Int("chunks", len(d.Chunks)-d.staged), slog.Int("proposals", len(batches)))
	defer func() { end(err) }()
	if d.anchor == 0 && len(batches) > 0 {
		if err := s.dropAnchor(ctx, d, batches[0]); err != nil {
			return err
		}
		batches = batches[1:]
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg     sync.WaitGroup
		latest atomic.Int64 // revision of a batch
		slots  = make(chan struct{}, stagingInFlight)
	)
	for _, batch := range batches {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			resp, err := s.inner.Txn(ctx, &pb.TxnRequest{
				Compare: []*pb.Compare{compareCreate(d.anchorKey(), d.anchor)},
				Success: append([]*pb.RequestOp{wire.Put(&pb.PutRequest{Key: d.anchorKey(), IgnoreValue: true, IgnoreLease: true})}, batch...),
			})
			if err == nil && !resp.Succeeded {
				err = errAnchorGone
			}
			if err != nil {
				cancel(err) // the first one is the cause
				return
			}
			raise(&latest, resp.Header.Revision)
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	d.latest = max(d.latest, latest.Load())
	d.staged = len(d.Chunks)
	return nil
}

// dropAnchor makes the anchor of d and puts the first batch of its chunks.
func (s *Stage) dropAnchor(ctx context.Context, d *draft, batch []*pb.RequestOp) error {
	return s.session.With(ctx, func(lease clientv3.LeaseID) error {
		anchor := &pb.PutRequest{Key: d.anchorKey(), Value: anchorValue(), Lease: int64(lease)}
		d.sent, d.session = true, lease
		resp, err := s.inner.Txn(ctx, &pb.TxnRequest{
			Compare: []*pb.Compare{compareCreate(anchor.Key, 0)},
			Success: append([]*pb.RequestOp{wire.Put(anchor)}, batch...),
		})
		if err != nil {
			return err
		}
		if !resp.Succeeded {
			return errAnchorGone
		}
		d.anchor, d.latest = resp.Header.Revision, resp.Header.Revision
		return nil
	})
}

// batches packs the puts of the chunks that are not staged into proposals.
func (s *Stage) batches(d *draft) [][]*pb.RequestOp {
	var (
		batches [][]*pb.RequestOp
		batch   []*pb.RequestOp
		key     = s.space.ChunkKeyLen(d.Key)
		room    = s.batchBytes(key)
		most    = min(stagingOps, int(s.limits.ops.Load())-1) // one is the anchor's
		bytes   = 0
	)
	for _, c := range d.Chunks[d.staged:] {
		n := key + len(c.Stored) + putOverhead
		if len(batch) == most || bytes+n > room && len(batch) > 0 {
			batches = append(batches, batch)
			batch, bytes = nil, 0
		}
		batch = append(batch, d.chunkPut(c))
		bytes += n
	}
	if len(batch) > 0 {
		batches = append(batches, batch)
	}
	return batches
}

// batchBytes returns how many bytes of puts fit in one proposal beside the
// comparison with the anchor and the put of it.
func (s *Stage) batchBytes(chunkKey int) int {
	return int(s.limits.entry.Load()) - proposalOverhead - 2*chunkKey - len(anchorValue())
}

// chunkLimit returns the length of the longest chunk that a proposal can hold.
func (s *Stage) chunkLimit(chunkKey int) int {
	return s.batchBytes(chunkKey) - chunkKey - putOverhead - format.ChunkOverhead
}

// proposalOverhead is what a proposal holds beside keys and values: the request
// header with the name of a user, a comparison, the framing of the messages. It
// is rounded up.
const proposalOverhead = 256

// putOverhead is what a put in a transaction takes beside its key and value: the
// lease and the framing of the messages, rounded up.
const putOverhead = 40

// anchorValue says whose write it is, for people and for audits.
var anchorValue = sync.OnceValue(func() []byte {
	host, _ := os.Hostname() // for people only
	value, err := json.Marshal(Anchor{Host: host, PID: os.Getpid(), Version: buildVersion()})
	if err != nil {
		panic(err) // strings and numbers marshal
	}
	return value
})

// Anchor is the value of the key that marks an unfinished write, as JSON.
type Anchor struct {
	Host    string `json:"host"`
	PID     int    `json:"pid"`
	Version string `json:"version"` // of kvwrap
}

func buildVersion() string {
	const path = "github.com/kvwrap/kvwrap"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == path && m.Version != "" {
			return m.Version
		}
	}
	return "unknown"
}

// abandon deletes what d has staged, in the background: whatever has become of
// the commit, if the anchor is still there it has not been applied, and once the
// anchor is gone it never will. This is the only way in which a writer deletes
// staged chunks.
//
// Where etcd cannot be reached for a minute or two the session is given up, whose
// end takes the anchor, and the rest is left to the sweep. So it is where it is not
// known whether the first batch has arrived: it may yet, and make its anchor.
func (s *Stage) abandon(d *draft) {
	if !d.sent {
		return
	}
	s.stats.abandoned.Add(1)
	r := s.space.IDs(d.Key, format.WholeToken(d.Token).First, format.WholeToken(d.Token).Last)
	txn := &pb.TxnRequest{Success: []*pb.RequestOp{wire.DeleteRange(&pb.DeleteRangeRequest{Key: r.Key, RangeEnd: r.End})}}
	if d.anchor != 0 {
		txn.Compare = []*pb.Compare{compareCreate(d.anchorKey(), d.anchor)}
	} else { // no commit was ever sent, and what may be there is nobody's
		s.session.Retire(d.session)
	}
	s.inBackground(func() {
		spanned, end := s.span(s.ctx, "kvwrap give up", slog.String("key", string(d.Key)))
		var err error
		defer func() { end(err) }()
		for wait := 50 * time.Millisecond; wait < time.Minute; wait *= 2 {
			ctx, cancel := context.WithTimeout(spanned, 5*time.Second)
			_, err = s.inner.Txn(ctx, txn)
			cancel()
			if err == nil {
				return
			}
			select {
			case <-time.After(wait):
			case <-s.ctx.Done():
				return
			}
		}
		s.session.Retire(d.session)
	})
}
