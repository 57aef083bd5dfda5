package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kvwrap/kvwrap/internal/paired"
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
	var b strings.Builder
	own, n := r.plain.server != nil, r.demo.publishes
	fmt.Fprintf(&b, "A gateway writes the statistics of %d pipelines, %s, to one key, %v %% of them changed\n",
		r.demo.pipelines, bytesOf(r.valueBytes), r.demo.changed)
	fmt.Fprintf(&b, "each time: %d publishes on each side, each read back by another client.\n", n)
	if own {
		fmt.Fprintf(&b, "etcd %s, one server for each side, without fsync, --max-request-bytes %d MiB so that it\n", r.plain.after.version, maxRequestBytes>>20)
		fmt.Fprintf(&b, "takes the plain client's value at all, --snapshot-catchup-entries %d in place of %d so\n", r.demo.catchUp, defaultCatchUp)
		fmt.Fprintf(&b, "that the raft log fills in seconds.\n")
	} else {
		fmt.Fprintf(&b, "etcd %s at %s.\n", r.plain.after.version, strings.Join(r.demo.cluster.endpoints, ", "))
	}
	b.WriteByte('\n')
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', tabwriter.AlignRight)
	row := func(what, plain, wrapped, note string) {
		fmt.Fprintf(t, "%-46s\t%s\t%s\t%s\t\n", what, plain, wrapped, note)
	}
	less := func(what string, plain, wrapped float64) {
		row(what, bytesOf(int(plain)), bytesOf(int(wrapped)), fmt.Sprintf("%.1fx less", plain/wrapped))
	}
	each := func(what string, of func(s *side) string) { row(what, of(&r.plain), of(&r.wrapped), "") }
	row("", "plain client", "kvwrap", "")
	less("proposed per publish", float64(r.plain.sent.ProposedBytes())/float64(n), float64(r.wrapped.sent.ProposedBytes())/float64(n))
	each("proposals per publish", func(s *side) string { return fmt.Sprintf("%.1f", float64(len(s.sent.Proposals))/float64(n)) })
	less("largest raft entry", float64(r.plain.sent.Largest()), float64(r.wrapped.sent.Largest()))
	if own {
		each("entries in the full raft log", func(s *side) string { return fmt.Sprint(r.demo.retained(s.after.applied)) })
		less("live heap of the server then", float64(r.plain.after.liveHeap), float64(r.wrapped.after.liveHeap))
	}
	less(fmt.Sprintf("raft log in memory, projected to %d entries", defaultCatchUp), r.demo.logBytes(&r.plain), r.demo.logBytes(&r.wrapped))
	if own {
		less("database", float64(r.plain.after.database), float64(r.wrapped.after.database))
	}
	times := func(d paired.Durations) string {
		return fmt.Sprintf("%.1f / %.1f ms", millis(d.Median()), millis(d.Quantile(0.99)))
	}
	each("publish, median / 99th percentile", func(s *side) string { return times(s.publish) })
	each("read, median / 99th percentile", func(s *side) string { return times(s.read) })
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(&b, "\nRaft-log memory: %.0f times less with kvwrap. Took %.1f s.\n", r.ratio(), r.took.Seconds())
	if !own {
		fmt.Fprintf(&b, "The keys are gone; their revisions take room in the database until it is compacted.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// bytesOf writes n bytes in the unit that suits it, powers of 1000.
func bytesOf(n int) string {
	switch f := float64(n); {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", f/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.2f MB", f/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f KB", f/1e3)
	}
	return fmt.Sprintf("%d B", n)
}
