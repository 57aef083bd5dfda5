// Package kvprom is a collector for Prometheus of what a kvwrap.KV counts:
//
//	prometheus.MustRegister(kvprom.NewCollector(kv))
//
// Metrics begin with kvwrap_. Those of traffic have the label side: "asked" is what the
// application has asked for, "proposed" what was sent to etcd. A KV for each of several
// clusters takes a registerer with a label for the cluster
// (prometheus.WrapRegistererWith).
//
// It is a package of its own so that kvwrap does not depend on Prometheus.
package kvprom

import (
	"strconv"
	"unicode/utf8"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/prometheus/client_golang/prometheus"
)

// collector asks at each scrape. It has no state of its own.
type collector struct{ kv *kvwrap.KV }

// NewCollector returns a collector of kv's counters. A scrape takes them as kv.Stats does,
// without I/O. It is safe for concurrent use, also after kv is closed.
func NewCollector(kv *kvwrap.KV) prometheus.Collector { return collector{kv} }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("kvwrap_"+name, help, labels, nil)
}

var (
	requests   = desc("requests_total", "Requests that write, by kind.", "side", "kind")
	ended      = desc("requests_failed_total", "Requests that write and were refused unsent, have failed, or had no answer.", "side", "outcome")
	revisions  = desc("revisions_total", "Revisions of the requests that have changed something.", "side")
	records    = desc("records_total", "Records in the backend: keys put and deleted.", "side")
	keyBytes   = desc("record_key_bytes_total", "Bytes of the records' keys.", "side")
	valueBytes = desc("record_value_bytes_total", "Bytes of the records' values.", "side")
	entryBytes = desc("raft_entry_bytes", "Sizes of raft entries, marshalled.", "side")
	largest    = desc("raft_entry_largest_bytes", "The largest raft entry since the start.", "side")
	ranges     = desc("ranges_total", "Reads that were answered.", "side")
	rangeBytes = desc("range_bytes_total", "Bytes of keys and values that reads have returned.", "side")
	keys       = desc("keys", "Distinct keys that were put since the start, an estimate.", "side")
	byRule     = desc("rule_records_total", "Records by the prefix of the rule that is for them.", "side", "prefix")
	byRuleSize = desc("rule_record_bytes_total", "Bytes of keys and values of records, by the prefix of the rule.", "side", "prefix")

	chunked   = desc("chunked_writes_total", "Values stored in chunks, in one proposal (inline) or several (staged).", "how")
	conflicts = desc("chunked_conflicts_total", "Commits of chunked values that another write came before.")
	abandoned = desc("chunked_abandoned_total", "Chunked values that were given up after chunks were staged.")
	oversized = desc("oversized_writes_total", "Writes that could not be made to fit in an entry of the size that is set.")
	swept     = desc("swept_chunks_total", "Chunks that sweeps have deleted.")
	sweepErrs = desc("sweep_errors_total", "Background sweeps that ended with an error.")

	batches   = desc("batches_total", "Proposals of writes that were coalesced.")
	coalesced = desc("coalesced_writes_total", "Writes that went into batches.", "kind")
	merged    = desc("merged_puts_total", "Puts that another one's value was written for.")
	skipped   = desc("skipped_puts_total", "Puts that were not written, since the value was there.")
	retries   = desc("batch_retries_total", "Batches that were sent again.")
	behind    = desc("async_failed_total", "Puts by PutAsync that were refused or given up.")
	pending   = desc("async_pending_writes", "Writes that PutAsync has taken and that are not yet durable.")
	pendBytes = desc("async_pending_bytes", "Bytes of these.")

	limit     = desc("budget_revisions_per_second", "Revisions a second that the budget lets go now; absent where there is no limit.")
	limitSize = desc("budget_bytes_per_second", "Bytes a second that the budget lets go now, as etcd's quota counts them; absent where there is no limit.")
	paced     = desc("budget_writes_total", "Writes by class and by what has become of them: admitted at once, delayed, refused, or left when their context ended.", "class", "outcome")
	waiting   = desc("budget_waiting_writes", "Writes that wait for the budget.", "class")
	waited    = desc("budget_waited_seconds_total", "Time that writes have waited for the budget.", "class")
	noSpace   = desc("budget_no_space", "1 while writes are refused because etcd has no space.")
	askErrors = desc("budget_ask_errors_total", "Failures to ask for the backend, other clients or the revision.")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		requests, ended, revisions, records, keyBytes, valueBytes, entryBytes, largest, ranges, rangeBytes, keys, byRule, byRuleSize,
		chunked, conflicts, abandoned, oversized, swept, sweepErrs,
		batches, coalesced, merged, skipped, retries, behind, pending, pendBytes,
		limit, limitSize, paced, waiting, waited, noSpace, askErrors,
	} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s, p := c.kv.Stats(), c.kv.Pending()
	for _, t := range []struct {
		side string
		shaper.Traffic
	}{{"asked", s.Asked}, {"proposed", s.Proposed}} {
		n := t.Total
		counter(requests, n.Puts, t.side, "put")
		counter(requests, n.Deletes, t.side, "delete")
		counter(requests, n.Txns, t.side, "txn")
		counter(ended, n.Refused, t.side, "refused")
		counter(ended, n.Failed, t.side, "failed")
		counter(ended, n.Unknown, t.side, "unknown")
		counter(revisions, n.Revisions, t.side)
		counter(records, n.Records, t.side)
		counter(keyBytes, n.KeyBytes, t.side)
		counter(valueBytes, n.ValueBytes, t.side)
		metrics <- entries(n, t.side)
		gauge(largest, float64(t.LargestEntryBytes), t.side)
		counter(ranges, n.Ranges, t.side)
		counter(rangeBytes, n.RangeBytes, t.side)
		gauge(keys, float64(t.Keys), t.side)
		for _, r := range t.ByRule {
			prefix := label(r.Prefix)
			counter(byRule, r.Total.Records, t.side, prefix)
			counter(byRuleSize, r.Total.KeyBytes+r.Total.ValueBytes, t.side, prefix)
		}
	}

	counter(chunked, s.Chunk.Inline, "inline")
	counter(chunked, s.Chunk.Staged, "staged")
	counter(conflicts, s.Chunk.Conflicts)
	counter(abandoned, s.Chunk.Abandoned)
	counter(oversized, s.Chunk.Oversized)
	counter(swept, s.Chunk.Swept)
	counter(sweepErrs, s.Chunk.SweepErrors)

	counter(batches, s.Coalesce.Batches)
	counter(coalesced, s.Coalesce.Puts, "put")
	counter(coalesced, s.Coalesce.Async, "async")
	counter(coalesced, s.Coalesce.Txns, "txn")
	counter(merged, s.Coalesce.Merged)
	counter(skipped, s.Coalesce.Skipped)
	counter(retries, s.Coalesce.Retries)
	counter(behind, s.Coalesce.Failed)
	gauge(pending, float64(p.Writes))
	gauge(pendBytes, float64(p.Bytes))

	if v := s.Budget.Limit.Revisions; v > 0 {
		gauge(limit, v)
	}
	if v := s.Budget.Limit.Bytes; v > 0 {
		gauge(limitSize, v)
	}
	for i, class := range s.Budget.Classes {
		name := budget.Class(i).String()
		counter(paced, class.Admitted, name, "admitted")
		counter(paced, class.Delayed, name, "delayed")
		counter(paced, class.Refused, name, "refused")
		counter(paced, class.Left, name, "left")
		gauge(waiting, float64(class.Waiting), name)
		metrics <- prometheus.MustNewConstMetric(waited, prometheus.CounterValue, class.Waited.Seconds(), name)
	}
	full := 0.0
	if s.Budget.NoSpace {
		full = 1
	}
	gauge(noSpace, full)
	counter(askErrors, s.Budget.AskErrors)
}

// label returns a prefix as the value of a label, which is UTF-8: another one is quoted.
func label(prefix string) string {
	if utf8.ValidString(prefix) {
		return prefix
	}
	return strconv.Quote(prefix)
}

// bounds are the upper bounds of the buckets of entries, powers of four from 64 bytes.
var bounds = prometheus.ExponentialBuckets(64, 4, 10)

// entries returns the histogram of raft entries. The meter's buckets are finer: one that has
// a bound in it counts below the next.
func entries(n shaper.Span, side string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(bounds))
	for _, bound := range bounds {
		for _, b := range n.EntrySizes {
			if float64(b.Max) <= bound {
				buckets[bound] += b.Count
			}
		}
	}
	return prometheus.MustNewConstHistogram(entryBytes, n.Entries, float64(n.EntryBytes), buckets, side)
}
