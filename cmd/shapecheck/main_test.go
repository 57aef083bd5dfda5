package main

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// TestMain lets the test binary be the command, and the server that it starts.
func TestMain(m *testing.M) {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "ETCDCTL_") && filepath.Base(os.Args[0]) != "shapecheck" {
			os.Unsetenv(name)
		}
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		main()
	}
	testscript.Main(m, map[string]func(){"shapecheck": main})
}

func TestScripts(t *testing.T) {
	auth, root := etcdtest.StartAuth(t)
	auth.AddUser(t, root, "gateway", etcdtest.Permission{Key: "stats/", RangeEnd: "stats0", Type: clientv3.PermissionType(clientv3.PermRead)})
	w := newWrapped(t, chunker.Config{}, nil)
	w.put("k", workload.Text(200e3, "v"))
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: func(env *testscript.Env) error {
		env.Setenv("ENDPOINTS", strings.Join(w.cluster.Endpoints(), ","))
		env.Setenv("AUTH_ENDPOINTS", strings.Join(auth.Endpoints(), ","))
		return nil
	}})
}

// shapecheck runs the command in this process.
func shapecheck(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// TestDemo holds the demo as it is to what it is to show.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("two servers, one of them with hundreds of megabytes on its heap")
	}
	t.Setenv("TMPDIR", t.TempDir())
	code, stdout, stderr := shapecheck(t, "demo")
	require.Equal(t, exitOK, code, stderr)
	t.Log("\n" + stdout)
	less := regexp.MustCompile(`Raft-log memory: (\d+) times less`).FindStringSubmatch(stdout)
	require.NotNil(t, less, stdout)
	times, err := strconv.Atoi(less[1])
	require.NoError(t, err)
	require.GreaterOrEqual(t, times, 20)
	requireNoFiles(t)
}

func requireNoFiles(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// interrupter is a standard error that interrupts at a word.
type interrupter struct {
	bytes.Buffer
	at        string
	interrupt func()
}

func (i *interrupter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(i.at)) {
		i.interrupt()
	}
	return i.Buffer.Write(p)
}

func TestDemoInterrupted(t *testing.T) {
	for _, at := range []string{"starting", "publishing 21 ", "measuring"} {
		t.Run(at, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stderr := &interrupter{at: at, interrupt: cancel}
			var stdout bytes.Buffer
			code := run(ctx, []string{"demo", "--pipelines", "100"}, strings.NewReader(""), &stdout, stderr)
			require.Equal(t, exitInterrupted, code, stderr.String())
			require.True(t, strings.HasSuffix(stderr.String(), "\nshapecheck: interrupted\n"), stderr.String())
			require.Empty(t, stdout.String())
			requireNoFiles(t)
		})
	}
}

// TestAServerThatDies is one that the system kills for its memory.
func TestAServerThatDies(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, end := context.WithCancelCause(t.Context())
	s, err := startServer(ctx, end, 10)
	require.NoError(t, err)
	heap, err := s.liveHeap()
	require.NoError(t, err)
	require.NotZero(t, heap)
	require.NoError(t, s.process.Process.Kill())
	<-s.ended
	_, err = s.liveHeap()
	require.ErrorContains(t, err, "the etcd of the demo has ended: signal: killed")
	require.NoError(t, s.stop())
	requireNoFiles(t)
}

// TestAParentThatDies is killed: nobody reads what the server says any more.
func TestAParentThatDies(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	self, err := os.Executable()
	require.NoError(t, err)
	child := exec.Command(self, "serve")
	stdin, err := child.StdinPipe()
	require.NoError(t, err)
	stdout, err := child.StdoutPipe()
	require.NoError(t, err)
	stderr, theirs, err := os.Pipe()
	require.NoError(t, err)
	child.Stderr = theirs
	require.NoError(t, child.Start())
	theirs.Close()
	_, err = bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	stdout.Close()
	stderr.Close()
	require.NoError(t, child.Process.Signal(syscall.SIGHUP))
	stdin.Close()
	require.NoError(t, child.Wait())
	requireNoFiles(t)
}

func TestDemoOnACluster(t *testing.T) {
	cluster := etcdtest.Start(t, 3, nil)
	cli := cluster.Client(t)
	_, err := cli.Put(t.Context(), "somebody's", "own")
	require.NoError(t, err)
	endpoints := strings.Join(cluster.Endpoints(), ",")
	left := func() {
		t.Helper()
		resp, err := cli.Get(t.Context(), "\x00", clientv3.WithFromKey())
		require.NoError(t, err)
		require.Len(t, resp.Kvs, 1)
		leases, err := cli.Leases(t.Context())
		require.NoError(t, err)
		require.Empty(t, leases.Leases)
	}

	code, stdout, stderr := shapecheck(t, "demo", "--endpoints", endpoints, "--changed", "1")
	require.Equal(t, exitOK, code, stderr)
	require.Regexp(t, `proposals per publish +1\.0 +1\.0`, stdout)
	require.Contains(t, stdout, "times less with kvwrap")
	left()

	for _, pipelines := range []string{"1000", "3000"} { // which the server refuses, and its transport
		code, _, stderr = shapecheck(t, "demo", "--endpoints", endpoints, "--pipelines", pipelines)
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, ": choose less --pipelines")
		left()
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	interrupted := &interrupter{at: "publishing 5 ", interrupt: cancel}
	code = run(ctx, []string{"demo", "--endpoints", endpoints}, strings.NewReader(""), &bytes.Buffer{}, interrupted)
	require.Equal(t, exitInterrupted, code, interrupted.String())
	left()
}

func TestDemoKeepsOffAFullCluster(t *testing.T) {
	cluster := etcdtest.Start(t, 1, func(cfg *embed.Config) { cfg.QuotaBackendBytes = 16 << 20 })
	code, _, stderr := shapecheck(t, "demo", "--endpoints", cluster.Endpoints()[0])
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "a quota of 16.8 MB, and up to 33.9 MB would be written: choose less --publishes or --pipelines")
}
