// Package kvwrap is a [clientv3.KV] that makes the writes of an application light
// for etcd. An application puts it in place of its client's own and goes on as
// before:
//
//	cli, err := clientv3.New(clientv3.Config{Endpoints: endpoints})
//	if err != nil {
//		return err
//	}
//	defer cli.Close()
//	if _, err := kvwrap.Install(cli, kvwrap.Config{}); err != nil {
//		return err
//	}
//	_, err = cli.Put(ctx, "gateway/statistics", twoMegabytes)
//
// etcd keeps its newest 5,000 requests in memory, whole, and every revision on
// disk until compaction. A value of megabytes that is written every few seconds
// costs gigabytes of both. With kvwrap a large value is stored as a small manifest
// and chunks, and a write proposes the chunks that have changed.
//
// Requests pass a chain of stages, each a middleware over etcd's own request
// interface. This package alone knows their order. Today there is one stage,
// [github.com/kvwrap/kvwrap/chunker]; what it guarantees stands there.
package kvwrap

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/wire"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Config configures the stages. Its zero value is safe and useful: large values
// are chunked. It is copied, and never changed.
type Config struct {
	// Chunk says which values are split, and how. Its Lease is the client's own
	// where it is not set.
	Chunk chunker.Config
}

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
	chunker *chunker.Stage
	watcher clientv3.Watcher
	lease   clientv3.Lease
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
	if cfg.Chunk.Lease == nil {
		cfg.Chunk.Lease = cli.Lease
	}
	stage, err := chunker.New(wire.Client(cli.KV), cfg.Chunk)
	if err != nil {
		return nil, fmt.Errorf("kvwrap: Config.Chunk: %w", err)
	}
	return &KV{
		KV:      clientv3.NewKVFromKVClient(stage, nil),
		chunker: stage,
		watcher: stage.Watcher(cli.Watcher),
		lease:   stage.Lease(cli.Lease),
	}, nil
}

// Install is New and puts the new KV, its Watcher and its Lease in the place of
// cli's own, so that all that uses cli goes through it. From then on cli.Close
// closes the KV too. It is to be called before cli is shared with other
// goroutines, and once; where it returns an error, cli is as it was.
//
// Code that makes a KV or a watcher of its own from the client's connection, with
// clientv3.NewKV or clientv3.NewWatcher, goes past it and sees what is stored.
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

// Close ends what the stages have under way, within seconds, and revokes the
// lease of unfinished writes. Nothing that was acknowledged is affected. Writes
// that take more than one proposal fail afterwards, with chunker.ErrClosed; reads
// and other writes go on. Closing twice is fine.
func (kv *KV) Close() error { return kv.chunker.Close() }

// Sweep deletes chunks that writes have left behind. It is [chunker.Stage.Sweep].
func (kv *KV) Sweep(ctx context.Context) (chunker.SweepResult, error) { return kv.chunker.Sweep(ctx) }

// Stats are counters of this process.
type Stats struct {
	Chunk chunker.Stats
}

// Stats returns the counters. It does no I/O.
func (kv *KV) Stats() Stats { return Stats{Chunk: kv.chunker.Stats()} }
