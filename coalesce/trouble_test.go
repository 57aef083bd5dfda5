package coalesce

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// TestMaxRefusesWhatIsNoNumber, also where it remembers one.
func TestMaxRefusesWhatIsNoNumber(t *testing.T) {
	for _, c := range []struct {
		stored, put string
		before      bool // whether it is the stored one that it does not compare with
	}{
		{"10", "abc", true}, {"100", "99 ", false}, {"2.5", "10.5", true}, {"13\n", "9\n", true},
		{"5", "", false}, {"5", "-5", false}, {"", "", false}, {"", "+1", false},
	} {
		for _, fresh := range []bool{false, true} {
			bubble(t, Config{Rules: []Rule{{Mode: Max}}}, func(t *testing.T, e *fake, kv *KV) {
				if c.stored != "" {
					mustPut(t, kv, "k", c.stored)
				}
				if fresh {
					kv.stage.restarted() // it remembers nothing
				}
				_, err := kv.Put(t.Context(), "k", c.put)
				var not *NumberError
				if c.stored == "100" { // as long as each other
					require.NoError(t, err)
					return
				}
				require.ErrorAs(t, err, &not, "%q over %q", c.put, c.stored)
				require.Equal(t, c.before, not.Before != nil)
				kv.PutAsync(t.Context(), "k", c.put, func(_ *clientv3.PutResponse, async error) { require.ErrorAs(t, async, &not) })
				kv.Flush(t.Context())
				require.Equal(t, c.stored, e.value("k"))
			})
		}
	}
}

// TestMaxWhileClosing: what comes after Close does not go past what waits.
func TestMaxWhileClosing(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: Max, FlushEvery: time.Hour}}}, func(t *testing.T, e *fake, kv *KV) {
		e.delay = 10 * ms
		kv.PutAsync(t.Context(), "k", "10", nil)
		var closing sync.WaitGroup
		closing.Go(func() { require.NoError(t, kv.Close()) })
		synctest.Wait()
		_, err := kv.Put(t.Context(), "k", "5")
		require.ErrorIs(t, err, ErrClosed)
		closing.Wait()
		require.Equal(t, "10", e.value("k"))
		_, err = kv.Put(t.Context(), "k", "5")
		require.ErrorIs(t, err, ErrClosed)
	})
}

// TestMaxOnANarrowServer: what is known of a number is not given up for want of room.
func TestMaxOnANarrowServer(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: Max}}}, func(t *testing.T, e *fake, kv *KV) {
		kv.stage.queue.limits.txnOps = minTxnOps
		mustPut(t, kv, "k", "10")
		sent := len(e.sent)
		mustPut(t, kv, "k", "5")
		require.Equal(t, "10", e.value("k"))
		require.Len(t, e.sent, sent+1)
	})
}

// TestASessionThatIsLost in the middle of a batch costs no write.
func TestASessionThatIsLost(t *testing.T) {
	e := newEnv(t, rule(Rule{Mode: GroupCommit, SkipUnchanged: true, Retry: true, Linger: 100 * ms, FlushEvery: 100 * ms}), nil)
	e.put("a", "1")
	_, err := e.cli.Revoke(e.ctx, e.kv.stage.session.Held())
	require.NoError(t, err)
	var async error
	together(3, func(i int) {
		var err error
		switch i {
		case 0: // to be verified: nothing to write
			_, err = e.kv.Put(e.ctx, "a", "1")
		case 1:
			_, err = e.kv.Put(e.ctx, "b", "2")
		case 2:
			e.kv.PutAsync(e.ctx, "c", "3", func(_ *clientv3.PutResponse, err error) { async = err })
			err = e.kv.Flush(e.ctx)
		}
		require.NoError(t, err, i)
	})
	require.NoError(t, async)
	e.holds("a", "1")
	e.holds("b", "2")
	e.holds("c", "3")
}

// TestAPutThatWasAbandoned does not come back over the one that its caller made next.
func TestAPutThatWasAbandoned(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: GroupCommit, Linger: 5 * ms}}}, func(t *testing.T, e *fake, kv *KV) {
		e.delay = 10 * ms
		var others sync.WaitGroup
		others.Go(func() { // there is no such lease, which is found out by halves
			_, err := kv.Put(t.Context(), "a", "1", clientv3.WithLease(77))
			require.ErrorIs(t, err, rpctypes.ErrLeaseNotFound)
		})
		others.Go(func() { mustPut(t, kv, "b", "1") })
		time.Sleep(ms)
		ctx, cancel := context.WithTimeout(t.Context(), 8*ms)
		_, err := kv.Put(ctx, "k", "old")
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		mustPut(t, kv, "k", "new")
		others.Wait()
		time.Sleep(time.Second)
		require.Equal(t, "new", e.value("k"))
	})
}

// TestCloseEndsAll: nobody waits for ever, whatever was under way.
func TestCloseEndsAll(t *testing.T) {
	t.Run("a put", func(t *testing.T) {
		bubble(t, Config{Rules: []Rule{{Mode: Max}}, CloseTimeout: time.Second}, func(t *testing.T, e *fake, kv *KV) {
			e.delay = 10 * time.Second
			var put sync.WaitGroup
			put.Go(func() {
				_, err := kv.Put(t.Context(), "k", "1")
				require.ErrorIs(t, err, ErrClosed)
			})
			time.Sleep(ms)
			kv.Close()
			e.mu.Lock()
			e.delay = 0
			e.mu.Unlock()
			put.Wait()
			require.Empty(t, e.value("k"))
		})
	})
	t.Run("promises", func(t *testing.T) {
		for range 100 {
			told := false
			bubble(t, Config{Rules: []Rule{{Mode: Max}}, CloseTimeout: 30 * ms}, func(t *testing.T, e *fake, kv *KV) {
				e.delay = 10 * ms
				// It opens, looks, and writes until 30: then its guards do not hold.
				e.fault = func(r proto.Message) fault {
					if tx, ok := r.(*pb.TxnRequest); ok && len(tx.Compare) > 0 && e.kvs["k"] == nil {
						e.revision++
						e.put(&pb.PutRequest{Key: []byte("k"), Value: []byte("1")})
					}
					return fault{}
				}
				kv.PutAsync(t.Context(), "k", "5", func(*clientv3.PutResponse, error) { told = true })
				kv.Close()
				time.Sleep(time.Minute)
			})
			require.True(t, told)
		}
	})
}

// TestAWideTransaction says nothing about the server, and goes as it is.
func TestAWideTransaction(t *testing.T) {
	wide := func(value func(i int) string) (all []clientv3.Op) {
		for i := range 128 {
			all = append(all, clientv3.OpPut(fmt.Sprintf("t/%d", i), value(i)))
		}
		return all
	}
	for name, skip := range map[string]bool{"under SkipUnchanged": true, "under a fence": false} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, Config{Rules: []Rule{{Prefix: "t/", Mode: GroupCommit, Transactions: true, SkipUnchanged: skip}}}, nil)
			e.put("owner", "me")
			ctx := e.ctx
			if !skip {
				ctx = WithFence(ctx, clientv3.Compare(clientv3.Value("owner"), "=", "me"))
			}
			for _, changed := range []string{"1", "2"} {
				resp, err := e.kv.Txn(ctx).Then(wide(func(i int) string {
					if i == 0 {
						return "1"
					}
					return changed
				})...).Commit()
				require.NoError(t, err)
				require.Len(t, resp.Responses, 128)
			}
			e.holds("t/127", "2")
			require.Equal(t, defaultMaxTxnOps, e.kv.stage.queue.limits.txnOps)
		})
	}
}

// TestAMemberThatHangs holds up the batch that went to it, and no other.
func TestAMemberThatHangs(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: GroupCommit}}}, func(t *testing.T, e *fake, kv *KV) {
		hang := 3 // more than are under way at a time
		e.fault = func(proto.Message) fault {
			if hang--; hang >= 0 {
				return fault{hanging: true, lost: true}
			}
			return fault{}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var hanging sync.WaitGroup
		for i := range 3 {
			hanging.Go(func() {
				_, err := kv.Put(ctx, fmt.Sprint("a", i), "1")
				require.ErrorIs(t, err, context.Canceled)
			})
			time.Sleep(patience)
		}
		began := e.clock()
		mustPut(t, kv, "b", "1")
		require.Equal(t, began, e.clock())
		hang = 1
		hanging.Go(func() {
			_, err := kv.Put(ctx, "c", "1")
			require.ErrorIs(t, err, context.Canceled)
		})
		synctest.Wait()
		mustPut(t, kv, "b", "1")
		require.Equal(t, began+int(patience.Milliseconds()), e.clock())
		cancel()
		hanging.Wait()
	})
}

// TestAReadThatIsRefused fails the put that it was for.
func TestAReadThatIsRefused(t *testing.T) {
	cluster, root := etcdtest.StartAuth(t)
	cluster.AddUser(t, root, "app", etcdtest.Permission{Key: "app/", RangeEnd: "app0", Type: clientv3.PermissionType(clientv3.PermReadWrite)})
	cli := cluster.ClientAs(t, "app")
	kv, err := NewKV(cli.KV, Config{Rules: []Rule{{Mode: Max, Linger: 100 * ms}}, Lease: cli.Lease})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kv.Close()) })
	for range 2 { // looks, and then verifies
		together(3, func(i int) {
			key := []string{"app/1", "app/2", "other/1"}[i]
			if _, err := kv.Put(t.Context(), key, "5"); i < 2 {
				require.NoError(t, err, key)
			} else {
				require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
			}
		})
	}
}

// TestASmallServer has --max-request-bytes far below what batches are made for.
func TestASmallServer(t *testing.T) {
	cfg := rule(Rule{Mode: GroupCommit, Linger: 200 * ms, Retry: true})
	cfg.MaxEntryBytes = 1 << 20
	e := newEnv(t, cfg, func(c *embed.Config) { c.MaxRequestBytes = 64 << 10 })
	together(300, func(i int) {
		_, err := e.kv.Put(e.ctx, fmt.Sprint("k", i), strings.Repeat("x", 3<<10))
		require.NoError(t, err)
	})
	_, plain := e.cli.Put(e.ctx, "large", strings.Repeat("x", 3<<20))
	_, err := e.kv.Put(e.ctx, "large", strings.Repeat("x", 3<<20))
	require.ErrorContains(t, plain, "trying to send message larger than max")
	require.ErrorContains(t, err, "trying to send message larger than max")
}

// TestPutAsyncIsNotGivenUp, however often it has to be tried.
func TestPutAsyncIsNotGivenUp(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: LastWriteWins}}}, func(t *testing.T, e *fake, kv *KV) {
		e.delay = ms
		e.fault = func(r proto.Message) fault { // only what settles is answered
			if tx, ok := r.(*pb.TxnRequest); ok && len(tx.Success) > 1 && e.clock() < 10*60_000 {
				return fault{err: rpctypes.ErrTimeout, lost: true}
			}
			return fault{}
		}
		told := make(chan error, 1)
		kv.PutAsync(t.Context(), "k", "1", func(_ *clientv3.PutResponse, err error) { told <- err })
		require.NoError(t, <-told)
		require.Equal(t, "1", e.value("k"))
		require.Less(t, len(e.sent), 3*10*60, "it is not tried all the time")
	})
}

// TestNoRoomMakesRoom: what waits for its time is sent when there is no room for more.
func TestNoRoomMakesRoom(t *testing.T) {
	for _, reject := range []bool{false, true} {
		cfg := Config{Rules: []Rule{{Mode: LastWriteWins, FlushEvery: time.Hour}}, MaxPendingBytes: 10_000, RejectWhenFull: reject}
		bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
			refused := 0
			for i := range 1000 {
				kv.PutAsync(t.Context(), "k", fmt.Sprint(i), func(_ *clientv3.PutResponse, err error) {
					if err != nil {
						require.ErrorIs(t, err, ErrFull)
						refused++
					}
				})
				synctest.Wait()
			}
			require.Less(t, e.clock(), 1000)
			require.LessOrEqual(t, refused, 10)
		})
	}
}

// TestPendingInALongOutage counts what waits, and not what it has taken the place of.
func TestPendingInALongOutage(t *testing.T) {
	cfg := Config{MaxPendingBytes: 100 << 10, RejectWhenFull: true, Rules: []Rule{{Mode: LastWriteWins, FlushEvery: 50 * ms}}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		e.delay = ms
		e.fault = func(proto.Message) fault {
			if e.clock() < 10*60_000 {
				return fault{err: rpctypes.ErrGRPCNoLeader, lost: true}
			}
			return fault{}
		}
		puts := 0
		for ; e.clock() < 9*60_000; puts++ {
			kv.PutAsync(t.Context(), "k", fmt.Sprint(puts), nil) // of one key: one value waits
			time.Sleep(10 * ms)
			require.LessOrEqual(t, kv.Pending().Writes, 2)
			require.LessOrEqual(t, kv.Pending().Bytes, 1000)
		}
		require.Equal(t, puts, kv.Pending().Puts)
		require.Zero(t, kv.Stats().Failed)
		time.Sleep(2 * time.Minute)
		require.Zero(t, kv.Pending())
		require.Equal(t, fmt.Sprint(puts-1), e.value("k"))
	})
}

// TestAHurryIsKept where what waits goes over to callers who wait less.
func TestAHurryIsKept(t *testing.T) {
	cfg := Config{Rules: []Rule{{Mode: LastWriteWins, Retry: true, Linger: 10 * time.Second, FlushEvery: 30 * time.Second}}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		var callers sync.WaitGroup
		kv.PutAsync(t.Context(), "a", "1", nil)
		callers.Go(func() { mustPut(t, kv, "x", "1") })
		time.Sleep(ms)
		callers.Go(func() { mustPut(t, kv, "a", "2") })
		time.Sleep(ms)
		began := e.clock()
		resp, err := kv.Get(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, "2", string(resp.Kvs[0].Value))
		require.Equal(t, began, e.clock())
		callers.Wait()
	})
}

// TestWhatACallerPutIsItsOwn again when it has left.
func TestWhatACallerPutIsItsOwn(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: LastWriteWins, Linger: time.Second}}}, func(t *testing.T, e *fake, kv *KV) {
		var stays sync.WaitGroup
		stays.Go(func() { mustPut(t, kv, "k", "first") })
		time.Sleep(ms)
		buf := []byte("second")
		op := clientv3.OpPut("k", "")
		op.WithValueBytes(buf)
		ctx, cancel := context.WithTimeout(t.Context(), ms)
		defer cancel()
		_, err := kv.Do(ctx, op)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		copy(buf, "XXXXXX")
		stays.Wait()
		require.Equal(t, "second", e.value("k"))
	})
}

// TestANarrowServer has --max-txn-ops far below the default, which several batches find out
// at the same time.
func TestANarrowServer(t *testing.T) {
	for name, c := range map[string]struct {
		rule Rule
		most uint
		n    int
	}{
		"group commit":   {Rule{Mode: GroupCommit, Linger: 100 * ms}, 8, 2000},
		"max":            {Rule{Mode: Max, Linger: 100 * ms}, 64, 1000},
		"skip unchanged": {Rule{Mode: GroupCommit, SkipUnchanged: true, Linger: 100 * ms}, 16, 500},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, rule(c.rule), func(cfg *embed.Config) { cfg.MaxTxnOps = c.most })
			for range 2 {
				together(c.n, func(i int) {
					_, err := e.kv.Put(e.ctx, fmt.Sprint("k", i), "1")
					require.NoError(t, err)
				})
			}
		})
	}
	t.Run("two fences", func(t *testing.T) {
		e := newEnv(t, rule(Rule{Mode: Max, Linger: 100 * ms}), func(cfg *embed.Config) { cfg.MaxTxnOps = 32 })
		e.put("owner0", "1")
		e.put("owner1", "1")
		together(120, func(i int) {
			ctx := WithFence(e.ctx, clientv3.Compare(clientv3.Version(fmt.Sprint("owner", i%2)), "=", 1))
			_, err := e.kv.Put(ctx, fmt.Sprint("k", i), "1")
			require.NoError(t, err)
		})
	})
}

// TestAnAnswerThatIsTooLarge for the client comes after the write, which is not made again.
func TestAnAnswerThatIsTooLarge(t *testing.T) {
	cfg := rule(Rule{Mode: GroupCommit, Linger: 100 * ms})
	e := newEnv(t, cfg, nil)
	cli, err := clientv3.New(clientv3.Config{Endpoints: e.cluster.Endpoints(), MaxCallSendMsgSize: 50 << 10, MaxCallRecvMsgSize: 100 << 10, Logger: zap.NewNop()})
	require.NoError(t, err)
	defer cli.Close()
	cfg.Lease = cli.Lease
	kv, err := NewKV(cli.KV, cfg)
	require.NoError(t, err)
	defer kv.Close()
	for i := range 4 {
		_, err := e.cli.Put(e.ctx, fmt.Sprint("k", i), strings.Repeat("x", 40<<10))
		require.NoError(t, err)
	}
	together(4, func(i int) {
		key := fmt.Sprint("k", i)
		_, err := kv.Put(e.ctx, key, "new", clientv3.WithPrevKV())
		require.ErrorContains(t, err, "received message larger than max")
		got, err := e.cli.Get(e.ctx, key)
		require.NoError(t, err)
		require.EqualValues(t, 2, got.Kvs[0].Version)
	})
}

// TestALateBatchAfterWhatWasVerified: that a value is there is known for good.
func TestALateBatchAfterWhatWasVerified(t *testing.T) {
	for _, behind := range []bool{false, true} {
		bubble(t, Config{Rules: []Rule{{Mode: GroupCommit, SkipUnchanged: true, Retry: true}}}, func(t *testing.T, e *fake, kv *KV) {
			mustPut(t, kv, "k", "A")
			once := true
			e.fault = func(r proto.Message) fault {
				if tx, ok := r.(*pb.TxnRequest); ok && len(tx.Success) > 1 && once {
					once = false
					return fault{hanging: true, late: 3 * time.Second}
				}
				return fault{}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := kv.Put(ctx, "k", "B")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			if behind {
				told := make(chan error, 1)
				kv.PutAsync(t.Context(), "k", "A", func(_ *clientv3.PutResponse, err error) { told <- err })
				require.NoError(t, <-told)
			} else {
				mustPut(t, kv, "k", "A")
			}
			time.Sleep(time.Minute)
			require.Equal(t, "A", e.value("k"))
		})
	}
}

// TestAPutThatWasAbandonedAmongOthers is still before what its caller does next.
func TestAPutThatWasAbandonedAmongOthers(t *testing.T) {
	for name, next := range map[string]func(kv *KV) error{
		"a put": func(kv *KV) error {
			_, err := kv.Put(context.Background(), "k", "new", clientv3.WithPrevKV())
			return err
		},
		"a transaction": func(kv *KV) error {
			_, err := kv.Txn(context.Background()).Then(clientv3.OpPut("k", "new"), clientv3.OpPut("x", "1")).Commit()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{Rules: []Rule{{Mode: LastWriteWins, Transactions: true, Linger: 50 * ms}}}, func(t *testing.T, e *fake, kv *KV) {
				var other sync.WaitGroup
				other.Go(func() { mustPut(t, kv, "k", "by somebody else") })
				time.Sleep(ms)
				ctx, cancel := context.WithTimeout(t.Context(), 5*ms)
				_, err := kv.Put(ctx, "k", "old")
				cancel()
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.NoError(t, next(kv))
				other.Wait()
				time.Sleep(time.Second)
				require.Equal(t, "new", e.value("k"))
			})
		})
	}
}

// TestWhatIsNotOfTheModeIsOvertaken: under Max, too, a put that asks for more than to be
// the largest is not written over what somebody else has put since.
func TestWhatIsNotOfTheModeIsOvertaken(t *testing.T) {
	for _, mode := range []Mode{LastWriteWins, Max} {
		bubble(t, Config{Rules: []Rule{{Mode: mode, Retry: true}}}, func(t *testing.T, e *fake, kv *KV) {
			mustPut(t, kv, "k", "1")
			failed := false
			e.fault = func(r proto.Message) fault {
				if tx, ok := r.(*pb.TxnRequest); ok && len(tx.Success) > 1 && !failed {
					failed = true
					e.revision++
					e.put(&pb.PutRequest{Key: []byte("k"), Value: []byte("9")})
					return fault{err: rpctypes.ErrTimeout, lost: true}
				}
				return fault{}
			}
			_, err := kv.Put(t.Context(), "k", "5", clientv3.WithPrevKV())
			require.ErrorIs(t, err, ErrOvertaken)
			require.Equal(t, "9", e.value("k"))
		})
	}
}

// TestFlushCountsWhatIsLeft, and not what has been written while something else hung.
func TestFlushCountsWhatIsLeft(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Prefix: "s", Mode: GroupCommit, Linger: ms}}}, func(t *testing.T, e *fake, kv *KV) {
		e.fault = func(r proto.Message) fault {
			if p, ok := r.(*pb.PutRequest); ok && string(p.Key) == "s" {
				return fault{hanging: true, lost: true}
			}
			return fault{}
		}
		hanging, stop := context.WithCancel(t.Context())
		var put sync.WaitGroup
		put.Go(func() { kv.Put(hanging, "s", "1") })
		synctest.Wait()
		for i := range 100 {
			kv.PutAsync(t.Context(), fmt.Sprint("a", i), "1", nil)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, kv.Flush(ctx), "nothing of PutAsync is left")
		stop()
		put.Wait()
	})
}

// TestPromisesAreInOrder also where newer puts took the place of older ones in an outage.
func TestPromisesAreInOrder(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: LastWriteWins}}}, func(t *testing.T, e *fake, kv *KV) {
		e.delay = 100 * ms
		e.fault = func(r proto.Message) fault {
			if e.clock() < 500 {
				return fault{err: rpctypes.ErrGRPCNoLeader, lost: true}
			}
			return fault{}
		}
		var order []int
		for i := range 5 {
			kv.PutAsync(t.Context(), "k", fmt.Sprint(i), func(*clientv3.PutResponse, error) { order = append(order, i) })
			time.Sleep(40 * ms)
		}
		require.NoError(t, kv.Flush(t.Context()))
		require.Equal(t, []int{0, 1, 2, 3, 4}, order)
	})
}

// TestRoomThatIsTakenAmongCallers: what PutAsync has taken counts, and is sent when there is
// no room, also where it waits with what callers have put.
func TestRoomThatIsTakenAmongCallers(t *testing.T) {
	cfg := Config{Rules: []Rule{{Mode: LastWriteWins, Retry: true, Linger: 10 * time.Second, FlushEvery: time.Minute}}, MaxPendingBytes: 3000}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		ctx, cancel := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for i := range 11 {
			kv.PutAsync(t.Context(), fmt.Sprint("k", i), "1", nil)
			callers.Go(func() { kv.Put(ctx, fmt.Sprint("k", i), "ten bytes.") })
		}
		synctest.Wait()
		cancel() // and they leave
		callers.Wait()
		require.GreaterOrEqual(t, kv.Pending().Bytes, 11*(putCharge+2+10))
		began := e.clock()
		for i := range 3 {
			kv.PutAsync(t.Context(), fmt.Sprint("j", i), "1", nil)
		}
		require.Equal(t, began, e.clock())
	})
}

// TestABadNumberThatWaits does not stand in the way of good ones.
func TestABadNumberThatWaits(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: Max, FlushEvery: time.Minute}}}, func(t *testing.T, e *fake, kv *KV) {
		var got []string
		put := func(v string) {
			kv.PutAsync(t.Context(), "k", v, func(_ *clientv3.PutResponse, err error) { got = append(got, fmt.Sprint(v, " ", err == nil)) })
		}
		put("10")
		require.NoError(t, kv.Flush(t.Context()))
		put("abc")
		put("11")
		put("12")
		require.ErrorIs(t, kv.Flush(t.Context()), ErrNotNumber)
		require.Equal(t, []string{"10 true", "abc false", "11 true", "12 true"}, got)
		require.Equal(t, "12", e.value("k"))
	})
}

// TestABarrierBesideWhatIsAbsorbed reads the key of a write that a newer one takes the place
// of, for the race detector.
func TestABarrierBesideWhatIsAbsorbed(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: LastWriteWins, FlushEvery: ms}}}, func(t *testing.T, e *fake, kv *KV) {
		e.delay = ms
		e.fault = func(r proto.Message) fault {
			if e.clock() < 1000 {
				return fault{err: rpctypes.ErrGRPCNoLeader, lost: true}
			}
			return fault{}
		}
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				for e.clock() < 900 {
					kv.PutAsync(t.Context(), "k", fmt.Sprint(i), nil)
					ctx, cancel := context.WithTimeout(t.Context(), 5*ms)
					kv.Get(ctx, "k")
					cancel()
				}
			})
		}
		all.Wait()
		require.NoError(t, kv.Flush(t.Context()))
	})
}
