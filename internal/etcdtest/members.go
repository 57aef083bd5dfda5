//go:build unix

package etcdtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

const memberRole = "etcd member"

// serveMember runs a member with the configuration in a file of etcd's format.
func serveMember(config string) error {
	cfg, err := embed.ConfigFromFile(config)
	if err != nil {
		return err
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	fmt.Println("started")
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case err := <-e.Err():
		return err
	case <-ended:
		return nil
	}
}

// Members is a cluster whose members are processes of their own, so that they can
// be killed and paused. Clients reach each of them through a proxy, which can cut
// them off. Its methods are safe for concurrent use.
type Members struct {
	Proxies []*Proxy

	addresses []string // past the proxies
	configs   []string // files

	program string // that a member is; "" for this one

	mu        sync.Mutex
	processes []*Process
	stopped   bool
}

// StartMembers starts a cluster of n members, which is stopped and removed with
// the test. Settings are added to the configuration file of each, by etcd's names
// for them.
func StartMembers(t testing.TB, n int, settings map[string]any) *Members {
	t.Helper()
	return StartMembersOf(t, "", n, settings)
}

// StartMembersOf is StartMembers with another program as the members, a server of another
// version for instance. It is called with the name of its configuration file and "plain"; "" is
// etcd as it is in this module.
func StartMembersOf(t testing.TB, program string, n int, settings map[string]any) *Members {
	t.Helper()
	m := &Members{program: program, processes: make([]*Process, n)}
	t.Cleanup(m.stop)
	var cluster string
	peers := make([]string, n)
	for i := range n {
		peers[i] = fmt.Sprintf("http://127.0.0.1:%d", StablePort(t))
		cluster += fmt.Sprintf(",m%d=%s", i, peers[i])
	}
	for i := range n {
		address := fmt.Sprintf("127.0.0.1:%d", StablePort(t))
		proxy, err := NewProxy(address)
		require.NoError(t, err)
		m.Proxies = append(m.Proxies, proxy)
		m.addresses = append(m.addresses, address)
		dir := t.TempDir()
		config := map[string]any{
			"name": fmt.Sprintf("m%d", i), "data-dir": dir, "initial-cluster": cluster[1:],
			"listen-client-urls": "http://" + address, "advertise-client-urls": "http://" + address,
			"listen-peer-urls": peers[i], "initial-advertise-peer-urls": peers[i],
			"heartbeat-interval": 50, "election-timeout": 500, // quick, on a machine that is busy
			"unsafe-no-fsync": true, // a process that is killed loses nothing that it has written
			"log-level":       "panic",
		}
		maps.Copy(config, settings)
		file, err := json.Marshal(config)
		require.NoError(t, err)
		m.configs = append(m.configs, filepath.Join(dir, "config.json"))
		require.NoError(t, os.WriteFile(m.configs[i], file, 0o600))
	}
	for i := range n {
		require.NoError(t, m.Restart(i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, m.Ready(ctx))
	return m
}

// StablePort returns a free port that is not among those that systems give to
// outgoing connections, so that nobody takes it while a member is down. Other tests, which
// may run in other processes, do not get it: until the test has ended it is taken at another
// loopback address, where the system has one.
func StablePort(t testing.TB) int {
	for range 1000 {
		port := 15000 + rand.IntN(15000)
		mark, err := net.Listen("tcp", fmt.Sprintf("127.77.0.1:%d", port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err == nil {
			t.Cleanup(func() { mark.Close() })
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("there is no free port")
	return 0
}

// Endpoints returns the addresses of the members' proxies.
func (m *Members) Endpoints() []string {
	var endpoints []string
	for _, p := range m.Proxies {
		endpoints = append(endpoints, p.Address())
	}
	return endpoints
}

// Direct returns the addresses of the members themselves.
func (m *Members) Direct() []string { return m.addresses }

// Kill ends a member without warning. It keeps what it has stored.
func (m *Members) Kill(i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.processes[i].Kill()
}

// Restart starts a member with what it has stored. It does not wait until there
// is a leader.
func (m *Members) Restart(i int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return nil
	}
	if p := m.processes[i]; p != nil {
		p.Kill()
	}
	if m.program != "" {
		// It says nothing before there is a leader, which may take the other members.
		p, err := StartCommand(exec.Command(m.program, m.configs[i], "plain"))
		m.processes[i] = p
		return err
	}
	p, err := StartProcess(memberRole, m.configs[i])
	if err != nil {
		return err
	}
	m.processes[i] = p
	if _, err := p.Out.ReadString('\n'); err != nil {
		return fmt.Errorf("member %d has not started: %w", i, err)
	}
	return nil
}

// Pause stops a member where it is, until Continue.
func (m *Members) Pause(i int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.processes[i].Pause()
}

// Continue lets a paused member go on.
func (m *Members) Continue(i int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.processes[i].Continue()
}

// Leader returns which member leads, as one says that answers; -1 where there is
// none.
func (m *Members) Leader(ctx context.Context) int {
	for i := range m.addresses {
		if s := m.status(ctx, i); s != nil && s.Leader == s.Header.MemberId {
			return i
		}
	}
	return -1
}

// Ready waits until all members answer and follow one leader.
func (m *Members) Ready(ctx context.Context) error {
	leaders := make(map[uint64]bool)
	for {
		clear(leaders)
		for i := range m.addresses {
			s := m.status(ctx, i)
			if s == nil {
				leaders[0] = true
				break
			}
			leaders[s.Leader] = true
		}
		if len(leaders) == 1 && !leaders[0] {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not all members follow a leader: %w", context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// status asks a member for its status; nil where it does not answer.
func (m *Members) status(ctx context.Context, i int) *clientv3.StatusResponse {
	cli, err := clientv3.New(clientv3.Config{Endpoints: m.addresses[i : i+1], Logger: zap.NewNop()})
	if err != nil {
		return nil
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	s, err := cli.Status(ctx, m.addresses[i])
	if err != nil {
		return nil
	}
	return s
}

func (m *Members) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	for _, p := range m.Proxies {
		p.Close()
	}
	for _, p := range m.processes {
		if p != nil {
			p.Kill()
		}
	}
}
