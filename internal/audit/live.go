package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Live reads all keys of a cluster as they are at one revision.
//
// It streams, where the server can. A server before 3.7 is read in pages, each over a range
// with an end: a page by a limit alone has the server count all the rest of the keys, which
// makes a hundred thousand keys take a hundred times as long. What lies between two keys is
// not known, so the end is guessed: as far from the last key as the page before reached.
//
// Where the revision is compacted meanwhile, it goes on behind the last key that it has read,
// at the current revision, and the report says so.
type Live struct {
	KV      clientv3.KV
	Watcher clientv3.Watcher // nil: what the last compaction has left is not found out
	Config  Config
	// BytesPerSecond is the most that is read, keys and values. Zero is no limit.
	BytesPerSecond int
	// PageBytes is about how much is asked for at a time, where pages are. The default is
	// 4 MiB. A single value may be larger.
	PageBytes int
	// Stall is how long a stream may say nothing before it is given up. Zero is for ever.
	Stall time.Duration
	// Pages has it read in pages whatever the server can.
	Pages bool
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

const (
	defaultPageBytes = 4 << 20
	mostPageKeys     = 2000
	firstPageKeys    = 16
	maxNotes         = 5 // about compactions
)

// Audit reads everything. Where ctx ends the report is of what was read until then, and
// Partial; that is no error. An error that comes later than the first key makes the report
// Partial, too, and is returned with it.
func (l *Live) Audit(ctx context.Context) (*Report, error) {
	start := time.Now()
	if l.PageBytes == 0 {
		l.PageBytes = defaultPageBytes
	}
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

func (l *Live) read(ctx context.Context) error {
	if !l.Pages {
		err := l.stream(ctx)
		if status.Code(err) != codes.Unimplemented {
			return err
		}
	}
	return l.pages(ctx)
}

func (l *Live) stream(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	cancel := func() { stop(nil) }
	defer cancel()
	stream, err := l.KV.GetStream(ctx, string(l.next), clientv3.WithFromKey(), clientv3.WithRev(l.at()))
	if err != nil {
		return err
	}
	defer func() {
		// Its goroutine ends when it has told the last.
		cancel()
		for range stream {
		}
	}()
	stalled := fmt.Errorf("the stream has said nothing for %v: %w", l.Stall, context.DeadlineExceeded)
	for {
		var stall *time.Timer
		if l.Stall > 0 {
			stall = time.AfterFunc(l.Stall, func() { stop(stalled) })
		}
		resp, ok := <-stream
		if stall != nil {
			stall.Stop()
		}
		switch {
		case context.Cause(ctx) == stalled:
			return stalled
		case !ok:
			return ctx.Err()
		case resp.Err() != nil:
			return resp.Err()
		}
		if err := l.take(ctx, resp.Kvs); err != nil {
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

// pages reads in ranges with an end.
func (l *Live) pages(ctx context.Context) error {
	keys, step := firstPageKeys, uint64(0)
	var end []byte // nil for no end
	for {
		opts := []clientv3.OpOption{clientv3.WithRev(l.at()), clientv3.WithLimit(int64(keys))}
		if end == nil {
			opts = append(opts, clientv3.WithFromKey())
		} else {
			opts = append(opts, clientv3.WithRange(string(end)))
		}
		from := bytes.Clone(l.next)
		resp, err := l.KV.Get(ctx, string(from), opts...)
		if status.Code(err) == codes.ResourceExhausted && keys > 1 {
			keys = max(keys/8, 1) // more than the client takes
			continue
		}
		if err != nil {
			return err
		}
		if err := l.take(ctx, resp.Kvs); err != nil {
			return err
		}
		if !resp.More && end == nil {
			return nil
		}
		size := 0
		for _, kv := range resp.Kvs {
			size += len(kv.Key) + len(kv.Value)
		}
		if size > l.PageBytes {
			keys = max(keys/2, 1)
		} else if size < l.PageBytes/2 {
			keys = min(keys*2, mostPageKeys)
		}
		if resp.More { // the end is as good as it was
			if end == nil || resp.Count > 4*int64(keys) {
				end, step = beyond(resp.Kvs, keys)
			}
			continue
		}
		l.next = append(l.next[:0], end...)
		// The step was too short, or there is nothing: the longer the gap, the longer the steps.
		step = max(step, 1)
		if len(resp.Kvs) < keys/2 {
			if step *= 4; step > 1<<62 {
				step = 0
			}
		}
		end = advance(end, step)
	}
}

// beyond guesses where a page of so many keys ends that begins after the last of kvs, from how
// far these are apart. It returns nil for no end.
func beyond(kvs []*mvccpb.KeyValue, keys int) (end []byte, step uint64) {
	if len(kvs) < 2 {
		return nil, 0
	}
	first, last := kvs[0].Key, kvs[len(kvs)-1].Key
	common := 0
	for common < min(len(first), len(last)) && first[common] == last[common] {
		common++
	}
	a, b := fraction(first[common:]), fraction(last[common:])
	gap := (b - a) / uint64(len(kvs)-1)
	if gap == 0 || gap > 1<<62/uint64(keys) {
		return nil, 0
	}
	step = gap * uint64(keys)
	if b > ^uint64(0)-step {
		return nil, 0
	}
	return binary.BigEndian.AppendUint64(bytes.Clone(last[:common]), b+step), step
}

// advance moves an end that beyond has returned.
func advance(end []byte, step uint64) []byte {
	if len(end) < 8 || step == 0 {
		return nil
	}
	at := len(end) - 8
	v := binary.BigEndian.Uint64(end[at:])
	if v > ^uint64(0)-step {
		return nil
	}
	return binary.BigEndian.AppendUint64(bytes.Clone(end[:at]), v+step)
}

// fraction is the first 8 bytes of b as a number.
func fraction(b []byte) uint64 {
	var head [8]byte
	copy(head[:], b)
	return binary.BigEndian.Uint64(head[:])
}
