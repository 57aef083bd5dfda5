package chunker

import (
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestValuesOfEqualChecksumAreToldApart puts values in turns that only SHA-256
// tells apart: they have the same length and the same xxhash64, and so do the
// chunks in which they differ.
func TestValuesOfEqualChecksumAreToldApart(t *testing.T) {
	const longest = 4 * minChunkBytes // of a chunk, and so the length of one of zeros
	for name, c := range map[string]struct {
		bytes, at, chunks int
	}{
		"one chunk":        {64, 0, 1},
		"one chunk of six": {6 * longest, 2 * longest, 6},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, everything, nil)
			a, b := workload.Colliding(make([]byte, c.bytes), c.at)
			require.NotEqual(t, a, b)
			require.Equal(t, xxhash.Sum64(a), xxhash.Sum64(b))
			manifest := func() *format.Manifest {
				_, m, err := format.Parse([]byte(e.stored()["k"]), c.bytes)
				require.NoError(t, err)
				return m
			}

			other, _ := e.another(everything)
			writers := []*KV{e.kv, other}
			value, before := a, (*format.Manifest)(nil)
			for turn := range 6 {
				_, err := writers[turn/2%2].Put(e.ctx, "k", string(value))
				require.NoError(t, err)
				stranger, _ := e.another(everything)
				for range 3 { // once it is read twice, a value is kept
					for _, kv := range []*KV{e.kv, other, stranger} {
						resp, err := kv.Get(e.ctx, "k")
						require.NoError(t, err)
						require.Equal(t, value, resp.Kvs[0].Value)
						for _, v := range [][]byte{a, b} {
							txn, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Value("k"), "=", string(v))).Commit()
							require.NoError(t, err)
							require.Equal(t, string(v) == string(value), txn.Succeeded)
						}
					}
				}

				m := manifest()
				require.Len(t, m.Refs, c.chunks)
				if before != nil {
					require.Equal(t, before.Digest, m.Digest)
					fresh := 0
					for i, r := range m.Refs {
						if r.ID != before.Refs[i].ID {
							fresh++
							require.NotEqual(t, before.Refs[i].Identity, r.Identity)
						}
					}
					require.Equal(t, 1, fresh)
				}
				before = m
				if value = a; turn%2 == 0 {
					value = b
				}
			}
			require.Empty(t, e.orphans())
		})
	}
}
