package chunker

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"pgregory.net/rapid"
)

func TestChunkRange(t *testing.T) {
	for _, c := range []struct{ key, rangeEnd, from, to string }{
		{"k", "", "\x00kvw/k", "\x00kvw/k\x00\xff"},
		{"k", "k\x00", "\x00kvw/k", "\x00kvw/k\x00\xff"},
		{"app/", "app0", "\x00kvw/app/", "\x00kvw/app0"},
		{"k", "\x00", "\x00kvw/k", "\x00kvw0"},
		{"\x00", "\x00", "\x00kvw/\x00\xff", "\x00kvw0"},
		{"a\x00b", "", "\x00kvw/a\x00\xffb", "\x00kvw/a\x00\xffb\x00\xff"},
	} {
		from, to, err := Config{}.ChunkRange(c.key, c.rangeEnd)
		require.NoError(t, err)
		require.Equal(t, [2]string{c.from, c.to}, [2]string{from, to}, "%q to %q", c.key, c.rangeEnd)
	}
	from, to, err := Config{ReservedPrefix: "chunks/"}.ChunkRange("app/", "app0")
	require.NoError(t, err)
	require.Equal(t, [2]string{"chunks/app/", "chunks/app0"}, [2]string{from, to})

	for _, c := range []struct {
		cfg           Config
		key, rangeEnd string
		want          error
	}{
		{Config{}, "", "\x00", rpctypes.ErrEmptyKey},
		{Config{}, "b", "a", rpctypes.ErrInvalidAuthMgmt},
		{Config{}, "\x00kvw/k", "", ErrReservedKey},
		{Config{ReservedPrefix: "\xff"}, "k", "", ErrConfig},
	} {
		_, _, err := c.cfg.ChunkRange(c.key, c.rangeEnd)
		require.ErrorIs(t, err, c.want)
	}
}

// TestChunkRangeHoldsTheChunksAlone draws ranges and keys.
func TestChunkRangeHoldsTheChunksAlone(t *testing.T) {
	space, err := Config{}.space()
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		few := rapid.StringOfN(rapid.RuneFrom([]rune("\x00\x01a")), 1, 3, -1)
		key, rangeEnd, of := few.Draw(t, "key"), rapid.OneOf(few, rapid.Just("")).Draw(t, "rangeEnd"), few.Draw(t, "of")
		from, to, err := Config{}.ChunkRange(key, rangeEnd)
		if err != nil {
			require.Equal(t, rpctypes.ErrInvalidAuthMgmt, err)
			require.True(t, rangeEnd != "" && key >= rangeEnd)
			return
		}
		chunk := string(space.ChunkKey([]byte(of), format.ID{Token: format.NewToken(), Index: 7}))
		require.Equal(t, format.Range{Key: []byte(key), End: []byte(rangeEnd)}.Contains([]byte(of)), from <= chunk && chunk < to)
	})
}
