package etcdtest

import (
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Permission is a permission of a role, given as etcd's are.
type Permission struct {
	Key, RangeEnd string
	Type          clientv3.PermissionType
}

// StartAuth is Start of one member with authentication. It returns a client of
// the user root's beside it; Client and Wipe of the cluster are of no use.
func StartAuth(t testing.TB) (*Cluster, *clientv3.Client) {
	t.Helper()
	c := Start(t, 1, func(cfg *embed.Config) {
		Advertise(t, 1)(cfg)
		cfg.BcryptCost = 4
	})
	c.AddUser(t, c.Client(t), "root")
	_, err := c.Client(t).AuthEnable(t.Context())
	require.NoError(t, err)
	return c, c.ClientAs(t, "root")
}

// AddUser adds a user and a role of the same name, which has the permissions. The
// name is the password, too.
func (c *Cluster) AddUser(t testing.TB, root *clientv3.Client, name string, permissions ...Permission) {
	t.Helper()
	_, err := root.UserAdd(t.Context(), name, name)
	require.NoError(t, err)
	_, err = root.RoleAdd(t.Context(), name)
	require.NoError(t, err)
	_, err = root.UserGrantRole(t.Context(), name, name)
	require.NoError(t, err)
	for _, p := range permissions {
		_, err = root.RoleGrantPermission(t.Context(), name, p.Key, p.RangeEnd, p.Type)
		require.NoError(t, err)
	}
}

// ClientAs is Client with the user that AddUser has added.
func (c *Cluster) ClientAs(t testing.TB, user string) *clientv3.Client {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Username: user, Password: user, Logger: zap.NewNop()})
	require.NoError(t, err)
	c.clients = append(c.clients, cli)
	t.Cleanup(func() { cli.Close() })
	return cli
}
