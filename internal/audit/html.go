package audit

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"bytes": bytesText, "count": count, "percent": percent, "signed": signed,
	"size":  func(n int64) string { return bytesText(uint64(max(n, 0))) },
	"one":   func(f float64) string { return fmt.Sprintf("%.1f", f) },
	"two":   func(f float64) string { return fmt.Sprintf("%.2f", f) },
	"join":  strings.Join,
	"about": aboutText, "capital": capital,
	"time":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"until": untilText,
}).Parse(pageText))

// chartWidth and the others are of the charts, in units of their viewBox.
const (
	chartWidth = 720
	nameWidth  = 220
	rowHeight  = 24
	barsWidth  = chartWidth - nameWidth - 150
	columnsTop = 18
	columnsAll = 180
)

// bars is a chart of horizontal bars, each in two parts.
type bars struct {
	Width, Height, Left int
	Rows                []barRow
}

type barRow struct {
	Name, Full, Label string
	Y, Text           int
	A, B              float64 // widths of the parts
	BAt, LabelAt      float64
}

// prefixBars are the largest prefixes: what is live, and history.
func (r *Report) prefixBars() bars {
	c := bars{Width: chartWidth, Left: nameWidth}
	var most uint64
	for i, p := range r.Prefixes {
		if i == 15 {
			break
		}
		most = max(most, p.LiveBytes+p.HistoryBytes, 1)
		name, full := shortKey(p.Prefix, 30), p.Prefix.String()
		switch {
		case p.Rest:
			name, full = "(all others)", "all others"
		case name == "":
			name, full = "(no prefix)", "keys without a prefix"
		}
		row := barRow{Name: name, Full: full, Y: i * rowHeight, Text: i*rowHeight + 14, Label: bytesText(p.LiveBytes + p.HistoryBytes)}
		row.A = barsWidth * float64(p.LiveBytes) / float64(most)
		row.B = barsWidth * float64(p.HistoryBytes) / float64(most)
		row.BAt = nameWidth + row.A
		row.LabelAt = row.BAt + row.B + 6
		c.Rows = append(c.Rows, row)
	}
	// The largest first by the sum, so the first row is the scale.
	c.Height = max(len(c.Rows)*rowHeight, rowHeight)
	return c
}

// columns is a histogram.
type columns struct {
	Width, Height, Base int
	Columns             []column
}

type column struct {
	X, Middle, Y, Height, Width float64
	Name, Label, Title          string
}

func (r *Report) sizeColumns() columns {
	c := columns{Width: chartWidth, Height: columnsTop + columnsAll + 20, Base: columnsTop + columnsAll}
	if len(r.Values.Histogram) == 0 {
		return c
	}
	// Powers of two without a value have their place, too.
	var all []Bar
	for _, h := range r.Values.Histogram {
		for n := len(all); n > 0 && all[n-1].Max+1 < h.Min; n = len(all) {
			from := max(2*all[n-1].Min, 1)
			all = append(all, Bar{Min: from, Max: 2*from - 1})
		}
		all = append(all, h)
	}
	var most uint64
	for _, h := range all {
		most = max(most, h.Count)
	}
	step := min(float64(chartWidth)/float64(len(all)), 90)
	for i, h := range all {
		height := columnsAll * float64(h.Count) / float64(most)
		if h.Count > 0 {
			height = max(height, 2)
		}
		col := column{X: float64(i)*step + 2, Width: step - 4, Middle: float64(i)*step + step/2, Height: height, Y: columnsTop + columnsAll - height,
			Title: fmt.Sprintf("%s to %s: %s values", bytesText(h.Min), bytesText(h.Max), count(h.Count))}
		if h.Count > 0 {
			col.Label = briefCount(h.Count)
		}
		if len(all) <= 12 || i%2 == 0 {
			col.Name = binaryText(h.Max + 1)
		}
		c.Columns = append(c.Columns, col)
	}
	return c
}

// binaryText writes a power of two.
func binaryText(n uint64) string {
	for _, u := range []struct {
		bytes uint64
		name  string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.bytes {
			return fmt.Sprintf("%d %s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

func briefCount(n uint64) string {
	switch {
	case n >= 10_000_000:
		return fmt.Sprintf("%.0fM", float64(n)/1e6)
	case n >= 10_000:
		return fmt.Sprintf("%.0fk", float64(n)/1e3)
	}
	return fmt.Sprint(n)
}

func untilText(g *Growth) string {
	switch {
	case g == nil:
		return "not known"
	case g.SecondsToQuota == nil:
		return "never"
	}
	return durationText(*g.SecondsToQuota)
}

// HTML writes the report as a page that needs nothing else: its charts are SVG, and it has no
// scripts.
func (r *Report) HTML(w io.Writer) error {
	return page.Execute(w, struct {
		*Report
		Headline, Line string
		PrefixBars     bars
		SizeColumns    columns
	}{r, r.headline(), r.line(), r.prefixBars(), r.sizeColumns()})
}
