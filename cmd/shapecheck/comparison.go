package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// columns is how wide what a person reads is at the most.
const columns = 79

// comparison is text and a table of two sides, the plain client's and kvwrap's.
type comparison struct{ b strings.Builder }

// say adds a paragraph.
func (c *comparison) say(format string, args ...any) {
	width := 0
	for word := range strings.FieldsSeq(fmt.Sprintf(format, args...)) {
		switch n := len([]rune(word)); {
		case width == 0:
			width = n
		case width+1+n > columns:
			c.b.WriteByte('\n')
			width = n
		default:
			c.b.WriteByte(' ')
			width += 1 + n
		}
		c.b.WriteString(word)
	}
	c.b.WriteByte('\n')
}

// gap adds an empty line.
func (c *comparison) gap() { c.b.WriteByte('\n') }

// table adds the rows that f makes of what is compared, both sides, and a note. They fit
// in 79 columns where no label has more than 32 characters.
func (c *comparison) table(f func(row func(what, plain, wrapped, note string))) {
	var rows strings.Builder
	t := tabwriter.NewWriter(&rows, 0, 0, 2, ' ', tabwriter.AlignRight)
	f(func(what, plain, wrapped, note string) {
		fmt.Fprintf(t, "%-32s\t%s\t%s\t%s\t\n", what, plain, wrapped, note)
	})
	t.Flush() // to memory
	for line := range strings.Lines(rows.String()) {
		c.b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
}

// less is the note of a row: how many times less y is than x.
func less(x, y float64) string {
	switch {
	case y <= 0:
		return ""
	case y > x:
		return fmt.Sprintf("%.1fx more", y/x)
	}
	return fmt.Sprintf("%.1fx less", x/y)
}

func (c *comparison) print(w io.Writer) error {
	_, err := io.WriteString(w, c.b.String())
	return err
}
