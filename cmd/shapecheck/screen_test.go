package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/internal/traffic"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

var watchedAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// someTraffic is a snapshot of prefixes of which a has most puts and z most bytes.
func someTraffic(prefixes int) snapshot {
	table := traffic.NewTable(traffic.Config{}, watchedAt)
	add := func(key string, value int) {
		table.Add(&mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), Value: make([]byte, value)}})
	}
	for n := range 10 {
		for range 10 {
			add("a/b/c/k", 10)
		}
		add("z/k", 5000)
		add("evil\x1b[2J\n/k", 1)
		add("wide\u4e2d/k", 1)
		for i := range prefixes {
			add(fmt.Sprintf("many/%03d/k", i), 2)
		}
		table.Advance(watchedAt.Add(time.Duration(n+1) * time.Second))
	}
	m := budget.HealthMember{
		ID: 1, Name: "m1", Leader: 1, Version: "3.7.3", DbSize: 900e6, DbSizeInUse: 500e6, Quota: 1e9, QuotaUse: 0.9, Lag: 12,
	}
	return snapshot{
		at: watchedAt, traffic: table.Rows(5), feed: feedState{Seen: 90}, revision: 100, revisions: 12345.6, polled: watchedAt,
		health: budget.Health{Members: []budget.HealthMember{m, {ID: 2, Name: "m\x1b[31m2", Error: "gone"}}},
	}
}

// press sends keys to a screen.
func press(m screen, keys ...string) screen {
	named := map[string]tea.Key{
		"space": {Code: tea.KeySpace, Text: " "}, "left": {Code: tea.KeyLeft}, "right": {Code: tea.KeyRight}, "up": {Code: tea.KeyUp}, "down": {Code: tea.KeyDown},
		"pgdown": {Code: tea.KeyPgDown}, "pgup": {Code: tea.KeyPgUp}, "home": {Code: tea.KeyHome}, "end": {Code: tea.KeyEnd},
		"enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape}, "backspace": {Code: tea.KeyBackspace},
	}
	for _, key := range keys {
		k, ok := named[key]
		if !ok {
			k = tea.Key{Code: []rune(key)[0], Text: key}
		}
		next, _ := m.Update(tea.KeyPressMsg(k))
		m = next.(screen)
	}
	return m
}

func updated(m screen, msg tea.Msg) screen {
	next, _ := m.Update(msg)
	return next.(screen)
}

// text is what m shows, without styles.
func text(m screen) string {
	s := m.View().Content
	for _, style := range []string{styleBold, styleDim, styleReverse, styleYellow, styleEnd} {
		s = strings.ReplaceAll(s, style, "")
	}
	return s
}

func firstRow(m screen) string {
	lines := strings.Split(text(m), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "all ") {
			name, _, _ := strings.Cut(lines[i+1], " ")
			return name
		}
	}
	return ""
}

func TestScreen(t *testing.T) {
	m := newScreen(&watch{depth: 2, by: traffic.ByPuts})
	require.Contains(t, text(m), "Watching what is written")
	require.True(t, m.View().AltScreen)
	m = updated(m, someTraffic(0))
	shown := text(m)
	require.Contains(t, shown, "etcd 3.7.3, 2 members, leader m1   revision 100, 12346 a second\nsize 900 MB, in use 500 MB, 90.0 % of the quota of 1.00 GB\nlag: this display 10 revisions, members up to 12 entries\n")
	require.Contains(t, shown, `Member m\x1b[31m2 does not answer.`)
	require.Contains(t, shown, "Member m1 has used 90.0 % of its quota")
	require.Contains(t, shown, `evil\x1b[2J\n/`)
	require.Contains(t, shown, `wide\u4e2d/`)
	require.Equal(t, "a/b/", firstRow(m))
	require.Regexp(t, `\na/b/ +10\.0 +170 B +10 B +10 B`, shown)

	require.Equal(t, "z/", firstRow(press(m, "right")), "by bytes")
	require.Equal(t, "z/", firstRow(press(m, "s")))
	require.Contains(t, text(press(m, "s")), "▼bytes/s")
	require.Equal(t, "a/b/", firstRow(press(m, "left")), "by prefix")
	require.Equal(t, `z/`, firstRow(press(m, "left", "r")))
	require.NotEqual(t, "a/b/", firstRow(press(m, "r")))
	require.Equal(t, "a/b/c/", firstRow(press(m, "+")))
	require.Equal(t, "a/", firstRow(press(m, "-", "-", "-")))
	require.Contains(t, text(press(m, strings.Split(strings.Repeat("+", 20), "")...)), "depth 8")

	paused := press(m, "space")
	require.Contains(t, text(paused), "PAUSED at 03:04:05")
	later := someTraffic(0)
	later.revision = 999
	paused = updated(paused, later)
	require.Contains(t, text(paused), "revision 100,")
	require.Contains(t, text(press(paused, "p")), "revision 999,")
	require.Equal(t, "z/", firstRow(press(paused, "right")), "what is paused may be looked at")

	filtered := press(m, "/", "z", "q", "backspace", "enter")
	require.Equal(t, "z/", firstRow(filtered))
	require.Contains(t, text(filtered), "filter z")
	require.NotContains(t, text(filtered), "a/b/")
	require.Contains(t, text(press(filtered, "esc")), "a/b/")
	require.Contains(t, text(press(m, "?")), "ctrl-C")
	require.Equal(t, text(m), text(press(m, "?", "x")))

	_, cmd := m.Update(tea.KeyPressMsg{Code: 'q', Text: "q"})
	require.NotNil(t, cmd)
	require.Equal(t, tea.QuitMsg{}, cmd())
	_, cmd = m.Update(tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl})
	require.NotNil(t, cmd)
	require.Equal(t, tea.InterruptMsg{}, cmd())
	_, cmd = press(m, "/").Update(tea.KeyPressMsg{Code: 'q', Text: "q"})
	require.Nil(t, cmd, "it is typed")
	_, cmd = press(m, "/").Update(tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl})
	require.NotNil(t, cmd)
}

func TestScreenScrolls(t *testing.T) {
	m := updated(newScreen(&watch{depth: 2, by: traffic.ByPrefix}), someTraffic(100))
	require.Contains(t, text(m), "1-15 of 104  ")
	require.Contains(t, text(press(m, "down", "down", "up")), "2-16 of 104")
	require.Contains(t, text(press(m, "pgdown")), "16-30 of 104")
	require.Contains(t, text(press(m, "end", "pgdown")), "90-104 of 104")
	require.Contains(t, text(press(m, "end", "pgup", "home", "up")), "1-15 of 104")
}

// TestScreenFits whatever the size of the terminal.
func TestScreenFits(t *testing.T) {
	failed := someTraffic(50)
	failed.failed = errors.New("a long reason: " + strings.Repeat("x", 200))
	failed.feed.Problem, failed.feed.Missed, failed.feed.Refused = "no leader", 5, true
	for _, s := range []snapshot{someTraffic(50), failed, {}} {
		for _, width := range []int{1, 10, 40, 60, 80, 100, 120, 300} {
			for _, height := range []int{1, 5, 24, 40} {
				for by := range traffic.Columns {
					m := updated(newScreen(&watch{depth: 2, by: traffic.Column(by)}), tea.WindowSizeMsg{Width: width, Height: height})
					m = updated(m, s)
					for _, m := range []screen{m, press(m, "?"), press(m, "space", "/")} {
						lines := strings.Split(text(m), "\n")
						require.LessOrEqual(t, len(lines), height)
						for _, line := range lines {
							require.LessOrEqual(t, len([]rune(line)), width, "%dx%d by %d: %q", width, height, by, line)
						}
					}
				}
			}
		}
	}
}

func TestWatchFigures(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.204: "0.20", 9.999: "10.00", 12.34: "12.3", 123.4: "123", 99999: "99999", 2.5e6: "2.50M"} {
		require.Equal(t, want, rateOf(v))
	}
	require.Equal(t, "abc…hij", fit("abcdefghij", 7))
	require.Equal(t, "ab", fit("abcdefghij", 2))
	require.Equal(t, "abc", fit("abc", 3))
}
