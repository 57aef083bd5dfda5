package kvwrap

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// over returns a KV over the client of s.
func (s *side) over(b testing.TB, cfg Config) *KV {
	kv, err := New(s.cli, cfg)
	require.NoError(b, err)
	b.Cleanup(func() { kv.Close() })
	return kv
}

// BenchmarkOneCaller is a put of one caller under a rule that coalesces: there is nobody
// to share with. Run it with -benchtime 5000x.
func BenchmarkOneCaller(b *testing.B) {
	s := newSide(b)
	for _, mode := range []coalesce.Mode{coalesce.GroupCommit, coalesce.LastWriteWins, coalesce.Max} {
		b.Run(mode.String(), func(b *testing.B) {
			kv := s.over(b, Config{Rules: []Rule{{Coalesce: mode}}})
			n := 1_000_000
			paired.Benchmark(b, func() { n++ },
				func() { s.put(b, "plain", fmt.Sprint(n)) },
				func() {
					if _, err := kv.Put(b.Context(), "coalesced", fmt.Sprint(n)); err != nil {
						b.Fatal(err)
					}
				})
		})
	}
}

// callers puts offsets from many goroutines, each of a partition of its own and as fast as
// it is answered, and returns how many a second.
func callers(b *testing.B, kv clientv3.KV, n int, d time.Duration) float64 {
	var all sync.WaitGroup
	var puts atomic.Int64
	began := time.Now()
	for i := range n {
		all.Go(func() {
			for j := 0; time.Since(began) < d; j++ {
				if _, err := kv.Put(b.Context(), workload.OffsetKey(i), fmt.Sprint(1_000_000+j)); err != nil {
					b.Error(err)
					return
				}
				puts.Add(1)
			}
		})
	}
	all.Wait()
	return float64(puts.Load()) / time.Since(began).Seconds()
}

// BenchmarkCallers is many callers at once, with keys of their own, for half a second each
// way in turns. Run it with -benchtime 5x.
func BenchmarkCallers(b *testing.B) {
	for _, c := range []struct {
		callers, inFlight int
	}{{8, 2}, {128, 2}, {1000, 1}, {1000, 2}, {1000, 4}} {
		b.Run(fmt.Sprintf("callers=%d/inflight=%d", c.callers, c.inFlight), func(b *testing.B) {
			s := newSide(b)
			kv := s.over(b, Config{Rules: []Rule{{Coalesce: coalesce.GroupCommit}}, Coalesce: coalesce.Config{InFlight: c.inFlight}})
			var plain, coalesced float64
			for b.Loop() {
				plain += callers(b, s, c.callers, time.Second/2)
				coalesced += callers(b, kv, c.callers, time.Second/2)
			}
			stats := kv.Stats().Coalesce
			b.ReportMetric(plain/float64(b.N), "plain-puts/s")
			b.ReportMetric(coalesced/float64(b.N), "kvwrap-puts/s")
			b.ReportMetric(coalesced/plain, "ratio")
			b.ReportMetric(float64(stats.Puts)/float64(stats.Batches), "ops/revision")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// commits is what a broker's commits have cost, from the first one until the last one is
// durable.
type commits struct {
	revisions, backend int64
	seconds            float64
	took               []time.Duration // until each was durable
}

// commit has a broker commit 5,000 offsets a second for a while, each by put, which calls
// done when it is durable.
func (s *side) commit(b testing.TB, partitions int, d time.Duration, put func(partition int, offset string, done func(error))) (c commits) {
	broker := workload.NewBroker(partitions, 1)
	before, backend := s.revision(b), s.cluster.BackendBytes()
	var (
		mu  sync.Mutex
		all sync.WaitGroup
	)
	const perSecond = 5000
	start := time.Now()
	for i := range int(perSecond * d.Seconds()) {
		if i%5 == 0 {
			<-time.After(time.Until(start.Add(time.Duration(i) * time.Second / perSecond)))
		}
		partition, offset := broker.Commit()
		began := time.Now()
		all.Add(1)
		put(partition, offset, func(err error) {
			defer all.Done()
			if err != nil {
				b.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			c.took = append(c.took, time.Since(began))
		})
	}
	all.Wait()
	c.seconds = time.Since(start).Seconds()
	c.revisions, c.backend = s.revision(b)-before, s.cluster.BackendBytes()-backend
	return c
}

func (s *side) revision(b testing.TB) int64 {
	resp, err := s.cli.Get(b.Context(), "any", clientv3.WithCountOnly())
	require.NoError(b, err)
	return resp.Header.Revision
}

// BenchmarkOffsets is a broker that commits 5,000 offsets a second: one put each, and
// behind. With pollers, a reader reads all partitions every 10 ms through the same client.
// Run it with -benchtime 5x, of seconds.
func BenchmarkOffsets(b *testing.B) {
	for _, c := range []struct {
		partitions int
		flush      time.Duration
		poller     bool
	}{
		{200, 50 * time.Millisecond, false}, {200, 50 * time.Millisecond, true},
		{200, 200 * time.Millisecond, false}, {200, 500 * time.Millisecond, false}, {200, time.Second, false},
		{20, 50 * time.Millisecond, false},
	} {
		b.Run(fmt.Sprintf("partitions=%d/flush=%v/poller=%v", c.partitions, c.flush, c.poller), func(b *testing.B) {
			plain, wrapped := newSide(b), newSide(b)
			kv := wrapped.over(b, Config{Rules: []Rule{{
				Prefix: workload.OffsetsPrefix, Coalesce: coalesce.LastWriteWins, FlushEvery: c.flush, StaleReads: true,
			}}})
			kv.PutAsync(b.Context(), workload.OffsetKey(0), "0", nil)
			require.NoError(b, kv.Flush(b.Context()))
			polls, ctx := 0, b.Context()
			if c.poller {
				var stop context.CancelFunc
				ctx, stop = context.WithCancel(ctx)
				var polling sync.WaitGroup
				defer polling.Wait()
				defer stop()
				polling.Go(func() {
					tick := time.NewTicker(10 * time.Millisecond)
					defer tick.Stop()
					for ctx.Err() == nil {
						<-tick.C
						if _, err := kv.Get(ctx, workload.OffsetsPrefix, clientv3.WithPrefix()); err == nil {
							polls++
						}
					}
				})
			}
			var all, base commits
			add := func(to *commits, c commits) {
				to.revisions, to.backend, to.seconds = to.revisions+c.revisions, to.backend+c.backend, to.seconds+c.seconds
				to.took = append(to.took, c.took...)
			}
			for b.Loop() {
				add(&base, plain.commit(b, c.partitions, time.Second, func(partition int, offset string, done func(error)) {
					go func() {
						_, err := plain.Put(b.Context(), workload.OffsetKey(partition), offset)
						done(err)
					}()
				}))
				add(&all, wrapped.commit(b, c.partitions, time.Second, func(partition int, offset string, done func(error)) {
					kv.PutAsync(b.Context(), workload.OffsetKey(partition), offset, func(_ *clientv3.PutResponse, err error) { done(err) })
				}))
			}
			b.ReportMetric(float64(base.revisions)/base.seconds, "plain-revisions/s")
			b.ReportMetric(float64(all.revisions)/all.seconds, "kvwrap-revisions/s")
			b.ReportMetric(float64(base.backend)/base.seconds, "plain-backend-B/s")
			b.ReportMetric(float64(all.backend)/all.seconds, "kvwrap-backend-B/s")
			b.ReportMetric(float64(base.backend)/float64(all.backend), "backend-ratio")
			b.ReportMetric(float64(paired.Durations(all.took).Quantile(0.99).Microseconds())/1000, "kvwrap-durable-p99-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// gatewayStatus is three members of a gateway, each of which puts 2,000 keys of 1 to 2 KB
// in transactions of 20, some at a time: through a plain client, and through kvwrap.
type gatewayStatus struct {
	testing.TB
	plain, wrapped *side
	kvs            []*KV // of the members
	members        []*workload.Status
	atATime        int
}

func newGatewayStatus(t testing.TB, plain, wrapped *side, rule Rule, atATime int) *gatewayStatus {
	g := &gatewayStatus{TB: t, plain: plain, wrapped: wrapped, atATime: atATime}
	for i := range 3 {
		g.kvs = append(g.kvs, wrapped.over(t, Config{Rules: []Rule{rule}}))
		g.members = append(g.members, workload.NewStatus(2000, fmt.Sprint("member-", i)))
	}
	return g
}

// cost is what etcd has seen of a turn.
type cost struct {
	revisions, proposed, backend int64
	largest                      int64 // raft entry
}

func (c *cost) add(o cost) {
	c.revisions, c.proposed, c.backend, c.largest = c.revisions+o.revisions, c.proposed+o.proposed, c.backend+o.backend, max(c.largest, o.largest)
}

// turn has a share of the objects change and all members put their status.
func (g *gatewayStatus) turn(active float64) (plain, wrapped cost) {
	var txns [][][]string
	for _, m := range g.members {
		txns = append(txns, m.Sync(active, 20))
	}
	measure := func(s *side, to func(member int) clientv3.KV) cost {
		s.sent.Take()
		revision, backend := s.revision(g), s.cluster.BackendBytes()
		together(len(g.members), func(i int) { g.put(to(i), txns[i]) })
		sent := s.sent.Take()
		return cost{s.revision(g) - revision, int64(sent.ProposedBytes()), s.cluster.BackendBytes() - backend, int64(sent.Largest())}
	}
	plain = measure(g.plain, func(int) clientv3.KV { return g.plain })
	wrapped = measure(g.wrapped, func(i int) clientv3.KV { return g.kvs[i] })
	return plain, wrapped
}

// put puts the status of one member.
func (g *gatewayStatus) put(kv clientv3.KV, txns [][]string) {
	next := make(chan []string)
	var all sync.WaitGroup
	for range g.atATime {
		all.Go(func() {
			for txn := range next {
				var ops []clientv3.Op
				for i := 0; i < len(txn); i += 2 {
					ops = append(ops, clientv3.OpPut(txn[i], txn[i+1]))
				}
				if _, err := kv.Txn(g.Context()).Then(ops...).Commit(); err != nil {
					g.Error(err)
				}
			}
		})
	}
	for _, txn := range txns {
		next <- txn
	}
	close(next)
	all.Wait()
}

// BenchmarkStatusSync is the status of a gateway with three members, 16 transactions of
// each at a time: what one turn costs. Run it with -benchtime 10x.
func BenchmarkStatusSync(b *testing.B) {
	for _, c := range []struct {
		active float64
		skip   bool
	}{{0, true}, {0.05, true}, {0.05, false}, {1, true}, {1, false}} {
		b.Run(fmt.Sprintf("active=%.0f%%/skip=%v", 100*c.active, c.skip), func(b *testing.B) {
			g := newGatewayStatus(b, newSide(b), newSide(b), Rule{
				Prefix: workload.StatusPrefix, Coalesce: coalesce.GroupCommit, Transactions: true, SkipUnchanged: c.skip, Linger: 5 * time.Millisecond,
			}, 16)
			g.turn(1)
			var plain, wrapped cost
			for b.Loop() {
				p, w := g.turn(c.active)
				plain.add(p)
				wrapped.add(w)
			}
			n := float64(b.N)
			b.ReportMetric(float64(plain.revisions)/n, "plain-revisions")
			b.ReportMetric(float64(wrapped.revisions)/n, "kvwrap-revisions")
			b.ReportMetric(float64(plain.proposed)/n/1000, "plain-proposed-KB")
			b.ReportMetric(float64(wrapped.proposed)/n/1000, "kvwrap-proposed-KB")
			b.ReportMetric(float64(plain.backend)/n/1000, "plain-backend-KB")
			b.ReportMetric(float64(wrapped.backend)/n/1000, "kvwrap-backend-KB")
			b.ReportMetric(float64(wrapped.largest), "largest-entry-B")
			b.ReportMetric(0, "ns/op")
		})
	}
}
