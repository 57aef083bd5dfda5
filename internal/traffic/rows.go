package traffic

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/keys"
)

// Kind says what a row is of.
type Kind string

// The kinds.
const (
	Prefix Kind = "prefix"   // keys with a prefix
	None   Kind = "noPrefix" // keys without a separator
	Other  Kind = "other"    // prefixes for which there was no room
	Own    Kind = "kvwrap"   // what kvwrap keeps below the reserved prefix, beside chunks
)

// Row is the traffic of a prefix. Window is what the last cells had, Puts and Bytes what each
// cell had that is remembered, oldest first. A row is a value: the table does not change it.
type Row struct {
	Kind   Kind
	Prefix string
	Merged bool // prefixes below it that were not told apart count here, at the depth that is shown
	Window Counts
	Puts   []float64
	Bytes  []float64
}

// Mean returns the length of a value on average, in bytes.
func (r Row) Mean() float64 {
	if r.Window.Puts == 0 {
		return 0
	}
	return float64(r.Window.ValueBytes) / float64(r.Window.Puts)
}

// Rows is the traffic in the last cells, by prefix.
type Rows struct {
	Rows  []Row // of MaxDepth components, in no order; Group has fewer
	Total Row
	Took  time.Duration // of the window
	Cell  int           // number of the last one closed: Puts and Bytes end with it

	separator byte
}

// Rows returns what the last cells that are closed had, as many as window says or there are.
// It shares no memory with t.
func (t *Table) Rows(window int) Rows {
	closed := min(t.open, Cells)
	window = min(window, closed)
	r := Rows{Cell: t.open - 1, separator: t.cfg.Separator}
	if window > 0 {
		r.Took = t.starts[t.open%len(t.starts)].Sub(t.starts[(t.open-window)%len(t.starts)])
	}
	row := func(kind Kind, name string, n *node) Row {
		row := Row{Kind: kind, Prefix: name, Merged: n.merged, Puts: make([]float64, closed), Bytes: make([]float64, closed)}
		for i := range closed {
			c := n.cells[(t.open-closed+i)%len(n.cells)]
			row.Puts[i], row.Bytes[i] = float64(c.Puts), float64(c.Bytes)
			if i >= closed-window {
				row.Window.add(c)
			}
		}
		return row
	}
	r.Total = row(Prefix, "", &t.total)
	for name, n := range t.nodes {
		kind := Prefix
		if name == "" {
			kind = None
		}
		r.Rows = append(r.Rows, row(kind, name, n))
	}
	if t.other.empty < t.open {
		r.Rows = append(r.Rows, row(Other, "", &t.other))
	}
	if t.own.empty < t.open {
		r.Rows = append(r.Rows, row(Own, t.cfg.Space.Prefix(), &t.own))
	}
	return r
}

// Group returns the rows of prefixes with up to depth components, of what was seen in the
// cells that are remembered.
func (r Rows) Group(depth int) []Row {
	var grouped []Row
	at := make(map[string]int)
	for _, row := range r.Rows {
		if !busy(row.Bytes) {
			continue
		}
		if row.Kind != Prefix {
			grouped = append(grouped, row)
			continue
		}
		name := string(keys.Prefix([]byte(row.Prefix), r.separator, depth))
		i, ok := at[name]
		if !ok {
			i = len(grouped)
			at[name] = i
			grouped = append(grouped, Row{Kind: Prefix, Prefix: name, Puts: make([]float64, len(row.Puts)), Bytes: make([]float64, len(row.Bytes))})
		}
		g := &grouped[i]
		g.Window.add(row.Window)
		// What was merged into this one or a finer one is no news at a depth that has neither.
		g.Merged = g.Merged || row.Merged && name == row.Prefix && components(name, r.separator) < depth
		for i := range row.Puts {
			g.Puts[i] += row.Puts[i]
			g.Bytes[i] += row.Bytes[i]
		}
	}
	return grouped
}

func busy(cells []float64) bool {
	return slices.ContainsFunc(cells, func(v float64) bool { return v > 0 })
}

func components(name string, separator byte) int {
	n := 0
	for len(keys.Prefix([]byte(name), separator, n)) < len(name) {
		n++
	}
	return n
}

// Column is what rows are sorted by.
type Column int

// The columns.
const (
	ByPrefix Column = iota
	ByPuts
	ByBytes
	ByMean
	ByLargest
	ByDeletes
	ByChunks
	Columns int = iota
)

var columnNames = [Columns]string{"prefix", "puts", "bytes", "mean", "largest", "deletes", "chunks"}

func (c Column) String() string { return columnNames[c] }

// ParseColumn returns the column of a name.
func ParseColumn(name string) (Column, error) {
	if i := slices.Index(columnNames[:], name); i >= 0 {
		return Column(i), nil
	}
	return 0, fmt.Errorf("%q is no column: choose one of %s", name, strings.Join(columnNames[:], ", "))
}

// Sort sorts rows by a column, the largest first, prefixes from a to z; in reverse the other
// way round.
func Sort(rows []Row, by Column, reverse bool) {
	value := func(r Row) float64 {
		switch by {
		case ByPuts:
			return float64(r.Window.Puts)
		case ByBytes:
			return float64(r.Window.Bytes)
		case ByMean:
			return r.Mean()
		case ByLargest:
			return float64(r.Window.Largest)
		case ByDeletes:
			return float64(r.Window.Deletes)
		case ByChunks:
			return float64(r.Window.ChunkWrites)
		}
		return 0
	}
	slices.SortFunc(rows, func(a, b Row) int {
		order := cmp.Or(cmp.Compare(value(b), value(a)), strings.Compare(a.Prefix, b.Prefix), strings.Compare(string(a.Kind), string(b.Kind)))
		if reverse {
			return -order
		}
		return order
	})
}

// Trend returns the mean of groups of cells, of which the last one has the given number,
// oldest first, so that of so many cells there are up to width groups. Groups begin at the
// same cells whatever the last one is, so that they do not flicker as time goes on; the first
// and the last one may have fewer cells than the others.
func Trend(cells []float64, last, of, width int) []float64 {
	if width < 2 {
		return nil
	}
	size := 1
	if width < of {
		size = (of + width - 2) / (width - 1) // one group may be cut in two
	}
	var groups []float64
	group, in := -1, 0.0
	for i, v := range cells {
		if g := (last - len(cells) + 1 + i) / size; g != group {
			group, in = g, 0
			groups = append(groups, 0)
		}
		mean := &groups[len(groups)-1]
		in++
		*mean += (v - *mean) / in
	}
	return groups
}

var bars = []rune("▁▂▃▄▅▆▇█")

// Sparkline draws values, the largest of them as a full bar; nothing for zero.
func Sparkline(values []float64) string {
	most := 0.0
	for _, v := range values {
		most = max(most, v)
	}
	line := make([]rune, len(values))
	for i, v := range values {
		if line[i] = ' '; v > 0 {
			line[i] = bars[max(int(math.Ceil(v/most*float64(len(bars))))-1, 0)]
		}
	}
	return string(line)
}
