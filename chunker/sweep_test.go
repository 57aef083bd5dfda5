package chunker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

func (e *env) sweep() SweepResult {
	e.Helper()
	result, err := e.kv.Sweep(e.ctx)
	require.NoError(e, err)
	return result
}

// crashing is a stage below a process that crashes at one of its requests: it
// never sends that one, or sends it and never sees the answer, and then sends
// nothing more.
type crashing struct {
	pb.KVClient
	at       int  // the request
	answered bool // whether it arrives

	mu    sync.Mutex
	calls int
}

func (c *crashing) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	c.mu.Lock()
	c.calls++
	call := c.calls
	c.mu.Unlock()
	if call > c.at || call == c.at && !c.answered {
		return nil, errFault
	}
	resp, err := c.KVClient.Txn(ctx, r, opts...)
	if call == c.at {
		return nil, errFault
	}
	return resp, err
}

// crashed reports whether it has come to that request. What a writer has in the
// background may still be at it.
func (c *crashing) crashed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls >= c.at
}

// TestEveryStepMayBeTheLast crashes a writer at every step of a write. While its
// anchor is there and after, a reader reads the old value or the new one, other
// writers write, and a sweep deletes what the dead can not commit any more, and
// nothing else.
func TestEveryStepMayBeTheLast(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	base := text(300<<10, "base")
	changed := base[:50<<10] + incompressible(300<<10, "new") + base[60<<10:]
	lease, err := e.cli.Grant(e.ctx, 600)
	require.NoError(t, err)
	writes := map[string]func(kv clientv3.KV) error{
		"staged": func(kv clientv3.KV) error {
			_, err := kv.Put(e.ctx, "k", changed)
			return err
		},
		"staged on a lease": func(kv clientv3.KV) error {
			_, err := kv.Put(e.ctx, "k", changed, clientv3.WithLease(lease.ID))
			return err
		},
		"inline": func(kv clientv3.KV) error {
			_, err := kv.Put(e.ctx, "k", base[:1000]+"x"+base[1000:])
			return err
		},
		"two in a transaction": func(kv clientv3.KV) error {
			_, err := kv.Txn(e.ctx).Then(clientv3.OpPut("k", changed), clientv3.OpPut("l", changed)).Commit()
			return err
		},
		"move": func(kv clientv3.KV) error {
			_, err := kv.Put(e.ctx, "k", "", clientv3.WithIgnoreValue(), clientv3.WithLease(lease.ID))
			return err
		},
	}
	if testing.Short() {
		delete(writes, "staged on a lease")
		delete(writes, "move")
	}
	for name, write := range writes {
		for step := 1; ; step++ {
			last := false
			for _, answered := range []bool{false, true} {
				for _, then := range []string{"sweep", "write"} {
					what := fmt.Sprintf("%s, request %d (answered: %v), then %s", name, step, answered, then)
					e.cluster.Wipe(t)
					e.put("k", base)
					c := &crashing{KVClient: wire.Client(e.cli.KV), at: step, answered: answered}
					stage, err := New(c, Config{Lease: e.cli.Lease})
					require.NoError(t, err)
					err = write(clientv3.NewKVFromKVClient(stage, nil))
					if !c.crashed() {
						require.NoError(t, err, what)
						require.NoError(t, stage.Close())
						last = true
						continue
					}
					require.ErrorIs(t, err, errFault, what)

					before, err := e.kv.Get(e.ctx, "k")
					require.NoError(t, err, what)
					if then == "write" {
						e.put("k", base+"more")
						e.holds("k", base+"more")
					} else {
						require.Zero(t, e.sweep().Left, what)
						after, err := e.kv.Get(e.ctx, "k")
						require.NoError(t, err, what)
						require.Equal(t, before.Kvs[0].ModRevision, after.Kvs[0].ModRevision, what)
						require.True(t, string(before.Kvs[0].Value) == string(after.Kvs[0].Value), what)
					}

					// Its lease ends.
					stage.cancel()
					for _, id := range stage.session.Leases() {
						_, err := e.cli.Revoke(e.ctx, id)
						require.NoError(t, err, what)
					}
					require.NoError(t, stage.Close(), what)
					require.Zero(t, e.sweep().Writes, what)
					require.Empty(t, e.orphans(), what) // which reads all values, too
					e.put("k", base)
					require.Empty(t, e.orphans(), what)
				}
			}
			if last {
				break
			}
		}
	}
}

// TestASweepLeavesWritesAlone sweeps at every step of a write of another process:
// that write succeeds as if there were no sweep.
func TestASweepLeavesWritesAlone(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	base := text(300<<10, "base")
	changed := base[:50<<10] + incompressible(300<<10, "new") + base[60<<10:]
	steps := 0
	writer := e.interposed(&between{sending: func(*pb.TxnRequest) bool {
		steps++
		e.sweep()
		return false
	}}, Config{})
	e.put("k", base)
	_, err := writer.Put(e.ctx, "k", changed)
	require.NoError(t, err)
	require.GreaterOrEqual(t, steps, 4)
	require.Zero(t, writer.Stats().Conflicts)
	e.holds("k", changed)
	require.Empty(t, e.orphans())
}

// TestSweepOfAllKinds leaves garbage of every kind, and what only looks like it.
func TestSweepOfAllKinds(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	value := text(200<<10, "value")
	plainly := func(key, value string) {
		_, err := e.cli.Put(e.ctx, key, value)
		require.NoError(t, err)
	}
	other := func(key string, values ...string) {
		kv, _ := e.another(Config{})
		for _, v := range values {
			_, err := kv.Put(e.ctx, key, v)
			require.NoError(t, err)
		}
	}
	e.put("kept", value)
	other("overwritten by a plain client", value)
	plainly("overwritten by a plain client", "small")
	other("deleted by a plain client", value)
	_, err := e.cli.Delete(e.ctx, "deleted by a plain client")
	require.NoError(t, err)
	other("an envelope", value)
	plainly("an envelope", string(format.Literal([]byte("\xffkvw"))))
	other("high", value)
	plainly("high", "\xff\xff\xff")

	// A token of which the next value keeps a part, and a writer that does not
	// know what it leaves behind.
	other("partly", value)
	e.kv.stage.cache.clear()
	blind := newWrite(e.kv.stage, &pb.TxnRequest{Success: []*pb.RequestOp{wire.Put(&pb.PutRequest{Key: []byte("blind"), Value: []byte(value)})}})
	other("blind", value)
	blind.blind = true
	_, err = blind.run(e.ctx)
	require.NoError(t, err)

	// What a sweep must not touch.
	e.put("newer", value)
	stored := e.stored()["newer"]
	plainly("newer", stored[:4]+"\x02"+stored[5:])
	elsewhere, _ := e.another(Config{ReservedPrefix: "\x00elsewhere/"})
	other("elsewhere", value)
	_, err = e.cli.Delete(e.ctx, "elsewhere")
	require.NoError(t, err)
	_, err = elsewhere.Put(e.ctx, "elsewhere", value)
	require.NoError(t, err)
	plainly("\x00kvw/nobody knows what", "it is")
	newer := e.chunksOf("newer")
	require.NotEmpty(t, newer)

	garbage := 0
	for _, key := range []string{"overwritten by a plain client", "deleted by a plain client", "an envelope", "high"} {
		require.NotEmpty(t, e.chunksOf(key))
		garbage += len(e.chunksOf(key))
	}
	garbage += len(e.chunksOf("blind")) / 2
	result := e.sweep()
	require.Equal(t, SweepResult{Keys: 9, Deleted: garbage, Left: 2}, result)
	require.EqualValues(t, garbage, e.kv.Stats().Swept)
	require.Equal(t, newer, e.chunksOf("newer"))
	for _, key := range []string{"overwritten by a plain client", "deleted by a plain client", "an envelope", "high"} {
		require.Empty(t, e.chunksOf(key), key)
	}
	for _, key := range []string{"kept", "partly", "blind"} {
		e.holds(key, value)
	}
	require.Equal(t, SweepResult{Keys: 5, Left: 2}, e.sweep())
}

// chunksOf returns the keys of the chunks and anchors of a key.
func (e *env) chunksOf(key string) (keys []string) {
	e.Helper()
	r := e.kv.stage.space.Chunks(format.Range{Key: []byte(key)})
	resp, err := e.cli.Get(e.ctx, string(r.Key), clientv3.WithRange(string(r.End)), clientv3.WithKeysOnly())
	require.NoError(e, err)
	for _, kv := range resp.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// TestSweepOfPartsOfATokenAndManyPages leaves single chunks of tokens unnamed, more
// than fit in one transaction, and more keys than in one page.
func TestSweepOfPartsOfATokenAndManyPages(t *testing.T) {
	e := newEnv(t, Config{Threshold: 1, ChunkBytes: 256, SweepRate: 100_000}, nil)
	value := incompressible(4<<20, "value")
	e.put("k", value)
	require.Greater(t, len(e.chunksOf("k")), sweepPage)
	layout := e.kv.stage.cache.get([]byte("k")).layout

	// The second value of another key keeps most chunks of the first one's token.
	// What it has deleted, here and there, comes back.
	short := value[:300<<10]
	e.put("l", short)
	before := e.chunksOf("l")
	changed := []byte(short)
	for at := 0; at < len(changed); at += 2000 {
		changed[at] ^= 1
	}
	e.put("l", string(changed))
	after := e.chunksOf("l")
	restored := 0
	for _, key := range before {
		if !slices.Contains(after, key) {
			restored++
			_, err := e.cli.Put(e.ctx, key, "x")
			require.NoError(t, err)
		}
	}
	require.Greater(t, restored, stagingOps)
	for i := range 300 { // tokens of which nothing is named
		id := format.ID{Token: format.NewToken(), Index: uint32(i + 1)}
		_, err := e.cli.Put(e.ctx, string(e.kv.stage.space.ChunkKey([]byte("l"), id)), "x")
		require.NoError(t, err)
	}
	require.Equal(t, SweepResult{Keys: 2, Deleted: restored + 300}, e.sweep())
	require.Equal(t, after, e.chunksOf("l"))
	e.holds("k", value)
	e.holds("l", string(changed))
	require.Len(t, e.chunksOf("k"), len(layout.All()))
}

// TestSweepersAmongWriters sweeps from several processes, again and again, while
// writers come and go, and finds nothing wrong and, at the end, nothing left.
func TestSweepersAmongWriters(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	base := text(150<<10, "base")
	var writers, sweepers sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		kv, _ := e.another(Config{SweepRate: 100_000})
		sweepers.Go(func() {
			for {
				if _, err := kv.Sweep(e.ctx); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for w := range 4 {
		kv, _ := e.another(Config{})
		cancelled, calls := &between{}, 0
		leaver := e.interposed(cancelled, Config{})
		writers.Go(func() {
			for i := range 12 {
				at := (w*12 + i) * 1000
				value := base[:at] + incompressible(2000+i%3*50_000, fmt.Sprint(w, i)) + base[at:]
				ctx, cancel := context.WithCancel(e.ctx)
				key := fmt.Sprint("k", i%2)
				switch i % 4 {
				case 3: // nobody waits for this one
					cancelled.sending = func(*pb.TxnRequest) bool {
						if calls++; calls%5 == w {
							cancel()
						}
						return false
					}
					leaver.Put(ctx, key, value)
				default:
					if _, err := kv.Put(ctx, key, value); err != nil {
						t.Error(err)
					}
					if _, err := kv.Get(ctx, key); err != nil {
						t.Error(err)
					}
				}
				cancel()
			}
		})
	}
	writers.Wait()
	close(done)
	sweepers.Wait()
	require.Zero(t, e.sweep().Left)
	require.Empty(t, e.orphans())
}

// TestSweepsTakeTurns holds the lock as another process would.
func TestSweepsTakeTurns(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	lock, err := e.kv.stage.lockSweep(e.ctx)
	require.NoError(t, err)
	other, sent := e.another(Config{})
	ctx, cancel := context.WithCancel(e.ctx)
	waiting := make(chan error, 1)
	go func() {
		_, err := other.Sweep(ctx)
		waiting <- err
	}()
	looked := func() bool { return sent.Take().Requests > 0 }
	require.Eventually(t, looked, time.Minute, time.Millisecond)
	cancel()
	err = <-waiting
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, `"pid":`)

	go func() {
		_, err := other.Sweep(e.ctx)
		waiting <- err
	}()
	require.Eventually(t, looked, time.Minute, time.Millisecond)
	require.Empty(t, waiting)
	lock.release()
	require.NoError(t, <-waiting)
	require.Empty(t, e.stored()) // the lock is gone

	// A sweep that has lost its lock stops.
	other.stage.cache.clear()
	e.put("k", text(200<<10, "value"))
	lock, err = e.kv.stage.lockSweep(e.ctx)
	require.NoError(t, err)
	_, err = e.cli.Delete(e.ctx, string(lock.key))
	require.NoError(t, err)
	_, err = e.kv.stage.sweep(e.ctx, lock)
	require.Equal(t, ErrSweepLost, err)
	lock.release()
}

// TestASweepIsPaced has no time for a second request.
func TestASweepIsPaced(t *testing.T) {
	e := newEnv(t, Config{SweepRate: 1}, nil)
	e.put("k", text(200<<10, "value"))
	ctx, cancel := context.WithTimeout(e.ctx, 30*time.Second)
	defer cancel()
	for range 31 { // used up for longer than that
		e.kv.stage.sweepPace.Reserve()
	}
	_, err := e.kv.Sweep(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "Config.SweepRate, which is 1")
}

// TestASweepOfAServerWithSmallLimits learns them.
func TestASweepOfAServerWithSmallLimits(t *testing.T) {
	for name, edit := range map[string]func(*embed.Config){
		"operations": func(c *embed.Config) { c.MaxTxnOps = 16 },
		"bytes":      func(c *embed.Config) { c.MaxRequestBytes, c.MaxTxnOps = 20<<10, 10_000 },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, Config{}, edit)
			key := strings.Repeat("k", 500)
			for range 40 {
				id := format.ID{Token: format.NewToken(), Index: 1}
				_, err := e.cli.Put(e.ctx, string(e.kv.stage.space.ChunkKey([]byte(key), id)), "x")
				require.NoError(t, err)
			}
			require.Equal(t, SweepResult{Keys: 1, Deleted: 40}, e.sweep())
		})
	}
}

// delayed holds the first batch of a write back.
type delayed struct {
	pb.KVClient
	held *pb.TxnRequest
	lost context.CancelFunc // what its sender is left with
}

func (d *delayed) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if d.held == nil && wire.Writes(r) {
		d.held = r
		d.lost()
		return nil, ctx.Err()
	}
	return d.KVClient.Txn(ctx, r, opts...)
}

// TestAFirstBatchThatComesLate makes its anchor when nobody is there any more to
// give it up. It is on a lease that ends.
func TestAFirstBatchThatComesLate(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	ctx, cancel := context.WithCancel(e.ctx)
	d := &delayed{KVClient: wire.Client(e.cli.KV), lost: cancel}
	stage, err := New(d, Config{Lease: e.cli.Lease, SessionTTL: time.Second})
	require.NoError(t, err)
	_, err = clientv3.NewKVFromKVClient(stage, nil).Put(ctx, "k", incompressible(300<<10, "x"))
	require.Equal(t, context.Canceled, err)
	stage.background.Wait()
	late, err := wire.Client(e.cli.KV).Txn(e.ctx, d.held) // and now it comes
	require.NoError(t, err)
	require.True(t, late.Succeeded)
	require.NotEmpty(t, e.chunksOf("k"))
	require.Eventually(t, func() bool { return e.sweep().Writes == 0 }, time.Minute, 100*time.Millisecond)
	require.Empty(t, e.chunksOf("k"))
	require.NoError(t, stage.Close())
}
