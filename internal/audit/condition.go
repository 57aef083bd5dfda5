package audit

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/size"
)

// Condition is a bound that a report can break, as "max-value>512KiB".
type Condition struct {
	text  string
	name  string
	below bool
	bound float64
	level Level // for a condition that is a level
}

// figure is what a condition can be about. Where it is not known it is not there, and a
// condition about it cannot be judged.
type figure struct {
	unit string
	of   func(r *Report) (v float64, known bool)
}

func always(f func(r *Report) float64) func(r *Report) (float64, bool) {
	return func(r *Report) (float64, bool) { return f(r), true }
}

var figures = map[string]figure{
	"max-value": {"bytes", always(func(r *Report) float64 { return float64(r.Values.Max) })},
	"p99-value": {"bytes", always(func(r *Report) float64 { return float64(r.Values.P99) })},
	"keys":      {"", always(func(r *Report) float64 { return float64(r.Totals.Keys) })},
	"live":      {"bytes", always(func(r *Report) float64 { return float64(r.Totals.LiveBytes) })},
	"db":        {"bytes", always(func(r *Report) float64 { return float64(r.Backend.Size) })},
	"bloat":     {"", always(func(r *Report) float64 { return r.Backend.Bloat })},
	"quota-use": {"share", always(func(r *Report) float64 { return r.Backend.QuotaUse })},
	"leases": {"", func(r *Report) (float64, bool) {
		return float64(max(r.Leases.WithKeys, r.Leases.Granted)), r.Leases.Uncounted == 0 || r.Leases.Granted > 0
	}},
	"staging":       {"", always(func(r *Report) float64 { return float64(len(r.Staging) + r.StagingMore) })},
	"history":       {"bytes", func(r *Report) (float64, bool) { return float64(r.Totals.HistoryBytes), r.Source.Kind == "db" }},
	"max-revisions": {"", func(r *Report) (float64, bool) { return mostRevisions(r), true }},
	"alarms": {"", func(r *Report) (float64, bool) {
		n := 0
		for _, m := range r.Members {
			n += len(m.Alarms)
		}
		return float64(n), !r.AlarmsUnknown
	}},
	"time-to-quota": {"time", func(r *Report) (float64, bool) {
		switch {
		case r.Growth == nil:
			return 0, false
		case r.Growth.SecondsToQuota == nil:
			return math.Inf(1), true
		}
		return *r.Growth.SecondsToQuota, true
	}},
}

func mostRevisions(r *Report) float64 {
	if len(r.ByChurn) == 0 {
		return min(float64(r.Totals.Keys), 1)
	}
	return float64(r.ByChurn[0].Revisions)
}

// FigureNames are what conditions can be about.
func FigureNames() string {
	var names []string
	for name := range figures {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// ParseConditions reads conditions that are separated by commas. The words warning and
// critical are conditions too, which a verdict breaks that is as bad or worse.
func ParseConditions(s string) (all []Condition, err error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	for text := range strings.SplitSeq(s, ",") {
		text = strings.TrimSpace(text)
		if text == string(Warning) || text == string(Critical) {
			all = append(all, Condition{text: text, level: Level(text)})
			continue
		}
		at := strings.IndexAny(text, "<>")
		if at < 0 {
			return nil, fmt.Errorf("%q is no condition: write a name, < or >, and a value, as in max-value>512KiB, or the word warning or critical; names are %s", text, FigureNames())
		}
		c := Condition{text: text, name: strings.TrimSpace(text[:at]), below: text[at] == '<'}
		f, ok := figures[c.name]
		if !ok {
			return nil, fmt.Errorf("%q: there is no figure %q: choose of %s", text, c.name, FigureNames())
		}
		value := strings.TrimSpace(text[at+1:])
		switch f.unit {
		case "bytes":
			n, err := size.Parse(value)
			if err == nil && n < 0 {
				err = fmt.Errorf("%q is no size of zero or more", value)
			}
			if err != nil {
				return nil, fmt.Errorf("%q: %w", text, err)
			}
			c.bound = float64(n)
		case "time":
			d, err := time.ParseDuration(value)
			if err != nil {
				return nil, fmt.Errorf("%q: %w: write a time as in 24h", text, err)
			}
			c.bound = d.Seconds()
		case "share":
			number, percent := strings.CutSuffix(value, "%")
			if c.bound, err = strconv.ParseFloat(strings.TrimSpace(number), 64); err != nil || !(c.bound >= 0) {
				return nil, fmt.Errorf("%q: %q is no share: write it as in 80%% or 0.8", text, value)
			}
			if percent {
				c.bound /= 100
			} else if c.bound > 2 {
				return nil, fmt.Errorf("%q: %q is %s times the quota: for %s %% write %s%%", text, value, value, value, value)
			}
		default:
			if c.bound, err = strconv.ParseFloat(value, 64); err != nil || !(c.bound >= 0) || math.IsInf(c.bound, 1) {
				return nil, fmt.Errorf("%q: %q is no number of zero or more", text, value)
			}
		}
		all = append(all, c)
	}
	return all, nil
}

// Broken returns what is to be said of each condition that r breaks, and of those that
// cannot be judged, since the report does not have the figure.
func (r *Report) Broken(conditions []Condition) (broken, unknown []string) {
	for _, c := range conditions {
		if c.level != "" {
			if r.Verdict.rank() >= c.level.rank() {
				broken = append(broken, fmt.Sprintf("%s: the verdict is %s", c.text, r.Verdict))
			}
			continue
		}
		f := figures[c.name]
		v, known := f.of(r)
		switch {
		case !known:
			unknown = append(unknown, c.text)
		case c.below && v < c.bound, !c.below && v > c.bound:
			broken = append(broken, fmt.Sprintf("%s: it is %s", c.text, f.text(v)))
		}
	}
	return broken, unknown
}

func (f figure) text(v float64) string {
	switch f.unit {
	case "bytes":
		return bytesText(uint64(v))
	case "time":
		return durationText(v)
	case "share":
		return percent(v)
	}
	return strconv.FormatFloat(v, 'g', 6, 64)
}
