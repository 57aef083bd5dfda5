package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestGetChunks lists chunks that are reused, missing, and on another lease.
func TestGetChunks(t *testing.T) {
	w := newWrapped(t, chunker.Config{MaxValueBytes: 32 << 20}, nil)
	list := func(key string, args ...string) chunkList {
		t.Helper()
		code, stdout, stderr := shapecheck(t, append([]string{"get", key, "--endpoints", w.cluster.Endpoints()[0], "--chunks", "-w", "json"}, args...)...)
		require.Zero(t, code, stderr)
		var l chunkList
		require.NoError(t, json.Unmarshal([]byte(stdout), &l))
		return l
	}
	table := func(key string) string {
		t.Helper()
		code, stdout, stderr := shapecheck(t, "get", key, "--endpoints", w.cluster.Endpoints()[0], "--chunks")
		require.Zero(t, code, stderr)
		return stdout
	}
	value := workload.Text(200e3, "v")
	w.put("k", value)
	first := list("k")
	w.put("k", value[:100e3]+"something new"+value[100e3:])
	l := list("k")
	require.Equal(t, 200e3+13, float64(l.ValueBytes))
	own, offset := 0, 0
	for _, c := range l.Chunks {
		require.Equal(t, offset, c.Offset)
		offset += c.Bytes
		if c.Own {
			own++
			require.True(t, strings.HasPrefix(c.ID, l.Token+"/"))
		}
	}
	require.Equal(t, l.ValueBytes, offset)
	require.NotZero(t, own)
	require.Less(t, own, len(l.Chunks)/2)
	require.NotEqual(t, first.Token, l.Token)
	before := list("k", "--rev", "2")
	require.Equal(t, first.Token, before.Token)
	for _, c := range before.Chunks {
		require.NotZero(t, c.StoredBytes, "as it was then")
	}

	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	chunks := space.Chunks(format.Range{Key: []byte("k")})
	found, err := w.plain.Get(t.Context(), string(chunks.Key), clientv3.WithRange(string(chunks.End)), clientv3.WithLimit(2))
	require.NoError(t, err)
	_, err = w.plain.Delete(t.Context(), string(found.Kvs[0].Key))
	require.NoError(t, err)
	lease, err := w.plain.Grant(t.Context(), 600)
	require.NoError(t, err)
	_, err = w.plain.Put(t.Context(), string(found.Kvs[1].Key), string(found.Kvs[1].Value), clientv3.WithLease(lease.ID))
	require.NoError(t, err)
	shown := table("k")
	require.Contains(t, shown, ", 1 missing.")
	require.Equal(t, 1, strings.Count(shown, "  missing\n"))
	require.Equal(t, 1, strings.Count(shown, "  on lease "))
	code, _, stderr := shapecheck(t, "get", "k", "--endpoints", w.cluster.Endpoints()[0])
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "damaged value")

	w.put("huge", workload.Incompressible(20<<20, "h")) // whose list of chunks is in chunks
	huge := list("huge")
	require.NotZero(t, huge.Depth)
	last := huge.Chunks[len(huge.Chunks)-1]
	require.Equal(t, 20<<20, last.Offset+last.Bytes)
	code, stdout, stderr := shapecheck(t, "get", "huge", "--endpoints", w.cluster.Endpoints()[0])
	require.Zero(t, code, stderr)
	require.True(t, stdout == workload.Incompressible(20<<20, "h"))
}
