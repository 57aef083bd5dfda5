package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestHelpFits reads the help of commands: 80 columns, examples and exit codes.
func TestHelpFits(t *testing.T) {
	for _, name := range []string{"audit", "bench", "demo", "demo offsets", "get", "project", "reclaim", "roles", "sweep", "tune", "unwrap", "verify", "watch"} {
		code, help, stderr := shapecheck(t, append(strings.Fields(name), "--help")...)
		require.Zero(t, code, stderr)
		for line := range strings.SplitSeq(help, "\n") {
			require.LessOrEqual(t, len(line), 80, "%s: %s", name, line)
		}
		require.Contains(t, help, "Examples:\n  shapecheck "+name)
		if name == "bench" { // its servers are its own
			require.Regexp(t, `Exit codes: 0 (?s).*;\s+1 .*the\s+command\s+line\s+is\s+wrong;.*130\s+interrupted`, help)
			continue
		}
		require.Regexp(t, `Exit codes: 0 (?s).*;\s+1 .*the\s+command\s+line\s+is\s+wrong;\s+2\s+the\s+cluster\s+cannot\s+be\s+reached;.*130\s+interrupted`, help)
	}
}
