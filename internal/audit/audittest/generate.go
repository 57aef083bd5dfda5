// Package audittest writes database files of etcd with known answers.
package audittest

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

// Generator writes a database as etcd does, and keeps the answers.
type Generator struct {
	testing.TB
	path    string
	db      *bolt.DB
	tx      *bolt.Tx
	pending int

	Revision int64
	Keys     map[string]*Truth
	Records  uint64
	Forget   bool // the answers are not kept, and each put is of a new key
}

// Truth is what is known of a key.
type Truth struct {
	Live                              *mvccpb.KeyValue
	Bytes                             uint64 // of the live record
	History, HistoryBytes, Tombstones uint64
}

// Kept is how many revisions there are of the key.
func (k *Truth) Kept() uint64 {
	if k.Live != nil {
		return k.History + 1
	}
	return k.History
}

// New returns a generator of a new file.
func New(t testing.TB) *Generator {
	g := &Generator{TB: t, path: filepath.Join(t.TempDir(), "db"), Keys: make(map[string]*Truth), Revision: 1}
	var err error
	g.db, err = bolt.Open(g.path, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true, NoGrowSync: true, InitialMmapSize: 1 << 30})
	require.NoError(t, err)
	t.Cleanup(func() { g.db.Close() })
	g.bucket("key")
	g.bucket("meta")
	return g
}

func (g *Generator) begin() *bolt.Tx {
	if g.tx == nil {
		var err error
		g.tx, err = g.db.Begin(true)
		require.NoError(g, err)
	}
	return g.tx
}

func (g *Generator) commit() {
	if g.tx != nil {
		require.NoError(g, g.tx.Commit())
		g.tx, g.pending = nil, 0
	}
}

func (g *Generator) bucket(name string) *bolt.Bucket {
	b, err := g.begin().CreateBucketIfNotExists([]byte(name))
	require.NoError(g, err)
	b.FillPercent = .9 // as etcd's
	return b
}

func (g *Generator) write(tombstone bool, kv *mvccpb.KeyValue) uint64 {
	key := binary.BigEndian.AppendUint64(nil, uint64(g.Revision))
	key = append(key, '_')
	key = binary.BigEndian.AppendUint64(key, 0)
	if tombstone {
		key = append(key, 't')
	}
	value, err := proto.Marshal(kv)
	require.NoError(g, err)
	require.NoError(g, g.bucket("key").Put(key, value))
	g.Records++
	if g.pending++; g.pending == 10000 {
		g.commit()
	}
	return uint64(len(key) + len(value))
}

// Put writes a put, one revision.
func (g *Generator) Put(key string, value []byte, lease int64) {
	g.Revision++
	k := g.Keys[key]
	if k == nil {
		k = new(Truth)
		if !g.Forget {
			g.Keys[key] = k
		}
	}
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: value, Lease: lease, ModRevision: g.Revision, CreateRevision: g.Revision, Version: 1}
	if k.Live != nil {
		kv.CreateRevision, kv.Version = k.Live.CreateRevision, k.Live.Version+1
		k.History++
		k.HistoryBytes += k.Bytes
	}
	k.Live, k.Bytes = kv, g.write(false, kv)
}

// Delete writes a delete of a key that is live.
func (g *Generator) Delete(key string) {
	g.Revision++
	k := g.Keys[key]
	k.History += 2
	k.HistoryBytes += k.Bytes + g.write(true, &mvccpb.KeyValue{Key: []byte(key)})
	k.Live, k.Bytes = nil, 0
	k.Tombstones++
}

// Close closes the file and returns its name.
func (g *Generator) Close() string {
	g.commit()
	require.NoError(g, g.db.Close())
	return g.path
}

// KeyName is a key as Kubernetes has them.
func KeyName(i int) string { return fmt.Sprintf("/registry/kind%02d/ns%d/object-%07d", i%17, i%5, i) }
