package shaper

import (
	"errors"
	"math"
	"slices"
	"time"
)

// Target is what a workload may cost a cluster. A zero field is no target, but for those
// that say what it is.
type Target struct {
	// RaftLogBytes is what the raft log of each member may take of its memory. Default 512
	// MiB: what makes revisions fewer makes entries larger, and needs a bound.
	RaftLogBytes int64 `json:"raftLogBytes"`
	// RevisionsPerSecond is what all writers together may make.
	RevisionsPerSecond float64 `json:"revisionsPerSecond"`
	// BackendBytesPerSecond is what the backend of each member may be written with.
	BackendBytesPerSecond float64 `json:"backendBytesPerSecond"`
	// FileBytes is what the database file of each member may grow to, on the average. Default
	// four fifths of the server's quota. It is never to reach the quota.
	FileBytes int64 `json:"fileBytes"`
	// Server is the cluster's, as far as it is not for Tune to say: Compaction and
	// CatchUpEntries that are set stay as they are.
	Server Server `json:"server"`
	// Tmpfs says that members keep their data in memory.
	Tmpfs bool `json:"tmpfs"`
}

func (t Target) validate() error {
	var errs []error
	positive := func(name string, v float64) {
		if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
			errs = append(errs, &InputError{Field: "Target." + name, Value: v, Remedy: "choose what is allowed, or 0 for no target"})
		}
	}
	positive("RaftLogBytes", float64(t.RaftLogBytes))
	positive("RevisionsPerSecond", t.RevisionsPerSecond)
	positive("BackendBytesPerSecond", t.BackendBytesPerSecond)
	positive("FileBytes", float64(t.FileBytes))
	return errors.Join(errs...)
}

// servers returns the servers that Tune may choose from, what changes least first: with
// compaction, where nothing compacts yet, and with fewer entries for slow followers.
func (t Target) servers() (all []Server) {
	catchUps := []uint64{t.Server.CatchUpEntries}
	if t.Server.CatchUpEntries == 0 {
		catchUps = append(catchUps, 2500, 1000, 500)
	}
	compactions := []Compaction{t.Server.Compaction}
	if t.Server.Compaction.Mode == CompactNone {
		compactions = nil
		for _, d := range []time.Duration{time.Hour, 30 * time.Minute, 10 * time.Minute, 5 * time.Minute, time.Minute} {
			compactions = append(compactions, Compaction{Mode: CompactPeriodic, Retention: d})
		}
	}
	quotas := []int64{t.Server.Quota}
	if t.Server.Quota == 0 && t.FileBytes == 0 {
		quotas = append(quotas, 4<<30, 8<<30) // etcd warns above 8 GiB
	}
	for _, catchUp := range catchUps {
		for i := range len(quotas) * len(compactions) {
			s := t.Server
			s.CatchUpEntries, s.Quota, s.Compaction = catchUp, quotas[i/len(compactions)], compactions[i%len(compactions)]
			if minor, _ := s.minor(); minor == 5 && catchUp != t.Server.CatchUpEntries && s.SnapshotCount == 0 {
				s.SnapshotCount = 2 * catchUp // on 3.5 it decides about memory, too
			}
			all = append(all, s)
		}
	}
	if minor, _ := t.Server.minor(); minor == 5 && t.Server.SnapshotCount == 0 {
		// The first to be lowered is what nobody has a use for.
		var lower []Server
		for _, s := range all {
			if s.SnapshotCount == 0 {
				s.SnapshotCount = 10_000
				lower = append(lower, s)
			}
		}
		first := len(quotas) * len(compactions)
		all = slices.Concat(all[:first], lower, all[first:])
	}
	return all
}

// fileBytes returns the target for the file of a server.
func (t Target) fileBytes(s Server) float64 {
	if t.FileBytes > 0 {
		return float64(t.FileBytes)
	}
	if quota := s.withDefaults().Quota; quota > 0 {
		return 0.8 * float64(quota)
	}
	return 0
}

// unmet returns the targets that a projection does not meet, with what stands in the way.
func (t Target) unmet(s Settings, l Load, p Projection) (all []Unmet) {
	check := func(target string, wanted, got float64, unit, why string) {
		if wanted > 0 && got > wanted {
			all = append(all, Unmet{Target: target, Wanted: wanted, Nearest: got, Unit: unit, Why: why})
		}
	}
	check("RaftLogBytes", float64(t.RaftLogBytes), p.Get(RaftLog).Expected, "B",
		"etcd keeps so many entries, of the smallest size that kvwrap makes: write less often")
	check("RevisionsPerSecond", t.RevisionsPerSecond, l.entriesPerSecond(), "revisions/s", t.whySoMany(s))
	check("BackendBytesPerSecond", t.BackendBytesPerSecond, p.Get(BackendGrowth).Expected, "B/s",
		"so much changes: write less often, or less")
	check("FileBytes", t.fileBytes(p.Server), p.Get(FileSize).Expected, "B",
		"so much is live, or kept until it is compacted: raise --quota-backend-bytes, keep revisions for a shorter time, or write less")
	if quota := p.Server.Quota; len(all) == 0 && quota > 0 {
		check("Server.Quota", float64(quota), p.Get(FileSize).High, "B", "the file may come to that when it is largest: raise --quota-backend-bytes, or write less")
	}
	return all
}

func (t Target) whySoMany(s Settings) string {
	switch {
	case s.Chunked:
		return "each value takes its proposals: write less often, or raise MaxEntryBytes"
	case s.FlushEvery > 0:
		return "each writer has a batch for each flush: allow more Freshness, or use fewer writers"
	}
	return "each put that waits is a revision where callers do not wait together: allow Freshness, and use PutAsync"
}
