//go:build unix

// Package soak has the stages at work for long, and looks whether they grow.
package soak

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/servers"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var duration = flag.Duration("soak.duration", 5*time.Second, "how long TestSoak takes")

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// samples is how often it is looked; the first quarter is for caches to fill.
const samples = 24

// TestSoak has every stage at work on one etcd, which is in another process: a gateway's
// statistics, a broker's offsets written behind, transactions, large values that come and
// go, watches that begin and end, writes that are given up in the middle, clients that are
// closed and made again. Goroutines and the live heap stay what they are, and so does what
// lives in the database.
//
//	go test ./internal/soak -v -timeout 20m -soak.duration 10m
func TestSoak(t *testing.T) {
	s := servers.Start(t, "3.7", servers.Config{Settings: map[string]any{
		"auto-compaction-mode": "periodic", "auto-compaction-retention": "5s", "quota-backend-bytes": 8 << 30,
	}})
	cli, plain := s.Client(t), s.Client(t)
	kv, err := kvwrap.Install(cli, kvwrap.Config{
		Chunk:  chunker.Config{SessionTTL: 5 * time.Second, SweepInterval: 10 * time.Second},
		Budget: budget.Config{Rates: budget.Rates{Revisions: 5000, Bytes: 1 << 30}},
		Rules: []kvwrap.Rule{
			{Prefix: workload.OffsetsPrefix, Coalesce: coalesce.LastWriteWins, FlushEvery: 50 * time.Millisecond, Retry: true},
			{Prefix: "grouped/", Coalesce: coalesce.GroupCommit, Transactions: true},
			{Prefix: "critical/", Class: budget.Critical},
		},
	})
	require.NoError(t, err)

	ctx, cancel := context.WithCancelCause(t.Context())
	var all sync.WaitGroup
	var done atomic.Int64
	again := func(what string, f func(i int) error) {
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := f(i); err != nil && ctx.Err() == nil {
					cancel(fmt.Errorf("%s: %w", what, err))
				}
				done.Add(1)
			}
		})
	}
	gateway := workload.NewGateway(500, 1)
	again("statistics", func(int) error {
		value := string(gateway.Publish(0.05))
		if _, err := cli.Put(ctx, "statistics", value); err != nil {
			return err
		}
		resp, err := cli.Get(ctx, "statistics")
		if err == nil && string(resp.Kvs[0].Value) != value {
			err = fmt.Errorf("another value is read than was put")
		}
		return err
	})
	broker := workload.NewBroker(100, 1)
	again("offsets", func(int) error {
		for range 100 {
			partition, offset := broker.Commit()
			kv.PutAsync(ctx, workload.OffsetKey(partition), offset, func(_ *clientv3.PutResponse, err error) {
				if err != nil && ctx.Err() == nil {
					cancel(fmt.Errorf("offsets: %w", err))
				}
			})
		}
		return kv.Flush(ctx)
	})
	for caller := range 4 {
		again("transactions", func(i int) error {
			key := fmt.Sprintf("grouped/%d/%d", caller, i%50)
			_, err := cli.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), ">", -1)).
				Then(clientv3.OpPut(key, fmt.Sprint(i)), clientv3.OpGet(key)).Commit()
			return err
		})
	}
	again("large values that come and go", func(i int) error {
		key := fmt.Sprintf("large/%d", i%5)
		if _, err := cli.Put(ctx, key, workload.Text(300e3+i%7*50e3, fmt.Sprint(i))); err != nil {
			return err
		}
		_, err := cli.Delete(ctx, key)
		return err
	})
	again("writes that are given up", func(i int) error {
		within, cancel := context.WithTimeout(ctx, time.Duration(i%20)*time.Millisecond)
		defer cancel()
		cli.Put(within, "given-up", workload.Text(1e6, fmt.Sprint(i))) // it may end in any way
		return nil
	})
	again("watches", func(int) error {
		within, cancel := context.WithCancel(ctx)
		defer cancel()
		for range cli.Watch(within, "statistics") {
			break
		}
		return nil
	})
	again("other clients", func(int) error {
		other, err := clientv3.New(clientv3.Config{Endpoints: cli.Endpoints()})
		if err != nil {
			return err
		}
		defer other.Close()
		kv, err := kvwrap.Install(other, kvwrap.Config{})
		if err != nil {
			return err
		}
		defer kv.Close()
		_, err = other.Put(ctx, "critical/other", workload.Text(200e3, "other"))
		return err
	})

	var heaps, goroutines, stored []float64
	every := time.NewTicker(*duration / samples)
	defer every.Stop()
	for range samples {
		select {
		case <-every.C:
		case <-ctx.Done():
		}
		if err := context.Cause(ctx); err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		keys, err := plain.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
		require.NoError(t, err)
		heaps, goroutines = append(heaps, float64(m.HeapAlloc)), append(goroutines, float64(runtime.NumGoroutine()))
		stored = append(stored, float64(keys.Count))
	}
	cancel(context.Canceled)
	all.Wait()
	require.NoError(t, kv.Close())

	t.Logf("%d rounds in %v; live heap %s MB; goroutines %.0f; keys stored %.0f", done.Load(), *duration, megabytes(heaps), goroutines, stored)
	for what, c := range map[string]struct {
		of    []float64
		slack float64
	}{
		"live heap":   {heaps, 8 << 20},
		"goroutines":  {goroutines, 30},
		"stored keys": {stored, 2000}, // chunks of what is given up, until the sweep comes
	} {
		early, late := median(c.of[samples/4:samples/2]), median(c.of[3*samples/4:])
		require.LessOrEqual(t, late, early*1.1+c.slack, "%s: %.0f", what, c.of)
	}
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

func megabytes(of []float64) (all []string) {
	for _, n := range of {
		all = append(all, fmt.Sprintf("%.1f", n/1e6))
	}
	return all
}
