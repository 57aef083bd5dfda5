package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/audit"
	"github.com/kvwrap/kvwrap/internal/traffic"
)

// quoted writes a key or a name as between the quotes of a Go string, in ASCII: none of it
// means anything to a terminal, and each byte takes one column.
func quoted(key string) string {
	q := strconv.QuoteToASCII(key)
	return q[1 : len(q)-1]
}

// fit shortens s, which is ASCII, to a width. What is left out is in the middle, so that both
// the prefix and the name are seen.
func fit(s string, width int) string {
	if len(s) <= width {
		return s
	}
	if width < 3 {
		return s[:max(width, 0)]
	}
	head := (width - 1) / 2
	return s[:head] + "…" + s[len(s)-(width-1-head):]
}

// cut shortens a line to a width.
func cut(line string, width int) string {
	if r := []rune(line); len(r) > width {
		return string(r[:max(width, 0)])
	}
	return line
}

// rateOf writes a number of things a second.
func rateOf(perSecond float64) string {
	switch {
	case perSecond == 0:
		return "0"
	case perSecond < 10:
		return fmt.Sprintf("%.2f", perSecond)
	case perSecond < 100:
		return fmt.Sprintf("%.1f", perSecond)
	case perSecond < 1e6:
		return fmt.Sprintf("%.0f", perSecond)
	}
	return fmt.Sprintf("%.2fM", perSecond/1e6)
}

// rowName is what a row is called.
func rowName(r traffic.Row) string {
	name := quoted(r.Prefix)
	switch r.Kind {
	case traffic.None:
		return "(no prefix)"
	case traffic.Other:
		return "(other)"
	case traffic.Own:
		return "(kvwrap's own)"
	}
	if r.Merged {
		name += "*"
	}
	return name
}

// headLines say how the cluster is, the notes last.
func headLines(s snapshot) []string {
	m, _ := largest(s.health)
	leader := "no leader"
	for _, other := range s.health.Members {
		if other.ID == m.Leader {
			leader = "leader " + quoted(other.Name)
		}
	}
	revisions := "…"
	if s.revisions >= 0 {
		revisions = rateOf(s.revisions)
	}
	members := "1 member"
	if n := len(s.health.Members); n != 1 {
		members = fmt.Sprintf("%d members", n)
	}
	quota := "no quota"
	if m.Quota > 0 {
		quota = fmt.Sprintf("%.1f %% of the quota of %s", 100*m.QuotaUse, bytesOf(int(m.Quota)))
		if m.QuotaAssumed {
			quota += " (assumed)"
		}
	}
	var lag uint64
	for _, m := range s.health.Members {
		lag = max(lag, m.Lag)
	}
	lines := []string{
		fmt.Sprintf("etcd %s, %s, %s   revision %d, %s a second", quoted(m.Version), members, leader, s.revision, revisions),
		fmt.Sprintf("size %s, in use %s, %s", bytesOf(int(m.DbSize)), bytesOf(int(m.DbSizeInUse)), quota),
		fmt.Sprintf("lag: this display %d revisions, members up to %d entries", s.behind(), lag),
	}
	return append(lines, s.notes()...)
}

// watchColumn is a column of the table.
type watchColumn struct {
	by    traffic.Column
	title string
	width int
	cell  func(r traffic.Row, seconds float64) string
}

func perSecond(n uint64, seconds float64) string {
	if seconds <= 0 {
		return "-"
	}
	return rateOf(float64(n) / seconds)
}

var watchColumns = []watchColumn{
	{traffic.ByPuts, "puts/s", 8, func(r traffic.Row, s float64) string { return perSecond(r.Window.Puts, s) }},
	{traffic.ByBytes, "bytes/s", 9, func(r traffic.Row, s float64) string {
		if s <= 0 {
			return "-"
		}
		return bytesOf(int(float64(r.Window.Bytes)/s + 0.5))
	}},
	{traffic.ByMean, "average", 9, func(r traffic.Row, _ float64) string { return valueOf(r, r.Mean()) }},
	{traffic.ByLargest, "largest", 9, func(r traffic.Row, _ float64) string { return valueOf(r, float64(r.Window.Largest)) }},
	{traffic.ByDeletes, "deletes/s", 9, func(r traffic.Row, s float64) string { return perSecond(r.Window.Deletes, s) }},
	{traffic.ByChunks, "chunks/s", 8, func(r traffic.Row, s float64) string { return perSecond(r.Window.ChunkWrites, s) }},
}

func valueOf(r traffic.Row, bytes float64) string {
	if r.Window.Puts == 0 {
		return "-"
	}
	return bytesOf(int(bytes + 0.5))
}

// layout is how wide what of the table is.
type layout struct {
	name, trend int
	cells       int // that the trend is of
	columns     []watchColumn
}

const (
	leastName  = 22
	leastTrend = 12
	mostTrend  = traffic.Cells
)

// layoutOf makes the table as wide as there is room, for names of up to so many columns. What
// does not fit is left out, the last columns first, but not the one that rows are sorted by.
func layoutOf(width, names int, by traffic.Column) layout {
	l := layout{columns: watchColumns, cells: traffic.Cells}
	fixed := func() (n int) {
		for _, c := range l.columns {
			n += 1 + c.width
		}
		return n
	}
	for len(l.columns) > 1 && fixed()+leastName+2+leastTrend > width {
		drop := len(l.columns) - 1
		if l.columns[drop].by == by {
			drop--
		}
		l.columns = append(l.columns[:drop:drop], l.columns[drop+1:]...)
	}
	room := width - fixed() - 2
	l.trend = min(max(leastTrend, room-max(names, leastName)), mostTrend)
	l.name = room - l.trend
	if l.name < leastName { // a terminal of a phone
		l.trend, l.name = 0, max(room+2, 4)
	}
	l.name = min(l.name, max(names, leastName))
	return l
}

// head is the line over the rows. The column that they are sorted by has a mark.
func (l layout) head(by traffic.Column, reverse bool) string {
	mark := "▼"
	if reverse != (by == traffic.ByPrefix) {
		mark = "▲"
	}
	title := func(of traffic.Column, s string) string {
		if of == by {
			return mark + s
		}
		return s
	}
	line := fmt.Sprintf("%-*s", l.name, title(traffic.ByPrefix, "prefix"))
	for _, c := range l.columns {
		line += fmt.Sprintf(" %*s", c.width, title(c.by, c.title))
	}
	if l.trend > 0 {
		of := "puts"
		if by == traffic.ByBytes {
			of = "bytes"
		}
		if l.cells == traffic.Cells {
			of += ", 60 s"
		}
		line += "  " + of
	}
	return line
}

// row is a line of the table. Cell is the number of the last cell.
func (l layout) row(name string, r traffic.Row, s snapshot, by traffic.Column) string {
	line := fmt.Sprintf("%-*s", l.name, fit(name, l.name))
	for _, c := range l.columns {
		line += fmt.Sprintf(" %*s", c.width, c.cell(r, s.traffic.Took.Seconds()))
	}
	if l.trend > 0 {
		cells := r.Puts
		if by == traffic.ByBytes {
			cells = r.Bytes
		}
		line += "  " + traffic.Sparkline(traffic.Trend(cells, s.traffic.Cell, l.cells, l.trend))
	}
	return strings.TrimRight(line, " ")
}

// longestName is the width of the longest name of rows.
func longestName(rows []traffic.Row) (n int) {
	for _, r := range rows {
		n = max(n, len(rowName(r)))
	}
	return n
}

// watchDocument is what is written for programs. docs/operations.md says what is in it.
type watchDocument struct {
	Schema  int       `json:"schema"`
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds"`

	Version            string   `json:"version"`
	Members            int      `json:"members"`
	Silent             []string `json:"silentMembers"`
	Alarms             []string `json:"alarms"`
	Revision           int64    `json:"revision"`
	RevisionsPerSecond *float64 `json:"revisionsPerSecond"`
	DbSizeBytes        int64    `json:"dbSizeBytes"`
	DbSizeInUseBytes   int64    `json:"dbSizeInUseBytes"`
	QuotaBytes         int64    `json:"quotaBytes"`
	QuotaAssumed       bool     `json:"quotaAssumed"`
	QuotaUse           float64  `json:"quotaUse"`
	LagRevisions       int64    `json:"lagRevisions"`
	MembersLagEntries  uint64   `json:"membersLagEntries"`
	MissedRevisions    int64    `json:"missedRevisions"`
	LostConnections    int      `json:"lostConnections"`
	// Connected is whether there is a stream, and AskedAt when the members have said what
	// stands above for the last time.
	Connected            bool      `json:"connected"`
	AskedAt              time.Time `json:"askedAt"`
	ChunksCounted        bool      `json:"chunksCounted"`
	Notes                []string  `json:"notes"`
	PrefixesNotInTheList int       `json:"otherPrefixes"`

	Total    watchRow   `json:"total"`
	Prefixes []watchRow `json:"prefixes"`
}

type watchRow struct {
	Kind   traffic.Kind `json:"kind,omitempty"`
	Prefix audit.Key    `json:"prefix"`
	Merged bool         `json:"merged,omitempty"`

	Puts        uint64 `json:"puts"`
	Deletes     uint64 `json:"deletes"`
	ChunkWrites uint64 `json:"chunkWrites"`
	Bytes       uint64 `json:"bytes"`

	PutsPerSecond        float64   `json:"putsPerSecond"`
	DeletesPerSecond     float64   `json:"deletesPerSecond"`
	ChunkWritesPerSecond float64   `json:"chunkWritesPerSecond"`
	BytesPerSecond       float64   `json:"bytesPerSecond"`
	AverageValueBytes    float64   `json:"averageValueBytes"`
	LargestValueBytes    uint64    `json:"largestValueBytes"`
	TrendPutsPerCell     []float64 `json:"trendPutsPerSecond"` // up to a minute, oldest first
}

// trendParts is how many figures the trend of a document has at the most.
const trendParts = 13

// selected are the rows of a depth with traffic in the window, sorted.
func selected(s snapshot, depth int, by traffic.Column, reverse bool) (rows []traffic.Row) {
	for _, r := range s.traffic.Group(depth) {
		if r.Window != (traffic.Counts{}) {
			rows = append(rows, r)
		}
	}
	traffic.Sort(rows, by, reverse)
	return rows
}

func (w *watch) document(s snapshot) watchDocument {
	m, _ := largest(s.health)
	d := watchDocument{
		Schema: 1, At: s.at.UTC(), Seconds: s.traffic.Took.Seconds(), Version: m.Version, Members: len(s.health.Members),
		Silent: append([]string{}, silent(s.health)...), Alarms: []string{}, Revision: s.revision,
		DbSizeBytes: m.DbSize, DbSizeInUseBytes: m.DbSizeInUse, QuotaBytes: m.Quota, QuotaAssumed: m.QuotaAssumed, QuotaUse: m.QuotaUse,
		LagRevisions: s.behind(), MissedRevisions: s.feed.Missed, LostConnections: s.feed.Lost, ChunksCounted: !s.feed.Refused,
		Connected: s.feed.Problem == "", AskedAt: s.polled.UTC(),
		Notes: append([]string{}, s.notes()...), Prefixes: []watchRow{},
	}
	for _, m := range s.health.Members {
		d.MembersLagEntries = max(d.MembersLagEntries, m.Lag)
	}
	for _, a := range s.health.Alarms {
		d.Alarms = append(d.Alarms, a.Alarm)
	}
	if s.revisions >= 0 {
		d.RevisionsPerSecond = &s.revisions
	}
	cells := traffic.Cells
	if w.once {
		cells = len(s.traffic.Total.Puts)
	}
	row := func(kind traffic.Kind, r traffic.Row) watchRow {
		c, rate := r.Window, 0.0
		if d.Seconds > 0 {
			rate = 1 / d.Seconds
		}
		trend := traffic.Trend(r.Puts, s.traffic.Cell, cells, trendParts)
		for i := range trend {
			trend[i] /= w.cell.Seconds()
		}
		return watchRow{
			Kind: kind, Prefix: audit.Key(r.Prefix), Merged: r.Merged, Puts: c.Puts, Deletes: c.Deletes, ChunkWrites: c.ChunkWrites, Bytes: c.Bytes,
			PutsPerSecond: float64(c.Puts) * rate, DeletesPerSecond: float64(c.Deletes) * rate, ChunkWritesPerSecond: float64(c.ChunkWrites) * rate,
			BytesPerSecond: float64(c.Bytes) * rate, AverageValueBytes: r.Mean(), LargestValueBytes: c.Largest, TrendPutsPerCell: append([]float64{}, trend...),
		}
	}
	d.Total = row("", s.traffic.Total)
	d.Total.Merged = false
	rows := selected(s, w.depth, w.by, w.reverse)
	d.PrefixesNotInTheList = max(0, len(rows)-w.top)
	for _, r := range rows[:min(len(rows), w.top)] {
		d.Prefixes = append(d.Prefixes, row(r.Kind, r))
	}
	return d
}

// text is the table for people, who may widen it to as much as they like.
func (w *watch) text(s snapshot) string {
	rows := selected(s, w.depth, w.by, w.reverse)
	l := layout{name: max(longestName(rows[:min(len(rows), w.top)]), leastName), trend: 20, cells: len(s.traffic.Total.Puts), columns: watchColumns}
	var b strings.Builder
	for _, line := range headLines(s) {
		fmt.Fprintln(&b, line)
	}
	fmt.Fprintf(&b, "In %.1f s:\n\n%s\n", s.traffic.Took.Seconds(), l.head(w.by, w.reverse))
	fmt.Fprintln(&b, l.row("all", s.traffic.Total, s, w.by))
	for _, r := range rows[:min(len(rows), w.top)] {
		fmt.Fprintln(&b, l.row(rowName(r), r, s, w.by))
	}
	if left := len(rows) - w.top; left > 0 {
		fmt.Fprintf(&b, "%d prefixes more: raise --top, or lower --depth.\n", left)
	}
	return b.String()
}
