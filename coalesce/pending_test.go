package coalesce

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// TestNothingIsLeftPending plays callers, writes behind, reads and deletes under all modes
// on an etcd in trouble, with a Close at some time. Afterwards nothing counts as pending,
// nothing is in the queue, nobody waits, and each promise was told once.
func TestNothingIsLeftPending(t *testing.T) {
	for range *simRuns / 5 {
		synctest.Test(t, func(t *testing.T) {
			e := newFake()
			e.delay, e.fault = 3*ms, someTrouble()
			kv := e.open(t, someConfig())
			var (
				mu      sync.Mutex
				told    = map[int]int{}
				clients sync.WaitGroup
			)
			ctx, cancel := context.WithCancel(t.Context())
			taken := 0
			promise := func() func(*clientv3.PutResponse, error) {
				if rand.IntN(5) == 0 {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				id := taken
				taken++
				return func(*clientv3.PutResponse, error) {
					mu.Lock()
					defer mu.Unlock()
					told[id]++
				}
			}
			for range 4 {
				clients.Go(func() {
					for range 25 {
						time.Sleep(time.Duration(rand.IntN(60)) * ms)
						somethingElse(ctx, kv, promise)
					}
				})
			}
			if rand.IntN(2) == 0 { // in the middle of it
				time.Sleep(time.Duration(rand.IntN(1500)) * ms)
				kv.Close()
				time.Sleep(time.Minute)
				cancel()
			}
			clients.Wait()
			e.mu.Lock()
			e.fault = nil
			e.mu.Unlock()
			kv.Close()
			cancel()
			time.Sleep(2 * time.Minute) // what was late has come
			require.Zero(t, kv.Pending())
			q := kv.stage.queue
			require.Zero(t, q.units.Load())
			require.Empty(t, q.byKey)
			require.Empty(t, q.ranged)
			for _, l := range q.lanes {
				require.Zero(t, l.ops)
				require.Zero(t, l.bytes)
			}
			require.Empty(t, kv.stage.flights[plain])
			require.Empty(t, kv.stage.flights[sequenced])
			require.Len(t, told, taken)
			for id, times := range told {
				require.Equal(t, 1, times, "promise %d", id)
			}
		})
	}
}

func pick[T any](of ...T) T { return of[rand.IntN(len(of))] }

func someConfig() Config {
	wait := func() time.Duration { return pick(0, 5*ms, 100*ms) }
	return Config{
		Rules: []Rule{
			{Prefix: "l", Mode: LastWriteWins, Retry: true, Linger: wait(), FlushEvery: wait(), Transactions: true},
			{Prefix: "m", Mode: Max, Retry: true, Linger: wait(), FlushEvery: 5 * wait()},
			{Prefix: "s", Mode: LastWriteWins, SkipUnchanged: true, Linger: wait(), FlushEvery: 5 * wait()},
			{Prefix: "g", Mode: GroupCommit, Linger: wait(), FlushEvery: wait(), Transactions: true},
		},
		RequestTimeout: 500 * ms, CloseTimeout: pick(50*ms, time.Second, time.Minute), MaxOps: 1 + rand.IntN(6), InFlight: 1 + rand.IntN(2),
		MaxPendingBytes: 1500 + rand.IntN(10_000), RejectWhenFull: rand.IntN(2) == 0,
	}
}

// someTrouble returns faults of which there are many, or few.
func someTrouble() func(proto.Message) fault {
	most := rand.IntN(90)
	return func(r proto.Message) fault {
		if rand.IntN(100) > most {
			return fault{}
		}
		late := time.Duration(rand.IntN(4000)) * ms
		if tx, ok := r.(*pb.TxnRequest); ok && len(tx.Success) > 2 && rand.IntN(6) == 0 {
			return fault{err: rpctypes.ErrRequestTooLarge, lost: true}
		}
		return pick(
			fault{err: rpctypes.ErrTimeout, lost: true}, fault{err: rpctypes.ErrTimeout, late: late}, fault{err: rpctypes.ErrLeaderChanged},
			fault{err: rpctypes.ErrTooManyRequests, lost: true}, fault{hanging: true, late: late}, fault{hanging: true, lost: true},
		)
	}
}

// somethingElse makes a call, whatever comes of it.
func somethingElse(ctx context.Context, kv *KV, promise func() func(*clientv3.PutResponse, error)) {
	ctx, cancel := context.WithTimeout(ctx, pick(ms, 50*ms, 500*ms, 5*time.Second))
	defer cancel()
	prefix := pick("l", "m", "s", "g")
	key, value := fmt.Sprint(prefix, rand.IntN(2)), fmt.Sprint(rand.IntN(3))
	if prefix == "m" {
		value = pick(fmt.Sprint(rand.IntN(100_000)), fmt.Sprint(rand.IntN(100_000)), "abc")
	}
	var opts []clientv3.OpOption
	if rand.IntN(8) == 0 {
		opts = append(opts, clientv3.WithPrevKV())
	}
	switch rand.IntN(12) {
	case 0, 1:
		kv.Put(ctx, key, value, opts...)
	case 2:
		kv.Delete(ctx, prefix, clientv3.WithPrefix())
	case 3:
		kv.Txn(ctx).Then(clientv3.OpPut(prefix+"0", value), clientv3.OpPut(prefix+"1", value)).Commit()
	case 4, 5:
		kv.Get(ctx, key)
	default:
		kv.PutAsync(ctx, key, value, promise(), opts...)
	}
}
