//go:build unix

package faults

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/embed"
)

var writersFlag = flag.Duration("faults.writers", 3*time.Second, "how long TestWritersOfOneKey writes")

// TestWritersOfOneKey has 16 writers, each a client of its own, put values of 1 MB
// to one key as fast as they can, and readers read it. Nothing may fail, for want of
// a turn neither, so that every outcome is known.
func TestWritersOfOneKey(t *testing.T) {
	const writers, readers = 16, 4
	key := keysOf(epoch(0))[0]
	cluster := etcdtest.Start(t, 1, func(cfg *embed.Config) { cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 500, 200 })
	h := newHistory()
	seen := h.witness(t, clientOf(t, cluster.Endpoints()...), h.identifyStored)

	ctx, cancel := context.WithTimeout(t.Context(), *writersFlag)
	defer cancel()
	var (
		running sync.WaitGroup
		puts    [writers]int
		kvs     []*kvwrap.KV
	)
	start := func(next func(n int) request, count *int) {
		id := len(kvs)
		cli := clientOf(t, cluster.Endpoints()...)
		kv, err := kvwrap.New(cli, kvwrap.Config{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, kv.Close()) })
		kvs = append(kvs, kv)
		running.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if res := h.do(id, next(n), performer{kv, cli.Lease}.do); res.Outcome != ok {
					t.Errorf("client %d: %v", id, res.Error)
					return
				}
				*count++
			}
		})
	}
	for i := range writers {
		start(func(n int) request {
			v := value{ID: fmt.Sprintf("%02d-%06d", i, n), Size: maxValueBytes, Edit: 10 << 10} // 1 % is new
			return request{Kind: put, Keys: []string{key}, Values: []value{v}, Timeout: time.Minute}
		}, &puts[i])
	}
	reads := make([]int, readers)
	for i := range readers {
		start(func(int) request { return request{Kind: get, Keys: []string{key}, Timeout: time.Minute} }, &reads[i])
	}
	running.Wait()
	took := h.now()

	h.end(t, len(kvs), performer{kv: kvs[0]}, seen)
	happened := seen.close()
	h.report(t, keep(t), happened, h.check(happened)) // which is all: no revision is unknown
	var conflicts, staged uint64
	for _, kv := range kvs {
		s := kv.Stats().Chunk
		conflicts, staged = conflicts+s.Conflicts, staged+s.Staged
	}
	all := 0
	for _, n := range puts {
		all += n
	}
	perSecond := float64(all) / took.Seconds()
	t.Logf("%d writers of one key of %d bytes, for %v: %.1f puts/s, %.1f MB/s acknowledged; %.2f conflicts and %.2f staged values a put; %d to %d puts a writer; %d reads",
		writers, maxValueBytes, took.Round(time.Millisecond), perSecond, perSecond*maxValueBytes/1e6,
		float64(conflicts)/float64(all), float64(staged)/float64(all), slices.Min(puts[:]), slices.Max(puts[:]), reads[0]+reads[1]+reads[2]+reads[3])
}
