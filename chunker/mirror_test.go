package chunker

import (
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/mirror"
)

// TestMirrors copies a cluster to others as etcdctl make-mirror does, with the same library:
// what was there, and then events. All of it is whole; a prefix without its chunks is not,
// and one with its chunks is. docs/operations.md says so.
func TestMirrors(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	before, after := text(300<<10, "before"), text(300<<10, "after")
	e.put("app/k", before)
	e.put("app/small", "small")
	e.put("other", before)
	e.put("app/leased", before, clientv3.WithLease(e.grant()))
	chunks := Config{}.ChunkPrefix("app/")
	require.Equal(t, "\x00kvw/app/", chunks)

	for name, c := range map[string]struct {
		prefixes []string
		renamed  func(string) string
		whole    bool
	}{
		"everything":                 {prefixes: []string{""}, whole: true},
		"a prefix":                   {prefixes: []string{"app/"}},
		"a prefix and its chunks":    {prefixes: []string{chunks, "app/"}, whole: true},
		"a prefix under another one": {prefixes: []string{"app/"}, renamed: func(k string) string { return "copy/" + strings.TrimPrefix(k, "app/") }},
	} {
		t.Run(name, func(t *testing.T) {
			e := e.at(t)
			e.put("app/k", before)
			copied := &env{T: t, cluster: etcdtest.Start(t, 1, nil), ctx: t.Context()}
			copied.cli = copied.cluster.Client(t)
			copied.kv, _ = copied.another(Config{})
			renamed := c.renamed
			if renamed == nil {
				renamed = func(k string) string { return k }
			}
			put := func(k, v []byte) {
				_, err := copied.cli.Put(e.ctx, renamed(string(k)), string(v))
				require.NoError(t, err)
			}
			var updates []clientv3.WatchChan
			for _, prefix := range c.prefixes {
				s := mirror.NewSyncer(e.cli, prefix, 0)
				base, errs := s.SyncBase(e.ctx)
				for resp := range base {
					for _, kv := range resp.Kvs {
						put(kv.Key, kv.Value)
					}
				}
				require.NoError(t, <-errs)
				updates = append(updates, s.SyncUpdates(e.ctx))
			}
			key := renamed("app/k")
			reads := func(value string) {
				resp, err := copied.kv.Get(e.ctx, key)
				if !c.whole {
					require.ErrorIs(t, err, ErrDamaged)
					return
				}
				require.NoError(t, err)
				require.True(t, value == string(resp.Kvs[0].Value))
			}
			reads(before)

			done := e.put("app/k", after).Header.Revision
			for _, events := range updates {
				for seen := int64(0); seen < done; {
					resp := e.next(events)
					for _, event := range resp.Events {
						if event.Type == clientv3.EventTypeDelete {
							_, err := copied.cli.Delete(e.ctx, renamed(string(event.Kv.Key)))
							require.NoError(t, err)
							continue
						}
						put(event.Kv.Key, event.Kv.Value)
					}
					seen = resp.Header.Revision
				}
			}
			reads(after)
			if c.whole {
				copied.holds("app/leased", before) // but on no lease
				for _, key := range []string{key, "app/leased"} {
					copied.put(key, after+"more") // they may be written there
					copied.holds(key, after+"more")
				}
			}
		})
	}
}
