//go:build unix

package compat

import (
	"context"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/internal/contract"
	"github.com/kvwrap/kvwrap/internal/servers"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.uber.org/zap"
)

// cluster is a server of some version, and how clients connect to it.
type cluster struct {
	config clientv3.Config // of the application's clients
	root   *clientv3.Client
	space  string // namespace of the application's clients
	admin  bool   // compactions take more rights than the application's clients have
}

// start starts a server. Secure says whether with certificates.
func start(t testing.TB, version string, secure bool) *cluster {
	notify := "watch-progress-notify-interval"
	if version == "3.5" {
		notify = "experimental-" + notify
	}
	config := servers.Config{Settings: map[string]any{notify: 50 * time.Millisecond, "bcrypt-cost": 4}}
	c := &cluster{config: clientv3.Config{Logger: zap.NewNop()}}
	scheme := "http://"
	if secure {
		config.TLS, c.config.TLS = certificates(t)
		scheme = "https://"
	}
	c.config.Endpoints = []string{scheme + servers.Start(t, version, config).Endpoint}
	c.root = c.connect(t, c.config)
	return c
}

// connect returns a client that is closed with the test.
func (c *cluster) connect(t testing.TB, config clientv3.Config) *clientv3.Client {
	cli, err := clientv3.New(config)
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	return cli
}

// protect enables authentication. The application's clients are a user with the permissions.
func (c *cluster) protect(t testing.TB, permissions ...[2]string) {
	ctx, cli := t.Context(), c.root
	for _, user := range []string{"root", "app"} {
		_, err := cli.UserAdd(ctx, user, user)
		require.NoError(t, err)
		_, err = cli.RoleAdd(ctx, user)
		require.NoError(t, err)
		_, err = cli.UserGrantRole(ctx, user, user)
		require.NoError(t, err)
	}
	for _, p := range permissions {
		_, err := cli.RoleGrantPermission(ctx, "app", p[0], p[1], clientv3.PermissionType(clientv3.PermReadWrite))
		require.NoError(t, err)
	}
	_, err := cli.AuthEnable(ctx)
	require.NoError(t, err)
	config := c.config
	config.Username, config.Password = "root", "root"
	c.root, c.admin = c.connect(t, config), true
	c.config.Username, c.config.Password = "app", "app"
}

// Client returns a plain client, as a contract.Cluster does.
func (c *cluster) Client(t testing.TB) *clientv3.Client { return c.connect(t, c.config) }

// Wipe deletes all keys.
func (c *cluster) Wipe(t testing.TB) {
	_, err := c.root.Delete(context.Background(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
}

// way is one of those in which a client takes kvwrap in.
type way struct {
	name string
	// wrap returns a client with it. The given one is plain.
	wrap func(t testing.TB, c *cluster, cli *clientv3.Client) *clientv3.Client
}

var ways = []way{
	{"Install", func(t testing.TB, c *cluster, cli *clientv3.Client) *clientv3.Client {
		c.namespaced(cli)
		kv, err := kvwrap.Install(cli, kvwrap.Config{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, kv.Close()) })
		return cli
	}},
	{"DialOptions", func(t testing.TB, c *cluster, _ *clientv3.Client) *clientv3.Client {
		config := c.config
		config.DialOptions = kvwrap.DialOptions(kvwrap.Config{})
		cli := c.connect(t, config)
		kv, err := kvwrap.Dialed(cli)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, kv.Close()) })
		c.namespaced(cli)
		return cli
	}},
}

// namespaced gives a client the namespace of c, if there is one.
func (c *cluster) namespaced(cli *clientv3.Client) {
	if c.space != "" {
		cli.KV, cli.Watcher, cli.Lease = namespace.NewKV(cli.KV, c.space), namespace.NewWatcher(cli.Watcher, c.space), namespace.NewLease(cli.Lease, c.space)
	}
}

// open returns what the contract is run over.
func (w way) open(c *cluster) contract.Open {
	return func(t *testing.T, cli *clientv3.Client) contract.Stack {
		s := contract.Plain(w.wrap(t, c, cli))
		if c.admin {
			s.KV = compacting{s.KV, c.root}
		}
		return s
	}
}

// compacting has compactions done by a client that may.
type compacting struct {
	clientv3.KV
	by *clientv3.Client
}

func (k compacting) Compact(ctx context.Context, rev int64, opts ...clientv3.CompactOption) (*clientv3.CompactResponse, error) {
	return k.by.Compact(ctx, rev, opts...)
}
