package audit

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// generator writes a database as etcd does, and keeps the answers.
type generator struct {
	testing.TB
	path     string
	db       *bolt.DB
	tx       *bolt.Tx
	pending  int
	revision int64
	keys     map[string]*truth
	records  uint64
	forget   bool // does not keep the answers
}

// truth is what is known of a key.
type truth struct {
	live                              *mvccpb.KeyValue
	bytes                             uint64 // of the live record
	history, historyBytes, tombstones uint64
}

func generate(t testing.TB) *generator {
	g := &generator{TB: t, path: filepath.Join(t.TempDir(), "db"), keys: make(map[string]*truth), revision: 1}
	var err error
	g.db, err = bolt.Open(g.path, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true, NoGrowSync: true, InitialMmapSize: 1 << 30})
	require.NoError(t, err)
	t.Cleanup(func() { g.db.Close() })
	g.bucket("key")
	g.bucket("meta")
	return g
}

func (g *generator) begin() *bolt.Tx {
	if g.tx == nil {
		var err error
		g.tx, err = g.db.Begin(true)
		require.NoError(g, err)
	}
	return g.tx
}

func (g *generator) commit() {
	if g.tx != nil {
		require.NoError(g, g.tx.Commit())
		g.tx, g.pending = nil, 0
	}
}

func (g *generator) bucket(name string) *bolt.Bucket {
	b, err := g.begin().CreateBucketIfNotExists([]byte(name))
	require.NoError(g, err)
	b.FillPercent = .9 // as etcd's
	return b
}

func (g *generator) write(tombstone bool, kv *mvccpb.KeyValue) uint64 {
	key := binary.BigEndian.AppendUint64(nil, uint64(g.revision))
	key = append(key, '_')
	key = binary.BigEndian.AppendUint64(key, 0)
	if tombstone {
		key = append(key, 't')
	}
	value, err := proto.Marshal(kv)
	require.NoError(g, err)
	require.NoError(g, g.bucket("key").Put(key, value))
	g.records++
	if g.pending++; g.pending == 10000 {
		g.commit()
	}
	return uint64(len(key) + len(value))
}

func (g *generator) put(key string, value []byte, lease int64) {
	g.revision++
	k := g.keys[key]
	if k == nil {
		k = new(truth)
		if !g.forget {
			g.keys[key] = k
		}
	}
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: value, Lease: lease, ModRevision: g.revision, CreateRevision: g.revision, Version: 1}
	if k.live != nil {
		kv.CreateRevision, kv.Version = k.live.CreateRevision, k.live.Version+1
		k.history++
		k.historyBytes += k.bytes
	}
	k.live, k.bytes = kv, g.write(false, kv)
}

func (g *generator) delete(key string) {
	g.revision++
	k := g.keys[key]
	k.history += 2
	k.historyBytes += k.bytes + g.write(true, &mvccpb.KeyValue{Key: []byte(key)})
	k.live, k.bytes = nil, 0
	k.tombstones++
}

// close closes the file and returns its name.
func (g *generator) close() string {
	g.commit()
	require.NoError(g, g.db.Close())
	return g.path
}

func keyName(i int) string { return fmt.Sprintf("/registry/kind%02d/ns%d/object-%07d", i%17, i%5, i) }
