package shaper

import (
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kvwrap/kvwrap/internal/size"
)

// String returns the figures as a table, about 80 columns wide, in units that suit them.
func (p Projection) String() string {
	var b strings.Builder
	wrap(&b, fmt.Sprintf("etcd %s, %s", strings.TrimPrefix(p.Server.Version, "v"), p.Server.flags()))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\tlow\texpected\thigh\t\n")
	for _, f := range p.Figures {
		fmt.Fprintf(w, "%-30s\t%s\t%s\t%s\t\n", f.Name, f.Unit.format(f.Low), f.Unit.format(f.Expected), f.Unit.format(f.High))
	}
	w.Flush()
	var said []string
	for _, f := range p.Figures {
		if f.Note != "" {
			said = append(said, fmt.Sprintf("%s: %s.", f.Name, f.Note))
		}
	}
	for _, s := range said {
		wrap(&b, s)
	}
	return b.String()
}

// Explain returns how each figure was come by.
func (p Projection) Explain() string {
	var b strings.Builder
	for _, f := range p.Figures {
		wrap(&b, fmt.Sprintf("%s = %s (%s).", f.Name, f.Formula, f.Source))
	}
	return b.String()
}

// flags returns what of s decides, by etcd's names.
func (s Server) flags() string {
	quota := "no quota"
	if s.Quota > 0 {
		quota = "quota " + Bytes.format(float64(s.Quota))
	}
	compaction := "no compaction"
	switch s.Compaction.Mode {
	case CompactPeriodic:
		compaction = fmt.Sprintf("compaction after %v", s.Compaction.Retention)
	case CompactRevision:
		compaction = fmt.Sprintf("compaction after %d revisions", s.Compaction.Revisions)
	}
	return fmt.Sprintf("catch-up %d, snapshot-count %d, %s, %s, GOGC %d",
		s.CatchUpEntries, s.SnapshotCount, quota, compaction, s.GOGC)
}

// wrap writes a line as several of up to 96 columns.
func wrap(b *strings.Builder, line string) {
	column := 0
	for i, word := range strings.Fields(line) {
		switch {
		case i == 0:
		case column+1+len(word) > 96:
			b.WriteString("\n    ")
			column = 4
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	b.WriteByte('\n')
}

// format writes v in a multiple of the unit that suits it, powers of 1000.
func (u Unit) format(v float64) string {
	if math.IsInf(v, 1) {
		if u == Seconds {
			return "never"
		}
		return "no bound"
	}
	switch u {
	case Seconds:
		return formatSeconds(v)
	case Entries:
		return fmt.Sprintf("%.0f", v)
	}
	return size.Bytes(v) + strings.TrimPrefix(string(u), "B") // "/s"
}

// threeDigits writes v, which is at least 1, with as many decimals as that leaves.
func threeDigits(v float64) string {
	if v >= 1e5 {
		return fmt.Sprintf("%.1e", v)
	}
	return fmt.Sprintf("%.*f", max(0, 2-int(math.Log10(max(1, v)))), v)
}

func formatSeconds(v float64) string {
	const day = 24 * 3600
	switch {
	case v >= 2*day:
		return threeDigits(v/day) + " days"
	case v >= 2*3600:
		return threeDigits(v/3600) + " h"
	case v >= 120:
		return threeDigits(v/60) + " min"
	}
	return (time.Duration(v*1000) * time.Millisecond).String()
}
