package main

import (
	"fmt"
	"io"
)

// progress says what is being done: in one line that changes on a terminal, in
// a line for each step elsewhere.
type progress struct {
	to       io.Writer
	terminal bool
	tenths   int
}

func newProgress(to io.Writer) *progress {
	p := &progress{to: to}
	_, p.terminal = terminalOf(to)
	return p
}

func (p *progress) say(format string, args ...any) {
	p.tenths = -1
	p.line(fmt.Sprintf(format, args...))
}

// count says how far it has come, in tenths where each makes a line.
func (p *progress) count(what string, done, all int) {
	if tenths := 10 * done / all; p.terminal || tenths != p.tenths {
		p.tenths = tenths
		p.line(fmt.Sprintf("%s %d of %d", what, done, all))
	}
}

func (p *progress) line(s string) {
	if p.terminal {
		fmt.Fprintf(p.to, "\r\x1b[K%s", s)
		return
	}
	fmt.Fprintln(p.to, s)
}

// end leaves an empty line for what comes.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}
