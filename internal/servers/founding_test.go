//go:build unix

package servers

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestFoundingCases plays the two cases that kvwrap was made for, through a plain client and
// through kvwrap as it is tuned for them, and holds what a server keeps to the plan's projection.
// The gateway's is on a server that keeps 200 entries, not 5,000, so that it fits in
// memory; what it is with 5,000 is projected from that.
//
//	go test ./internal/servers -run TestFoundingCases -v -servers.full
func TestFoundingCases(t *testing.T) {
	if !*full {
		t.Skip("-servers.full is not set")
	}
	t.Run("gateway", func(t *testing.T) {
		const members, every, kept = 3, 5 * time.Second, 200
		gateways := make([]*workload.Gateway, members)
		for i := range gateways {
			gateways[i] = workload.NewGateway(1000, uint64(i+1))
		}
		size := len(gateways[0].Publish(1))
		cfg, plan, err := kvwrap.GatewayStatistics(members, size, 0.03, every)
		require.NoError(t, err)
		publish := func(kv clientv3.KV, n int) {
			for i := range n {
				_, err := kv.Put(t.Context(), fmt.Sprint("statistics/", i%members), string(gateways[i%members].Publish(0.03)))
				require.NoError(t, err)
			}
		}
		run := func(n int, over func(*clientv3.Client) clientv3.KV) Measurement {
			s := Start(t, "3.7", Config{CatchUpEntries: kept, Exact: true, Settings: map[string]any{
				"quota-backend-bytes": 8 << 30, "max-request-bytes": 4 << 20,
			}})
			defer s.Stop()
			cli := s.Client(t)
			publish(over(cli), n)
			m, err := s.Measure(t.Context())
			require.NoError(t, err)
			return m
		}
		before := run(350, func(cli *clientv3.Client) clientv3.KV { return cli.KV })
		after := run(350, func(cli *clientv3.Client) clientv3.KV {
			kv, err := kvwrap.New(cli, cfg)
			require.NoError(t, err)
			t.Cleanup(func() { kv.Close() })
			return kv
		})
		for _, side := range []struct {
			name     string
			load     shaper.Load
			measured Measurement
			defaults shaper.Projection
		}{{"plain client", plan.PlainLoad, before, plan.Plain}, {"kvwrap", plan.ShapedLoad, after, plan.Shaped}} {
			p, err := shaper.Project(shaper.Server{Version: "3.7", CatchUpEntries: kept}, side.load)
			require.NoError(t, err)
			each := p.Get(shaper.RaftLog).Expected / p.Get(shaper.RaftEntries).Expected
			projected, got := each*float64(side.measured.Entries.Number), float64(side.measured.RaftLog)
			t.Logf("%s: %d entries, raft log %.1f MB measured, %.1f MB projected; with 5,000 entries %.2f GB from what was measured, %.2f GB projected",
				side.name, side.measured.Entries.Number, got/1e6, projected/1e6,
				got/float64(side.measured.Entries.Number)*side.defaults.Get(shaper.RaftEntries).Expected/1e9, side.defaults.Get(shaper.RaftLog).Expected/1e9)
			require.InEpsilon(t, projected, got, 0.05)
		}
	})
	t.Run("broker", func(t *testing.T) {
		const partitions, rate, over = 200, 5000, 20 * time.Second
		cfg, plan, err := kvwrap.OffsetCommits(workload.OffsetsPrefix, partitions, rate, 100*time.Millisecond)
		require.NoError(t, err)
		commit := func(put func(ctx context.Context, key, value string)) (m Measurement, grown float64) {
			s := Start(t, "3.7", Config{Settings: map[string]any{"quota-backend-bytes": 8 << 30}})
			defer s.Stop()
			cli := s.Client(t)
			kv, err := kvwrap.New(cli, cfg)
			require.NoError(t, err)
			defer kv.Close()
			if put == nil {
				put = func(ctx context.Context, key, value string) { kv.PutAsync(ctx, key, value, nil) }
			} else {
				put = func(ctx context.Context, key, value string) {
					_, err := cli.Put(ctx, key, value)
					require.NoError(t, err)
				}
			}
			st, err := cli.Status(t.Context(), s.Endpoint)
			require.NoError(t, err)
			first := float64(st.DbSizeInUse)
			b := workload.NewBroker(partitions, 1)
			slots := make(chan struct{}, 64)
			began := time.Now()
			n := 0
			for tick := time.Tick(time.Millisecond); time.Since(began) < over; <-tick {
				for ; n < int(time.Since(began).Seconds()*rate); n++ {
					p, offset := b.Commit()
					slots <- struct{}{}
					go func() {
						defer func() { <-slots }()
						put(t.Context(), workload.OffsetKey(p), offset)
					}()
				}
			}
			for range cap(slots) {
				slots <- struct{}{}
			}
			require.NoError(t, kv.Flush(t.Context()))
			took := time.Since(began).Seconds()
			m, err = s.Measure(t.Context())
			require.NoError(t, err)
			return m, (float64(m.DbSizeInUse) - first) / took
		}
		// The plan is for the longest offsets there are, and keys as long as they may become.
		written := plan.Workload
		written.KeyBytes, written.ValueBytes = len(workload.OffsetKey(0)), len("1234567")
		exact, err := shaper.Tune(written, plan.Target)
		require.NoError(t, err)
		require.Equal(t, plan.Settings, exact.Settings)
		_, plain := commit(func(context.Context, string, string) {})
		_, shaped := commit(nil)
		for _, side := range []struct {
			name       string
			grown      float64
			most, want shaper.Projection
			least      float64
		}{
			{"plain client", plain, plan.Plain, exact.Plain, 0.92},
			{"kvwrap", shaped, plan.Shaped, exact.Shaped, 0.7}, // batches are larger where the machine is busy
		} {
			most, want := side.most.Get(shaper.BackendGrowth).Expected, side.want.Get(shaper.BackendGrowth).Expected
			full := func(rate float64) float64 { return float64(2<<30) / rate / 60 }
			t.Logf("%s: the backend grows by %.0f KB/s, projected %.0f, and %.0f for the longest; 2 GiB are full after %.0f min, projected %.0f and %.0f",
				side.name, side.grown/1e3, want/1e3, most/1e3, full(side.grown), full(want), full(most))
			require.Greater(t, side.grown, side.least*want)
			require.Less(t, side.grown, 1.08*want)
			require.Less(t, side.grown, most)
		}
	})
}
