package coalesce

import "sync/atomic"

// Stats counts what a coalescer has done since it was made.
type Stats struct {
	Puts   uint64 // by callers, that went into batches
	Async  uint64 // puts that PutAsync has taken
	Txns   uint64 // transactions that joined batches
	Merged uint64 // puts that another one's value was written for, or they for its

	Batches uint64 // proposals for all of these
	Records uint64 // keys written, or deleted, by them
	Skipped uint64 // puts that were not written, because the value was there

	Barriers uint64 // requests that waited for writes before them
	Splits   uint64 // batches that were divided to find out which write etcd refuses
	Retries  uint64 // batches that were tried again
	Failed   uint64 // puts by PutAsync that were refused, or given up
}

type counters struct {
	puts, async, txns, merged, batches, records, skipped, barriers, splits, retries, failed atomic.Uint64
}

// Stats returns the counters. It does no I/O.
func (s *Stage) Stats() Stats {
	c := &s.stats
	return Stats{
		Puts: c.puts.Load(), Async: c.async.Load(), Txns: c.txns.Load(), Merged: c.merged.Load(),
		Batches: c.batches.Load(), Records: c.records.Load(), Skipped: c.skipped.Load(),
		Barriers: c.barriers.Load(), Splits: c.splits.Load(), Retries: c.retries.Load(), Failed: c.failed.Load(),
	}
}
