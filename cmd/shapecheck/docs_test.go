package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/chunker"
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

// TestTheCommandsOfTheDocs runs the commands that docs/operations.md and docs/audit.md give, as
// they are given, on an etcd at another address.
func TestTheCommandsOfTheDocs(t *testing.T) {
	if testing.Short() {
		t.Skip("samples for seconds")
	}
	w := newWrapped(t, chunker.Config{}, etcdtest.Advertise(t, 1))
	auth, _ := etcdtest.StartAuth(t)
	member := etcdtest.Start(t, 1, nil)
	_, err := member.Client(t).Put(t.Context(), "k", "v")
	require.NoError(t, err)
	require.NotEmpty(t, member.EntryBytes(t)) // which stops it
	db, dir := auditFile(t, false), t.TempDir()

	command := regexp.MustCompile(`(?m)^ {4,}(shapecheck (?:.*\\\n)*.*)$`)
	word := regexp.MustCompile(`"[^"]*"|\S+`)
	ran := map[string]bool{}
	for _, file := range []string{"operations", "audit"} {
		text, err := os.ReadFile("../../docs/" + file + ".md")
		require.NoError(t, err)
		for _, found := range command.FindAllStringSubmatch(string(text), -1) {
			line, _, _ := strings.Cut(strings.ReplaceAll(found[1], "\\\n", " "), "#")
			output := ""
			if before, after, redirected := strings.Cut(line, " > "); redirected {
				line, output = before, strings.TrimSpace(after)
			}
			for i := range 2 { // so that there is something to be found, and revisions
				w.put("stats/gateway", workload.Text(200e3, fmt.Sprint(i)))
			}
			revision, err := w.plain.Get(t.Context(), "stats/gateway")
			require.NoError(t, err)
			endpoint := w.cluster.Endpoints()[0]
			if strings.Contains(line, "--user") {
				endpoint = auth.Endpoints()[0]
			}
			line = strings.NewReplacer("10.0.0.1:2379", endpoint, "127.0.0.1:2379", endpoint, "root:PASSWORD", "root:root",
				"snapshot.db", db, "/var/lib/etcd", member.Members[0].Config().Dir, "monday.json", filepath.Join(dir, "monday.json"), "saved.json", filepath.Join(dir, "saved.json"),
				"report.html", filepath.Join(dir, "report.html"), "30s", "1s", "--rev 4711", fmt.Sprint("--rev ", revision.Kvs[0].ModRevision)).Replace(line)
			var args []string
			for _, a := range word.FindAllString(line, -1)[1:] {
				args = append(args, strings.Trim(a, `"`))
			}
			ctx, cancel := context.WithCancel(t.Context())
			expected := []int{exitOK, exitWarning}
			if strings.Contains(line, "--every") || args[0] == "watch" { // these go on
				time.AfterFunc(time.Second, cancel)
				expected = []int{exitOK, exitInterrupted}
			}
			written := make(chan struct{})
			if strings.Contains(line, "--sample") {
				go func() {
					defer close(written)
					every := time.NewTicker(100 * time.Millisecond)
					defer every.Stop()
					for ctx.Err() == nil {
						w.cli.Put(ctx, "stats/gateway", workload.Text(200e3, fmt.Sprint(time.Now())))
						<-every.C
					}
				}()
			} else {
				close(written)
			}
			var stdout, stderr bytes.Buffer
			code := run(ctx, args, strings.NewReader(""), &stdout, &stderr)
			cancel()
			<-written
			require.Contains(t, expected, code, "%s: %s", line, stderr.String())
			if output != "" {
				require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(output)), stdout.Bytes(), 0o600))
			}
			ran[args[0]] = true
		}
	}
	for _, c := range []string{"audit", "get", "project", "reclaim", "roles", "sweep", "tune", "unwrap", "verify"} {
		require.True(t, ran[c], "docs/operations.md has no command %s", c)
	}
}
