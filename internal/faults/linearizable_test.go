//go:build unix

package faults

import (
	"flag"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	durationFlag = flag.Duration("faults.duration", 15*time.Second, "how long TestLinearizable loads the cluster")
	versionFlag  = flag.String("faults.version", "", "minor version of the servers of TestLinearizable; that of this module where it is empty")
	seedFlag     = flag.Uint64("faults.seed", 0, "chooses operations and faults of TestLinearizable; 0 is a random one")
)

// TestLinearizable has clients and writer processes work on few keys through
// kvwrap, while members are killed and paused, connections are cut, answers are
// lost and writers die. Afterwards all that was answered has to agree with what
// etcd says has happened, and nothing may be left of what has failed.
func TestLinearizable(t *testing.T) { linearizable(t, "chunks") }

// TestLinearizableBatches is TestLinearizable with small values, which clients that share
// a KV put together, and behind.
func TestLinearizableBatches(t *testing.T) { linearizable(t, "batches") }

func linearizable(t *testing.T, load string) {
	duration, seed := *durationFlag, *seedFlag
	if testing.Short() {
		duration = min(duration, 5*time.Second)
	}
	for seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-faults.seed %d", seed)
	r := newRun(t, seed, load, *versionFlag)
	r.play(duration)
	pause := r.h.longestPause()
	violations := r.verdict()
	left := r.sweep()

	var summary strings.Builder
	r.h.table(&summary)
	r.nemesis.table(&summary)
	t.Logf("seed %d, %v of load\n%s%d of the unknown writes were applied; %d sweeps have deleted %d chunks; the watch has missed %d compactions; longest time without progress %.1f s; violations %d, orphans %d",
		seed, duration, &summary, r.h.appliedUnknown(), r.sweeps, r.deleted, len(r.watching.gaps), pause.Seconds(), violations, left)
	t.Logf("%d writes went into %d batches, of which %d were merged; %d batches were tried again", r.coalesced, r.batches, r.merged, r.retries)
	require.Zero(t, violations+left, "-faults.seed %d", seed)
}
