package chunker

import (
	"context"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Stats counts what a chunker has done since it was made.
type Stats struct {
	Inline    uint64 // chunked values committed in one proposal
	Staged    uint64 // chunked values staged before their commit
	Conflicts uint64 // commits that another write came before, and were tried again
	Abandoned uint64 // chunked values that were staged, in part or whole, and given up
	Oversized uint64 // writes that could not be made to fit in MaxEntryBytes and went through as they are

	Swept       uint64 // chunks that sweeps have deleted
	SweepErrors uint64 // background sweeps that ended with an error
}

type counters struct {
	inline, staged, conflicts, abandoned, oversized, swept, sweepErrors atomic.Uint64
}

// Stats returns the counters. It does no I/O.
func (s *Stage) Stats() Stats {
	return Stats{
		Inline:    s.stats.inline.Load(),
		Staged:    s.stats.staged.Load(),
		Conflicts: s.stats.conflicts.Load(),
		Abandoned: s.stats.abandoned.Load(),
		Oversized: s.stats.oversized.Load(),

		Swept:       s.stats.swept.Load(),
		SweepErrors: s.stats.sweepErrors.Load(),
	}
}

// Count returns how many keys there are below the reserved prefix: chunks, anchors, and some
// of kvwrap's own. It is one request; etcd counts in memory.
func (s *Stage) Count(ctx context.Context) (int64, error) {
	all := s.space.All()
	resp, err := s.inner.Range(ctx, &pb.RangeRequest{Key: all.Key, RangeEnd: all.End, CountOnly: true, Serializable: true})
	return resp.GetCount(), err
}
