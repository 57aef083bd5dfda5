package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pseudoTerminal returns both ends of a terminal: what is behind it, and what a command has.
func pseudoTerminal(t *testing.T) (behind, terminal *os.File) {
	behind, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { behind.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(behind.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(behind.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { terminal.Close() })
	require.NoError(t, unix.IoctlSetWinsize(int(behind.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}))
	return behind, terminal
}

// TestWatchOnATerminal goes the whole way, from the command line to a screen and back.
func TestWatchOnATerminal(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	w.put("/a/b/c", "v")
	for key, code := range map[string]int{"q": exitOK, "\x03": exitInterrupted} {
		behind, terminal := pseudoTerminal(t)
		var stderr bytes.Buffer
		ended := make(chan int, 1)
		go func() {
			ended <- run(t.Context(), []string{"watch", "--endpoints", w.cluster.Endpoints()[0]}, terminal, terminal, &stderr)
		}()
		var shown strings.Builder
		for b := make([]byte, 4096); !strings.Contains(shown.String(), "puts/s"); {
			n, err := behind.Read(b)
			require.NoError(t, err, shown.String())
			shown.Write(b[:n])
		}
		_, err := behind.WriteString(key)
		require.NoError(t, err)
		go func() { // what it says at the end has to be taken
			for b := make([]byte, 4096); ; {
				if _, err := behind.Read(b); err != nil {
					return
				}
			}
		}()
		require.Equal(t, code, <-ended, stderr.String())
		terminal.Close()
		behind.Close()
	}
}
