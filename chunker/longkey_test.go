package chunker

import (
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestLongKeysHaveReadableLists takes keys so long that little room is left for a
// chunk beside its key. The shorter chunks are, the more levels of lists a value
// has, and there is an end to what a reader accepts.
func TestLongKeysHaveReadableLists(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	s := e.kv.stage
	longest := 0
	for s.chunkable([]byte(strings.Repeat("k", longest+1))) {
		longest++
	}
	key := []byte(strings.Repeat("k", longest))
	value := []byte(incompressible(4<<20, "v"))
	cut := s.cfg.cut(len(value), s.chunkLimit(s.space.ChunkKeyLen(key)), nil)
	stored, _ := format.NewDraft(s.space, key, value, 0, cut).Build(nil, listBytes(defaultMaxEntryBytes, wideTxn))
	_, _, err := format.Parse(stored, len(value))
	require.NoError(t, err)
}

// TestALongKeyIsMovedByAClientOfSmallEntries has a key whose chunks fit in the
// proposals of one client and not in those of another.
func TestALongKeyIsMovedByAClientOfSmallEntries(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	key, value, lease := strings.Repeat("k", 10<<10), text(200<<10, "v"), e.grant()
	e.put(key, value)
	small, _ := e.another(Config{MaxEntryBytes: 16 << 10})
	_, err := small.Put(e.ctx, key, "", clientv3.WithIgnoreValue(), clientv3.WithLease(lease))
	require.NoError(t, err)
	e.holds(key, value)
	require.Empty(t, e.orphans())
	e.revoke(lease)
	require.Empty(t, e.stored())
}
