//go:build unix

package etcdtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) {
	Main(map[string]Role{"listener": listen, "parent": raise})
	testutil.MustTestMainWithLeakDetection(m)
}

func clientOf(t *testing.T, endpoints ...string) *clientv3.Client {
	cli, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	return cli
}

// TestMembersComeBack kills and pauses leaders. The others elect another one, and
// the one that comes back has what was written before and meanwhile.
func TestMembersComeBack(t *testing.T) {
	m := StartMembers(t, 3, nil)
	cli := clientOf(t, m.Endpoints()...)
	put := func(value string) {
		t.Helper()
		require.Eventually(t, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := cli.Put(ctx, "k", value)
			return err == nil
		}, time.Minute, time.Millisecond)
	}
	all := func(value string) {
		t.Helper()
		require.NoError(t, m.Ready(t.Context()))
		for _, address := range m.Direct() {
			resp, err := clientOf(t, address).Get(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, value, string(resp.Kvs[0].Value))
		}
	}
	put("before")
	all("before")

	leader := m.Leader(t.Context())
	m.Kill(leader)
	m.Kill(leader)
	put("without one")
	require.NotEqual(t, leader, m.Leader(t.Context()))
	require.NoError(t, m.Restart(leader))
	all("without one")

	leader = m.Leader(t.Context())
	require.NoError(t, m.Pause(leader))
	put("while one is paused")
	require.NotEqual(t, leader, m.Leader(t.Context()))
	require.NoError(t, m.Continue(leader))
	all("while one is paused")
	require.NoError(t, m.Pause(leader)) // it is stopped nevertheless
}

// TestTheProxyComesBetween cuts connections in each of the ways that there are.
func TestTheProxyComesBetween(t *testing.T) {
	c := Start(t, 1, nil)
	plain := c.Client(t)
	p, err := NewProxy(strings.TrimPrefix(c.Endpoints()[0], "http://"))
	require.NoError(t, err)
	t.Cleanup(p.Close)
	cli := clientOf(t, p.Address())
	value := func() string {
		t.Helper()
		resp, err := plain.Get(t.Context(), "k")
		require.NoError(t, err)
		return string(resp.Kvs[0].Value)
	}
	large := strings.Repeat("x", 1<<20)
	_, err = cli.Put(t.Context(), "k", large)
	require.NoError(t, err)
	resp, err := cli.Get(t.Context(), "k")
	require.NoError(t, err)
	require.True(t, large == string(resp.Kvs[0].Value))

	p.LoseAnswers()
	_, err = cli.Put(t.Context(), "k", "no answer")
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	require.Equal(t, "no answer", value())
	_, err = cli.Put(t.Context(), "k", "again")
	require.NoError(t, err, "another connection was made")

	p.Refuse(true)
	p.Cut()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err = cli.Put(ctx, "k", "refused")
	require.Error(t, err)
	require.Equal(t, "again", value())
	p.Refuse(false)
	_, err = cli.Put(t.Context(), "k", "accepted")
	require.NoError(t, err)
	require.Equal(t, "accepted", value())
}

// listen is a process that can be reached, until its test is gone.
func listen(string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// raise starts a child, pauses it where that is asked for, and waits to be killed.
func raise(paused string) error {
	child, err := StartProcess("listener", "")
	if err != nil {
		return err
	}
	address, err := child.Out.ReadString('\n')
	if err != nil {
		return err
	}
	if paused != "" {
		if err := child.Pause(); err != nil {
			return err
		}
	}
	fmt.Print(address)
	select {}
}

// TestChildrenGoWithTheirParent kills the parents of processes that are paused or
// not, some before they have come to a stop: none is left behind.
func TestChildrenGoWithTheirParent(t *testing.T) {
	for i := range 20 {
		paused := []string{"", "paused"}[i%2]
		parent, err := StartProcess("parent", paused)
		require.NoError(t, err)
		address, err := parent.Out.ReadString('\n')
		require.NoError(t, err)
		parent.Kill()
		require.Eventually(t, func() bool {
			conn, err := net.Dial("tcp", strings.TrimSpace(address))
			if err == nil {
				conn.Close()
			}
			return err != nil
		}, time.Minute, time.Millisecond, paused)
	}
}

func TestAProcessWithoutARole(t *testing.T) {
	p, err := StartProcess("dreamer", "")
	require.NoError(t, err)
	_, err = p.Out.ReadString('\n')
	require.Error(t, err)
	p.Kill()
}
