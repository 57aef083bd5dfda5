package coalesce

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

const ms = time.Millisecond

// script does things at times, in milliseconds, each on its own goroutine, and waits
// until all have been done.
type script map[int]func()

func (s script) run() {
	var all sync.WaitGroup
	for at, do := range s {
		all.Go(func() {
			time.Sleep(time.Duration(at) * ms)
			do()
		})
	}
	all.Wait()
	synctest.Wait() // what others have done at that time is there to be read
}

func mustPut(t *testing.T, kv clientv3.KV, key, value string) {
	_, err := kv.Put(context.Background(), key, value)
	require.NoError(t, err)
}

func rule(r Rule) Config { return Config{Rules: []Rule{r}} }

// TestNaturalBatching has requests take 10 ms: what comes while one is under way is the
// next, and nothing waits when none is.
func TestNaturalBatching(t *testing.T) {
	bubble(t, rule(Rule{Mode: GroupCommit}), func(t *testing.T, e *fake, kv *KV) {
		e.delay = 10 * ms
		put := func(key string) func() { return func() { mustPut(t, kv, key, "") } }
		script{0: put("a"), 2: put("b"), 7: put("c"), 15: put("d"), 40: put("e")}.run()
		require.Equal(t, []string{"0s: a=", "10ms: b= c=", "20ms: d=", "40ms: e="}, e.writes())
		require.Equal(t, 50, e.clock())
	})
}

func TestSeveralInFlight(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: GroupCommit}}, InFlight: 2, MaxOps: 2}, func(t *testing.T, e *fake, kv *KV) {
		e.delay = 10 * ms
		put := func(key string) func() { return func() { mustPut(t, kv, key, "") } }
		script{0: put("a"), 2: put("b"), 4: put("c"), 5: put("d"), 11: put("e"), 12: put("f")}.run()
		require.Equal(t, []string{"0s: a=", "4ms: b= c=", "11ms: d= e=", "21ms: f="}, e.writes(), "while one is under way others are full")
	})
}

func TestLinger(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: GroupCommit, Linger: 5 * ms}, {Prefix: "now/", Mode: GroupCommit}}, MaxOps: 3}, func(t *testing.T, e *fake, kv *KV) {
		put := func(key string) func() { return func() { mustPut(t, kv, key, "") } }
		script{
			0: put("a"), 3: put("b"), 4: put("now/c"), // b goes with a, c goes at once
			10: put("d"), 11: put("e"), 12: put("f"), // three are full
			20: put("g"),
		}.run()
		require.Equal(t, []string{"4ms: now/c=", "5ms: a= b=", "12ms: d= e= f=", "25ms: g="}, e.writes())
	})
}

// TestACallerWaitsForItsPut has one wait as long as the request takes, and no longer.
func TestACallerWaitsForItsPut(t *testing.T) {
	bubble(t, rule(Rule{Mode: LastWriteWins, Linger: 5 * ms}), func(t *testing.T, e *fake, kv *KV) {
		e.delay = 10 * ms
		script{
			0: func() { mustPut(t, kv, "a", "1"); require.Equal(t, 15, e.clock()) },
			2: func() { mustPut(t, kv, "a", "2"); require.Equal(t, 15, e.clock()) },
			6: func() { mustPut(t, kv, "a", "3"); require.Equal(t, 25, e.clock(), "after the one under way") },
		}.run()
		require.Equal(t, []string{"5ms: a=2", "15ms: a=3"}, e.writes())
	})
}

// TestFlushEvery writes behind.
func TestFlushEvery(t *testing.T) {
	bubble(t, rule(Rule{Mode: LastWriteWins, FlushEvery: 50 * ms}), func(t *testing.T, e *fake, kv *KV) {
		e.delay = 2 * ms
		var told []string
		async := func(key, value string) func() {
			return func() {
				kv.PutAsync(context.Background(), key, value, func(resp *clientv3.PutResponse, err error) {
					require.NoError(t, err)
					require.NotZero(t, resp.Header.Revision)
					told = append(told, fmt.Sprintf("%d: %s=%s", e.clock(), key, value))
				})
			}
		}
		// The first one puts the sequence first, which takes 2 ms.
		script{0: async("a", "1"), 10: async("a", "2"), 20: async("b", "1"), 60: async("a", "3"), 100: async("a", "4"), 112: func() {}}.run()
		require.Equal(t, []string{"52ms: a=2 b=1", "110ms: a=4"}, e.writes())
		require.Equal(t, []string{"54: a=1", "54: a=2", "54: b=1", "112: a=3", "112: a=4"}, told)
		require.Zero(t, kv.Pending())
	})
}

// TestPending is what a crash would lose.
func TestPending(t *testing.T) {
	bubble(t, rule(Rule{Mode: LastWriteWins, FlushEvery: 50 * ms}), func(t *testing.T, e *fake, kv *KV) {
		e.delay = 5 * ms
		for i := range 3 {
			kv.PutAsync(t.Context(), "a", fmt.Sprint(i), nil)
		}
		kv.PutAsync(t.Context(), "b", "1", nil)
		require.Equal(t, Pending{Puts: 4, Writes: 2, Bytes: 2 * (putCharge + 2)}, kv.Pending())
		time.Sleep(56 * ms) // sent at 55, and answered at 60
		kv.PutAsync(t.Context(), "a", "7", nil)
		require.Equal(t, Pending{Puts: 5, Writes: 3, Bytes: 3 * (putCharge + 2)}, kv.Pending())
		time.Sleep(5 * ms)
		require.Equal(t, Pending{Puts: 1, Writes: 1, Bytes: putCharge + 2}, kv.Pending())
		require.NoError(t, kv.Flush(t.Context()))
		require.Zero(t, kv.Pending())
		require.Equal(t, 66, e.clock())
		require.Equal(t, "7", e.value("a"))
	})
}

// TestRequestsWaitForWhatIsPending has each kind of request come after writes that wait
// for an hour.
func TestRequestsWaitForWhatIsPending(t *testing.T) {
	cfg := Config{Rules: []Rule{{Mode: LastWriteWins, FlushEvery: time.Hour, Linger: time.Hour}, {Prefix: "stale/", Mode: LastWriteWins, FlushEvery: time.Hour, StaleReads: true}, {Prefix: "off/"}}}
	for name, request := range map[string]func(kv clientv3.KV) error{
		"get": func(kv clientv3.KV) error { _, err := kv.Get(context.Background(), "a"); return err },
		"prefix": func(kv clientv3.KV) error {
			_, err := kv.Get(context.Background(), "", clientv3.WithPrefix())
			return err
		},
		"from key": func(kv clientv3.KV) error {
			_, err := kv.Get(context.Background(), "a", clientv3.WithFromKey())
			return err
		},
		"delete": func(kv clientv3.KV) error { _, err := kv.Delete(context.Background(), "a"); return err },
		"txn": func(kv clientv3.KV) error {
			_, err := kv.Txn(context.Background()).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).Then(clientv3.OpPut("b", "")).Commit()
			return err
		},
		"read in a transaction": func(kv clientv3.KV) error {
			_, err := kv.Txn(context.Background()).Then(clientv3.OpGet("a")).Commit()
			return err
		},
		"nested": func(kv clientv3.KV) error {
			_, err := kv.Txn(context.Background()).Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpDelete("a")}, nil)).Commit()
			return err
		},
		"put on another lease": func(kv clientv3.KV) error {
			_, err := kv.Put(context.Background(), "a", "2", clientv3.WithLease(77))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
				e.leases[77] = true
				kv.PutAsync(context.Background(), "a", "1", nil)
				kv.PutAsync(context.Background(), "stale/a", "1", nil)
				time.Sleep(20 * ms)
				if name == "put on another lease" {
					go func() { // its own linger is an hour, too
						time.Sleep(ms)
						kv.Flush(context.Background())
					}()
				}
				require.NoError(t, request(kv))
				require.Contains(t, e.writes()[0], "20ms: a=1")
				require.Less(t, e.clock(), 22)
			})
		})
	}
	t.Run("not stale reads", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
			kv.PutAsync(context.Background(), "stale/a", "1", nil)
			resp, err := kv.Get(context.Background(), "stale/a")
			require.NoError(t, err)
			require.Empty(t, resp.Kvs)
			require.Empty(t, e.writes())
			_, err = kv.Delete(context.Background(), "stale/a")
			require.NoError(t, err)
			require.Len(t, e.writes(), 1, "a delete waits for it")
		})
	})
	t.Run("not other keys, not the past", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
			kv.PutAsync(context.Background(), "b", "1", nil)
			for _, get := range []clientv3.Op{
				clientv3.OpGet("a"), clientv3.OpGet("a", clientv3.WithRange("b")), clientv3.OpGet("b\x00", clientv3.WithFromKey()),
				clientv3.OpGet("b", clientv3.WithRev(1)),
			} {
				_, err := kv.Do(context.Background(), get)
				require.NoError(t, err)
			}
			mustPut(t, kv, "off/a", "")
			require.Equal(t, []string{"0s: off/a="}, e.writes())
		})
	})
}

func TestACallerWhoLeaves(t *testing.T) {
	t.Run("before its put is sent", func(t *testing.T) {
		bubble(t, rule(Rule{Mode: LastWriteWins, Linger: 10 * ms}), func(t *testing.T, e *fake, kv *KV) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*ms)
			defer cancel()
			_, err := kv.Put(ctx, "a", "1")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 5, e.clock())
			time.Sleep(time.Second)
			require.Empty(t, e.sent)
		})
	})
	t.Run("while another waits for the same put", func(t *testing.T) {
		bubble(t, rule(Rule{Mode: LastWriteWins, Linger: 10 * ms}), func(t *testing.T, e *fake, kv *KV) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*ms)
			defer cancel()
			script{
				0: func() { _, err := kv.Put(ctx, "a", "1"); require.ErrorIs(t, err, context.DeadlineExceeded) },
				1: func() { mustPut(t, kv, "a", "2") },
			}.run()
			require.Equal(t, []string{"10ms: a=2"}, e.writes())
		})
	})
	t.Run("whose batch is under way", func(t *testing.T) {
		bubble(t, rule(Rule{Mode: GroupCommit, Linger: 2 * ms}), func(t *testing.T, e *fake, kv *KV) {
			e.delay = 10 * ms
			ctx, cancel := context.WithTimeout(t.Context(), 5*ms)
			defer cancel()
			script{
				0: func() {
					_, err := kv.Put(ctx, "a", "1")
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.Equal(t, 5, e.clock())
				},
				1: func() { mustPut(t, kv, "b", "1"); require.Equal(t, 12, e.clock()) },
			}.run()
			require.Equal(t, "1", e.value("a"))
		})
	})
	t.Run("as the last one of its batch", func(t *testing.T) {
		bubble(t, rule(Rule{Mode: GroupCommit, Linger: 2 * ms}), func(t *testing.T, e *fake, kv *KV) {
			e.fault = func(proto.Message) fault { return fault{hanging: true} }
			ctx, cancel := context.WithTimeout(t.Context(), 5*ms)
			defer cancel()
			script{
				0: func() { kv.Put(ctx, "a", "1") },
				1: func() { kv.Put(ctx, "b", "1") },
				4: func() { // is sent when the batch before it is over, though that has no answer
					e.mu.Lock()
					e.fault = nil
					e.mu.Unlock()
					mustPut(t, kv, "c", "1")
					require.Equal(t, 6, e.clock())
				},
			}.run()
		})
	})
	t.Run("alone", func(t *testing.T) {
		bubble(t, rule(Rule{Mode: GroupCommit}), func(t *testing.T, e *fake, kv *KV) {
			e.fault = func(proto.Message) fault { return fault{hanging: true} }
			ctx, cancel := context.WithTimeout(t.Context(), 5*ms)
			defer cancel()
			_, err := kv.Put(ctx, "a", "1")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 5, e.clock())
			e.fault = nil
			mustPut(t, kv, "b", "1")
			require.Equal(t, 5, e.clock())
		})
	})
	t.Run("before it has come", func(t *testing.T) {
		bubble(t, rule(Rule{Mode: GroupCommit, Transactions: true}), func(t *testing.T, e *fake, kv *KV) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := kv.Put(ctx, "a", "1")
			require.ErrorIs(t, err, context.Canceled)
			_, err = kv.Txn(ctx).Then(clientv3.OpPut("a", "1")).Commit()
			require.ErrorIs(t, err, context.Canceled)
			require.Empty(t, e.writes())
		})
	})
}

func TestRoom(t *testing.T) {
	most := 3 * (putCharge + 2)
	cfg := Config{Rules: []Rule{{Mode: LastWriteWins, FlushEvery: 50 * ms}}, MaxPendingBytes: most}
	t.Run("is waited for", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
			for _, key := range []string{"a", "b", "c"} {
				kv.PutAsync(t.Context(), key, "1", nil)
			}
			kv.PutAsync(t.Context(), "a", "2", nil) // takes the place of another, and no room
			require.Equal(t, 0, e.clock())
			e.delay = 5 * ms
			kv.PutAsync(t.Context(), "d", "1", nil)
			require.Equal(t, 10, e.clock(), "until the others were written, which is at once now: 5 for the sequence, 5 for them")
			require.Equal(t, []string{"5ms: a=2 b=1 c=1"}, e.writes())
		})
	})
	t.Run("as long as the context allows", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
			for _, key := range []string{"a", "b", "c"} {
				kv.PutAsync(t.Context(), key, "1", nil)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 7*ms)
			defer cancel()
			e.delay = 50 * ms
			told := make(chan error, 1)
			kv.PutAsync(ctx, "d", "1", func(_ *clientv3.PutResponse, e error) { told <- e })
			require.Equal(t, 7, e.clock())
			require.ErrorIs(t, <-told, context.DeadlineExceeded)
			require.Equal(t, 3, kv.Pending().Puts)
		})
	})
	t.Run("is refused", func(t *testing.T) {
		cfg := cfg
		cfg.RejectWhenFull = true
		var failed []string
		cfg.OnError = func(key []byte, err error) { failed = append(failed, string(key)+": "+err.Error()) }
		bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
			for _, key := range []string{"a", "b", "c", "d"} {
				kv.PutAsync(t.Context(), key, "1", nil)
			}
			require.NoError(t, kv.Flush(t.Context()))
			require.Len(t, failed, 1)
			require.Contains(t, failed[0], `d: coalesce: full: key "d" takes 258 bytes, 774 are pending, Config.MaxPendingBytes is 774: wait`)
			told := make(chan error, 1)
			kv.PutAsync(t.Context(), "e", string(make([]byte, most)), func(_ *clientv3.PutResponse, e error) { told <- e })
			var full *FullError
			err := <-told
			require.ErrorAs(t, err, &full)
			require.ErrorIs(t, err, ErrFull)
			require.ErrorContains(t, err, "or use Put")
			require.EqualValues(t, 2, kv.Stats().Failed)
		})
	})
}

// TestClose writes what waits, or says what it has not.
func TestClose(t *testing.T) {
	cfg := rule(Rule{Mode: LastWriteWins, FlushEvery: time.Hour})
	t.Run("drains", func(t *testing.T) {
		bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
			e.delay = 3 * ms
			told := 0
			for i := range 10 {
				kv.PutAsync(t.Context(), fmt.Sprint(i), "1", func(_ *clientv3.PutResponse, err error) {
					require.NoError(t, err)
					told++
				})
			}
			require.NoError(t, kv.Close())
			require.Equal(t, 10, told, "promises are told before Close returns")
			require.Equal(t, "1", e.value("9"))
			require.False(t, e.leases[1], "the lease is revoked")

			closed := make(chan error, 1)
			kv.PutAsync(t.Context(), "a", "1", func(_ *clientv3.PutResponse, e error) { closed <- e })
			require.ErrorIs(t, <-closed, ErrClosed)
			mustPut(t, kv, "a", "2") // all else goes on
			require.NoError(t, kv.Flush(t.Context()))
			require.NoError(t, kv.Close())
		})
	})
	t.Run("gives up in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newFake()
			kv := e.open(t, Config{Rules: cfg.Rules, CloseTimeout: 700 * ms})
			e.fault = func(r proto.Message) fault { return fault{err: rpctypes.ErrTimeout, lost: true} }
			var errs []error
			for _, key := range []string{"a", "b", "b"} {
				kv.PutAsync(t.Context(), key, "1", func(_ *clientv3.PutResponse, err error) { errs = append(errs, err) })
			}
			err := kv.Close()
			require.Equal(t, 700, e.clock())
			var flush *FlushError
			require.ErrorAs(t, err, &flush)
			require.Equal(t, FlushError{Waiting: 3, Key: []byte("a"), Err: context.DeadlineExceeded, After: 700 * ms}, *flush)
			require.Len(t, errs, 3)
			for _, err := range errs {
				require.ErrorIs(t, err, ErrClosed)
			}
			require.Zero(t, kv.Pending())
		})
	})
	t.Run("although a promise does not return", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newFake()
			kv := e.open(t, Config{Rules: cfg.Rules, CloseTimeout: 700 * ms})
			end := make(chan struct{})
			kv.PutAsync(t.Context(), "a", "1", func(*clientv3.PutResponse, error) { <-end })
			require.NoError(t, kv.Close()) // it was written
			require.Equal(t, 1400, e.clock())
			close(end)
		})
	})
}

// TestRetries has a server fail for a while. What is written behind is written once it is
// back, in its newest form, and who would have to wait for it is told.
func TestRetries(t *testing.T) {
	cfg := rule(Rule{Mode: LastWriteWins, FlushEvery: 50 * ms})
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		kv.PutAsync(t.Context(), "a", "0", nil)
		require.NoError(t, kv.Flush(t.Context()))
		down := true
		e.fault = func(r proto.Message) fault {
			if down {
				return fault{err: rpctypes.ErrTimeout, lost: true}
			}
			return fault{}
		}
		var told []error
		script{
			0: func() {
				kv.PutAsync(t.Context(), "a", "1", func(_ *clientv3.PutResponse, err error) { told = append(told, err) })
			},
			100: func() {
				kv.PutAsync(t.Context(), "a", "2", func(_ *clientv3.PutResponse, err error) { told = append(told, err) })
			},
			2000: func() {
				_, err := kv.Get(t.Context(), "a")
				var barrier *BarrierError
				require.ErrorAs(t, err, &barrier)
				require.ErrorIs(t, err, rpctypes.ErrTimeout, "the reason")
			},
			5000: func() {
				e.mu.Lock()
				defer e.mu.Unlock()
				down = false
			},
		}.run()
		require.Empty(t, told)
		require.NoError(t, kv.Flush(t.Context()))
		require.Equal(t, []error{nil, nil}, told)
		require.Equal(t, "2", e.value("a"))
		require.Less(t, e.clock(), 5000+3000+100, "the longest backoff, and its jitter")
		e.mu.Lock()
		defer e.mu.Unlock()
		require.EqualValues(t, 2, e.kvs["a"].Version, "0 and 2: 1 was replaced while it waited")
		require.Less(t, len(e.sent), 20, "and nobody is hammered")
	})
}

// TestARequestThatHangs is given up after RequestTimeout, and settled.
func TestARequestThatHangs(t *testing.T) {
	bubble(t, Config{Rules: []Rule{{Mode: GroupCommit, Retry: true}}, RequestTimeout: 300 * ms}, func(t *testing.T, e *fake, kv *KV) {
		mustPut(t, kv, "a", "0")
		n := 0
		e.fault = func(r proto.Message) fault {
			if n++; n == 1 {
				return fault{hanging: true, late: time.Second}
			}
			return fault{}
		}
		mustPut(t, kv, "a", "1")
		require.Equal(t, 300, e.clock(), "at once, since etcd answers")
		time.Sleep(2 * time.Second) // the first attempt comes late
		require.Equal(t, "1", e.value("a"))
		e.mu.Lock()
		defer e.mu.Unlock()
		require.EqualValues(t, 2, e.kvs["a"].Version, "and is not applied")
	})
}
