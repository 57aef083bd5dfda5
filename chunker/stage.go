package chunker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/history"
	"github.com/kvwrap/kvwrap/internal/session"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
)

// Stage is the chunker as middleware: a pb.KVClient over another one. It is safe
// for concurrent use.
//
// It implements every method by name, so that a new one in pb.KVClient breaks
// the build and does not slip past it.
type Stage struct {
	inner  pb.KVClient
	cfg    Config
	space  format.Keyspace
	limits limits
	cache  *cache
	stats  counters

	session   *session.Session
	sweepPace *rate.Limiter
	stopSweep context.CancelFunc // the background's
	ctx       context.Context    // of background work; ends with Close
	cancel    context.CancelFunc

	mu         sync.Mutex // orders the start of background work with Close
	closed     bool
	background sync.WaitGroup // abandoned drafts being deleted, the sweep
}

var _ pb.KVClient = (*Stage)(nil)

// New returns a chunker over inner. It sends nothing before it is used, but for
// background sweeps.
func New(inner pb.KVClient, cfg Config) (*Stage, error) {
	cfg, space, err := cfg.filled()
	if err != nil {
		return nil, err
	}
	if inner == nil {
		return nil, fmt.Errorf("%w: the KV to store in is nil: use the client's", ErrConfig)
	}
	s := &Stage{
		cfg: cfg, space: space,
		cache:     newCache(cfg.CacheBytes),
		session:   session.New(cfg.Lease, cfg.SessionTTL, ErrClosed),
		sweepPace: rate.NewLimiter(rate.Limit(cfg.SweepRate), 1),
	}
	s.inner = history.Over(inner, s.cache.clear)
	s.limits.init(cfg.MaxEntryBytes)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var sweeping context.Context
	sweeping, s.stopSweep = context.WithCancel(s.ctx)
	if cfg.SweepInterval > 0 {
		s.inBackground(func() { s.sweepRegularly(sweeping) })
	}
	return s, nil
}

// KV is a chunker as a clientv3.KV.
type KV struct {
	clientv3.KV
	stage *Stage
}

// NewKV returns a KV that reads and writes through inner, large values in chunks.
// It sends nothing before it is used, but for background sweeps.
func NewKV(inner clientv3.KV, cfg Config) (*KV, error) {
	s, err := New(wire.Client(inner), cfg)
	if err != nil {
		return nil, err
	}
	return &KV{KV: clientv3.NewKVFromKVClient(s, nil), stage: s}, nil
}

// span tells Config.Span of a step.
func (s *Stage) span(ctx context.Context, step string, about ...slog.Attr) (context.Context, func(error)) {
	if s.cfg.Span == nil {
		return ctx, func(error) {}
	}
	return s.cfg.Span(ctx, step, about...)
}

// Close is [Stage.Close].
func (kv *KV) Close() error { return kv.stage.Close() }

// Sweep is [Stage.Sweep].
func (kv *KV) Sweep(ctx context.Context) (SweepResult, error) { return kv.stage.Sweep(ctx) }

// Stats is [Stage.Stats].
func (kv *KV) Stats() Stats { return kv.stage.Stats() }

// closeTimeout bounds each of the things that Close waits for.
const closeTimeout = 5 * time.Second

// Close ends the session. Writes that stage chunks fail with ErrClosed or find
// their anchors gone; nothing that was acknowledged is affected. Close waits
// for deletes of abandoned chunks that are under way, a few seconds at the most.
// Reads, and writes of small values, go on to work. Closing twice is fine.
func (s *Stage) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.stopSweep()
	done := make(chan struct{})
	go func() {
		s.background.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closeTimeout):
	}
	s.cancel()
	select {
	case <-done:
	case <-time.After(closeTimeout): // for an OnSweep that does not return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := s.session.Close(ctx); err != nil {
		return fmt.Errorf("chunker: revoking the lease of unfinished writes, which expires %v from now: %w", s.cfg.SessionTTL, err)
	}
	return nil
}

// inBackground runs f on a goroutine that Close waits for, unless it is too late.
func (s *Stage) inBackground(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.background.Go(f)
	}
}

// Put implements pb.KVClient. Only a put that changes nothing about chunks goes
// straight through.
func (s *Stage) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	if err := s.checkPut(r); err != nil {
		return nil, err
	}
	if entry := s.limits.entry.Load(); s.passes(r) {
		resp, err := s.inner.Put(ctx, r)
		whole := oversized(r, entry)
		if whole && err == nil {
			s.stats.oversized.Add(1)
		}
		if whole || !wire.Is(err, rpctypes.ErrRequestTooLarge) || s.cfg.ReadOnly || !s.limits.lowerEntry(entry) {
			return resp, err
		}
	}
	resp, err := newWrite(s, &pb.TxnRequest{Success: []*pb.RequestOp{wire.Put(r)}}).run(ctx)
	if err != nil {
		return nil, err
	}
	put := resp.Responses[0].GetResponsePut()
	put.Header = resp.Header
	return put, nil
}

// passes reports whether r changes nothing about chunks, as far as is known.
func (s *Stage) passes(r *pb.PutRequest) bool {
	return !r.PrevKv && !r.IgnoreValue && format.Plain(r.Value) && !s.large(r) && s.cache.get(r.Key) == nil
}

// Passes reports whether Put would send r as it is, or returns Put's error for what it
// refuses. For a caller who has another way to send it.
func (s *Stage) Passes(r *pb.PutRequest) (bool, error) {
	if err := s.checkPut(r); err != nil {
		return false, err
	}
	return s.passes(r), nil
}

// DeleteRange implements pb.KVClient.
func (s *Stage) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	if err := s.checkDelete(r); err != nil {
		return nil, err
	}
	resp, err := newWrite(s, &pb.TxnRequest{Success: []*pb.RequestOp{wire.DeleteRange(r)}}).run(ctx)
	if err != nil {
		return nil, err
	}
	deleted := resp.Responses[0].GetResponseDeleteRange()
	deleted.Header = resp.Header
	return deleted, nil
}

// Txn implements pb.KVClient.
func (s *Stage) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	if err := s.checkTxn(r); err != nil {
		return nil, err
	}
	return newWrite(s, r).run(ctx)
}

// Compact implements pb.KVClient.
func (s *Stage) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return s.inner.Compact(ctx, r)
}

// large reports whether the value of p is stored in chunks.
func (s *Stage) large(p *pb.PutRequest) bool {
	if s.cfg.ReadOnly || len(p.Value) == 0 {
		return false
	}
	if s.cfg.Threshold > 0 && len(p.Value) >= s.cfg.Threshold {
		return s.chunkable(p.Key)
	}
	return oversized(p, s.limits.entry.Load()) && s.chunkable(p.Key)
}

// oversized reports whether the proposal of p has more than entry bytes.
func oversized(p *pb.PutRequest, entry int64) bool {
	return int64(len(p.Key)+len(p.Value)+proposalOverhead) > entry && int64(wire.ProposalBytes(p)) > entry
}

// chunkable reports whether chunks of the key fit in a proposal. Those of keys of
// many kilobytes do not, or would be so short that a list of them has more levels
// than a reader accepts; such puts go through as they are.
func (s *Stage) chunkable(key []byte) bool {
	return s.chunkLimit(s.space.ChunkKeyLen(key)) >= minChunkBytes
}
