package chunker

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// readers are the ways in which a value can come back.
var readers = map[string]func(ctx context.Context, kv clientv3.KV) error{
	"get": func(ctx context.Context, kv clientv3.KV) error {
		_, err := kv.Get(ctx, "k")
		return err
	},
	"range": func(ctx context.Context, kv clientv3.KV) error {
		_, err := kv.Get(ctx, "", clientv3.WithPrefix())
		return err
	},
	"sort by value": func(ctx context.Context, kv clientv3.KV) error {
		_, err := kv.Get(ctx, "k", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend))
		return err
	},
	"transaction": func(ctx context.Context, kv clientv3.KV) error {
		_, err := kv.Txn(ctx).Then(clientv3.OpGet("k")).Commit()
		return err
	},
	"comparison": func(ctx context.Context, kv clientv3.KV) error {
		_, err := kv.Txn(ctx).If(clientv3.Compare(clientv3.Value("k"), ">", "")).Commit()
		return err
	},
	"stream": func(ctx context.Context, kv clientv3.KV) error {
		ch, err := kv.GetStream(ctx, "k")
		if err != nil {
			return err
		}
		_, err = clientv3.GetStreamToGetResponse(ch)
		return err
	},
	"move to another lease": func(ctx context.Context, kv clientv3.KV) error {
		_, err := kv.Put(ctx, "k", "", clientv3.WithIgnoreValue(), clientv3.WithLease(1))
		return err
	},
	"prevKV": func(ctx context.Context, kv clientv3.KV) error {
		_, err := kv.Put(ctx, "k", "new", clientv3.WithPrevKV())
		return err
	},
}

// TestDamageIsToldApart damages a stored value in every way and reads it in every
// way: by a client that knows the key, and by one that does not. What comes back
// is an error that names key, revision and chunk.
func TestDamageIsToldApart(t *testing.T) {
	e := newEnv(t, everything, nil)
	space := e.kv.stage.space
	value := text(9000, "value")

	// What is done to the stored manifest or to one of the chunks.
	type damage struct {
		manifest func(stored []byte) []byte
		chunk    func(stored []byte) []byte
		target   error
		names    bool // the chunk
	}
	seal := func(b []byte) []byte { // as if it had been written like this
		return binary.BigEndian.AppendUint64(b[:len(b)-8:len(b)-8], xxhash.Sum64(b[:len(b)-8]))
	}
	for name, d := range map[string]damage{
		"chunk missing":        {chunk: func([]byte) []byte { return nil }, target: ErrDamaged, names: true},
		"chunk altered":        {chunk: func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, target: ErrDamaged, names: true},
		"chunk cut short":      {chunk: func(b []byte) []byte { return b[:len(b)-1] }, target: ErrDamaged, names: true},
		"chunk empty":          {chunk: func([]byte) []byte { return []byte{} }, target: ErrDamaged, names: true},
		"manifest altered":     {manifest: func(b []byte) []byte { b[40] ^= 1; return b }, target: ErrDamaged},
		"manifest cut short":   {manifest: func(b []byte) []byte { return b[:len(b)-1] }, target: ErrDamaged},
		"manifest a beginning": {manifest: func(b []byte) []byte { return b[:5] }, target: ErrDamaged},
		"digest altered":       {manifest: func(b []byte) []byte { b[47] ^= 1; return seal(b) }, target: ErrDamaged},
		"unknown version":      {manifest: func(b []byte) []byte { b[4] = 2; return b }, target: ErrUnknownFormat},
		"unknown kind":         {manifest: func(b []byte) []byte { b[5] = 7; return b }, target: ErrDamaged},
		"another prefix": {manifest: func(b []byte) []byte {
			return seal([]byte(strings.Replace(string(b), "\x05\x00kvw/", "\x05\x00kvX/", 1)))
		}, target: ErrPrefixMismatch},
	} {
		for how, read := range readers {
			t.Run(name+", "+how, func(t *testing.T) {
				e := e.at(t)
				e.cluster.Wipe(t)
				e.put("k", value)
				manifest := []byte(e.stored()["k"])
				_, m, err := format.Parse(manifest, 1<<20)
				require.NoError(t, err)
				knowing := e.kv
				e.holds("k", value)
				stranger, _ := e.another(everything)
				var chunk string
				if d.manifest != nil {
					_, err := e.cli.Put(e.ctx, "k", string(d.manifest(manifest)))
					require.NoError(t, err)
				} else {
					id := m.Refs[len(m.Refs)/2].ID
					chunk = id.String()
					key := string(space.ChunkKey([]byte("k"), id))
					if b := d.chunk([]byte(e.stored()[key])); b != nil {
						_, err = e.cli.Put(e.ctx, key, string(b))
					} else {
						_, err = e.cli.Delete(e.ctx, key)
					}
					require.NoError(t, err)
				}
				before, err := e.cli.Get(e.ctx, "k")
				require.NoError(t, err)
				for _, kv := range []*KV{stranger, knowing} {
					if d.chunk != nil && kv == knowing && how == "get" {
						continue // it holds the chunk, see below
					}
					err := read(e.ctx, kv)
					require.ErrorIs(t, err, d.target)
					require.ErrorContains(t, err, `"k"`)
					if d.target == ErrDamaged && how != "prevKV" {
						var damaged *DamagedError
						require.ErrorAs(t, err, &damaged)
						require.Equal(t, before.Kvs[0].ModRevision, damaged.Revision)
						require.Equal(t, d.names, damaged.Chunk != "")
						if d.names {
							require.Equal(t, chunk, damaged.Chunk)
						}
					}
					if how == "prevKV" {
						return // it has been written over
					}
				}
				if d.target != ErrDamaged {
					// What is another's cannot be written over.
					_, err = stranger.Put(e.ctx, "k", value)
					require.ErrorIs(t, err, d.target)
					return
				}
				// What is damaged can be written over, by who has seen that it is.
				_, err = stranger.Put(e.ctx, "k", value)
				require.NoError(t, err)
				reader, _ := e.another(everything)
				mended, err := reader.Get(e.ctx, "k")
				require.NoError(t, err)
				require.True(t, value == string(mended.Kvs[0].Value))
			})
		}
	}
}

// TestSwappedChunksAreToldApart swaps two chunks of the same length.
func TestSwappedChunksAreToldApart(t *testing.T) {
	e := newEnv(t, everything, nil)
	e.put("k", strings.Repeat(incompressible(1024, "a"), 1)+incompressible(40_000, "b"))
	space := e.kv.stage.space
	_, m, err := format.Parse([]byte(e.stored()["k"]), 1<<20)
	require.NoError(t, err)
	a := string(space.ChunkKey([]byte("k"), m.Refs[1].ID))
	b := string(space.ChunkKey([]byte("k"), m.Refs[2].ID))
	all := e.stored()
	_, err = e.cli.Put(e.ctx, a, all[b])
	require.NoError(t, err)
	_, err = e.cli.Put(e.ctx, b, all[a])
	require.NoError(t, err)
	var damaged *DamagedError
	require.ErrorAs(t, readers["get"](e.ctx, e.kv), &damaged)
	require.Equal(t, m.Refs[1].ID.String(), damaged.Chunk)
}

// TestACopiedManifestIsToldApart copies stored values to another key, as a mirror
// to another prefix does.
func TestACopiedManifestIsToldApart(t *testing.T) {
	e := newEnv(t, everything, nil)
	e.put("from", text(5000, "x"))
	_, err := e.cli.Put(e.ctx, "k", e.stored()["from"])
	require.NoError(t, err)
	err = readers["get"](e.ctx, e.kv)
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorContains(t, err, "copied here without its chunks")
}

func TestValuesOverTheLimitAreRefused(t *testing.T) {
	cfg := everything
	cfg.MaxValueBytes = 10_000
	e := newEnv(t, cfg, nil)
	before := e.stored()
	_, err := e.kv.Put(e.ctx, "k", text(10_001, "x"))
	require.ErrorIs(t, err, ErrValueTooLarge)
	require.ErrorContains(t, err, "10001 bytes, Config.MaxValueBytes is 10000")
	_, err = e.kv.Txn(e.ctx).Then(clientv3.OpPut("a", "1"), clientv3.OpTxn(nil, nil, []clientv3.Op{clientv3.OpPut("k", text(10_001, "x"))})).Commit()
	require.ErrorIs(t, err, ErrValueTooLarge)
	require.Equal(t, before, e.stored())
	require.Zero(t, e.sent.Take().Requests)

	larger, _ := e.another(everything)
	_, err = larger.Put(e.ctx, "k", text(10_001, "x"))
	require.NoError(t, err)
	for how, read := range readers {
		if how != "prevKV" {
			require.ErrorIs(t, read(e.ctx, e.kv), ErrValueTooLarge, how)
		}
	}
	e.put("k", text(10_000, "y"))
	e.holds("k", text(10_000, "y"))
}

func TestReservedKeysAreRefused(t *testing.T) {
	e := newEnv(t, everything, nil)
	ctx := e.ctx
	for _, key := range []string{"\x00kvw/", "\x00kvw/a", "\x00kvw/\xff"} {
		for how, call := range map[string]func() error{
			"put":         func() error { _, err := e.kv.Put(ctx, key, "v"); return err },
			"get":         func() error { _, err := e.kv.Get(ctx, key); return err },
			"get a range": func() error { _, err := e.kv.Get(ctx, key, clientv3.WithFromKey()); return err },
			"delete":      func() error { _, err := e.kv.Delete(ctx, key); return err },
			"prefix":      func() error { _, err := e.kv.Delete(ctx, key, clientv3.WithPrefix()); return err },
			"stream":      func() error { _, err := e.kv.GetStream(ctx, key); return err },
			"compare": func() error {
				_, err := e.kv.Txn(ctx).If(clientv3.Compare(clientv3.Version(key), "=", 0)).Commit()
				return err
			},
			"then": func() error { _, err := e.kv.Txn(ctx).Then(clientv3.OpPut(key, "v")).Commit(); return err },
			"else": func() error { _, err := e.kv.Txn(ctx).Else(clientv3.OpGet(key)).Commit(); return err },
			"nested": func() error {
				_, err := e.kv.Do(ctx, clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpTxn(nil, nil, []clientv3.Op{clientv3.OpDelete(key)})}, nil))
				return err
			},
		} {
			err := call()
			require.ErrorIs(t, err, ErrReservedKey, "%s %q", how, key)
			var reserved *ReservedKeyError
			require.ErrorAs(t, err, &reserved)
			require.Equal(t, ReservedKeyError{Key: []byte(key), Prefix: "\x00kvw/"}, *reserved)
		}
	}
	require.Zero(t, e.sent.Take().Requests, "something was sent")
	e.put("\x00kvw", "beside it")
	e.put("\x00kvw0", "above it")
}

func TestConfigIsValidated(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		says []string
	}{
		"all at once": {
			Config{Threshold: -1, MaxEntryBytes: 1000, MaxValueBytes: 1 << 30, ChunkBytes: 3, SessionTTL: 5, ReservedPrefix: "\xff", CacheBytes: -1},
			[]string{"Threshold is -1", "MaxEntryBytes is 1000", "MaxValueBytes is 1073741824", "ChunkBytes is 3", "SessionTTL is 5ns", "reserved prefix", "CacheBytes is -1", "Lease is nil"},
		},
		"threshold over an entry": {Config{Threshold: 70000}, []string{"Threshold is 70000: choose 1 to 65536"}},
		"chunks over an entry":    {Config{ChunkBytes: 20000}, []string{"ChunkBytes is 20000: choose 256 to 16384"}},
	} {
		_, err := NewKV(nil, c.cfg)
		require.ErrorIs(t, err, ErrConfig, name)
		for _, says := range c.says {
			require.ErrorContains(t, err, says, name)
		}
		var joined interface{ Unwrap() []error }
		require.True(t, errors.As(err, &joined))
	}
	_, _, err := Config{ReadOnly: true}.filled()
	require.NoError(t, err, "a reader needs no lease")
}

// TestAWriterFindsThatChunksAreMissing has never read the key, which was copied
// without its chunks, or has lost one.
func TestAWriterFindsThatChunksAreMissing(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	value := incompressible(200<<10, "v")
	for name, lose := range map[string]func(){
		"one": func() {
			for key := range e.stored() {
				if e.kv.stage.space.Reserved([]byte(key)) {
					_, err := e.cli.Delete(e.ctx, key)
					require.NoError(t, err)
					return
				}
			}
		},
		"all": func() {
			chunks := e.kv.stage.space.Chunks(format.Range{Key: []byte("k")})
			_, err := e.cli.Delete(e.ctx, string(chunks.Key), clientv3.WithRange(string(chunks.End)))
			require.NoError(t, err)
		},
	} {
		e.put("k", value)
		lose()
		writer, _ := e.another(Config{})
		_, err := writer.Put(e.ctx, "k", value+"more")
		require.NoError(t, err)
		reader, _ := e.another(Config{})
		resp, err := reader.Get(e.ctx, "k")
		require.NoError(t, err, name)
		require.True(t, value+"more" == string(resp.Kvs[0].Value), name)
		_, err = reader.Delete(e.ctx, "k")
		require.NoError(t, err)
		require.Empty(t, e.orphans())
	}
}
