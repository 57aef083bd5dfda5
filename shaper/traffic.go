package shaper

import (
	"fmt"
	"time"
)

// Traffic is what a [Meter] has counted. It can be marshalled as JSON; prefixes
// that are not UTF-8 are changed then.
type Traffic struct {
	Since  time.Time `json:"since"`  // when the meter began
	Total  Span      `json:"total"`  // since then
	Window Span      `json:"window"` // the last MeterConfig.Window, or less

	// LargestEntryBytes is the largest raft entry since the meter began.
	LargestEntryBytes int `json:"largestEntryBytes"`
	// Keys is how many distinct keys were put since the meter began. It is an estimate, whose
	// standard error is [KeysError] of it, 0.8 %. Of these as many live as were not deleted:
	// Keys - Total.Tombstones of them at least, but for those that leases have taken.
	Keys uint64 `json:"keys"`
	// ByRule has what was written below each of MeterConfig.Rules, in their order, and in the
	// last place what no rule is for, unless one is for all keys.
	ByRule []RuleTraffic `json:"byRule"`
	// Heaviest are the prefixes below which most was written since the meter began, the
	// heaviest one first; MeterConfig.Heaviest at the most.
	Heaviest []PrefixTraffic `json:"heaviest"`
}

// Span is what was counted in a time.
type Span struct {
	Elapsed time.Duration `json:"elapsed"` // nanoseconds
	Counts
	EntrySizes  EntrySizes  `json:"entrySizes"`  // of the raft entries that are counted as Entries
	RecordSizes RecordSizes `json:"recordSizes"` // of the records that are counted as Records
}

// PerSecond returns how often a second it was that was counted n times. Of no time it is 0.
func (s Span) PerSecond(n uint64) float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(n) / s.Elapsed.Seconds()
}

// Counts are numbers of requests, and of what they have made.
type Counts struct {
	// Puts, Deletes and Txns are requests that write, whatever has become of them. A
	// transaction writes where it has anything but ranges, in either branch; what is in it
	// does not count as Puts and Deletes.
	Puts    uint64 `json:"puts"`
	Deletes uint64 `json:"deletes"`
	Txns    uint64 `json:"txns"`
	// Of these were Refused those that were not proposed, Failed those that etcd has
	// proposed and not carried out, and Unknown those that may have been carried out.
	// All others have succeeded.
	Refused uint64 `json:"refused"`
	Failed  uint64 `json:"failed"`
	Unknown uint64 `json:"unknown"`

	// Entries are raft entries: one for each request that writes, but for those that were
	// refused. EntryBytes is the sum of the marshalled proposals.
	Entries    uint64 `json:"entries"`
	EntryBytes uint64 `json:"entryBytes"`
	// Revisions are those of the requests that have succeeded and changed something.
	Revisions uint64 `json:"revisions"`
	// Records are those in the backend: one for each key that was put or deleted. Tombstones
	// are those of deleted keys, Leased those that were put with a lease; where that is the one
	// before, by IgnoreLease, it is not known.
	Records    uint64 `json:"records"`
	Tombstones uint64 `json:"tombstones"`
	Leased     uint64 `json:"leased"`
	// KeyBytes and ValueBytes are the sums of the keys and values of Records. Of a put with
	// IgnoreValue the value is not known, and counts as none. Of a delete of a range the keys
	// are not known, unless it has asked for them, and each counts as long as the one that
	// the range begins with.
	KeyBytes   uint64 `json:"keyBytes"`
	ValueBytes uint64 `json:"valueBytes"`

	// Ranges are reads that were answered, those in transactions included; a read in pages
	// is one for each. RangeBytes are the keys and values that they have returned.
	Ranges     uint64 `json:"ranges"`
	RangeBytes uint64 `json:"rangeBytes"`
	// Compactions are those that were carried out.
	Compactions uint64 `json:"compactions"`
}

// all returns each of the counts.
func (c *Counts) all() [17]*uint64 {
	return [...]*uint64{
		&c.Puts, &c.Deletes, &c.Txns, &c.Refused, &c.Failed, &c.Unknown, &c.Entries, &c.EntryBytes, &c.Revisions,
		&c.Records, &c.Tombstones, &c.Leased, &c.KeyBytes, &c.ValueBytes, &c.Ranges, &c.RangeBytes, &c.Compactions,
	}
}

// RuleTraffic is what was written to keys that one rule is for. A delete of a range counts for
// the rule of the key that the range begins with, unless it has asked for the keys.
type RuleTraffic struct {
	Prefix string     `json:"prefix"`
	Total  RuleCounts `json:"total"`
	Window RuleCounts `json:"window"`
}

// RuleCounts are numbers of records, as in [Counts].
type RuleCounts struct {
	Records    uint64 `json:"records"`
	Tombstones uint64 `json:"tombstones"`
	KeyBytes   uint64 `json:"keyBytes"`
	ValueBytes uint64 `json:"valueBytes"`
}

// Traffic returns what was counted. It does no I/O, and takes half a millisecond,
// during which requests do not wait for it.
func (m *Meter) Traffic() Traffic { return m.traffic(m.now()) }

func (m *Meter) traffic(now time.Duration) Traffic {
	total, window := m.newTally(), m.newTally()
	var keys keySketch
	var prefixes []followed
	t := Traffic{Since: m.start}

	m.mu.Lock()
	for _, s := range m.shards {
		s.mu.Lock()
		total.add(&s.tally)
		keys.merge(&s.keys)
		prefixes = append(prefixes, s.prefixes.copy())
		t.LargestEntryBytes = max(t.LargestEntryBytes, s.largest)
		s.mu.Unlock()
	}
	// The window begins with a slot, so that it never is longer than it is said to be.
	begin := max(0, int64((now-m.cfg.Window+m.slot-1)/m.slot))
	if before := m.before(begin); before != nil {
		window.add(&total)
		window.sub(before)
	}
	m.mu.Unlock()

	t.Total = total.span(now)
	t.Window = window.span(now - time.Duration(begin)*m.slot)
	t.Keys = uint64(keys.estimate() + 0.5)
	for i := range total.rules {
		t.ByRule = append(t.ByRule, RuleTraffic{Prefix: m.names[i], Total: total.rules[i], Window: window.rules[i]})
	}
	t.Heaviest = heaviest(m.cfg.Heaviest, prefixes)
	return t
}

func (t *tally) span(elapsed time.Duration) Span {
	return Span{Elapsed: elapsed, Counts: t.counts, EntrySizes: entrySizes(&t.entries), RecordSizes: recordSizes(&t.records)}
}

// String returns one line: the window, and the total in brief.
func (t Traffic) String() string {
	w := t.Window
	s := fmt.Sprintf("last %v: %.4g revisions/s, %.4g records/s, %.4g entries/s of %s/s (median %s, 99th percentile %s), %.4g ranges/s of %s/s",
		w.Elapsed.Round(time.Second), w.PerSecond(w.Revisions), w.PerSecond(w.Records), w.PerSecond(w.Entries),
		Bytes.format(w.PerSecond(w.EntryBytes)), Bytes.format(float64(w.EntrySizes.Quantile(0.5))), Bytes.format(float64(w.EntrySizes.Quantile(0.99))),
		w.PerSecond(w.Ranges), Bytes.format(w.PerSecond(w.RangeBytes)))
	if n := w.Refused + w.Failed + w.Unknown; n > 0 {
		s += fmt.Sprintf(", %d refused, %d failed, %d unknown", w.Refused, w.Failed, w.Unknown)
	}
	s += fmt.Sprintf("; %v in all: %d revisions, %d records, %d keys, largest entry %s",
		t.Total.Elapsed.Round(time.Second), t.Total.Revisions, t.Total.Records, t.Keys, Bytes.format(float64(t.LargestEntryBytes)))
	if len(t.Heaviest) > 0 {
		s += fmt.Sprintf(", most below %q: %d records, %s", t.Heaviest[0].Prefix, t.Heaviest[0].Records, Bytes.format(float64(t.Heaviest[0].Bytes)))
	}
	return s
}
