package etcdtest

import (
	"io"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Snapshot saves what the cluster holds, as etcdctl snapshot save does, and
// returns the path of the file.
func (c *Cluster) Snapshot(t testing.TB) string {
	t.Helper()
	r, err := c.Client(t).Snapshot(t.Context())
	require.NoError(t, err)
	defer r.Close()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = io.Copy(f, r)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return path
}

// Restore replaces a cluster of one member by what a snapshot holds, as etcdutl
// snapshot restore does, at the same addresses and under the clients that it has.
// Edit, which may be nil, changes how.
func (c *Cluster) Restore(t testing.TB, path string, edit func(*snapshot.RestoreConfig)) {
	t.Helper()
	require.Len(t, c.Members, 1)
	old := c.Members[0]
	address := url.URL{Scheme: "http", Host: c.Endpoints()[0]}
	old.Close()
	cfg := old.Config()
	restore := snapshot.RestoreConfig{
		SnapshotPath: path, Name: cfg.Name, OutputDataDir: filepath.Join(t.TempDir(), "restored"),
		PeerURLs: []string{cfg.AdvertisePeerUrls[0].String()}, InitialCluster: cfg.InitialCluster, InitialClusterToken: cfg.InitialClusterToken,
	}
	if edit != nil {
		edit(&restore)
	}
	require.NoError(t, snapshot.NewV3(zap.NewNop()).Restore(restore))
	cfg.Dir = restore.OutputDataDir
	cfg.ListenClientUrls = []url.URL{address}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	fresh, err := embed.StartEtcd(&cfg)
	require.NoError(t, err)
	c.Members[0] = fresh
	select {
	case <-fresh.Server.ReadyNotify():
	case <-time.After(time.Minute):
		t.Fatal("the restored cluster is not ready after a minute")
	}
}
