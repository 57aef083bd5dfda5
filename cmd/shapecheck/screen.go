package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/kvwrap/kvwrap/internal/traffic"
)

// show shows a screen until its user quits.
func (w *watch) show(ctx context.Context, o *observer, stdin io.Reader, stdout io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	program := tea.NewProgram(newScreen(w), tea.WithContext(ctx), tea.WithInput(stdin), tea.WithOutput(stdout), tea.WithoutSignalHandler())
	var ticking sync.WaitGroup
	defer ticking.Wait()
	defer cancel()
	ticking.Go(func() {
		tick := time.NewTicker(w.cell)
		defer tick.Stop()
		for n := 0; ; n++ {
			if n%int(w.interval/w.cell) == 0 {
				program.Send(o.snapshot(max(screenWindow, int(w.interval/w.cell))))
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				o.advance()
			}
		}
	})
	_, err := program.Run()
	if errors.Is(err, tea.ErrInterrupted) {
		return errInterrupted
	}
	if ctx.Err() != nil && errors.Is(err, tea.ErrProgramKilled) {
		return ctx.Err()
	}
	return err
}

// screen is what the terminal shows: a bubbletea model. It is a value, and Update returns the
// next one; what it is told of the cluster are snapshots.
type screen struct {
	width, height int
	live          snapshot // the newest
	shown         snapshot // which pausing holds
	known, paused bool

	depth   int
	by      traffic.Column
	reverse bool
	top     int // the first row that is shown

	help      bool
	filter    string // of names, as they are shown
	filtering bool   // it is being typed

	rows []traffic.Row // of shown, as the fields above say
}

func newScreen(w *watch) screen {
	return screen{width: 80, height: 24, depth: w.depth, by: w.by, reverse: w.reverse}
}

// Init implements tea.Model.
func (screen) Init() tea.Cmd { return nil }

// Update implements tea.Model.
func (m screen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case snapshot:
		m.live, m.known = msg, true
		if !m.paused {
			m.shown = msg
		}
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+c" {
			return m, tea.Interrupt
		}
		if m.filtering {
			m = m.typed(msg)
			break
		}
		var quit bool
		if m, quit = m.pressed(msg.String()); quit {
			return m, tea.Quit
		}
	}
	return m.arranged(), nil
}

// pressed is told of a key.
func (m screen) pressed(key string) (next screen, quit bool) {
	if m.help && key != "q" {
		m.help = false
		return m, false
	}
	page := max(1, m.room())
	switch key {
	case "q":
		return m, true
	case "?", "h":
		m.help = true
	case "s", "right", "l":
		m.by = (m.by + 1) % traffic.Column(traffic.Columns)
		m.top = 0
	case "left":
		m.by = (m.by + traffic.Column(traffic.Columns) - 1) % traffic.Column(traffic.Columns)
		m.top = 0
	case "r":
		m.reverse = !m.reverse
		m.top = 0
	case "+", "=":
		m.depth = min(m.depth+1, traffic.MaxDepth)
	case "-":
		m.depth = max(m.depth-1, 1)
	case "space", "p":
		m.paused = !m.paused
		m.shown = m.live
	case "/":
		m.filtering, m.filter = true, ""
	case "esc":
		m.filter = ""
	case "down", "j":
		m.top++
	case "up", "k":
		m.top--
	case "pgdown":
		m.top += page
	case "pgup":
		m.top -= page
	case "home", "g":
		m.top = 0
	case "end", "G":
		m.top = len(m.rows)
	}
	return m, false
}

// typed is told of a key while the filter is typed.
func (m screen) typed(key tea.KeyPressMsg) screen {
	switch key.String() {
	case "enter":
		m.filtering = false
	case "esc":
		m.filtering, m.filter = false, ""
	case "backspace":
		if r := []rune(m.filter); len(r) > 0 {
			m.filter = string(r[:len(r)-1])
		}
	default:
		if len(m.filter) < 64 {
			m.filter += quoted(key.Key().Text)
		}
	}
	m.top = 0
	return m
}

// arranged has the rows that are to be shown.
func (m screen) arranged() screen {
	m.rows = slices.DeleteFunc(m.shown.traffic.Group(m.depth), func(r traffic.Row) bool { return !strings.Contains(rowName(r), m.filter) })
	traffic.Sort(m.rows, m.by, m.reverse)
	m.top = max(0, min(m.top, len(m.rows)-m.room()))
	return m
}

// head are the lines above the table. Where there is little room they go before the rows do.
func (m screen) head() []string {
	lines := headLines(m.shown)
	return lines[:max(0, min(len(lines), m.height-leastRows-4))]
}

// leastRows is how many rows of the table there are before there is a head.
const leastRows = 3

// room returns for how many rows there is.
func (m screen) room() int {
	if !m.known {
		return 1
	}
	return max(1, m.height-len(m.head())-4) // a blank line, titles, the sum, the keys
}

const (
	styleBold    = "\x1b[1m"
	styleDim     = "\x1b[2m"
	styleReverse = "\x1b[7m"
	styleYellow  = "\x1b[33m"
	styleEnd     = "\x1b[m"
)

// View implements tea.Model.
func (m screen) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(), "\n"))
	v.AltScreen, v.WindowTitle = true, "shapecheck watch"
	return v
}

// lines are at most as many as the screen has, and each at most as wide.
func (m screen) lines() []string {
	var lines []string
	add := func(style, line string) {
		if line = cut(line, m.width); style != "" {
			line = style + line + styleEnd
		}
		lines = append(lines, line)
	}
	switch {
	case m.help:
		for _, line := range strings.Split(screenHelp, "\n") {
			add("", line)
		}
		return lines[:min(len(lines), m.height)]
	case !m.known:
		add("", "Watching what is written …")
		return lines
	}
	for i, line := range m.head() {
		if i < 3 {
			add("", line)
		} else {
			add(styleYellow, line)
		}
	}
	add("", "")
	rows := m.rows[min(m.top, len(m.rows)):]
	rows = rows[:min(len(rows), m.room())]
	l := layoutOf(m.width, longestName(m.rows), m.by)
	title := l.head(m.by, m.reverse)
	add(styleReverse, title+strings.Repeat(" ", max(0, m.width-len([]rune(title)))))
	add(styleBold, l.row("all", m.shown.traffic.Total, m.shown, m.by))
	for _, r := range rows {
		style := ""
		if r.Window == (traffic.Counts{}) {
			style = styleDim // it was busy before
		}
		add(style, l.row(rowName(r), r, m.shown, m.by))
	}
	for range m.room() - len(rows) {
		add("", "")
	}
	add("", m.keys())
	return lines[:min(len(lines), m.height)]
}

// keys is the last line.
func (m screen) keys() string {
	if m.filtering {
		return "filter: " + m.filter + "_   enter keeps it, esc clears it"
	}
	state := ""
	if m.paused {
		state = "PAUSED at " + m.shown.at.Format(time.TimeOnly) + "  "
	}
	if m.filter != "" {
		state += "filter " + m.filter + "  "
	}
	if shown := min(len(m.rows)-m.top, m.room()); shown < len(m.rows) {
		state += fmt.Sprintf("%d-%d of %d  ", m.top+1, m.top+shown, len(m.rows))
	}
	return fmt.Sprintf("q quit  ? help  %s←→ sort  r reverse  +- depth %d  space pause  / filter", state, m.depth)
}

const screenHelp = `shapecheck watch

 left, right, s   sort by the next column         r            reverse
 + and -          depth of the prefixes           up, down     scroll
 space or p       pause the display               /            filter by name
 esc              clear the filter                q, ctrl-C    quit

Rates are of the last 5 seconds, or of --interval where that is longer;
trends are of the last minute, each to its own scale. Rows in which nothing was
written in that time are dim.

puts/s, deletes/s  of keys of applications
bytes/s            keys and values as they are stored, chunks included
average, largest   values as applications have written them
chunks/s           keys of chunks that were put or deleted: a large value is
                   stored in these, and counts for its own key's prefix
*                  prefixes in this one were too many to be told apart
(other)            what there was no room for; (kvwrap's own) its locks and such

lag: revisions that the cluster has and the display has not, yet; and entries
that are committed and that a member has not applied.

Any key goes back.`
