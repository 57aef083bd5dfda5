//go:build unix

package servers

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvwrap/kvwrap/shaper"
)

// TestProjectionOfARestart compares what is projected of the log at a restart: all entries
// since the last snapshot on disk, of which there was none here. On 3.5 they are there
// afterwards; on 3.6 and 3.7 only what the log is compacted to is, but the process has had
// memory for all of them.
func TestProjectionOfARestart(t *testing.T) {
	versions := []string{"3.7"}
	if *full {
		versions = Versions
	}
	for _, version := range versions {
		t.Run("etcd "+version, func(t *testing.T) {
			const number, value, catchUp, snapshots = 1500, 50_000, 100, 5000
			server := shaper.Server{Version: version, CatchUpEntries: catchUp, SnapshotCount: snapshots}
			s := Start(t, version, Config{Exact: version == "3.5", CatchUpEntries: catchUp, SnapshotCount: snapshots})
			load := *putsOf(1, value, 4)(t.Context(), t, writer{cli: s.Client(t), number: number})
			p, err := shaper.Project(server, load)
			require.NoError(t, err)
			f := p.Get(shaper.RaftLogAtRestart)
			require.InEpsilon(t, number*57344, f.Expected, 0.01)

			s.Restart(t)
			after, err := s.Measure(t.Context())
			require.NoError(t, err)
			t.Logf("%d entries, %d bytes resident at the most, projected %.0f", after.Entries.Number, after.PeakAnonymous, f.Expected)
			if version == "3.5" {
				require.InEpsilon(t, f.Expected, float64(after.RaftLog), 0.01)
				require.Equal(t, int(after.Entries.Last), after.Entries.Number)
				return
			}
			require.Less(t, after.Entries.Number, 2*catchUp)
			peak := p.Get(shaper.PeakAtRestart)
			require.True(t, peak.Contains(float64(after.PeakAnonymous)), "%+v", peak)
			require.Greater(t, peak.Low, 3*p.Get(shaper.RaftLog).High, "the log of a server that runs does not explain it")
		})
	}
}
