package etcdtest

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// EntryBytes stops the cluster and returns the sizes of the entries in the raft
// log of its first member, oldest first, without those of raft itself.
func (c *Cluster) EntryBytes(t testing.TB) []int {
	t.Helper()
	dir := c.Members[0].Config().Dir
	c.stop()
	w, err := wal.OpenForRead(zap.NewNop(), filepath.Join(dir, "member", "wal"), &walpb.Snapshot{})
	require.NoError(t, err)
	defer w.Close()
	_, _, entries, err := w.ReadAll()
	require.NoError(t, err)
	var sizes []int
	for _, e := range entries {
		if e.GetType() == raftpb.EntryNormal && len(e.Data) > 0 {
			sizes = append(sizes, len(e.Data))
		}
	}
	return sizes
}
