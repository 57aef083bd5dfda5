package audit

import (
	"io"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/time/rate"
)

// Live reads all keys of a cluster as they are at one revision.
//
// It streams; where a server cannot, one before 3.7, it reads pages over ranges with an end, see
// the package wire.
//
// Where the revision is compacted meanwhile, it goes on behind the last key that it has read,
// at the current revision, and the report says so.
type Live struct {
	KV      clientv3.KV
	Watcher clientv3.Watcher // nil: what the last compaction has left is not found out
	Config  Config
	// BytesPerSecond is the most that is read, keys and values. Zero is no limit.
	BytesPerSecond int
	// Stall is how long a stream may say nothing before it is given up. Zero is for ever.
	Stall time.Duration
	// Progress is told how far it has come; it may be nil.
	Progress Progress

	tally    *tally
	limit    *rate.Limiter
	revision int64
	next     []byte // key from which nothing was read
	total    uint64
	notes    []string
	later    int64 // revision, after a compaction

	compactions int
}

const maxNotes = 5 // about compactions

// Audit reads everything. Where ctx ends the report is of what was read until then, and
// Partial; that is no error. An error that comes later than the first key makes the report
// Partial, too, and is returned with it.
func (l *Live) Audit(ctx context.Context) (*Report, error) {
	start := time.Now()
	l.tally = newTally(l.Config, true)
	if l.BytesPerSecond > 0 {
		l.limit = rate.NewLimiter(rate.Limit(l.BytesPerSecond), max(l.BytesPerSecond/10, 64<<10))
	}
	l.next = []byte{0}
	first, err := l.KV.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
	if err != nil {
		return nil, fmt.Errorf("counting the keys: %w", err)
	}
	l.total, l.revision = uint64(first.Count), first.Header.Revision
	for {
		if err = l.read(ctx); !errors.Is(err, rpctypes.ErrCompacted) {
			break
		}
		now, e := l.KV.Get(ctx, "\x00", clientv3.WithCountOnly())
		if e != nil {
			err = e
			break
		}
		if l.compactions++; l.compactions <= maxNotes {
			l.notes = append(l.notes, fmt.Sprintf("revision %d was compacted after %d keys: keys from \"%s\" on are as of revision %d", l.at(), l.tally.records, Key(l.next), now.Header.Revision))
		}
		l.later = now.Header.Revision
	}
	if more := l.compactions - maxNotes; more > 0 {
		l.notes = append(l.notes, fmt.Sprintf("there were %d compactions more; the last keys are as of revision %d", more, l.later))
	}
	r := l.tally.report()
	r.At, r.Source.Kind, r.Source.Revision, r.Source.RevisionAtEnd = start, "live", l.revision, l.later
	r.Source.Cluster = fmt.Sprintf("%x", first.Header.ClusterId)
	if l.Watcher != nil && err == nil {
		if r.Source.Compacted, err = compacted(ctx, l.KV, l.Watcher); err != nil {
			err = fmt.Errorf("asking for the last compaction: %w", err)
		}
	}
	r.Source.Seconds = time.Since(start).Seconds()
	r.Notes = append(l.notes, r.Notes...)
	if err != nil {
		r.Partial = true
		why := err.Error()
		if ctx.Err() != nil {
			why, err = "interrupted", nil
		}
		r.Notes = append(r.Notes, fmt.Sprintf("%s: %d of %d keys were read, those before \"%s\"", why, l.tally.records, l.total, Key(l.next)))
	}
	return r, err
}

// compacted returns the revision of the last compaction, 0 where there was none. No request
// asks for it, but a watch from a revision that is gone is told.
func compacted(ctx context.Context, kv clientv3.KV, w clientv3.Watcher) (int64, error) {
	if _, err := kv.Get(ctx, "\x00", clientv3.WithRev(1), clientv3.WithCountOnly()); !errors.Is(err, rpctypes.ErrCompacted) {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range w.Watch(ctx, "\x00", clientv3.WithRev(1)) {
		if resp.CompactRevision > 0 {
			return resp.CompactRevision, nil
		}
		if err := resp.Err(); err != nil {
			return 0, err
		}
	}
	return 0, ctx.Err()
}

// at is the revision that is read.
func (l *Live) at() int64 { return max(l.revision, l.later) }

// read reads what is left of the revision.
func (l *Live) read(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stream, err := wire.Client(l.KV).RangeStream(ctx, &pb.RangeRequest{Key: l.next, RangeEnd: []byte{0}, Revision: l.at()})
	if err != nil {
		return err
	}
	stalled := fmt.Errorf("the stream has said nothing for %v: %w", l.Stall, context.DeadlineExceeded)
	for {
		var stall *time.Timer
		if l.Stall > 0 {
			stall = time.AfterFunc(l.Stall, func() { stop(stalled) })
		}
		resp, err := stream.Recv()
		if stall != nil {
			stall.Stop()
		}
		switch {
		case context.Cause(ctx) == stalled:
			return stalled
		case errors.Is(err, io.EOF):
			return ctx.Err()
		case err != nil:
			return err
		}
		if err := l.take(ctx, resp.RangeResponse.GetKvs()); err != nil {
			return err
		}
	}
}

// take counts keys, in order, and waits as long as the limit says.
func (l *Live) take(ctx context.Context, kvs []*mvccpb.KeyValue) error {
	size := 0
	for _, kv := range kvs {
		r := record{revision: kv.ModRevision, key: kv.Key, value: kv.Value, create: kv.CreateRevision, version: kv.Version, lease: kv.Lease}
		r.bytes = recordBytes(kv)
		size += len(kv.Key) + len(kv.Value)
		l.tally.add(&r)
	}
	if len(kvs) > 0 {
		l.next = append(append(l.next[:0], kvs[len(kvs)-1].Key...), 0)
	}
	if l.Progress != nil {
		l.Progress(l.tally.records, l.total, 1, 1)
	}
	for l.limit != nil && size > 0 {
		n := min(size, l.limit.Burst())
		if err := l.limit.WaitN(ctx, n); err != nil {
			return err
		}
		size -= n
	}
	return ctx.Err()
}

// recordBytes is what a key takes in the backend: its revision and the marshalled KeyValue.
func recordBytes(kv *mvccpb.KeyValue) int {
	n := revisionBytes + 2 + varintBytes(uint64(len(kv.Key))) + len(kv.Key) + varintBytes(uint64(len(kv.Value))) + len(kv.Value)
	if len(kv.Value) == 0 {
		n -= 2 // a field that is empty is not written
	}
	for _, v := range []int64{kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease} {
		if v != 0 {
			n += 1 + varintBytes(uint64(v))
		}
	}
	return n
}

func varintBytes(v uint64) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutUvarint(b[:], v)
}
