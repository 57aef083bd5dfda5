package chunker

import (
	"fmt"
	"testing"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func seen(key string, mod int64) *chunked {
	return newChunked(&mvccpb.KeyValue{Key: []byte(key), ModRevision: mod}, format.NewLayout(&format.Manifest{}))
}

func TestTheCacheIsBounded(t *testing.T) {
	one := seen("key-00", 1).bytes()
	c := newCache(10 * one)
	for i := range 30 {
		c.put(seen(fmt.Sprintf("key-%02d", i), 1))
		require.NotNil(t, c.get([]byte("key-00")), "what is used stays")
	}
	require.Equal(t, 0, c.left)
	require.Len(t, c.byKey, 10)
	require.Nil(t, c.get([]byte("key-01")))
	require.NotNil(t, c.get([]byte("key-29")))
	for key := range c.byKey {
		c.forget([]byte(key), 1)
	}
	require.Equal(t, c.size, c.left)

	tiny := newCache(1)
	tiny.put(seen("k", 1))
	require.Nil(t, tiny.get([]byte("k")))
	require.Equal(t, 1, tiny.left)
}

func TestTheCacheKnowsTheNewest(t *testing.T) {
	c := newCache(1 << 20)
	at := func() int64 { return c.get([]byte("k")).meta.ModRevision }
	c.put(seen("k", 5))
	c.put(seen("k", 4))
	require.EqualValues(t, 5, at())
	c.forget([]byte("k"), 4)
	require.EqualValues(t, 5, at())

	v := seen("k", 5)
	value := []byte("value")
	c.keep(v, value)
	value[0] = 'x'
	require.Equal(t, "value", string(c.get([]byte("k")).value), "the caller may change what it was given")
	c.put(seen("k", 5))
	require.NotNil(t, c.get([]byte("k")).value, "what knows less does not replace what knows more")
	c.put(seen("k", 6))
	require.EqualValues(t, 6, at())
	require.Nil(t, c.get([]byte("k")).value)
	c.keep(seen("k", 7), make([]byte, c.size/4+1))
	require.EqualValues(t, 6, at(), "one value leaves room for others")
	c.forget([]byte("k"), 6)
	require.Nil(t, c.get([]byte("k")))
	require.Equal(t, c.size, c.left)
}
