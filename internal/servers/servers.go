//go:build unix

// Package servers runs etcd servers of every version that kvwrap knows, each in a process
// of its own, and asks them what they keep in memory.
//
// The server is a module of its own, below this directory, with a module file for each version,
// since a module can have one version of etcd only. It is built when it is first asked for; its
// modules come from the module cache, or the proxy that the go command is set to.
package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
)

// Versions are the minor versions that there are servers of, oldest first.
var Versions = []string{"3.5", "3.6", "3.7"}

// ModuleFiles are those of the server that have the versions.
var ModuleFiles = map[string]string{"3.5": "v35.mod", "3.6": "v36.mod", "3.7": "go.mod"}

// Config is how a server is run. Zero values are etcd's defaults.
type Config struct {
	SnapshotCount  uint64
	CatchUpEntries uint64
	// Exact has the server record every allocation: only then Measurement says what the
	// raft log takes, and the resident memory is not that of a server that does not.
	Exact bool
	// TLS has clients connect with certificates. Client, of a Server, is of no use then.
	TLS *TLS
	// Settings are added to the configuration file, by etcd's names for them.
	Settings map[string]any
}

// TLS are files in PEM: the certificate and key of the server, and of who has signed those of
// clients.
type TLS struct{ CertFile, KeyFile, ClientCAFile string }

// Server is one member, without fsync, in a process of its own.
type Server struct {
	Endpoint string // for clients

	version  string
	config   string // file
	exact    bool
	process  *etcdtest.Process
	measures string // where it answers measurements
}

// Measurement is what a server has at one time, after a garbage collection; see the
// server, which makes it.
type Measurement struct {
	Version string
	Entries struct {
		First, Last  uint64
		Number       int
		PayloadBytes int64
	}
	LiveHeap, RaftLog, TreeIndex uint64
	AnonymousRSS, PeakAnonymous  uint64
	DbSize, DbSizeInUse          int64
}

// Start starts a server of a minor version, and waits until it serves. It is stopped with
// the test, and its files are removed.
func Start(t testing.TB, version string, c Config) *Server {
	t.Helper()
	s := &Server{
		Endpoint: fmt.Sprintf("127.0.0.1:%d", etcdtest.StablePort(t)),
		version:  version, exact: c.Exact,
	}
	dir := t.TempDir()
	peer := fmt.Sprintf("http://127.0.0.1:%d", etcdtest.StablePort(t))
	scheme := "http://"
	if c.TLS != nil {
		scheme = "https://"
	}
	config := map[string]any{
		"name": "m0", "data-dir": filepath.Join(dir, "data"), "initial-cluster": "m0=" + peer,
		"listen-client-urls": scheme + s.Endpoint, "advertise-client-urls": scheme + s.Endpoint,
		"listen-peer-urls": peer, "initial-advertise-peer-urls": peer,
		"unsafe-no-fsync": true, "log-level": "fatal",
	}
	if c.TLS != nil {
		config["client-transport-security"] = map[string]any{
			"cert-file": c.TLS.CertFile, "key-file": c.TLS.KeyFile, "client-cert-auth": true, "trusted-ca-file": c.TLS.ClientCAFile,
		}
	}
	if c.SnapshotCount > 0 {
		config["snapshot-count"] = c.SnapshotCount
	}
	if c.CatchUpEntries > 0 {
		name := "snapshot-catchup-entries"
		if version == "3.5" {
			name = "experimental-snapshot-catch-up-entries"
		}
		config[name] = c.CatchUpEntries
	}
	maps.Copy(config, c.Settings)
	file, err := json.Marshal(config)
	require.NoError(t, err)
	s.config = filepath.Join(dir, "config.json")
	require.NoError(t, os.WriteFile(s.config, file, 0o600))
	t.Cleanup(s.Stop)
	s.Restart(t)
	return s
}

// Restart starts the server again, with what it has stored.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Stop()
	mode := "plain"
	if s.exact {
		mode = "exact"
	}
	p, err := etcdtest.StartCommand(exec.Command(binary(t, s.version), s.config, mode))
	require.NoError(t, err)
	s.process = p
	address, err := p.Out.ReadString('\n')
	require.NoError(t, err, "etcd %s has not started", s.version)
	s.measures = "http://" + strings.TrimSpace(address)
}

// Stop ends the server at once. Stopping twice is fine.
func (s *Server) Stop() {
	if s.process != nil {
		s.process.Kill()
	}
}

// Client returns a client of the server, which is closed with the test.
func (s *Server) Client(t testing.TB) *clientv3.Client {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: []string{s.Endpoint}, Logger: zap.NewNop(), MaxCallSendMsgSize: 64 << 20,
	})
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	return cli
}

// Measure has the server collect its garbage, and returns what it has then.
func (s *Server) Measure(ctx context.Context) (m Measurement, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.measures, nil)
	if err != nil {
		return m, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return m, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return m, fmt.Errorf("measuring etcd %s: %s: %s", s.version, resp.Status, body)
	}
	return m, json.NewDecoder(resp.Body).Decode(&m)
}

// built holds the binaries of this process, by version.
var built struct {
	sync.Mutex
	dir   string
	paths map[string]string
}

// Main runs the tests of a package that starts servers, and removes the binaries. A
// TestMain calls it.
func Main(m *testing.M) int {
	defer func() {
		if built.dir != "" {
			os.RemoveAll(built.dir)
		}
	}()
	return m.Run()
}

// binary returns the file name of a version's server, which it builds where that has not
// been done in this process. What was compiled before comes from the cache of the go
// command.
func binary(t testing.TB, version string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if path := built.paths[version]; path != "" {
		return path
	}
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "kvwrap-servers-")
		require.NoError(t, err)
		built.dir, built.paths = dir, make(map[string]string)
	}
	built.paths[version] = Build(t, version, built.dir)
	return built.paths[version]
}

// Build builds a version's server in a directory, and returns its file name. Its arguments
// are a file of etcd's configuration and "plain".
func Build(t testing.TB, version, dir string) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	source, path := filepath.Join(filepath.Dir(here), "server"), filepath.Join(dir, "etcd-"+version)
	// What a test reads decides whether its result is cached; other modules do not.
	for _, pattern := range []string{"*.go", "*.mod", "*.sum"} {
		files, err := filepath.Glob(filepath.Join(source, pattern))
		require.NoError(t, err)
		for _, file := range files {
			_, err := os.ReadFile(file)
			require.NoError(t, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-modfile="+ModuleFiles[version], "-o", path, ".")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "building etcd %s: %s", version, out)
	return path
}
