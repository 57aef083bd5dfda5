package chunker

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	etcdutl "go.etcd.io/etcd/etcdutl/v3/snapshot"
)

// TestARestoreUnderLiveClients restores a cluster to a snapshot under clients that
// go on: with revisions that repeat, and with revisions that do not. Nobody reads
// anything but values that the restored cluster has, and no manifest names a chunk
// that it does not have.
func TestARestoreUnderLiveClients(t *testing.T) {
	t.Parallel() // servers take seconds to stop under their clients
	for name, how := range map[string]func(*etcdutl.RestoreConfig){
		"revisions repeat": nil,
		"--bump-revision":  func(r *etcdutl.RestoreConfig) { r.RevisionBump, r.MarkCompacted = 1_000_000, true },
		"another cluster":  func(r *etcdutl.RestoreConfig) { r.InitialClusterToken = "another" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, Config{}, nil)
			base := text(300<<10, "base")
			edited := func(edit string) string { return base[:1000] + edit + base[1000:] }
			e.put("k", base)
			e.put("known", base)
			e.put("known", base) // and kept
			e.holds("known", base)
			saved := e.cluster.Snapshot(t)

			// Writes that the snapshot does not have, by several clients, which all
			// remember them.
			other, _ := e.another(Config{})
			for _, kv := range []*KV{e.kv, other} {
				_, err := kv.Put(e.ctx, "k", edited("lost"))
				require.NoError(t, err)
				_, err = kv.Get(e.ctx, "k")
				require.NoError(t, err)
				_, err = kv.Put(e.ctx, "new", edited("lost as well"))
				require.NoError(t, err)
			}
			e.cluster.Restore(t, saved, how)

			// The same number of writes, and more, so that revisions meet.
			for i := range 4 {
				_, err := e.cli.Put(e.ctx, "filler", string(rune('a'+i)))
				require.NoError(t, err)
			}
			for _, kv := range []*KV{e.kv, other} {
				resp, err := kv.Get(e.ctx, "k")
				require.NoError(t, err)
				require.True(t, base == string(resp.Kvs[0].Value))
				resp, err = kv.Get(e.ctx, "new")
				require.NoError(t, err)
				require.Empty(t, resp.Kvs)
			}
			_, err := other.Put(e.ctx, "k", edited("after"))
			require.NoError(t, err)
			e.holds("k", edited("after"))
			e.put("k", edited("after that"))
			e.put("new", edited("again"))
			e.holds("new", edited("again"))
			e.holds("known", base)
			fresh, _ := e.another(Config{})
			for key, value := range map[string]string{"k": edited("after that"), "new": edited("again"), "known": base} {
				resp, err := fresh.Get(e.ctx, key)
				require.NoError(t, err)
				require.True(t, value == string(resp.Kvs[0].Value))
			}
			require.Empty(t, e.orphans())
		})
	}
}

// TestARestoreBetweenTwoBatches restores the cluster to a moment when a write had
// staged some of its chunks, while the writer has staged all of them: the commit
// must not name those that are lost.
func TestARestoreBetweenTwoBatches(t *testing.T) {
	t.Parallel()
	e := newEnv(t, Config{}, nil)
	e.put("k", text(100<<10, "old"))
	value := incompressible(600<<10, "new")
	saved, batches := "", 0
	writer := e.interposed(&between{
		answered: func(r *pb.TxnRequest, _ *pb.TxnResponse) bool {
			if wire.Writes(r) {
				batches++
			}
			if batches == 1 {
				saved = e.cluster.Snapshot(t) // the anchor and the first chunks
			}
			return false
		},
		sending: func(r *pb.TxnRequest) bool {
			if !puts(r, "k") {
				return false
			}
			e.cluster.Restore(t, saved, nil)
			return true
		},
	}, Config{})
	_, err := writer.Put(e.ctx, "k", value)
	require.NoError(t, err)
	require.Greater(t, batches, 5)
	require.EqualValues(t, 1, writer.Stats().Conflicts)
	e.holds("k", value)
	writer.stage.background.Wait()
	e.sweep()
	require.Empty(t, e.orphans())
}

// TestASweepAcrossARestore reads a key that holds a small value over chunks that
// are garbage, and would delete them when the cluster was restored and has come, with
// key and lock, to the same revisions again, but the key holds a value made of them.
func TestASweepAcrossARestore(t *testing.T) {
	t.Parallel()
	e := newEnv(t, Config{}, nil)
	base := text(200<<10, "base")
	e.put("k", base)
	saved := e.cluster.Snapshot(t)
	_, err := e.cli.Put(e.ctx, "k", "small")
	require.NoError(t, err)
	sweeper := e.interposed(&between{sending: func(r *pb.TxnRequest) bool {
		if len(r.Success) == 0 || r.Success[0].GetRequestDeleteRange() == nil {
			return false
		}
		e.cluster.Restore(t, saved, nil)
		writer, _ := e.another(Config{})
		_, err := writer.Put(e.ctx, "k", base[:1000]+"x"+base[1000:])
		require.NoError(t, err)
		lock, err := e.cli.Put(e.ctx, string(e.kv.stage.space.Own(lockName)), "")
		require.NoError(t, err)
		require.Equal(t, r.Compare[len(r.Compare)-2].GetCreateRevision(), lock.Header.Revision) // to the worst
		return true
	}}, Config{})
	result, err := sweeper.Sweep(e.ctx)
	require.NoError(t, err)
	require.Equal(t, SweepResult{Keys: 1}, result)
	e.holds("k", base[:1000]+"x"+base[1000:])
}

// TestASessionThatIsGivenUp cuts a process off, so that it cannot delete what it
// has staged, for longer than it tries.
func TestASessionThatIsGivenUp(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	lease, err := e.kv.stage.session.Get(e.ctx)
	require.NoError(t, err)
	e.kv.stage.session.Retire(lease)
	again, err := e.kv.stage.session.Get(e.ctx)
	require.NoError(t, err)
	require.NotEqual(t, lease, again)
	e.kv.stage.session.Retire(lease) // is another's now
	require.Equal(t, again, e.kv.stage.session.Held())
	require.NotEqual(t, clientv3.NoLease, again)
}
