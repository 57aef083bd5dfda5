package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/kvwrap/kvwrap/internal/size"
)

// result is what a demo has measured.
type result struct {
	plain, wrapped side
	valueBytes     int
	demo           *demo
	took           time.Duration
}

// defaultCatchUp is --snapshot-catchup-entries of etcd where it is not set.
const defaultCatchUp = 5000

// retained returns how many entries a server has in memory that has applied so
// many: all, until it begins to drop those older than the catch-up entries.
func (d *demo) retained(applied uint64) uint64 {
	if applied < logCompaction {
		return applied
	}
	return min(applied, d.catchUp+applied%logCompaction)
}

// logBytes returns what the raft log takes in memory with etcd's default number of
// entries: measured, from what the live heap has grown by while the log filled,
// on a server of the demo's own; else what its entries hold.
func (d *demo) logBytes(s *side) float64 {
	if s.server == nil {
		return s.entryBytes() * defaultCatchUp
	}
	grown := float64(s.after.compacted) - float64(s.before.compacted)
	entries := float64(d.retained(s.after.applied)) - float64(d.retained(s.before.applied))
	return grown / entries * defaultCatchUp
}

// entryBytes is the mean size of a raft entry.
func (s *side) entryBytes() float64 {
	return float64(s.sent.ProposedBytes()) / float64(len(s.sent.Proposals))
}

// ratio is how many times less raft-log memory there is with kvwrap.
func (r *result) ratio() float64 { return r.demo.logBytes(&r.plain) / r.demo.logBytes(&r.wrapped) }

// print writes the two sides beside each other.
func (r *result) print(w io.Writer) error {
	var c comparison
	own, n := r.plain.server != nil, r.demo.publishes
	c.say("A gateway writes the statistics of %d pipelines, %s, to one key, %v %% of them changed each time: %d publishes on each side, each read back by another client.",
		r.demo.pipelines, bytesOf(r.valueBytes), r.demo.changed, n)
	if own {
		c.say("etcd %s, one server for each side, without fsync, --max-request-bytes %d MiB so that it takes the plain client's value at all, --snapshot-catchup-entries %d in place of %d so that the raft log fills in seconds.",
			r.plain.after.version, maxRequestBytes>>20, r.demo.catchUp, defaultCatchUp)
	} else {
		c.say("etcd %s at %s.", r.plain.after.version, strings.Join(r.demo.cluster.endpoints, ", "))
	}
	c.gap()
	c.table(func(row func(what, plain, wrapped, note string)) {
		bytes := func(what string, plain, wrapped float64) {
			row(what, size.Bytes(plain), size.Bytes(wrapped), less(plain, wrapped))
		}
		each := func(what string, of func(s *side) string) { row(what, of(&r.plain), of(&r.wrapped), "") }
		times := func(d paired.Durations) string {
			return fmt.Sprintf("%s / %s", shortly(d.Median()), shortly(d.Quantile(0.99)))
		}
		row("", "plain client", "kvwrap", "")
		bytes("proposed per publish", float64(r.plain.sent.ProposedBytes())/float64(n), float64(r.wrapped.sent.ProposedBytes())/float64(n))
		each("proposals per publish", func(s *side) string { return fmt.Sprintf("%.1f", float64(len(s.sent.Proposals))/float64(n)) })
		bytes("largest raft entry", float64(r.plain.sent.Largest()), float64(r.wrapped.sent.Largest()))
		if own {
			each("entries in the full raft log", func(s *side) string { return fmt.Sprint(r.demo.retained(s.after.applied)) })
			bytes("live heap of the server then", float64(r.plain.after.liveHeap), float64(r.wrapped.after.liveHeap))
		}
		bytes(fmt.Sprintf("raft log projected, %d entries", defaultCatchUp), r.demo.logBytes(&r.plain), r.demo.logBytes(&r.wrapped))
		if own {
			bytes("database", float64(r.plain.after.database), float64(r.wrapped.after.database))
		}
		each("publish, median / p99", func(s *side) string { return times(s.publish) })
		each("read, median / p99", func(s *side) string { return times(s.read) })
	})
	c.gap()
	c.say("Raft-log memory: %.0f times less with kvwrap. Took %.1f s.", r.ratio(), r.took.Seconds())
	if !own {
		c.say("The keys are gone; their revisions take room in the database until it is compacted.")
	}
	return c.print(w)
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// bytesOf writes n bytes for people.
func bytesOf(n int) string { return size.Bytes(float64(n)) }
