package kvwrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/dial"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/shaper"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Config configures the stages. Its zero value is safe and useful: large values
// are chunked, nothing is coalesced or held back. It is copied, and never changed.
type Config struct {
	// Chunk says which values are split, and how. Its Lease is the client's own
	// where it is not set.
	Chunk chunker.Config

	// Coalesce says how writes are coalesced, of the keys of which a rule says so. Its
	// Rules are Rules, below. Its Lease, MaxEntryBytes and SessionTTL are those of Chunk,
	// and SequencePrefix is below the reserved prefix, where they are not set.
	Coalesce coalesce.Config

	// Budget says how fast may be written. Its Rules are Rules, below. Its Lease is that of
	// Chunk, and RegisterPrefix is below the reserved prefix, where they are not set; where
	// Retention is set and Backend is not, that is [budget.Members] of the client.
	Budget budget.Config

	// Server is what Report cannot know of the cluster: its flags, as far as they are not the
	// defaults. Its version and quota are asked for.
	Server shaper.Server

	// Meter says how traffic is counted, in [Stats] and [KV.Report]. Its Rules are the prefixes
	// of Rules, below.
	Meter shaper.MeterConfig

	// Span, if it is not nil, is told of the steps of writes that take several requests, and
	// of batches: that of Chunk and Coalesce, where these are not set. The package kvotel makes
	// OpenTelemetry's spans of them.
	Span func(ctx context.Context, step string, about ...slog.Attr) (spanned context.Context, end func(error))

	// Rules says what is done with which keys. Of several rules that apply to a key the
	// one with the longest prefix does.
	Rules []Rule
}

// Rule says what is done with writes of keys with a prefix. But for Prefix its fields are
// those of [coalesce.Rule] and [budget.Rule], and documented there.
type Rule struct {
	Prefix string

	Coalesce      coalesce.Mode // Off, GroupCommit, LastWriteWins or Max
	Transactions  bool          // transactions may join batches
	StaleReads    bool          // reads go past what waits
	SkipUnchanged bool          // values that are there are not written
	Retry         bool          // batches are sent again until it is known that they were applied
	Linger        time.Duration // how long a write waits for others
	FlushEvery    time.Duration // how long a write of PutAsync does

	Class  budget.Class // Normal, Critical or Elastic
	Reject bool         // what cannot go at once is refused
}

// ErrNotSent is matched by errors of the stages that refuse a write before anything was
// sent: it was not applied, and may be tried again.
var ErrNotSent = wire.ErrNotSent

// ErrUnknownRequest is matched by the error for a request, or a part of one, that
// this version does not know. Nothing was sent.
var ErrUnknownRequest = wire.ErrUnknownRequest

var (
	errNoClient  = errors.New("kvwrap: the client is nil, or has no KV, Watcher or Lease: make one with clientv3.New")
	errInstalled = errors.New("kvwrap: the client's KV is a kvwrap.KV already: use it as it is, or call New or Install once, with the client's own KV")
)

// KV is a [clientv3.KV] whose requests pass the stages. Its methods are safe for
// concurrent use. They return what etcd's client returns, and after an error a
// write may have been applied where that is so after the same error of etcd's
// client. After an error of the stages, documented with them, nothing was written,
// unless it is a chunker.AppliedError.
type KV struct {
	clientv3.KV
	first    pb.KVClient      // the outermost stage
	cli      *clientv3.Client // whose members are asked, by Report
	server   shaper.Server
	asked    *shaper.Meter
	proposed *shaper.Meter
	chunker  *chunker.Stage
	coalesce *coalesce.Stage
	budget   *budget.Stage
	watcher  clientv3.Watcher
	lease    clientv3.Lease
}

// New returns a KV over cli.KV as it is at the call, a namespaced one for
// instance, and leaves cli as it is. Where cli.KV is namespaced, cli.Watcher and
// cli.Lease are to be as well. It sends nothing. Its Close is to be called before
// that of cli.
func New(cli *clientv3.Client, cfg Config) (*KV, error) {
	if cli == nil || cli.KV == nil || cli.Watcher == nil || cli.Lease == nil {
		return nil, errNoClient
	}
	if _, ok := cli.KV.(*KV); ok {
		return nil, errInstalled
	}
	cfg, err := cfg.filled(cli)
	if err != nil {
		return nil, err
	}
	asked, err := shaper.NewMeter(cfg.Meter)
	if err != nil {
		return nil, err
	}
	cfg.Meter.ChunkPrefix = cfg.Chunk.ChunkPrefix
	proposed, err := shaper.NewMeter(cfg.Meter)
	if err != nil {
		return nil, err
	}
	pace, err := budget.New(proposed.Stage(dial.Guard(wire.Client(cli.KV))), cfg.Budget)
	if err != nil {
		return nil, err
	}
	if cfg.Budget.Paces() {
		cfg.Chunk.Admit = func(ctx context.Context, key []byte, revisions, bytes int) (context.Context, func(), error) {
			return pace.Admit(ctx, key, budget.Cost{Revisions: revisions, Bytes: bytes})
		}
		cfg.Coalesce.Admit = pace.AdmitTxn
	}
	batches, err := coalesce.New(pace, cfg.Coalesce)
	if err != nil {
		return nil, err
	}
	chunks, err := chunker.New(batches, cfg.Chunk)
	if err != nil {
		return nil, err
	}
	first := asked.Stage(chunks)
	return &KV{
		KV:       clientv3.NewKVFromKVClient(first, nil),
		first:    first,
		cli:      cli,
		server:   cfg.Server,
		asked:    asked,
		proposed: proposed,
		chunker:  chunks,
		coalesce: batches,
		budget:   pace,
		watcher:  chunks.Watcher(dial.GuardWatcher(cli.Watcher)),
		lease:    chunks.Lease(cli.Lease),
	}, nil
}

// filled returns c with what one stage takes from another, and the rules as the stages
// have them. Its error joins all that is wrong.
func (c Config) filled(cli *clientv3.Client) (Config, error) {
	if c.Chunk.Lease == nil {
		c.Chunk.Lease = cli.Lease
	}
	if c.Budget.Retention > 0 && c.Budget.Backend == nil {
		c.Budget.Backend = budget.Members(cli)
	}
	if c.Coalesce.Lease == nil {
		c.Coalesce.Lease = c.Chunk.Lease
	}
	if c.Chunk.Span == nil {
		c.Chunk.Span = c.Span
	}
	if c.Coalesce.Span == nil {
		c.Coalesce.Span = c.Span
	}
	var errs []error
	if len(c.Coalesce.Rules) > 0 {
		errs = append(errs, fmt.Errorf("%w: Config.Coalesce.Rules is set: set Config.Rules in its place", coalesce.ErrConfig))
	}
	if len(c.Budget.Rules) > 0 {
		errs = append(errs, fmt.Errorf("%w: Config.Budget.Rules is set: set Config.Rules in its place", budget.ErrConfig))
	}
	if c.Chunk.Admit != nil || c.Coalesce.Admit != nil {
		errs = append(errs, errors.New("kvwrap: Config.Chunk.Admit or Config.Coalesce.Admit is set: set Config.Budget in their place"))
	}
	if c.Budget.Lease == nil {
		c.Budget.Lease = c.Chunk.Lease
	}
	if len(c.Meter.Rules) > 0 {
		errs = append(errs, fmt.Errorf("%w: Config.Meter.Rules is set: set Config.Rules in its place", shaper.ErrConfig))
	}
	c.Coalesce.Rules, c.Budget.Rules, c.Meter.Rules = nil, nil, nil
	prefixes := make(map[string]bool)
	for _, r := range c.Rules {
		if prefixes[r.Prefix] { // once, and not by each stage
			errs = append(errs, fmt.Errorf("%w: two of Config.Rules for the prefix %q: leave one", coalesce.ErrConfig, r.Prefix))
			continue
		}
		prefixes[r.Prefix] = true
		c.Coalesce.Rules = append(c.Coalesce.Rules, coalesce.Rule{
			Prefix: r.Prefix, Mode: r.Coalesce, Transactions: r.Transactions, StaleReads: r.StaleReads,
			SkipUnchanged: r.SkipUnchanged, Retry: r.Retry, Linger: r.Linger, FlushEvery: r.FlushEvery,
		})
		c.Budget.Rules = append(c.Budget.Rules, budget.Rule{Prefix: r.Prefix, Class: r.Class, Reject: r.Reject})
		c.Meter.Rules = append(c.Meter.Rules, r.Prefix)
	}
	if err := c.Chunk.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("kvwrap: Config.Chunk: %w", err))
	}
	if err := c.Coalesce.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("kvwrap: Config.Coalesce, Config.Rules: %w", err))
	}
	if err := c.Meter.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("kvwrap: Config.Meter: %w", err))
	}
	server := c.Server
	server.Version = cmp.Or(server.Version, shaper.NewestKnown) // Report asks
	if err := server.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("kvwrap: Config.Server: %w", err))
	}
	if err := c.Budget.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("kvwrap: Config.Budget, Config.Rules: %w", err))
	}
	if len(errs) > 0 {
		return c, errors.Join(errs...)
	}
	if c.Budget.RegisterPrefix == "" {
		c.Budget.RegisterPrefix = c.Chunk.OwnPrefix("client")
	}
	c.Coalesce.MaxEntryBytes = cmp.Or(c.Coalesce.MaxEntryBytes, c.Chunk.MaxEntryBytes)
	c.Coalesce.SessionTTL = cmp.Or(c.Coalesce.SessionTTL, c.Chunk.SessionTTL)
	if c.Coalesce.SequencePrefix == "" {
		c.Coalesce.SequencePrefix = c.Chunk.OwnPrefix("sequence")
	}
	for _, r := range c.Coalesce.Rules {
		if r.Transactions {
			// A delete of a key comes with one of its chunks, which is to join with it. Who
			// reads chunks alone has read their key before, and does not wait again.
			r.Prefix, r.StaleReads = c.Chunk.ChunkPrefix(r.Prefix), true
			c.Coalesce.Rules = append(c.Coalesce.Rules, r)
		}
	}
	for _, r := range c.Budget.Rules {
		r.Prefix = c.Chunk.ChunkPrefix(r.Prefix)
		c.Budget.Rules = append(c.Budget.Rules, r)
	}
	return c, nil
}

// Install is New and puts the new KV, its Watcher and its Lease in the place of
// cli's own, so that all that uses cli goes through it. From then on cli.Close
// closes the KV too. It is to be called before cli is shared with other
// goroutines, and once; where it returns an error, cli is as it was.
//
// Code that makes a KV or a watcher of its own from the client's connection, with
// clientv3.NewKV or clientv3.NewWatcher, goes past it and sees what is stored. For that there
// is [DialOptions], in its place.
func Install(cli *clientv3.Client, cfg Config) (*KV, error) {
	kv, err := New(cli, cfg)
	if err != nil {
		return nil, err
	}
	cli.KV, cli.Watcher, cli.Lease = kv, kv.watcher, closing{kv.lease, kv}
	return kv, nil
}

// closing is a Lease that closes a KV before itself. A client closes its Lease,
// but not its KV.
type closing struct {
	clientv3.Lease
	kv *KV
}

func (c closing) Close() error { return errors.Join(c.kv.Close(), c.Lease.Close()) }

// Watcher returns the client's Watcher with whole values in its events, and without
// chunks. What it guarantees stands at [chunker.Stage.Watcher]. It works on after
// Close; its own Close is that of the client's Watcher.
func (kv *KV) Watcher() clientv3.Watcher { return kv.watcher }

// Lease returns the client's Lease with the keys that are attached to a lease
// shown as the application knows them, without chunks. The lease of unfinished
// writes shows among all leases.
func (kv *KV) Lease() clientv3.Lease { return kv.lease }

// PutAsync takes a put that is to be written later, and tells promise, which may be nil,
// how that has ended. It is [coalesce.Stage.PutAsync], which says more; opts are those of
// a put. A put of a value that is chunked, or of a key that is known to be, and one with
// WithPrevKV or WithIgnoreValue, does not wait for others: it is written before PutAsync
// returns, or ctx has ended.
func (kv *KV) PutAsync(ctx context.Context, key, val string, promise func(*clientv3.PutResponse, error), opts ...clientv3.OpOption) {
	r := wire.PutRequest(clientv3.OpPut(key, val, opts...))
	kv.asked.Observe(r)
	kv.putAsync(ctx, r, promise)
}

func (kv *KV) putAsync(ctx context.Context, r *pb.PutRequest, promise func(*clientv3.PutResponse, error)) {
	passes, err := kv.chunker.Passes(r)
	if passes {
		kv.coalesce.PutAsync(ctx, r, promise)
		return
	}
	kv.coalesce.PutThrough(r.Key, promise, func() (*pb.PutResponse, error) {
		if err != nil {
			return nil, err
		}
		return kv.chunker.Put(ctx, r)
	})
}

// Flush has all that waits be sent now, and waits until it was written. It is
// [coalesce.Stage.Flush].
func (kv *KV) Flush(ctx context.Context) error { return kv.coalesce.Flush(ctx) }

// Pending returns what PutAsync has taken and is not yet written: what a crash of the
// process would lose.
func (kv *KV) Pending() coalesce.Pending { return kv.coalesce.Pending() }

// Close writes what PutAsync has taken, ends what the stages have under way, within
// seconds, and revokes their leases. Nothing that was acknowledged is affected. Writes
// that take more than one proposal fail afterwards, with chunker.ErrClosed, and PutAsync
// with coalesce.ErrClosed; reads and other writes go on. Closing twice is fine.
func (kv *KV) Close() error {
	return errors.Join(kv.coalesce.Close(), kv.chunker.Close(), kv.budget.Close())
}

// SetRates changes the rates of Config.Budget, at once, and for who waits already.
func (kv *KV) SetRates(r budget.Rates) error { return kv.budget.SetRates(r) }

// Sweep deletes chunks that writes have left behind. It is [chunker.Stage.Sweep].
func (kv *KV) Sweep(ctx context.Context) (chunker.SweepResult, error) { return kv.chunker.Sweep(ctx) }

// Stats are counters of this process.
type Stats struct {
	shaper.Stats // what was asked for, a put of PutAsync when that is called, and what was proposed
	Chunk        chunker.Stats
	Coalesce     coalesce.Stats
	Budget       budget.Stats
}

// Stats returns the counters. It does no I/O.
func (kv *KV) Stats() Stats {
	return Stats{
		Stats: shaper.Stats{Asked: kv.asked.Traffic(), Proposed: kv.proposed.Traffic()},
		Chunk: kv.chunker.Stats(), Coalesce: kv.coalesce.Stats(), Budget: kv.budget.Stats(),
	}
}

// Report returns Stats and the state of the cluster's members, what the traffic comes to on
// them, and what there is to do about it. Members that do not answer are in it; an error says
// that none does, or that ctx has ended. It writes nothing.
func (kv *KV) Report(ctx context.Context) (shaper.Report, error) {
	monitor, err := budget.NewMonitor(kv.cli, budget.MonitorConfig{Quota: kv.server.Quota})
	if err != nil {
		return shaper.Report{}, err
	}
	health, err := monitor.Check(ctx)
	if err != nil {
		return shaper.Report{}, err
	}
	stats, pending := kv.Stats(), kv.Pending()
	r := shaper.Report{
		At: health.At, Asked: stats.Asked, Proposed: stats.Proposed,
		Pending: shaper.Pending{Puts: pending.Puts, Writes: pending.Writes, Bytes: pending.Bytes, Failed: stats.Coalesce.Failed},
		Chunks:  shaper.Chunks{Stored: -1, Abandoned: stats.Chunk.Abandoned, Swept: stats.Chunk.Swept, Oversized: stats.Chunk.Oversized},
		Budget: shaper.BudgetUse{
			Revisions: stats.Budget.Limit.Revisions, Bytes: stats.Budget.Limit.Bytes, Why: stats.Budget.Why,
			RevisionsAsked: stats.Budget.Demand.Revisions, BytesAsked: stats.Budget.Demand.Bytes,
			Waiting: stats.Budget.Waiting, Delayed: stats.Budget.Delayed, Refused: stats.Budget.Refused, NoSpace: stats.Budget.NoSpace,
		},
	}
	for _, m := range health.Members {
		r.Members = append(r.Members, shaper.Member{
			ID: m.ID.String(), Name: m.Name, Role: string(m.Role), Version: m.Version, DbSize: m.DbSize, InUse: m.DbSizeInUse,
			Bloat: m.Bloat, Quota: m.Quota, QuotaUse: m.QuotaUse, Lag: m.Lag, Alarms: m.Alarms, Error: m.Error,
		})
	}
	if n, err := kv.chunker.Count(ctx); err == nil { // a user may not be allowed to
		r.Chunks.Stored = n
	}
	return r, r.Complete(kv.server)
}
