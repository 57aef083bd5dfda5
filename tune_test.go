package kvwrap

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/stretchr/testify/require"
)

// totals returns what a load comes to in a second.
func totals(l shaper.Load) (entries, entryBytes, records float64) {
	for _, e := range l.Entries {
		entries += e.PerSecond
		entryBytes += e.PerSecond * float64(e.Bytes)
	}
	for _, r := range l.Records {
		records += r.PerSecond
	}
	return entries, entryBytes, records
}

// TestTunedOffsets plays the workload under the configuration that Tune has for it, and
// holds what was proposed to the plan and its targets.
func TestTunedOffsets(t *testing.T) {
	const partitions, rate, most = 200, 5000, 30
	cfg, plan, err := Tune(shaper.Workload{
		Prefix: "offsets/", Keys: partitions, KeyBytes: 11, ValueBytes: 8, Interval: partitions * time.Second / rate,
		Freshness: 200 * time.Millisecond, Latest: true, Increasing: true, Polled: true,
	}, shaper.Target{RevisionsPerSecond: most, RaftLogBytes: 256 << 20, Server: shaper.Server{Version: "3.7"}})
	require.NoError(t, err)
	require.Empty(t, plan.Unmet)
	require.Equal(t, coalesce.Max, cfg.Rules[0].Coalesce)
	kv := newSide(t).over(t, cfg)
	rng := rand.New(rand.NewPCG(1, 1))
	began := time.Now()
	n := 0
	for tick := time.Tick(time.Millisecond); time.Since(began) < 4*time.Second; <-tick {
		for ; n < int(time.Since(began).Seconds()*rate); n++ {
			kv.PutAsync(t.Context(), fmt.Sprintf("offsets/%03d", rng.IntN(partitions)), fmt.Sprint(10_000_000+n), nil)
		}
	}
	require.NoError(t, kv.Flush(t.Context()))
	took := time.Since(began).Seconds()
	proposed := kv.Stats().Proposed.Total
	entries, entryBytes, records := totals(plan.ShapedLoad)
	t.Logf("%d commits in %.1fs: %d revisions, planned %.0f; %d bytes of entries, planned %.0f; %d records, planned %.0f",
		n, took, proposed.Revisions, entries*took, proposed.EntryBytes, entryBytes*took, proposed.Records, records*took)
	require.Less(t, float64(proposed.Revisions)/took, float64(most))
	require.Less(t, float64(proposed.Revisions), 1.15*entries*took+2, "less, where the machine is busy")
	revisions := float64(proposed.Revisions)
	require.InEpsilon(t, entryBytes/entries, float64(proposed.EntryBytes)/revisions, 0.15)
	require.InEpsilon(t, records/entries, float64(proposed.Records)/revisions, 0.15)
	require.EqualValues(t, n, kv.Stats().Asked.Total.Puts)
}

// TestTunedStatistics does so for the statistics of a gateway.
func TestTunedStatistics(t *testing.T) {
	const publishes, every = 20, 5 * time.Second
	for _, changed := range []float64{0.01, 0.1, 1} {
		gateway := workload.NewGateway(1000, 1)
		first := gateway.Publish(1)
		cfg, plan, err := GatewayStatistics(1, len(first), changed, every)
		require.NoError(t, err)
		require.Empty(t, plan.Unmet)
		kv := newSide(t).over(t, cfg)
		_, err = kv.Put(t.Context(), "statistics", string(first))
		require.NoError(t, err)
		before := kv.Stats().Proposed.Total
		for range publishes {
			_, err := kv.Put(t.Context(), "statistics", string(gateway.Publish(changed)))
			require.NoError(t, err)
		}
		after := kv.Stats().Proposed.Total
		_, entryBytes, records := totals(plan.ShapedLoad)
		planned := entryBytes * every.Seconds()
		bytes := float64(after.EntryBytes-before.EntryBytes) / publishes
		t.Logf("%.0f %% changed: %.0f bytes a publish, planned %.0f; %.0f records, planned %.0f", 100*changed, bytes, planned,
			float64(after.Records-before.Records)/publishes, records*every.Seconds())
		require.InEpsilon(t, planned, bytes, 0.15)
		log := plan.Shaped.Get(shaper.RaftLog)
		require.LessOrEqual(t, log.High, float64(plan.Target.RaftLogBytes)*1.1)
	}
}
