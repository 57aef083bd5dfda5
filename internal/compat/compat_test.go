//go:build unix

package compat

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/contract"
	"github.com/kvwrap/kvwrap/internal/servers"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

var (
	fullFlag  = flag.Bool("compat.full", false, "run all of TestCompatibility, which takes minutes, and not a selection")
	tableFlag = flag.String("compat.table", "", "file to write the table of the README to, of what has passed; implies -compat.full")
)

// check is a row of the table.
type check struct {
	name string
	run  func(t *testing.T, version string, w way)
	// quick says which of the cells are in the selection, as "3.5 Install".
	quick []string
	once  bool // whatever the way
}

var checks = []check{
	{name: "contract suite", quick: []string{"3.5 DialOptions"}, run: func(t *testing.T, version string, w way) {
		c := start(t, version, false)
		contract.RunOn(t, c, w.open(c))
	}},
	{name: "contract suite over TLS with client certificates", quick: []string{"3.6 DialOptions"}, run: func(t *testing.T, version string, w way) {
		c := start(t, version, true)
		contract.RunOn(t, c, w.open(c), without("large")...)
	}},
	{name: "contract suite with password authentication", quick: []string{"3.6 Install"}, run: func(t *testing.T, version string, w way) {
		c := start(t, version, false)
		c.protect(t, [2]string{"\x00", "\x00"})
		contract.RunOn(t, c, w.open(c), without("large")...)
	}},
	{name: "contract suite through a namespaced client", quick: []string{"3.5 Install"}, run: func(t *testing.T, version string, w way) {
		c := start(t, version, false)
		c.space = "app/"
		contract.RunOn(t, c, w.open(c), append(namespaced(w), without("small")...)...)
	}},
	{name: "roles that allow a prefix and its chunks", quick: []string{"3.5 Install", "3.6 DialOptions"}, run: func(t *testing.T, version string, w way) {
		from, to, err := chunker.Config{}.ChunkRange("app/", "app0")
		require.NoError(t, err)
		c := start(t, version, false)
		c.protect(t, [2]string{"app/", "app0"}, [2]string{from, to})
		roles(t, c, w)
	}},
	{name: "concurrency: Session, Mutex, Election, STM", quick: []string{"3.5 Install", "3.6 DialOptions"}, run: over(concurrently)},
	{name: "leasing", quick: []string{"3.5 DialOptions", "3.6 Install"}, run: over(leased)},
	{name: "mirror", quick: []string{"3.5 Install", "3.6 DialOptions"}, run: over(mirrored)},
	{name: "GetStream", quick: []string{"3.5 Install", "3.6 DialOptions"}, run: over(streamed)},
	{name: "fault run, clients of both ways, three members", once: true, run: func(t *testing.T, version string, _ way) {
		out, err := exec.Command("go", "test", "github.com/kvwrap/kvwrap/internal/faults", "-run", "TestLinearizable", "-count", "1", "-timeout", "5m",
			"-v", "-faults.version", version, "-faults.duration", "15s").CombinedOutput()
		require.NoError(t, err, "%s", out)
	}},
}

// full reports whether all is run.
func full() bool { return *fullFlag || *tableFlag != "" }

// without returns what a selection leaves out.
func without(names ...string) []string {
	if full() {
		return nil
	}
	return names
}

// over is a check over a plain connection.
func over(run func(t *testing.T, c *cluster, w way)) func(*testing.T, string, way) {
	return func(t *testing.T, version string, w way) { run(t, start(t, version, false), w) }
}

// results are the names of the ways in which a check has passed, by its name and the version.
type results struct {
	mu     sync.Mutex
	passed map[[2]string][]string
}

func (r *results) pass(c check, version, way string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passed[[2]string{c.name, version}] = append(r.passed[[2]string{c.name, version}], way)
}

// table returns the table of the README.
func (r *results) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| | etcd %s |\n|---|%s\n", strings.Join(releases, " | "), strings.Repeat("---|", len(releases)))
	for _, c := range checks {
		fmt.Fprintf(&b, "| %s |", c.name)
		for _, version := range servers.Versions {
			cell := "—"
			passed := r.passed[[2]string{c.name, version}]
			slices.Sort(passed)
			switch {
			case c.once && len(passed) > 0, len(passed) == len(ways):
				cell = "yes"
			case len(passed) > 0:
				cell = strings.Join(passed, ", ") + " only"
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// releases are the versions of the servers, oldest first.
var releases = []string{"3.5.35", "3.6.16", "3.7.3"}

// TestReleases compares releases with the modules that the servers are built from.
func TestReleases(t *testing.T) {
	for i, version := range servers.Versions {
		mod, err := os.ReadFile(filepath.Join("../servers/server", servers.ModuleFiles[version]))
		require.NoError(t, err)
		require.Contains(t, string(mod), "go.etcd.io/etcd/server/v3 v"+releases[i]+"\n")
	}
}

// TestCompatibility runs all checks, with servers of all versions and in all ways. Without
// -compat.full it is a selection, in which each check is once or twice.
func TestCompatibility(t *testing.T) {
	r := &results{passed: make(map[[2]string][]string)}
	t.Run("run", func(t *testing.T) {
		for _, version := range servers.Versions {
			for _, c := range checks {
				for i, w := range ways {
					if c.once && i > 0 || !full() && !slices.Contains(c.quick, version+" "+w.name) {
						continue
					}
					name := fmt.Sprintf("%s/%s/%s", version, c.name, w.name)
					t.Run(name, func(t *testing.T) {
						if !c.once {
							t.Parallel() // a fault run is alone
						}
						c.run(t, version, w)
						if !t.Failed() {
							r.pass(c, version, w.name)
						}
					})
				}
			}
		}
	})
	if *tableFlag != "" {
		require.NoError(t, os.WriteFile(*tableFlag, []byte(r.table()), 0o644))
	}
	if full() && !t.Failed() {
		require.Equal(t, everything().table(), r.table(), "not all that the README claims was run")
	}
}

// everything is what has passed where nothing has failed.
func everything() *results {
	r := &results{passed: make(map[[2]string][]string)}
	for _, c := range checks {
		for _, version := range servers.Versions {
			for i, w := range ways {
				if !c.once || i == 0 {
					r.pass(c, version, w.name)
				}
			}
		}
	}
	return r
}

// TestTheReadmeSaysWhatIsTested compares the table of the README with what TestCompatibility
// runs.
func TestTheReadmeSaysWhatIsTested(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	require.Contains(t, string(readme), everything().table())
}
