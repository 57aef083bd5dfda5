package audit

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kvwrap/kvwrap/internal/size"
)

func bytesText(n uint64) string { return size.Bytes(float64(n)) }

func durationText(seconds float64) string {
	switch {
	case math.IsInf(seconds, 1):
		return "never"
	case seconds >= 2*dayOfSeconds:
		return fmt.Sprintf("%.1f days", seconds/dayOfSeconds)
	case seconds >= 7200:
		return fmt.Sprintf("%.1f hours", seconds/3600)
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}

// count writes n with a space between thousands.
func count(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}

// shortKey fits a key into a column: what is left out is in the middle, so that both the
// prefix and the name are seen.
func shortKey(k Key, width int) string {
	s := []rune(k.String())
	if len(s) <= width {
		return string(s)
	}
	head := (width - 1) / 2
	return string(s[:head]) + "…" + string(s[len(s)-(width-1-head):])
}

// Verdict in one line, and how long the quota lasts.
func (r *Report) headline() string {
	quota := "there is no quota"
	if b := r.Backend; b.Quota > 0 {
		quota = fmt.Sprintf("%s of the quota of %s are used", percent(b.QuotaUse), bytesText(uint64(b.Quota)))
	}
	until := "the time to the quota is not known, since the rate of writes is not: give it with --revisions-per-second"
	if g := r.Growth; g != nil {
		until = "nothing is written, so the quota is not reached"
		if g.RevisionsPerSecond > 0 {
			until = fmt.Sprintf("at %.4g revisions a second, with %s, it is never reached (estimate)", g.RevisionsPerSecond, g.Compaction.text())
		}
		if g.SecondsToQuota != nil {
			until = fmt.Sprintf("at %.4g revisions a second it is reached in %s (estimate, with %s)", g.RevisionsPerSecond, durationText(*g.SecondsToQuota), g.Compaction.text())
		}
	}
	return fmt.Sprintf("%s. %s; %s.", strings.ToUpper(string(r.Verdict)), capital(quota), until)
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

// line says what was read.
func (r *Report) line() string {
	s := r.Source
	from := s.File
	if s.Kind == "live" {
		from = strings.Join(s.Endpoints, ", ")
	}
	line := fmt.Sprintf("%s at revision %d: %s records in %.2f s", from, s.Revision, count(s.Records), s.Seconds)
	if s.Version != "" {
		line += ", etcd " + s.Version
	}
	if s.Compacted > 0 {
		line += fmt.Sprintf(", compacted at %d", s.Compacted)
	}
	return line + "."
}

func aboutText(f Finding) string {
	if f.About == "" {
		return ""
	}
	return f.About.String() + ": "
}

// visible is s without what a terminal obeys. Keys are quoted before; what members, writers and
// earlier reports say may be anything.
func visible(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0 {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

// printable makes what is said visible.
func printable(args []any) []any {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = visible(s)
		}
	}
	return args
}

// Text writes the report for people.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", printable(args)...) }
	table := func(rows func(row func(cells ...string))) {
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		rows(func(cells ...string) {
			for i, c := range cells {
				cells[i] = visible(c)
			}
			fmt.Fprintln(t, "  "+strings.Join(cells, "\t"))
		})
		t.Flush()
	}
	if r.Partial {
		say("PARTIAL: not everything was read, so counts and sizes are lower bounds.")
	}
	say("%s", r.headline())
	say("%s", r.line())
	for _, n := range r.Notes {
		say("Note: %s.", n)
	}
	if len(r.Findings) > 0 {
		say("\nWhat to do")
		for _, f := range r.Findings {
			say("  %-8s  %s%s.", f.Level, aboutText(f), f.Reason)
			if f.Saves > 0 {
				say("            Saves about %s of %s.", bytesText(f.Saves), f.SavesOf)
			}
			say("            %s", f.Do)
		}
	}
	if c := r.Changes; c != nil {
		say("\nSince %s, %d revisions ago", c.Since.Format(time.DateTime), c.Revisions)
		say("  Keys %+d, live %s, history %s, database %s, largest value %s.", c.Keys, signed(c.LiveBytes), signed(c.History), signed(c.Database), signed(c.MaxValue))
		for _, f := range c.New {
			say("  New: %s%s.", aboutText(f), f.Reason)
		}
		for _, f := range c.Gone {
			say("  Gone: %s%s.", aboutText(f), f.Reason)
		}
		table(func(row func(...string)) {
			for i, p := range c.Prefixes {
				if i == 10 {
					break
				}
				row(shortKey(p.Prefix, 40), fmt.Sprintf("keys %+d", p.Keys), "live "+signed(p.LiveBytes), fmt.Sprintf("revisions %+d", p.Revisions))
			}
		})
	}
	if len(r.Members) > 0 {
		say("\nMembers")
		table(func(row func(...string)) {
			if r.Source.Kind == "db" {
				row("name", "id", "alarms")
				for _, m := range r.Members {
					row(m.Name, m.ID, strings.Join(m.Alarms, " "))
				}
				return
			}
			row("name", "role", "version", "db", "in use", "bloat", "quota use", "alarms")
			for _, m := range r.Members {
				if m.Error != "" {
					row(m.Name, "no answer", "", "", "", "", "", strings.Join(m.Alarms, " "))
					continue
				}
				row(m.Name, m.Role, m.Version, bytesText(uint64(m.DbSize)), bytesText(uint64(m.InUse)), fmt.Sprintf("%.2f", m.Bloat), percent(m.QuotaUse), strings.Join(m.Alarms, " "))
			}
		})
	}
	t := r.Totals
	say("\nTotals")
	table(func(row func(...string)) {
		row("database", bytesText(uint64(r.Backend.Size)), fmt.Sprintf("%s in use, bloat %.2f", bytesText(uint64(r.Backend.InUse)), r.Backend.Bloat))
		row("keys", count(t.Keys), fmt.Sprintf("%s of keys, %s of values", bytesText(t.KeyBytes), bytesText(t.ValueBytes)))
		row("live", bytesText(t.LiveBytes), fmt.Sprintf("%s records", count(t.LiveRecords)))
		if r.Source.Kind == "db" {
			row("history", bytesText(t.HistoryBytes), fmt.Sprintf("%s records, %s of them deletes; %s keys are gone", count(t.HistoryRecords), count(t.Tombstones), count(t.Deleted)))
		} else {
			row("history", "not known", "of a live cluster: audit a snapshot of it (--db)")
		}
		if c := r.Chunked; c.Keys > 0 || c.Chunks > 0 {
			row("chunked", count(c.Keys), fmt.Sprintf("values of %s, stored as %s in %s chunks", bytesText(c.ValueBytes), bytesText(c.StoredBytes), count(c.Chunks)))
		}
		if l := r.Leases; l.WithKeys > 0 || l.Granted > 0 {
			granted := ""
			if l.Granted > 0 {
				granted = fmt.Sprintf("%d granted, ", l.Granted)
			}
			row("leases", count(uint64(l.WithKeys)), fmt.Sprintf("%s%.1f keys each, %d at the most", granted, l.PerLease, l.Max))
		}
	})
	if v := r.Values; v.Count > 0 {
		say("\nLive values")
		table(func(row func(...string)) {
			row("p50", "p90", "p99", "p99.9", "max", "mean")
			row(bytesText(v.P50), bytesText(v.P90), bytesText(v.P99), bytesText(v.P999), bytesText(v.Max), bytesText(v.Mean))
		})
		var most uint64
		for _, h := range v.Histogram {
			most = max(most, h.Count)
		}
		table(func(row func(...string)) {
			for _, h := range v.Histogram {
				row("up to "+bytesText(h.Max), count(h.Count), strings.Repeat("#", int(math.Ceil(40*float64(h.Count)/float64(most)))))
			}
		})
	}
	if len(r.Prefixes) > 0 {
		say("\nPrefixes")
		table(func(row func(...string)) {
			row("prefix", "keys", "live", "share", "revisions", "per key", "history", "p99", "max")
			for i, p := range r.Prefixes {
				if i == 20 {
					row(fmt.Sprintf("and %d more: see -w json", len(r.Prefixes)-i))
					break
				}
				name := shortKey(p.Prefix, 40)
				switch {
				case p.Rest:
					name = "(all others)"
				case name == "":
					name = "(no prefix)"
				}
				row(name, count(p.Keys), bytesText(p.LiveBytes), percent(p.Share), count(p.Revisions), fmt.Sprintf("%.1f", p.PerKey), bytesText(p.HistoryBytes), bytesText(p.P99), bytesText(p.Max))
			}
		})
	}
	keys := func(title, column string, list []KeyReport, cell func(KeyReport) string) {
		if len(list) == 0 {
			return
		}
		say("\n%s", title)
		table(func(row func(...string)) {
			row(column, "key")
			for _, k := range list {
				row(cell(k), shortKey(k.Key, 70))
			}
		})
	}
	keys("Largest values", "size", r.BySize, func(k KeyReport) string {
		if k.StoredBytes > 0 {
			return fmt.Sprintf("%s in %d chunks, %s", bytesText(k.ValueBytes), k.Chunks, bytesText(k.StoredBytes))
		}
		return bytesText(k.ValueBytes)
	})
	churn := "revisions"
	if r.Source.Kind == "live" {
		churn = "version"
	}
	keys("Most revisions", churn, r.ByChurn, func(k KeyReport) string { return count(k.Revisions) })
	keys("Most history", "history", r.ByHistory, func(k KeyReport) string {
		return fmt.Sprintf("%s in %s revisions", bytesText(k.HistoryBytes), count(k.Revisions))
	})
	if l := r.RaftLog; l != nil {
		say("\nRaft log, from %s in %d files: entries %d to %d, the last snapshot at %d", l.Dir, l.Files, l.FirstIndex, l.LastIndex, l.Snapshot)
		say("  The newest %s entries have %s (estimate of what is in memory). An entry: p50 %s, p99 %s, at most %s.",
			count(uint64(l.Retained)), bytesText(l.RetainedBytes), bytesText(l.Entries.P50), bytesText(l.Entries.P99), bytesText(l.Entries.Max))
		for _, kinds := range []struct {
			column string
			list   []EntryKind
		}{{"request", l.Types}, {"prefix", l.Prefixes}} {
			table(func(row func(...string)) {
				row(kinds.column, "entries", "bytes", "share", "max")
				for i, k := range kinds.list {
					if i == 10 {
						break
					}
					name := shortKey(k.Name, 40)
					if name == "" {
						name = "(no prefix)"
					}
					row(name, count(k.Entries), bytesText(k.Bytes), percent(k.Share), bytesText(k.Max))
				}
			})
		}
	}
	if len(r.Staging) > 0 {
		say("\nLarge values being written now")
		table(func(row func(...string)) {
			row("key", "host", "process", "version", "lease")
			for _, s := range r.Staging {
				row(shortKey(s.Key, 50), s.Host, fmt.Sprint(s.PID), s.Version, s.Lease)
			}
			if r.StagingMore > 0 {
				row(fmt.Sprintf("and %d more", r.StagingMore))
			}
		})
	}
	if len(r.Estimates) > 0 {
		say("\nEstimates")
		for _, e := range r.Estimates {
			say("  %s.", capital(e))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
