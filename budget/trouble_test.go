package budget

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// crowd has n callers put a key until ctx ends.
func crowd(ctx context.Context, all *sync.WaitGroup, kv *KV, key string, n int) {
	for range n {
		all.Go(func() {
			for ctx.Err() == nil {
				if _, err := kv.Put(ctx, key, "v"); err != nil {
					time.Sleep(10 * ms) // it is refused at once
				}
			}
		})
	}
}

// TestWhatWentBeforeIsNotHeldAgainst a rule, nor a class, that has written steadily within
// the budget, when another one comes in numbers.
func TestWhatWentBeforeIsNotHeldAgainst(t *testing.T) {
	for name, other := range map[string]Class{"a rule": Normal, "a class": Elastic} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Rates: Rates{Revisions: 90}, Rules: []Rule{{Prefix: "a/"}, {Prefix: "b/", Class: other}}}
			bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
				for range 600 * 36 {
					_, err := kv.Put(t.Context(), "a/1", "v")
					require.NoError(t, err)
					time.Sleep(time.Second / 36)
				}
				began := time.Since(e.began)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				var all sync.WaitGroup
				crowd(ctx, &all, kv, "b/1", 200)
				time.Sleep(50 * ms)
				crowd(ctx, &all, kv, "a/1", 200)
				all.Wait()
				went := map[string]float64{}
				for _, p := range e.puts {
					if p.at >= began {
						went[p.key]++
					}
				}
				weights := Config{}.withDefaults().Weights
				require.InEpsilon(t, weights[Normal]/weights[other], went["a/1"]/went["b/1"], 0.1, "%v", went)
			})
		})
	}
}

// TestTheQuotaHoldsWhoWaits, and who is under way: a crowd of large puts stops before it.
func TestTheQuotaHoldsWhoWaits(t *testing.T) {
	const quota = 100 << 20
	for name, rates := range map[string]Rates{"who waits": {Revisions: 100}, "who is under way": {Revisions: 1e6}} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			size := int64(90 << 20)
			cfg := Config{Rates: rates, Backend: func(context.Context) (Backend, error) {
				mu.Lock()
				defer mu.Unlock()
				return Backend{Quota: quota, Size: size, InUse: size}, nil
			}}
			bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
				_, err := kv.Put(t.Context(), "k", "v")
				require.NoError(t, err)
				synctest.Wait()
				e.delay = 10 * ms
				value := string(make([]byte, 100<<10))
				refused := 0
				var all sync.WaitGroup
				for range 500 {
					all.Go(func() {
						_, err := kv.Put(t.Context(), "k", value)
						mu.Lock()
						defer mu.Unlock()
						if err != nil {
							require.ErrorIs(t, err, ErrQuota)
							refused++
							return
						}
						size += int64(len(value))
					})
				}
				all.Wait()
				require.NotZero(t, refused)
				require.Less(t, size, int64(quota))
			})
		})
	}
}

// TestASilentBackend says nothing for ever: what it last said counts for a while, and not
// after Close.
func TestASilentBackend(t *testing.T) {
	asked := 0
	cfg := Config{Backend: func(context.Context) (Backend, error) {
		if asked++; asked == 1 {
			return Backend{Quota: 100 << 20, Size: 99 << 20, InUse: 99 << 20}, nil
		}
		return Backend{}, errors.New("not now")
	}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		put := func() error { _, err := kv.Put(t.Context(), "k", "v"); return err }
		require.NoError(t, put())
		synctest.Wait()
		require.ErrorIs(t, put(), ErrQuota)
		time.Sleep(time.Minute)
		require.ErrorIs(t, put(), ErrQuota, "nobody has asked meanwhile")
		synctest.Wait()
		require.NotZero(t, kv.Stats().AskErrors)
		time.Sleep(31 * time.Second)
		require.NoError(t, put())
	})
	asked = 0
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		put := func() error { _, err := kv.Put(t.Context(), "k", "v"); return err }
		require.NoError(t, put())
		synctest.Wait()
		require.ErrorIs(t, put(), ErrQuota)
		require.NoError(t, kv.Close())
		require.NoError(t, put())
	})
}

// TestSpaceIsFoundByTransactionsThatDoNotPut: etcd refuses them for what they could put.
func TestSpaceIsFoundByTransactionsThatDoNotPut(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 1000}}, func(t *testing.T, e *fake, kv *KV) {
		e.fails(rpctypes.ErrNoSpace)
		_, err := kv.Put(t.Context(), "k", "v")
		require.ErrorIs(t, err, rpctypes.ErrNoSpace)
		e.fails(nil)
		time.Sleep(probeEvery)
		for range 10 {
			_, err := kv.Txn(t.Context()).If(clientv3.Compare(clientv3.Version("lock"), "=", 0)).Then(clientv3.OpPut("lock", "me")).Commit()
			require.NoError(t, err)
		}
	})
}

// TestAShareOfOne: who is alone has it to itself within seconds, also where it is small.
func TestAShareOfOne(t *testing.T) {
	for _, budget := range []float64{1, 10, 100, 1000} {
		bubble(t, Config{Rates: Rates{Revisions: budget}, Shared: true}, func(t *testing.T, e *fake, kv *KV) {
			e.revision = 100
			var all sync.WaitGroup
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			crowd(ctx, &all, kv, "k", 10)
			all.Wait()
			if budget >= 10 { // below, seconds pass without a revision
				require.InDelta(t, budget*20, e.count(40*time.Second, time.Minute), budget*20*0.1+1)
			}
			require.GreaterOrEqual(t, e.count(0, 15*time.Second), 2)
		})
	}
}

// TestARestoreGivesLowerRevisions, which are a new beginning.
func TestARestoreGivesLowerRevisions(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 1000}, Shared: true}, func(t *testing.T, e *fake, kv *KV) {
		e.revision = 1_000_000
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		var all sync.WaitGroup
		crowd(ctx, &all, kv, "k", 100)
		time.Sleep(300 * ms)
		e.mu.Lock()
		e.revision = 500_000
		e.mu.Unlock()
		all.Wait()
		require.InDelta(t, 10_000, e.count(30*time.Second, 40*time.Second), 1500)
	})
}

// TestWithoutRatesItIsSlowedDownToo, from what was usual, or at the least from what is worth
// something where it has only begun.
func TestWithoutRatesItIsSlowedDownToo(t *testing.T) {
	var lag atomic.Uint64
	cfg := Config{BackendEvery: time.Second, Backend: func(context.Context) (Backend, error) {
		return Backend{Quota: 1000 << 20, Size: 500 << 20, InUse: 500 << 20, Lag: lag.Load()}, nil
	}}
	put := func(t *testing.T, kv *KV, times int) {
		for range times {
			_, err := kv.Put(t.Context(), "k", "v")
			require.NoError(t, err)
			time.Sleep(ms)
		}
	}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		put(t, kv, 3000)
		require.Zero(t, kv.Stats().Limit)
		lag.Store(3000) // half of what is too much
		put(t, kv, 2000)
		require.InDelta(t, 500, kv.Stats().Limit.Revisions, 5)
	})
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		put(t, kv, 1000)
		require.Equal(t, slowedLeast.Revisions/2, kv.Stats().Limit.Revisions)
	})
}

// TestDeletesPassABudgetOfBytes: they cost none, and make room.
func TestDeletesPassABudgetOfBytes(t *testing.T) {
	bubble(t, Config{Rates: Rates{Bytes: 1000}, Rules: []Rule{{Prefix: "r/", Reject: true}}}, func(t *testing.T, e *fake, kv *KV) {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { kv.Put(t.Context(), "k", "v") })
		}
		synctest.Wait()
		for _, key := range []string{"k", "r/1"} {
			began := time.Now()
			_, err := kv.Delete(t.Context(), key)
			require.NoError(t, err)
			require.Zero(t, time.Since(began))
		}
		all.Wait()
	})
}

// TestWhenThereIsAPlaceAgain is what a class that is full says.
func TestWhenThereIsAPlaceAgain(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 1}, MaxWaiting: 5}, func(t *testing.T, e *fake, kv *KV) {
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() { kv.Put(t.Context(), "k", "v") })
		}
		synctest.Wait()
		refused := 0
		for {
			_, err := kv.Put(t.Context(), "k", "v")
			var limited *LimitError
			if !errors.As(err, &limited) {
				require.NoError(t, err)
				break
			}
			refused++
			time.Sleep(limited.RetryAfter)
		}
		require.LessOrEqual(t, refused, 2)
		all.Wait()
	})
}

// TestSetRatesGivesNothing: a limit that comes back begins empty.
func TestSetRatesGivesNothing(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 100}}, func(t *testing.T, e *fake, kv *KV) {
		went := 0
		for time.Since(e.began) < 5*time.Second {
			require.NoError(t, kv.SetRates(Rates{}))
			require.NoError(t, kv.SetRates(Rates{Revisions: 100}))
			for {
				ctx, cancel := context.WithTimeout(t.Context(), ms/2)
				_, err := kv.Put(ctx, "k", "v")
				cancel()
				if err != nil {
					break
				}
				went++
			}
			time.Sleep(50 * ms)
		}
		require.LessOrEqual(t, went, 525)
	})
}

// TestABudgetOverABudget: an allowance is for the stage that gave it, until it is done.
func TestABudgetOverABudget(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 10}}, func(t *testing.T, e *fake, kv *KV) {
		outer, err := New(kv.stage, Config{Rates: Rates{Revisions: 1e6}})
		require.NoError(t, err)
		ctx, done, err := outer.Admit(t.Context(), []byte("k"), Cost{Revisions: 50})
		require.NoError(t, err)
		for range 20 {
			_, err := outer.Put(ctx, &pb.PutRequest{Key: []byte("k")})
			require.NoError(t, err)
		}
		require.InDelta(t, 1.9, time.Since(e.began).Seconds(), 0.2)
		done()
		ctx, done, err = kv.stage.Admit(t.Context(), []byte("k"), Cost{Revisions: 1})
		require.NoError(t, err)
		done()
		began := time.Now()
		for i := range 10 {
			_, err := kv.Put(ctx, fmt.Sprint(i), "v")
			require.NoError(t, err)
		}
		require.InDelta(t, 1, time.Since(began).Seconds(), 0.2)
	})
}

// TestExtremes neither take for ever to compute nor pass without limit.
func TestExtremes(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 1e-12, Bytes: 1e30}}, func(t *testing.T, e *fake, kv *KV) {
		_, err := kv.Put(t.Context(), "k", "v")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err = kv.Put(ctx, "k", "v")
		require.ErrorIs(t, err, ErrLimited)
	})
	l := newTestLimiter(Rates{Bytes: 18})
	steps := testing.AllocsPerRun(1, func() { l.whole.take(t0, Cost{Revisions: 1, Bytes: 64 << 20}) })
	require.Less(t, steps, 100.0)
	require.Greater(t, l.whole.wait(t0, Cost{Revisions: 0, Bytes: 1}), 1000*time.Hour)
}

// TestMembersWithoutAQuota do not hide the one that has little room left.
func TestMembersWithoutAQuota(t *testing.T) {
	h := Health{Members: []HealthMember{{DbSize: 5 << 30}, {DbSize: 999 << 20, DbSizeInUse: 900 << 20, Quota: 1000 << 20}, {Error: "away"}}}
	b, err := h.backend()
	require.NoError(t, err)
	require.Equal(t, Backend{Size: 999 << 20, InUse: 900 << 20, Quota: 1000 << 20}, b)
}

// TestAClientThatHasJustCome to a shared budget is refused nothing for the little that it
// begins with: it may have more in a moment.
func TestAClientThatHasJustCome(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 1000}, Shared: true}, func(t *testing.T, e *fake, kv *KV) {
		var all sync.WaitGroup
		for range 40 { // at 2 a second the last one would wait 20 seconds
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				_, err := kv.Put(ctx, "k", "v")
				require.NoError(t, err)
			})
		}
		all.Wait()
		require.Contains(t, kv.Stats().Why, "share of 1000 revisions/s for the cluster")
	})
}

// TestTheFirstWriteOfARegisteredClient goes with its part of the budget: the stage waits
// until it is known, and no longer where it cannot be.
func TestTheFirstWriteOfARegisteredClient(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	cli := cluster.Client(t)
	kv, err := NewKV(cli.KV, Config{Rates: Rates{Revisions: 1000, Bytes: 1e9}, Shared: true, Register: true, Lease: cli.Lease, Rules: []Rule{{Reject: true}}})
	require.NoError(t, err)
	defer kv.Close()
	_, err = kv.Put(t.Context(), "k", "v")
	require.NoError(t, err)
	require.Equal(t, 1, kv.Stats().Clients)
	require.Greater(t, kv.Stats().Limit.Revisions, 400.0)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = kv.Put(ctx, "k", "v")
	require.ErrorIs(t, err, context.Canceled)

	none, err := NewKV(cli.KV, Config{Rates: Rates{Revisions: 1000}, Shared: true, Register: true, Lease: brokenLease{cli.Lease}})
	require.NoError(t, err)
	defer none.Close()
	_, err = none.Put(t.Context(), "k", "v")
	require.NoError(t, err)
	require.EqualValues(t, 1, none.Stats().AskErrors)
	require.Zero(t, none.Stats().Clients)
}

// brokenLease grants none.
type brokenLease struct{ clientv3.Lease }

func (brokenLease) Grant(context.Context, int64) (*clientv3.LeaseGrantResponse, error) {
	return nil, rpctypes.ErrPermissionDenied
}

// TestCountersOfClasses add up to those of all.
func TestCountersOfClasses(t *testing.T) {
	cfg := Config{Rates: Rates{Revisions: 10}, Rules: []Rule{{Prefix: "c/", Class: Critical}, {Prefix: "e/", Class: Elastic, Reject: true}}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		_, err := kv.Put(t.Context(), "c/1", "v")
		require.NoError(t, err)
		for range 3 {
			_, err = kv.Put(t.Context(), "n", "v")
			require.NoError(t, err)
		}
		_, err = kv.Put(t.Context(), "e/1", "v")
		require.NoError(t, err)
		_, err = kv.Put(t.Context(), "e/1", "v")
		require.ErrorIs(t, err, ErrLimited)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(ms); cancel() }()
		_, err = kv.Put(ctx, "c/1", "v")
		for err == nil {
			_, err = kv.Put(ctx, "c/1", "v")
		}
		st := kv.Stats()
		require.NotZero(t, st.Classes[Critical].Admitted)
		require.EqualValues(t, 3, st.Classes[Normal].Admitted+st.Classes[Normal].Delayed)
		require.Equal(t, ClassStats{Admitted: 1, Refused: 1}, st.Classes[Elastic])
		require.EqualValues(t, 1, st.Classes[Critical].Left)
		var sum ClassStats
		for _, c := range st.Classes {
			sum.add(c)
		}
		require.Equal(t, st.ClassStats, sum)
	})
}
