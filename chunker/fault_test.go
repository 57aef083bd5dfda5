package chunker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// faulty is a stage that fails one transaction.
type faulty struct {
	pb.KVClient
	calls  atomic.Int64
	before int64 // the call that does not arrive
	after  int64 // the call whose answer is lost
}

var errFault = errors.New("the connection was cut")

func (f *faulty) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	n := f.calls.Add(1)
	if n == f.before {
		return nil, errFault
	}
	resp, err := f.KVClient.Txn(ctx, r, opts...)
	if n == f.after {
		return nil, errFault
	}
	return resp, err
}

// TestEveryStepMayFail cuts the connection at every step of a write, before and
// after the server has seen it. The caller gets that error, the key has its old
// value or the new one, and nothing stays behind.
func TestEveryStepMayFail(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	base := text(600<<10, "base")
	changed := base[:50<<10] + incompressible(300<<10, "new") + base[60<<10:]
	for name, write := range map[string]func(kv clientv3.KV) error{
		"staged": func(kv clientv3.KV) error {
			_, err := kv.Put(e.ctx, "k", changed)
			return err
		},
		"inline": func(kv clientv3.KV) error {
			_, err := kv.Put(e.ctx, "k", base[:1000]+"x"+base[1000:])
			return err
		},
		"in a transaction": func(kv clientv3.KV) error {
			_, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Version("k"), ">", 0)).
				Then(clientv3.OpPut("k", changed), clientv3.OpPut("other", "value")).Commit()
			return err
		},
		"delete": func(kv clientv3.KV) error {
			_, err := kv.Delete(e.ctx, "k")
			return err
		},
	} {
		for _, lost := range []string{"request", "answer"} {
			for step := int64(1); ; step++ {
				e.cluster.Wipe(t)
				e.put("k", base)
				f := &faulty{KVClient: wire.Client(e.cli.KV)}
				if lost == "request" {
					f.before = step
				} else {
					f.after = step
				}
				stage, err := New(f, Config{Lease: e.cli.Lease})
				require.NoError(t, err)
				kv := clientv3.NewKVFromKVClient(stage, nil)
				err = write(kv)
				if f.calls.Load() < step {
					require.NoError(t, err)
					require.NoError(t, stage.Close())
					break // there are no more steps
				}
				what := fmt.Sprintf("%s, %s %d lost", name, lost, step)
				require.Equal(t, errFault, err, what)
				require.NoError(t, stage.Close())

				got, err := e.kv.Get(e.ctx, "k")
				require.NoError(t, err, what)
				if lost == "request" {
					require.Len(t, got.Kvs, 1, what)
				}
				if len(got.Kvs) == 1 && got.Kvs[0].Version == 1 {
					require.True(t, base == string(got.Kvs[0].Value), what)
				}
				require.Empty(t, e.orphans(), what)

				// And the next writer is not in the way of anything.
				e.put("k", base)
				e.holds("k", base)
				require.Empty(t, e.orphans(), what)
			}
		}
	}
}

// TestACancelledWriteLeavesNothing ends the caller's context at every request.
func TestACancelledWriteLeavesNothing(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	for step := int64(1); ; step++ {
		e.put("k", "old")
		ctx, cancel := context.WithCancel(e.ctx)
		c := &canceller{KVClient: wire.Client(e.cli.KV), step: step, cancel: cancel}
		stage, err := New(c, Config{Lease: e.cli.Lease})
		require.NoError(t, err)
		_, err = clientv3.NewKVFromKVClient(stage, nil).Put(ctx, "k", incompressible(600<<10, "new"))
		cancel()
		require.NoError(t, stage.Close())
		if c.calls.Load() < step {
			require.NoError(t, err)
			return
		}
		require.Equal(t, context.Canceled, err)
		e.holds("k", "old")
		require.Empty(t, e.orphans())
	}
}

// canceller ends a context instead of a transaction.
type canceller struct {
	pb.KVClient
	calls  atomic.Int64
	step   int64
	cancel context.CancelFunc
}

func (c *canceller) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if c.calls.Add(1) == c.step {
		c.cancel()
	}
	return c.KVClient.Txn(ctx, r, opts...)
}

// TestWritersOfOneKey lets writers and deleters of one key race, over chunkers of
// their own and shared ones. Every put is one version, every value that is read
// is one that was written, and afterwards nothing but the last value is there.
func TestWritersOfOneKey(t *testing.T) {
	for name, cfg := range map[string]Config{"default": {}, "everything": everything} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, cfg, nil)
			const writers, puts = 6, 8
			base := text(150<<10, "base")
			value := func(w, i int) string {
				at := (w*puts + i) * 1000
				return fmt.Sprintf("%03d %03d", w, i) + base[:at] + incompressible(2000, fmt.Sprint(w, i)) + base[at:]
			}
			var kvs []*KV
			for range writers / 2 {
				kv, _ := e.another(cfg)
				kvs = append(kvs, kv, kv)
			}
			var wg sync.WaitGroup
			done := make(chan struct{})
			for w, kv := range kvs {
				wg.Go(func() {
					for i := range puts {
						if _, err := kv.Put(e.ctx, "k", value(w, i)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			var readers sync.WaitGroup
			for range 2 {
				reader, _ := e.another(cfg)
				readers.Go(func() {
					last := int64(0)
					for {
						select {
						case <-done:
							return
						default:
						}
						resp, err := reader.Get(e.ctx, "k")
						if err != nil {
							t.Error(err)
							return
						}
						if len(resp.Kvs) == 0 {
							continue
						}
						kv := resp.Kvs[0]
						var w, i int
						if _, err := fmt.Sscanf(string(kv.Value[:7]), "%d %d", &w, &i); err != nil || value(w, i) != string(kv.Value) {
							t.Errorf("version %d is a value that nobody wrote", kv.Version)
						}
						if kv.ModRevision < last {
							t.Errorf("revision %d was read after %d", kv.ModRevision, last)
						}
						last = kv.ModRevision
					}
				})
			}
			wg.Wait()
			close(done)
			readers.Wait()
			resp, err := e.kv.Get(e.ctx, "k")
			require.NoError(t, err)
			require.EqualValues(t, writers*puts, resp.Kvs[0].Version)

			// Blind commits may have left chunks behind; nothing else may.
			blind := uint64(0)
			for _, kv := range kvs {
				kv.stage.background.Wait()
				blind += kv.Stats().Conflicts
			}
			if blind == 0 {
				require.Empty(t, e.orphans())
			}
			_, err = e.kv.Delete(e.ctx, "k")
			require.NoError(t, err)
			require.Empty(t, e.stored())
		})
	}
}

// TestCompareAndSwapUnderContention counts in a large value, by its content and
// by its revision: no increment may be lost.
func TestCompareAndSwapUnderContention(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	rest := text(100<<10, "rest")
	number := func(n int) string { return fmt.Sprintf("%06d", n) + rest }
	e.put("k", number(0))
	const writers, increments = 4, 6
	var wg sync.WaitGroup
	for w := range writers {
		kv, _ := e.another(Config{})
		wg.Go(func() {
			for done := 0; done < increments; {
				got, err := kv.Get(e.ctx, "k")
				if err != nil {
					t.Error(err)
					return
				}
				var n int
				fmt.Sscanf(string(got.Kvs[0].Value[:6]), "%d", &n)
				guard := clientv3.Compare(clientv3.ModRevision("k"), "=", got.Kvs[0].ModRevision)
				if w%2 == 0 {
					guard = clientv3.Compare(clientv3.Value("k"), "=", string(got.Kvs[0].Value))
				}
				resp, err := kv.Txn(e.ctx).If(guard).Then(clientv3.OpPut("k", number(n+1))).Commit()
				if err != nil {
					t.Error(err)
					return
				}
				if resp.Succeeded {
					done++
				}
			}
		})
	}
	wg.Wait()
	e.holds("k", number(writers*increments))
}
