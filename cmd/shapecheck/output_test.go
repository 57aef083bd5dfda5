package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
)

// full is a disk without room, for what comes after some bytes.
type full struct{ room int }

var errFull = errors.New("no space left on device")

func (f *full) Write(p []byte) (int, error) {
	n := min(len(p), f.room)
	if f.room -= n; n < len(p) {
		return n, errFull
	}
	return n, nil
}

// TestOutputErrors has every command write where there is no room: it says so once, and fails.
func TestOutputErrors(t *testing.T) {
	auth, _ := etcdtest.StartAuth(t)
	as := auth.Endpoints()[0]
	w := newWrapped(t, chunker.Config{}, etcdtest.Advertise(t, 1))
	w.put("k", workload.Text(200e3, "v"))
	at := w.cluster.Endpoints()[0]
	db := auditFile(t, false)
	for _, args := range [][]string{
		{"--help"},
		{"--version"},
		{"audit", "--db", db},
		{"audit", "--db", db, "-w", "json"},
		{"audit", "--db", db, "-w", "html"},
		{"audit", "--db", db, "--warn-on", "keys>1"},
		{"completion", "bash"},
		{"get", "k", "--endpoints", at},
		{"get", "k", "--endpoints", at, "-w", "json"},
		{"get", "k", "--endpoints", at, "--chunks"},
		{"project", "--value-bytes", "1"},
		{"project", "--value-bytes", "1", "-w", "json"},
		{"project", "--value-bytes", "1", "--what-if", "writes=2", "--explain"},
		{"reclaim", "--endpoints", at, "--dry-run"},
		{"reclaim", "--endpoints", at, "--keep-revisions", "1", "--yes"},
		{"reclaim", "--endpoints", at, "--dry-run", "-w", "json"},
		{"roles", "--endpoints", as, "--user", "root:root"},
		{"sweep", "--endpoints", at},
		{"tune", "--value-bytes", "1", "--interval", "1s"},
		{"tune", "--value-bytes", "1", "--interval", "1s", "--revisions", "0.001"},
		{"unwrap", "--endpoints", at, "--dry-run"},
		{"verify", "--endpoints", at},
		{"verify", "--endpoints", at, "-w", "json"},
	} {
		for _, room := range []int{0, 20} {
			var stderr bytes.Buffer
			code := run(t.Context(), args, strings.NewReader(""), &full{room}, &stderr)
			require.Equal(t, exitFailed, code, "%q: %s", args, stderr.String())
			require.Equal(t, 1, strings.Count(stderr.String(), errFull.Error()), "%q: %s", args, stderr.String())
			require.Contains(t, stderr.String(), "shapecheck: writing the output: no space left on device\n", "%q", args)
		}
	}

	// What was found is said by the exit code all the same.
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"audit", "--db", db, "--fail-on", "keys>1"}, strings.NewReader(""), &full{}, &stderr)
	require.Equal(t, exitCritical, code, stderr.String())
	require.Contains(t, stderr.String(), "writing the output")
}
