package shaper

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// explain fills in Choices and Flags.
func (p *Plan) explain() {
	choose := func(setting string, value any, why string, args ...any) {
		p.Choices = append(p.Choices, Choice{setting, fmt.Sprint(value), fmt.Sprintf(why, args...)})
	}
	w, s, t := p.Workload, p.Settings, p.Target
	one := float64(proposal(w.KeyBytes, w.ValueBytes))
	if s.Chunked {
		load := w.shaped(s)
		bytes := 0.0
		for _, e := range load.Entries {
			bytes += e.PerSecond * float64(e.Bytes)
		}
		bytes /= w.writes() * float64(w.Writers)
		choose("Chunk.MaxEntryBytes", s.MaxEntryBytes, "a value of %s is one raft entry of a plain client; in chunks of about %s a write proposes what has changed, about %s, in entries of up to %s",
			Bytes.format(float64(w.ValueBytes)), Bytes.format(float64(chunkBytes(w.ValueBytes))), Bytes.format(bytes), Bytes.format(float64(s.MaxEntryBytes)))
	} else {
		choose("Chunk.MaxEntryBytes", s.MaxEntryBytes, "a write of %s fits in one entry; this bounds what batches become, and so the raft log", Bytes.format(one))
	}
	switch s.Mode {
	case "Max":
		choose("Coalesce", s.Mode, "the largest number counts: of the puts of a key that wait together one is written, and a smaller number never over a larger one")
	case "LastWriteWins":
		choose("Coalesce", s.Mode, "nobody needs the values in between: of the puts of a key that wait together the newest is written")
	case "GroupCommit":
		choose("Coalesce", s.Mode, "each value counts, as a version and an event: puts that wait together share a transaction, one entry and one revision")
	default:
		if !s.Chunked {
			choose("Coalesce", s.Mode, "%.3g writes a second of each writer leave nothing that waits together", w.writes())
		}
	}
	if s.FlushEvery > 0 {
		choose("FlushEvery", s.FlushEvery, "PutAsync: each writer has %.3g batches a second for %.3g puts; with the fifth of Freshness that is left for writing it, a value is in etcd after %v",
			1/(s.FlushEvery.Seconds()+1/w.writes()), w.writes(), w.Freshness)
	}
	if s.StaleReads {
		choose("StaleReads", true, "keys are polled: a poll that sees what is not written yet would send it at once, and make each poll a batch")
	}
	if s.SkipUnchanged {
		choose("SkipUnchanged", true, "%.0f %% of the writes change nothing", 100*w.Unchanged)
	}
	if s.Revisions > 0 {
		shared := ""
		if s.Shared {
			shared = ", of all writers together, who register"
		}
		choose("Budget.Rates.Revisions", s.Revisions, "what is allowed%s: what comes above it waits", shared)
	}
	p.flag(t)
}

// flag fills in Flags.
func (p *Plan) flag(t Target) {
	flag := func(setting string, value any, why string, args ...any) {
		p.Flags = append(p.Flags, Choice{setting, fmt.Sprint(value), fmt.Sprintf(why, args...)})
	}
	s := p.Shaped.Server // with its defaults
	file := p.Shaped.Get(FileSize)
	if c := s.Compaction; c.Mode == CompactPeriodic {
		why, below := "watchers that are away for longer begin anew", ""
		if t.Server.Compaction.Mode == CompactNone {
			choice := "the longest of 1h, 30m, 10m, 5m and 1m with which the file stays small enough; "
			if p.fileTooLarge() {
				choice = "with none of 1h, 30m, 10m, 5m and 1m does the file stay small enough, and with this it comes nearest; "
			}
			why = choice + why
		}
		if most := t.fileBytes(s); most > 0 {
			below = ", which is to stay below " + Bytes.format(most)
		}
		flag("--auto-compaction-mode", c.Mode, "old revisions are discarded by time, whoever writes how much")
		flag("--auto-compaction-retention", c.Retention, "%s; the file comes to %s%s", why, Bytes.format(file.Expected), below)
	}
	if s.Quota > 0 {
		flag("--quota-backend-bytes", s.Quota, "the file comes to %s, %s at the most; etcd takes no more writes when it has reached the quota", Bytes.format(file.Expected), Bytes.format(file.High))
	}
	log := p.Shaped.Get(RaftLog)
	if s.CatchUpEntries != t.Server.withDefaults().CatchUpEntries {
		name := "--snapshot-catchup-entries"
		if minor, _ := s.minor(); minor == 5 {
			name = "--experimental-snapshot-catchup-entries"
		}
		flag(name, s.CatchUpEntries, "the raft log takes %s with it; a follower that is further behind gets a snapshot of %s in place of entries",
			Bytes.format(log.Expected), Bytes.format(p.Shaped.Get(InUse).Expected))
	}
	if s.SnapshotCount != t.Server.withDefaults().SnapshotCount {
		flag("--snapshot-count", s.SnapshotCount, "on 3.5 the raft log holds up to so many entries more than slow followers need")
	}
	peak, restart := p.Shaped.Get(PeakAnonymous).High, p.Shaped.Get(PeakAtRestart).High
	limit := max(peak, restart) * 1.25
	why := "a member's memory comes to %s at the most while it runs, %s when it starts again, and a quarter is for requests and the system's pages"
	args := []any{Bytes.format(peak), Bytes.format(restart)}
	if t.Tmpfs {
		disk := file.High + walBytes
		limit += disk
		why += "; its files are in memory, too: the database, and up to %s of the write-ahead log and snapshots"
		args = append(args, Bytes.format(walBytes))
	}
	limit = math.Ceil(limit/(64<<20)) * (64 << 20)
	flag("memory limit of the container", fmt.Sprintf("%.0fMi", limit/(1<<20)), why, args...)
	if !t.Tmpfs {
		flag("GOMEMLIMIT", fmt.Sprintf("%.0fMiB", math.Floor(limit*0.9/(1<<20))), "nine tenths of it: the garbage collector works harder before the system kills the process")
	}
}

// fileTooLarge reports whether no settings keep the database file as small as it is to be.
func (p *Plan) fileTooLarge() bool {
	return slices.ContainsFunc(p.Unmet, func(u Unmet) bool { return u.Target == "FileBytes" || u.Target == "Server.Quota" })
}

// walBytes is what a member keeps beside the database: 5 files of the write-ahead log of 64
// MB (SegmentSizeBytes in server/storage/wal, --max-wals), and the one that is made in
// advance.
const walBytes = 6 * 64e6

// String returns the plan for people: what is chosen and why, what it comes to, and what it
// does not meet.
func (p Plan) String() string {
	var b strings.Builder
	list := func(title string, choices []Choice) {
		if len(choices) == 0 {
			return
		}
		fmt.Fprintf(&b, "%s\n", title)
		for _, c := range choices {
			wrap(&b, fmt.Sprintf("  %s = %s: %s.", c.Setting, c.Value, c.Why))
		}
		b.WriteByte('\n')
	}
	w := p.Workload
	wrap(&b, fmt.Sprintf("%d x %d keys, each written every %v, with values of %s: %.4g writes a second.",
		w.Writers, w.Keys, w.Interval, Bytes.format(float64(w.ValueBytes)), w.writes()*float64(w.Writers)))
	b.WriteByte('\n')
	list("kvwrap", p.Choices)
	list("etcd", p.Flags)
	b.WriteString(compare(p.Plain, p.Shaped))
	if plain, shaped := p.PlainLoad.entriesPerSecond(), p.ShapedLoad.entriesPerSecond(); shaped > 1.1*plain {
		wrap(&b, fmt.Sprintf("With kvwrap there are %.3g revisions a second, not %.3g: %s.", shaped, plain, p.whyMore()))
	}
	for _, name := range []FigureName{RaftLog, BackendGrowth} {
		if plain, f := p.Plain.Get(name), p.Shaped.Get(name); f.Expected > 1.1*plain.Expected {
			wrap(&b, fmt.Sprintf("With kvwrap the %s is %s, not %s: %s.", name, f.Unit.format(f.Expected), plain.Unit.format(plain.Expected), p.whyMore()))
		}
	}
	for _, u := range p.Unmet {
		wrap(&b, fmt.Sprintf("Not met: %s is to be at most %s, the nearest is %s: %s.", u.Target, u.format(u.Wanted), u.format(u.Nearest), u.Why))
	}
	return b.String()
}

// whyMore says why kvwrap may take more of something.
func (p Plan) whyMore() string {
	if p.Settings.Chunked {
		return "chunks are records of their own, what they replace is deleted, and a manifest names them"
	}
	return "what shares a transaction is one entry, as large as all of it, and each batch has a record of its own"
}

func (u Unmet) format(v float64) string {
	if strings.HasPrefix(u.Unit, "B") {
		return Unit(u.Unit).format(v)
	}
	return fmt.Sprintf("%.4g %s", v, u.Unit)
}

// unmetJSON is an Unmet in JSON, which has no infinity.
type unmetJSON struct {
	Target  string   `json:"target"`
	Wanted  float64  `json:"wanted"`
	Nearest *float64 `json:"nearest,omitempty"`
	Unit    string   `json:"unit"`
	Why     string   `json:"why"`
}

// MarshalJSON leaves out Nearest where that has no bound.
func (u Unmet) MarshalJSON() ([]byte, error) {
	j := unmetJSON{u.Target, u.Wanted, &u.Nearest, u.Unit, u.Why}
	if math.IsInf(u.Nearest, 0) {
		j.Nearest = nil
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON has written.
func (u *Unmet) UnmarshalJSON(b []byte) error {
	j := unmetJSON{}
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*u = Unmet{j.Target, j.Wanted, math.Inf(1), j.Unit, j.Why}
	if j.Nearest != nil {
		u.Nearest = *j.Nearest
	}
	return nil
}

// compared are the figures that operators ask for.
var compared = []FigureName{RaftEntries, RaftLog, LiveHeap, PeakAnonymous, BackendGrowth, InUse, FileSize, TimeToQuota}

// compare returns a table of what a plain client and kvwrap come to.
func compare(plain, shaped Projection) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\tplain client\tkvwrap\tlow\thigh\t\n")
	for _, name := range compared {
		a, f := plain.Get(name), shaped.Get(name)
		fmt.Fprintf(w, "%-24s\t%s\t%s\t%s\t%s\t\n", name, a.Unit.format(a.Expected), f.Unit.format(f.Expected), f.Unit.format(f.Low), f.Unit.format(f.High))
	}
	w.Flush()
	return b.String()
}
