package chunker

import (
	"context"
	"fmt"
	"maps"
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"
)

// newAuthEnv is newEnv on a cluster with users, of which e.cli and e.kv have all
// permissions.
func newAuthEnv(t *testing.T) *env {
	e := &env{T: t, ctx: t.Context()}
	e.cluster, e.cli = etcdtest.StartAuth(t)
	e.kv = e.over(e.cli, Config{})
	return e
}

// user adds a user with the permissions, who has those on the chunks as well if
// chunks is set, and returns what it writes and reads through.
func (e *env) user(name string, chunks bool, permissions ...etcdtest.Permission) *KV {
	e.Helper()
	if chunks {
		for _, p := range permissions {
			from, to, err := Config{}.ChunkRange(p.Key, p.RangeEnd)
			require.NoError(e, err)
			permissions = append(permissions, etcdtest.Permission{Key: from, RangeEnd: to, Type: p.Type})
		}
	}
	e.cluster.AddUser(e, e.cli, name, permissions...)
	return e.over(e.cluster.ClientAs(e, name), Config{})
}

func (e *env) over(cli *clientv3.Client, cfg Config) *KV {
	e.Helper()
	cfg.Lease = cli.Lease
	kv, err := NewKV(cli.KV, cfg)
	require.NoError(e, err)
	e.Cleanup(func() { require.NoError(e, kv.Close()) })
	return kv
}

func may(typ clientv3.PermissionType, key, rangeEnd string) etcdtest.Permission {
	return etcdtest.Permission{Key: key, RangeEnd: rangeEnd, Type: typ}
}

const (
	mayRead      = clientv3.PermissionType(clientv3.PermRead)
	mayWrite     = clientv3.PermissionType(clientv3.PermWrite)
	mayReadWrite = clientv3.PermissionType(clientv3.PermReadWrite)
)

// streamed gets through a stream.
func streamed(kv clientv3.KV, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ch, err := kv.GetStream(context.Background(), key, opts...)
	if err != nil {
		return nil, err
	}
	return clientv3.GetStreamToGetResponse(ch)
}

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

// TestARoleWithItsChunkRange does all that a client does, as a user who may do it
// on some keys and on their chunks.
func TestARoleWithItsChunkRange(t *testing.T) {
	e := newAuthEnv(t)
	for name, c := range map[string]struct {
		keys    []string
		permits []etcdtest.Permission
	}{
		"prefix":     {[]string{"app/a", "app/b"}, []etcdtest.Permission{may(mayReadWrite, "app/", "app0")}},
		"one key":    {[]string{"k", "k"}, []etcdtest.Permission{may(mayReadWrite, "k", "")}},
		"neighbours": {[]string{"m", "n"}, []etcdtest.Permission{may(mayReadWrite, "m", ""), may(mayReadWrite, "m\x00", "o")}},
		"from key":   {[]string{"x", "y"}, []etcdtest.Permission{may(mayReadWrite, "x", "\x00")}},
		"all":        {[]string{"a", "z"}, []etcdtest.Permission{may(mayReadWrite, "\x00", "\x00")}},
	} {
		t.Run(name, func(t *testing.T) {
			e := e.at(t)
			kv := e.user(name, true, c.permits...)
			first, last := c.keys[0], c.keys[1]
			all := clientv3.WithRange(last + "\x00")
			inline, staged := text(90<<10, "i"), incompressible(300<<10, "s")

			for _, value := range []string{inline, staged, staged + "x", "small", inline} {
				_, err := kv.Put(e.ctx, first, value)
				require.NoError(t, err)
				resp, err := kv.Put(e.ctx, first, value, clientv3.WithPrevKV())
				require.NoError(t, err)
				require.True(t, value == string(resp.PrevKv.Value))
			}
			_, err := kv.Put(e.ctx, last, staged)
			require.NoError(t, err)
			for _, read := range []func() (*clientv3.GetResponse, error){
				func() (*clientv3.GetResponse, error) { return kv.Get(e.ctx, last) },
				func() (*clientv3.GetResponse, error) { return kv.Get(e.ctx, first, all) },
				func() (*clientv3.GetResponse, error) {
					return kv.Get(e.ctx, first, all, clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend))
				},
				func() (*clientv3.GetResponse, error) { return streamed(kv, first, all) },
			} {
				resp, err := read()
				require.NoError(t, err)
				holds := map[string]string{first: inline, last: staged} // one key: the latter
				for _, kv := range resp.Kvs {
					require.True(t, holds[string(kv.Key)] == string(kv.Value))
				}
			}

			lease, err := e.cluster.ClientAs(t, name).Grant(e.ctx, 600)
			require.NoError(t, err)
			_, err = kv.Put(e.ctx, last, staged+"y", clientv3.WithLease(lease.ID))
			require.NoError(t, err)
			_, err = kv.Put(e.ctx, last, "", clientv3.WithIgnoreValue())
			require.NoError(t, err)
			swapped, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Value(last), "=", staged+"y")).
				Then(clientv3.OpPut(last, inline), clientv3.OpGet(last), clientv3.OpGet(first, all)).
				Else(clientv3.OpDelete(last)).Commit()
			require.NoError(t, err)
			require.True(t, swapped.Succeeded)
			swapped, err = kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Value(last), "=", "else")).Else(clientv3.OpGet(last)).Commit()
			require.NoError(t, err)
			require.True(t, inline == string(swapped.Responses[0].GetResponseRange().Kvs[0].Value))

			deleted, err := kv.Delete(e.ctx, last, clientv3.WithPrevKV())
			require.NoError(t, err)
			require.True(t, inline == string(deleted.PrevKvs[0].Value))
			_, err = kv.Put(e.ctx, last, staged)
			require.NoError(t, err)
			_, err = kv.Delete(e.ctx, first, all)
			require.NoError(t, err)
			require.NoError(t, kv.Close())
			require.Zero(t, len(e.stored()))
		})
	}
}

// TestARoleWithoutItsChunkRange gets errors that say what is missing, and leaves
// nothing behind.
func TestARoleWithoutItsChunkRange(t *testing.T) {
	e := newAuthEnv(t)
	kv := e.user("app", false, may(mayReadWrite, "app/", "app0"))
	large, staged := text(90<<10, "v"), incompressible(300<<10, "s")
	e.put("app/chunked", large)
	_, err := kv.Put(e.ctx, "app/small", "value")
	require.NoError(t, err)
	before := e.stored()

	prefix := clientv3.WithRange("app0")
	key := [2]string{"\x00kvw/app/chunked", "\x00kvw/app/chunked\x00\xff"}
	keys := [2]string{"\x00kvw/app/", "\x00kvw/app0"}
	for name, c := range map[string]struct {
		try  func() error
		need string
		keys [2]string
	}{
		"put":                    {func() error { _, err := kv.Put(e.ctx, "app/chunked", large+"x"); return err }, "readwrite", key},
		"staged put":             {func() error { _, err := kv.Put(e.ctx, "app/chunked", staged); return err }, "readwrite", key},
		"put of nothing over it": {func() error { _, err := kv.Put(e.ctx, "app/chunked", "", clientv3.WithPrevKV()); return err }, "readwrite", key},
		"get":                    {func() error { _, err := kv.Get(e.ctx, "app/chunked"); return err }, "read", key},
		"range":                  {func() error { _, err := kv.Get(e.ctx, "app/", prefix); return err }, "read", keys},
		"stream":                 {func() error { _, err := streamed(kv, "app/", prefix); return err }, "read", keys},
		"delete":                 {func() error { _, err := kv.Delete(e.ctx, "app/chunked"); return err }, "write", key},
		"delete prefix":          {func() error { _, err := kv.Delete(e.ctx, "app/", prefix, clientv3.WithPrevKV()); return err }, "readwrite", keys},
		"move": {func() error {
			_, err := kv.Put(e.ctx, "app/chunked", "", clientv3.WithIgnoreValue())
			return err
		}, "readwrite", key},
		"compare": {func() error {
			_, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Value("app/chunked"), "=", large)).Commit()
			return err
		}, "read", key},
		"transaction": {func() error {
			_, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Version("app/small"), "=", 1)).
				Then(clientv3.OpPut("app/small", "other"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("app/chunked", staged)}, nil)).Commit()
			return err
		}, "readwrite", key},
		"wide transaction": {func() error {
			var ops []clientv3.Op
			for i := range 100 {
				ops = append(ops, clientv3.OpPut(fmt.Sprint("app/", i), "value"))
			}
			_, err := kv.Txn(e.ctx).Then(append(ops, clientv3.OpPut("app/chunked", staged))...).Commit()
			return err
		}, "readwrite", key},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.try()
			require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
			var missing *PermissionError
			require.ErrorAs(t, err, &missing)
			require.Equal(t, c.need, missing.Need)
			require.Equal(t, c.keys, [2]string{missing.From, missing.To})
			require.ErrorContains(t, err, fmt.Sprintf("%s permission on the keys from %q to %q", c.need, c.keys[0], c.keys[1]))
			kv.stage.background.Wait()
			require.True(t, maps.Equal(before, e.stored()))
		})
	}

	t.Run("what needs no chunks", func(t *testing.T) {
		for range 2 {
			_, err := kv.Put(e.ctx, "app/small", "another")
			require.NoError(t, err)
			resp, err := kv.Get(e.ctx, "app/small")
			require.NoError(t, err)
			require.Equal(t, "another", string(resp.Kvs[0].Value))
			resp, err = kv.Get(e.ctx, "app/", prefix, clientv3.WithKeysOnly())
			require.NoError(t, err)
			require.Len(t, resp.Kvs, 2)
			txn, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Value("app/small"), "=", "another")).Then(clientv3.OpGet("app/small")).Commit()
			require.NoError(t, err)
			require.True(t, txn.Succeeded)
		}
	})

	t.Run("granted", func(t *testing.T) {
		var missing *PermissionError
		_, err := kv.Get(e.ctx, "app/", prefix)
		require.ErrorAs(t, err, &missing)
		_, err = e.cli.RoleGrantPermission(e.ctx, "app", missing.From, missing.To, mayReadWrite)
		require.NoError(t, err)
		resp, err := kv.Get(e.ctx, "app/chunked")
		require.NoError(t, err)
		require.True(t, large == string(resp.Kvs[0].Value))
		_, err = kv.Put(e.ctx, "app/chunked", staged)
		require.NoError(t, err)
	})
}

// TestAPermissionThatIsRevoked is missed by a client that knows where the chunks are.
func TestAPermissionThatIsRevoked(t *testing.T) {
	e := newAuthEnv(t)
	kv := e.user("app", true, may(mayReadWrite, "app/", "app0"))
	value := text(300<<10, "v")
	_, err := kv.Put(e.ctx, "app/k", value)
	require.NoError(t, err)
	from, to, err := Config{}.ChunkRange("app/", "app0")
	require.NoError(t, err)
	_, err = e.cli.RoleRevokePermission(e.ctx, "app", from, to)
	require.NoError(t, err)
	var missing *PermissionError
	_, err = kv.Get(e.ctx, "app/k")
	require.ErrorAs(t, err, &missing)
	require.Equal(t, "read", missing.Need)
	_, err = kv.Put(e.ctx, "app/k", "small")
	require.ErrorAs(t, err, &missing)
	require.Equal(t, "write", missing.Need)
	e.holds("app/k", value)
}

// TestAppliedButNotRead writes in a transaction that reads what the user may not.
func TestAppliedButNotRead(t *testing.T) {
	e := newAuthEnv(t)
	kv := e.user("app", false, may(mayReadWrite, "app/", "app0"))
	e.put("app/chunked", text(90<<10, "v"))
	_, err := kv.Txn(e.ctx).Then(clientv3.OpPut("app/small", "value"), clientv3.OpGet("app/chunked")).Commit()
	require.ErrorIs(t, err, ErrApplied)
	var missing *PermissionError
	require.ErrorAs(t, err, &missing)
	require.Equal(t, "app/chunked", string(missing.Key))
	e.holds("app/small", "value")
}

// TestWhatTheUserMayNotDoAtAll is refused with etcd's own error, as without chunks.
func TestWhatTheUserMayNotDoAtAll(t *testing.T) {
	e := newAuthEnv(t)
	large := text(200<<10, "v")
	e.put("app/chunked", large)
	e.put("mine", large)
	lease := e.grant()
	e.put("app/leased", large, clientv3.WithLease(lease))
	for _, chunks := range []bool{true, false} {
		name := fmt.Sprint("other", chunks)
		kv := e.user(name, chunks, may(mayReadWrite, "mine", ""))
		before := e.stored()
		for what, try := range map[string]func() error{
			"put":       func() error { _, err := kv.Put(e.ctx, "app/chunked", large); return err },
			"small put": func() error { _, err := kv.Put(e.ctx, "app/chunked", "small"); return err },
			"get":       func() error { _, err := kv.Get(e.ctx, "app/chunked"); return err },
			"range":     func() error { _, err := kv.Get(e.ctx, "app/", clientv3.WithPrefix()); return err },
			"keys": func() error {
				_, err := kv.Get(e.ctx, "app/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
				return err
			},
			"stream": func() error { _, err := streamed(kv, "app/", clientv3.WithPrefix()); return err },
			"delete": func() error { _, err := kv.Delete(e.ctx, "app/chunked"); return err },
			"compare": func() error {
				_, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Value("app/chunked"), "=", large)).Commit()
				return err
			},
			"both": func() error {
				_, err := kv.Txn(e.ctx).Then(clientv3.OpPut("mine", large+"x"), clientv3.OpGet("app/chunked")).Commit()
				return err
			},
			"a lease of others' keys": func() error {
				_, err := kv.Put(e.ctx, "mine", large+"x", clientv3.WithLease(lease))
				return err
			},
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				require.Equal(t, rpctypes.ErrPermissionDenied, try())
				kv.stage.background.Wait()
				require.True(t, maps.Equal(before, e.stored()))
			})
		}
	}
}

// TestAnotherRange looks for chunks as a user who may use other keys and theirs,
// with a plain client.
func TestAnotherRange(t *testing.T) {
	e := newAuthEnv(t)
	lease := e.grant()
	e.put("app/chunked", text(300<<10, "v"), clientv3.WithLease(lease))
	e.user("other", true, may(mayReadWrite, "other/", "other0"))
	cli := e.cluster.ClientAs(t, "other")
	from, to, err := Config{}.ChunkRange("app/", "app0")
	require.NoError(t, err)
	chunk := string(firstOf(e.stored(), from, to))
	for what, try := range map[string]func() error{
		"chunks": func() error { _, err := cli.Get(e.ctx, from, clientv3.WithRange(to)); return err },
		"number": func() error {
			_, err := cli.Get(e.ctx, from, clientv3.WithRange(to), clientv3.WithCountOnly())
			return err
		},
		"chunk":  func() error { _, err := cli.Get(e.ctx, chunk); return err },
		"all":    func() error { _, err := cli.Get(e.ctx, "\x00", clientv3.WithFromKey()); return err },
		"delete": func() error { _, err := cli.Delete(e.ctx, chunk); return err },
		"compare": func() error {
			_, err := cli.Txn(e.ctx).If(clientv3.Compare(clientv3.Version(chunk), "=", 0)).Commit()
			return err
		},
		"transaction": func() error { _, err := cli.Txn(e.ctx).Else(clientv3.OpGet(chunk)).Commit(); return err },
		"lease":       func() error { _, err := cli.TimeToLive(e.ctx, lease, clientv3.WithAttachedKeys()); return err },
		"leases":      func() error { _, err := cli.Leases(e.ctx); return err },
		"revoke":      func() error { _, err := cli.Revoke(e.ctx, lease); return err },
		"watch":       func() error { resp := <-cli.Watch(e.ctx, from, clientv3.WithRange(to)); return resp.Err() },
	} {
		require.ErrorContains(t, try(), "etcdserver: permission denied", what)
	}
}

func firstOf(stored map[string]string, from, to string) (first string) {
	for key := range stored {
		if from <= key && key < to && (first == "" || key < first) {
			first = key
		}
	}
	return first
}

func TestARoleThatMayOnlyRead(t *testing.T) {
	e := newAuthEnv(t)
	kv := e.user("reader", true, may(mayRead, "app/", "app0"))
	large := text(300<<10, "v")
	e.put("app/chunked", large)
	for range 3 { // first, again, and as it is kept
		resp, err := kv.Get(e.ctx, "app/", clientv3.WithPrefix())
		require.NoError(t, err)
		require.True(t, large == string(resp.Kvs[0].Value))
		resp, err = kv.Get(e.ctx, "app/chunked")
		require.NoError(t, err)
		require.True(t, large == string(resp.Kvs[0].Value))
	}
	_, err := kv.Put(e.ctx, "app/chunked", large)
	require.Equal(t, rpctypes.ErrPermissionDenied, err)
	_, err = kv.Delete(e.ctx, "app/chunked")
	require.Equal(t, rpctypes.ErrPermissionDenied, err)
}

// TestARoleThatMayOnlyWrite puts small values and deletes, and learns what a large
// one takes.
func TestARoleThatMayOnlyWrite(t *testing.T) {
	e := newAuthEnv(t)
	kv := e.user("writer", true, may(mayWrite, "app/", "app0"))
	_, err := kv.Put(e.ctx, "app/k", "small")
	require.NoError(t, err)
	_, err = kv.Delete(e.ctx, "app/k")
	require.NoError(t, err)
	_, err = kv.Put(e.ctx, "app/k", text(300<<10, "v"))
	var missing *PermissionError
	require.ErrorAs(t, err, &missing)
	require.Equal(t, PermissionError{Key: []byte("app/k"), Need: "read", From: "app/k"}, *missing)
	require.ErrorContains(t, err, "grant readwrite in place of write")
	_, err = e.cli.RoleGrantPermission(e.ctx, "writer", "app/", "app0", mayReadWrite)
	require.NoError(t, err)
	_, err = kv.Put(e.ctx, "app/k", text(300<<10, "v"))
	require.ErrorAs(t, err, &missing)
	require.Equal(t, "readwrite", missing.Need)
	require.Zero(t, len(e.stored()))
}

// TestWatchersNeedTheChunksToo watches a large value with permission on its chunks
// and without.
func TestWatchersNeedTheChunksToo(t *testing.T) {
	e := newAuthEnv(t)
	value := text(200<<10, "value")
	for _, chunks := range []bool{true, false} {
		name := fmt.Sprint("chunks ", chunks)
		kv := e.user(name, chunks, may(mayRead, "a", "b"))
		watch := kv.stage.Watcher(e.cluster.ClientAs(t, name).Watcher).Watch(e.ctx, "a", clientv3.WithRange("b"))
		e.put("a", "small")
		require.Equal(t, "small", string(e.next(watch).Events[0].Kv.Value))
		e.put("a", value)
		resp := e.next(watch)
		if chunks {
			require.True(t, value == string(resp.Events[0].Kv.Value))
			continue
		}
		require.True(t, resp.Canceled)
		require.ErrorContains(t, resp.Err(), "the user needs read permission on the keys from")
		_, open := <-watch
		require.False(t, open)
	}
}

// TestASweepTakesAllOfThePrefix has a user who may sweep and not read every key, and
// one who may not list chunks.
func TestASweepTakesAllOfThePrefix(t *testing.T) {
	e := newAuthEnv(t)
	e.put("a", text(200<<10, "value"))
	e.put("b", text(200<<10, "value"))
	some := e.user("some", false, may(mayReadWrite, "a", ""), may(mayReadWrite, "\x00kvw/", "\x00kvw0"))
	result, err := some.Sweep(e.ctx)
	require.NoError(t, err)
	require.Equal(t, SweepResult{Keys: 2, Left: 1}, result)
	_, err = e.user("none", true, may(mayReadWrite, "a", "")).Sweep(e.ctx)
	require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
	require.ErrorContains(t, err, `from "\x00kvw/" to "\x00kvw0"`)
}
