package audit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// TestReadWAL reads the log of a member that runs.
func TestReadWAL(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	cli := cluster.Client(t)
	for range 30 {
		_, err := cli.Put(t.Context(), "/a/b/c", strings.Repeat("v", 1000))
		require.NoError(t, err)
	}
	_, err := cli.Txn(t.Context()).Then(
		clientv3.OpPut("/t/x/1", strings.Repeat("v", 3000)),
		clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("/u/x/1", strings.Repeat("v", 1000))}, nil),
	).Commit()
	require.NoError(t, err)
	_, err = cli.Delete(t.Context(), "/a/b/c")
	require.NoError(t, err)
	lease, err := cli.Grant(t.Context(), 100)
	require.NoError(t, err)
	require.NotZero(t, lease.ID)

	dir := filepath.Join(cluster.Members[0].Config().Dir, "member", "wal")
	before := sums(t, dir)
	l, err := ReadWAL(t.Context(), dir, Config{Space: testSpace(t)})
	require.NoError(t, err)
	require.Equal(t, before, sums(t, dir))
	types := make(map[Key]EntryKind)
	for _, k := range l.Types {
		types[k.Name] = k
	}
	require.Equal(t, uint64(30), types["PutRequest"].Entries)
	require.Equal(t, uint64(1), types["TxnRequest"].Entries)
	require.Equal(t, uint64(1), types["DeleteRangeRequest"].Entries)
	require.Equal(t, uint64(1), types["LeaseGrantRequest"].Entries)
	require.Equal(t, uint64(1), types["ConfChange"].Entries)
	require.Equal(t, Key("PutRequest"), l.Types[0].Name)
	require.Equal(t, Key("/a/b/"), l.Prefixes[0].Name)
	require.Equal(t, uint64(30), l.Prefixes[0].Entries)
	require.InDelta(t, 30*1020, float64(l.Prefixes[0].Bytes), 30*20)
	require.Equal(t, Key("/t/x/"), l.Prefixes[1].Name)
	require.InDelta(t, 3*float64(l.Prefixes[2].Bytes), float64(l.Prefixes[1].Bytes), 60)
	require.Equal(t, l.LastIndex-l.FirstIndex+1, l.Entries.Count)
	require.Equal(t, l.Entries.Bytes, l.RetainedBytes)
	for _, size := range cluster.EntryBytes(t) {
		require.LessOrEqual(t, uint64(size), l.Entries.Max)
	}

	// Damage, which is not at the end.
	files, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	require.NoError(t, err)
	content, err := os.ReadFile(files[0])
	require.NoError(t, err)
	content[10_000] ^= 1
	copied := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(copied, filepath.Base(files[0])), content, 0o600))
	l, err = ReadWAL(t.Context(), copied, Config{Space: testSpace(t)})
	require.NoError(t, err)
	require.Contains(t, l.Incomplete, "it is damaged after index")
	_, err = ReadWAL(t.Context(), t.TempDir(), Config{Space: testSpace(t)})
	require.ErrorContains(t, err, "there is no file *.wal: give the --data-dir of a member")
}

// writtenLog is the file of a log with a few entries.
func writtenLog(t *testing.T) string {
	cluster := etcdtest.Start(t, 1, nil)
	for range 30 {
		_, err := cluster.Client(t).Put(t.Context(), "/a/b", strings.Repeat("v", 1000))
		require.NoError(t, err)
	}
	files, err := filepath.Glob(filepath.Join(cluster.Members[0].Config().Dir, "member", "wal", "*.wal"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	return files[0]
}

func sums(t *testing.T, dir string) map[string]string {
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	all := make(map[string]string)
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".wal") { // the next file is being prepared
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, f.Name()))
		require.NoError(t, err)
		all[f.Name()] = string(content[:1<<16])
	}
	return all
}

// TestTheRetainedEntriesAreTheNewest, whatever came before.
func TestTheRetainedEntriesAreTheNewest(t *testing.T) {
	w := &walTally{cfg: Config{}.filled(), types: make(map[string]*EntryKind), prefixes: make(map[string]*EntryKind)}
	for i := range retainedEntries + 10 {
		size := 10
		if i >= 10 {
			size = 1
		}
		w.add(entryOf(size))
	}
	var sum uint64
	for _, n := range w.last {
		sum += n
	}
	require.Equal(t, uint64(retainedEntries), sum)
}

func entryOf(size int) *raftpb.Entry {
	return &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: make([]byte, size)}
}
