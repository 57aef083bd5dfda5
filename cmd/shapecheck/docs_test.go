package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// shown is a command of the documentation, and what it is said to print.
type shown struct {
	file, command string
	lines         []string // "…" stands for any lines
}

// arguments returns the command's arguments, without the name of the program.
func (s shown) arguments() (args []string) {
	for _, a := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(s.command, -1) {
		args = append(args, strings.Trim(a, `"`))
	}
	return args[1:]
}

// commandsOfDocs returns the commands of the documentation that are shown with what they
// print: lines of an indented block, the first of which begins with "$ shapecheck".
func commandsOfDocs(t *testing.T) (all []shown) {
	files, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var s *shown
		for line := range strings.SplitSeq(string(text), "\n") {
			code, indented := strings.CutPrefix(line, "    ")
			switch command, begins := strings.CutPrefix(code, "$ "); {
			case indented && begins && strings.HasPrefix(command, "shapecheck "):
				all = append(all, shown{file: file, command: command})
				s = &all[len(all)-1]
			case s != nil && (indented || line == ""):
				s.lines = append(s.lines, strings.TrimRight(code, " "))
			default:
				s = nil
			}
		}
	}
	return all
}

// prints requires that output is what s says.
func (s shown) prints(t *testing.T, output string, norm func(string) string) {
	rest := strings.Split(strings.TrimRight(output, "\n"), "\n")
	for i := range rest {
		rest[i] = norm(strings.TrimRight(rest[i], " "))
	}
	skip := false
	for _, want := range strings.Split(strings.TrimRight(strings.Join(s.lines, "\n"), "\n"), "\n") {
		if want == "…" {
			skip = true
			continue
		}
		want = norm(want)
		for skip && len(rest) > 0 && rest[0] != want {
			rest = rest[1:]
		}
		require.NotEmpty(t, rest, "%s: %s does not print:\n%s\n\nbut:\n%s", s.file, s.command, want, output)
		require.Equal(t, want, rest[0], "%s: %s", s.file, s.command)
		rest, skip = rest[1:], false
	}
	require.True(t, skip || len(rest) == 0, "%s: %s prints more:\n%s", s.file, s.command, strings.Join(rest, "\n"))
}

// TestTheDocsShowWhatIsPrinted runs the commands of the documentation that need no cluster.
func TestTheDocsShowWhatIsPrinted(t *testing.T) {
	ran := 0
	for _, s := range commandsOfDocs(t) {
		if strings.Contains(s.command, "--endpoints") {
			continue
		}
		code, stdout, stderr := shapecheck(t, s.arguments()...)
		require.Contains(t, []int{exitOK, exitWarning}, code, "%s: %s", s.command, stderr)
		s.prints(t, stdout, func(line string) string { return line })
		ran++
	}
	require.GreaterOrEqual(t, ran, 5)
}

// TestTheAuditsOfTheGuide makes the two clusters of docs/tuning.md, smaller, and audits
// them. Figures may be others.
func TestTheAuditsOfTheGuide(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 120 MB")
	}
	gateway := etcdtest.Start(t, 1, func(cfg *embed.Config) { cfg.MaxRequestBytes = 8 << 20 })
	cli := gateway.Client(t)
	members := []*workload.Gateway{workload.NewGateway(1000, 1), workload.NewGateway(1000, 2), workload.NewGateway(1000, 3)}
	for i := range 60 {
		_, err := cli.Put(t.Context(), fmt.Sprint("/gateway/statistics/member-", i%3), string(members[i%3].Publish(0.03)))
		require.NoError(t, err)
	}
	broker := etcdtest.Start(t, 1, nil)
	cli = broker.Client(t)
	for i := range 300 {
		var puts []clientv3.Op
		for p := range 100 {
			puts = append(puts, clientv3.OpPut(workload.OffsetKey(100*(i%2)+p), fmt.Sprint(1_000_000+i)))
		}
		_, err := cli.Txn(t.Context()).Then(puts...).Commit()
		require.NoError(t, err)
	}

	figure := regexp.MustCompile(`\d+([ .]\d+)*`)
	unit := regexp.MustCompile(`N ([KMG]?B)\b`)
	duration := regexp.MustCompile(`(N[hms])+`)
	norm := func(line string) string {
		line = unit.ReplaceAllString(figure.ReplaceAllString(line, "N"), "N B")
		return strings.Join(strings.Fields(duration.ReplaceAllString(line, "D")), " ")
	}
	ran := 0
	for _, s := range commandsOfDocs(t) {
		if !strings.HasPrefix(s.command, "shapecheck audit --endpoints") {
			continue
		}
		cluster, args := gateway, s.arguments()
		if strings.Contains(strings.Join(s.lines, "\n"), "/broker/") {
			cluster = broker
		}
		for i, a := range args {
			switch a {
			case "--endpoints":
				args[i+1] = cluster.Endpoints()[0]
			case "--data-dir":
				args[i+1] = cluster.Members[0].Config().Dir
			}
		}
		code, stdout, stderr := shapecheck(t, append(args, "--sample", "0s")...)
		require.Zero(t, code, stderr)
		s.prints(t, stdout, norm)
		ran++
	}
	require.Equal(t, 3, ran)
}
