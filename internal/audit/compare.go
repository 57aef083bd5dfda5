package audit

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Changes are what is different from an earlier report.
type Changes struct {
	Since     time.Time      `json:"since"`
	Revisions int64          `json:"revisions"`
	Keys      int64          `json:"keys"`
	LiveBytes int64          `json:"liveBytes"`
	Database  int64          `json:"database"`
	History   int64          `json:"historyBytes"`
	MaxValue  int64          `json:"maxValue"`
	Prefixes  []PrefixChange `json:"prefixes,omitempty"` // those that changed most, first
	// New are findings that were not there, Gone those that are not there any more.
	New  []Finding `json:"new,omitempty"`
	Gone []Finding `json:"gone,omitempty"`
}

// PrefixChange is how much more, or less, there is below a prefix.
type PrefixChange struct {
	Prefix    Key   `json:"prefix"`
	Keys      int64 `json:"keys"`
	LiveBytes int64 `json:"liveBytes"`
	Revisions int64 `json:"revisions"`
}

// Compare fills in Changes, from an earlier report.
func (r *Report) Compare(old *Report) {
	less := func(now, then uint64) int64 { return int64(now) - int64(then) }
	c := &Changes{
		Since: old.At, Revisions: r.Source.Revision - old.Source.Revision,
		Keys: less(r.Totals.Keys, old.Totals.Keys), LiveBytes: less(r.Totals.LiveBytes, old.Totals.LiveBytes),
		Database: r.Backend.Size - old.Backend.Size, History: less(r.Totals.HistoryBytes, old.Totals.HistoryBytes),
		MaxValue: less(r.Values.Max, old.Values.Max),
	}
	changes := make(map[Key]*PrefixChange)
	add := func(p Prefix, sign int64) {
		if p.Rest {
			return
		}
		x := changes[p.Prefix]
		if x == nil {
			x = &PrefixChange{Prefix: p.Prefix}
			changes[p.Prefix] = x
		}
		x.Keys += sign * int64(p.Keys)
		x.LiveBytes += sign * int64(p.LiveBytes)
		x.Revisions += sign * int64(p.Revisions)
	}
	note := func(format string, args ...any) {
		r.Notes = append(r.Notes, "the comparison: "+fmt.Sprintf(format, args...))
	}
	if now, then := r.Source, old.Source; now.Depth != then.Depth || now.Separator != then.Separator {
		note("prefixes are not compared, since the earlier audit had --depth %d and --separator %q", then.Depth, then.Separator)
	} else {
		for _, p := range r.Prefixes {
			add(p, 1)
		}
		for _, p := range old.Prefixes {
			add(p, -1)
		}
	}
	if old.Partial || r.Partial {
		note("an audit is partial, so that changes are as much of what was read as of what is there")
	}
	if a, b := old.Source.Cluster, r.Source.Cluster; a != "" && b != "" && a != b {
		note("the earlier audit is of another cluster, %s", a)
	}
	if c.Revisions < 0 {
		note("the earlier audit has a later revision, %d: is it of another cluster, or of before a restore?", old.Source.Revision)
	}
	for _, x := range changes {
		if *x != (PrefixChange{Prefix: x.Prefix}) {
			c.Prefixes = append(c.Prefixes, *x)
		}
	}
	slices.SortFunc(c.Prefixes, func(a, b PrefixChange) int {
		return cmp.Or(cmp.Compare(max(b.LiveBytes, -b.LiveBytes), max(a.LiveBytes, -a.LiveBytes)), cmp.Compare(a.Prefix, b.Prefix))
	})
	// What a finding is about and what is to be done make it the same; its numbers change.
	lacks := func(all []Finding, f Finding) bool {
		return !slices.ContainsFunc(all, func(o Finding) bool { return o.About == f.About && o.Do == f.Do && o.Level == f.Level })
	}
	for _, f := range r.Findings {
		if lacks(old.Findings, f) {
			c.New = append(c.New, f)
		}
	}
	for _, f := range old.Findings {
		if lacks(r.Findings, f) {
			c.Gone = append(c.Gone, f)
		}
	}
	if old.Source.Kind != r.Source.Kind {
		note("the earlier audit is of kind %s, this one of kind %s: revisions and history are not comparable", old.Source.Kind, r.Source.Kind)
	}
	r.Changes = c
}

// signed writes a difference of bytes.
func signed(n int64) string {
	if n < 0 {
		return "-" + bytesText(uint64(-n))
	}
	return "+" + bytesText(uint64(n))
}
