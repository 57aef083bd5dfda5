// Package etcdtest runs real etcd clusters inside a test: embedded servers on
// free ports of the loopback interface, stopped and removed with the test.
package etcdtest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Cluster is a running cluster.
type Cluster struct {
	Members []*embed.Etcd

	clients []*clientv3.Client // a server waits for their streams to end
	stopped bool
}

// Start starts a cluster of the given number of members. Edit, which may be nil,
// changes the configuration of each before it starts.
func Start(t testing.TB, members int, edit func(*embed.Config)) *Cluster {
	t.Helper()
	var cluster string
	configs := make([]*embed.Config, members)
	for i := range configs {
		configs[i] = config(t, i)
		peer := configs[i].AdvertisePeerUrls[0].String()
		cluster += fmt.Sprintf(",%s=%s", configs[i].Name, peer)
	}
	c := &Cluster{}
	t.Cleanup(c.stop)
	for _, cfg := range configs {
		cfg.InitialCluster = cluster[1:]
		if edit != nil {
			edit(cfg)
		}
		e, err := embed.StartEtcd(cfg)
		require.NoError(t, err)
		c.Members = append(c.Members, e)
	}
	for _, e := range c.Members {
		select {
		case <-e.Server.ReadyNotify():
		case <-time.After(time.Minute):
			t.Fatal("the cluster is not ready after a minute")
		}
	}
	return c
}

// config returns the configuration of member i: quick elections, no fsync, no
// log.
func config(t testing.TB, i int) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = fmt.Sprintf("m%d", i)
	cfg.Dir = t.TempDir()
	cfg.ListenClientUrls = []url.URL{loopback(0)}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	cfg.ListenPeerUrls = []url.URL{loopback(freePort(t))}
	cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
	cfg.TickMs, cfg.ElectionMs = 20, 200
	cfg.UnsafeNoFsync = true
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.LogLevel = zapcore.PanicLevel.String()
	return cfg
}

// Advertise returns an edit for [Start] that has a member listen at n addresses for
// clients, and tell the cluster which they are. Else members do not know the port that
// they have got.
func Advertise(t testing.TB, n int) func(*embed.Config) {
	return func(cfg *embed.Config) {
		cfg.ListenClientUrls = nil
		for range n {
			cfg.ListenClientUrls = append(cfg.ListenClientUrls, loopback(freePort(t)))
		}
		cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	}
}

func loopback(port int) url.URL {
	return url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}
}

// freePort returns a port that was free a moment ago: peers have to know it
// before they listen.
func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (c *Cluster) stop() {
	if c.stopped {
		return
	}
	c.stopped = true
	for _, cli := range c.clients {
		cli.Close()
	}
	for _, e := range c.Members {
		e.Close()
	}
}

// Endpoints returns the client addresses of all members.
func (c *Cluster) Endpoints() []string {
	endpoints := make([]string, len(c.Members))
	for i, e := range c.Members {
		endpoints[i] = e.Clients[0].Addr().String()
	}
	return endpoints
}

// Client returns a new client of all members, which is closed with the test.
func (c *Cluster) Client(t testing.TB) *clientv3.Client {
	t.Helper()
	return c.ClientOf(t, c.Endpoints()...)
}

// ClientOf is Client with the given endpoints.
func (c *Cluster) ClientOf(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	require.NoError(t, err)
	c.clients = append(c.clients, cli)
	t.Cleanup(func() { cli.Close() })
	return cli
}

// Wipe deletes all keys, reserved ones included.
func (c *Cluster) Wipe(t testing.TB) {
	t.Helper()
	cli := c.Client(t)
	_, err := cli.Delete(context.Background(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
}

// BackendBytes returns how many bytes of the first member's database are in use.
func (c *Cluster) BackendBytes() int64 {
	b := c.Members[0].Server.Backend()
	b.ForceCommit()
	return b.SizeInUse()
}
