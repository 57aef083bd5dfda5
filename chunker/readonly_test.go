package chunker

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestReadOnly is the first step of a roll-out: a client that reads what others
// have chunked, and writes nothing that a plain client cannot read.
func TestReadOnly(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	reader, sent := e.another(Config{ReadOnly: true})
	value := text(300<<10, "v")
	for name, write := range map[string]func(kv clientv3.KV) error{
		"put": func(kv clientv3.KV) error {
			_, err := kv.Put(e.ctx, "k", value+"x")
			return err
		},
		"put with prevKV": func(kv clientv3.KV) error {
			resp, err := kv.Put(e.ctx, "k", "small", clientv3.WithPrevKV())
			require.True(t, value == string(resp.PrevKv.Value))
			return err
		},
		"transaction": func(kv clientv3.KV) error {
			resp, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Value("k"), "=", value)).
				Then(clientv3.OpGet("k"), clientv3.OpPut("l", value), clientv3.OpDelete("k", clientv3.WithPrevKV())).Commit()
			require.True(t, resp.Succeeded)
			require.True(t, value == string(resp.Responses[0].GetResponseRange().Kvs[0].Value))
			require.True(t, value == string(resp.Responses[2].GetResponseDeleteRange().PrevKvs[0].Value))
			return err
		},
		"move to another lease": func(kv clientv3.KV) error {
			_, err := kv.Put(e.ctx, "k", "", clientv3.WithIgnoreValue(), clientv3.WithLease(e.grant()))
			return err
		},
		"delete": func(kv clientv3.KV) error {
			_, err := kv.Delete(e.ctx, "k")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			e.put("k", value)
			got, err := reader.Get(e.ctx, "k")
			require.NoError(t, err)
			require.True(t, value == string(got.Kvs[0].Value))
			sent.Take()
			require.NoError(t, write(reader))
			for key, stored := range e.stored() {
				require.True(t, format.Plain([]byte(stored)), "a manifest at %q", key)
				require.False(t, e.kv.stage.space.Reserved([]byte(key)), "a chunk is left")
			}
		})
	}
	require.Zero(t, reader.stage.session.Held())
}
