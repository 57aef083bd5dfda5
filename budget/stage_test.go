package budget

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

const ms = time.Millisecond

// fake answers at once, or after a time, and says when it was asked.
type fake struct {
	pb.KVClient
	mu       sync.Mutex
	began    time.Time
	revision int64
	puts     []put
	delay    time.Duration
	err      error
	holds    bool // whether comparisons do
}

type put struct {
	at  time.Duration
	key string
}

func (f *fake) write(key []byte) (*pb.ResponseHeader, error) {
	f.mu.Lock()
	f.puts = append(f.puts, put{time.Since(f.began), string(key)})
	err, delay := f.err, f.delay
	if err == nil {
		f.revision++
	}
	h := &pb.ResponseHeader{ClusterId: 1, Revision: f.revision}
	f.mu.Unlock()
	time.Sleep(delay)
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (f *fake) Put(_ context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	h, err := f.write(r.Key)
	if err != nil {
		return nil, err
	}
	return &pb.PutResponse{Header: h}, nil
}

func (f *fake) DeleteRange(_ context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	h, err := f.write(r.Key)
	if err != nil && len(r.Key) > 0 {
		return nil, err
	}
	return &pb.DeleteRangeResponse{Header: h}, nil // there was nothing
}

func (f *fake) Txn(_ context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	h, err := f.write([]byte("txn"))
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &pb.TxnResponse{Header: h, Succeeded: f.holds}
	ops := r.Failure
	if f.holds {
		ops = r.Success
	}
	for range ops {
		resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}})
	}
	return resp, nil
}

func (f *fake) Range(context.Context, *pb.RangeRequest, ...grpc.CallOption) (*pb.RangeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: 1, Revision: f.revision}}, nil
}

// fails has writes fail from now on, or not.
func (f *fake) fails(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fake) sent() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.puts)
}

func (f *fake) count(from, to time.Duration) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.puts {
		if from <= p.at && p.at < to {
			n++
		}
	}
	return n
}

// bubble runs f with a stage over a fake, with a clock that begins at 0 and goes on when
// everybody waits.
func bubble(t *testing.T, cfg Config, f func(t *testing.T, e *fake, s *KV)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e := &fake{began: time.Now()}
		s, err := New(e, cfg)
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		f(t, e, &KV{KV: clientv3.NewKVFromKVClient(s, nil), stage: s})
	})
}

func TestADeadlineThatCannotBeMet(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 10}}, func(t *testing.T, e *fake, kv *KV) {
		_, err := kv.Put(t.Context(), "k", "v") // the one that it holds
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 50*ms)
		defer cancel()
		_, err = kv.Put(ctx, "k", "v")
		var limited *LimitError
		require.ErrorAs(t, err, &limited)
		require.ErrorIs(t, err, ErrLimited)
		require.Zero(t, time.Since(e.began), "at once")
		require.Equal(t, Rates{Revisions: 10}, limited.Limit)
		require.Equal(t, Cost{Revisions: 1, Bytes: 256 + 2}, limited.Cost)
		require.EqualValues(t, 2, limited.Demand.Revisions)
		require.Equal(t, 100*ms, limited.Wait)
		require.Equal(t, 50*ms, limited.RetryAfter)
		require.Contains(t, err.Error(), "10 revisions/s")
		time.Sleep(limited.RetryAfter)
		again, cancel := context.WithTimeout(t.Context(), 60*ms)
		defer cancel()
		_, err = kv.Put(again, "k", "v")
		require.NoError(t, err, "what it said is so")
		require.EqualValues(t, 1, kv.Stats().Refused)
	})
}

func TestReject(t *testing.T) {
	cfg := Config{Rates: Rates{Revisions: 10}, Rules: []Rule{{Prefix: "s/", Class: Elastic, Reject: true}}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		_, err := kv.Put(t.Context(), "s/1", "v")
		require.NoError(t, err)
		_, err = kv.Put(t.Context(), "s/1", "v")
		var limited *LimitError
		require.ErrorAs(t, err, &limited)
		require.Equal(t, "s/", limited.Prefix)
		require.Equal(t, Elastic, limited.Class)
	})
}

func TestMaxWaiting(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 1}, MaxWaiting: 5}, func(t *testing.T, e *fake, kv *KV) {
		var all sync.WaitGroup
		var mu sync.Mutex
		full := 0
		for range 20 {
			all.Go(func() {
				_, err := kv.Put(t.Context(), "k", "v")
				var limited *LimitError
				if errors.As(err, &limited) && limited.Full {
					mu.Lock()
					full++
					mu.Unlock()
					return
				}
				require.NoError(t, err)
			})
		}
		all.Wait()
		require.Equal(t, 20-5-1, full, "one goes at once")
		require.Zero(t, kv.Stats().Waiting)
	})
}

// TestACancelledWait gives back what it might have taken.
func TestACancelledWait(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 10}}, func(t *testing.T, e *fake, kv *KV) {
		for range 2 {
			_, err := kv.Put(t.Context(), "k", "v")
			require.NoError(t, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				_, err := kv.Put(ctx, "k", "v")
				require.ErrorIs(t, err, context.Canceled)
				require.ErrorIs(t, err, ErrNotSent)
				require.ErrorContains(t, err, "has waited 0s: context canceled")
			})
		}
		synctest.Wait()
		cancel()
		all.Wait()
		_, err := kv.Put(t.Context(), "k", "v")
		require.NoError(t, err)
		require.Less(t, time.Since(e.began), 300*ms)
		require.EqualValues(t, 50, kv.Stats().Left)
		require.Equal(t, 3, e.sent())
	})
}

// TestWhatIsNotWritten is given back: a comparison that fails, a delete of nothing.
func TestWhatIsNotWritten(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 10, Bytes: 10_000}}, func(t *testing.T, e *fake, kv *KV) {
		for range 100 {
			_, err := kv.Txn(t.Context()).If(clientv3.Compare(clientv3.Version("k"), "=", 0)).
				Then(clientv3.OpPut("k", string(make([]byte, 500)))).Commit()
			require.NoError(t, err)
			_, err = kv.Delete(t.Context(), "nothing")
			require.NoError(t, err)
		}
		require.Zero(t, time.Since(e.began))
	})
}

// TestReadsAndCompactionsPass whatever the budget.
func TestReadsPass(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 0.001}}, func(t *testing.T, e *fake, kv *KV) {
		_, err := kv.Put(t.Context(), "k", "v")
		require.NoError(t, err)
		for range 100 {
			_, err := kv.Get(t.Context(), "k")
			require.NoError(t, err)
			_, err = kv.Txn(t.Context()).Then(clientv3.OpGet("k")).Commit()
			require.NoError(t, err)
		}
		require.Zero(t, time.Since(e.began))
	})
}

// TestAdmitWhole: what takes several requests waits once, before the first of them.
func TestAdmitWhole(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 10}}, func(t *testing.T, e *fake, kv *KV) {
		ctx, done, err := kv.stage.Admit(t.Context(), []byte("k"), Cost{Revisions: 20})
		require.NoError(t, err)
		for range 15 {
			_, err := kv.Put(ctx, "k", "v")
			require.NoError(t, err)
		}
		require.Zero(t, time.Since(e.began))
		done() // five were not taken
		_, err = kv.Put(t.Context(), "k", "v")
		require.NoError(t, err)
		require.Equal(t, 1500*ms, time.Since(e.began).Round(ms), "14 are owed")
		short, cancel := context.WithTimeout(t.Context(), 10*ms)
		defer cancel()
		_, _, err = kv.stage.Admit(short, []byte("k"), Cost{Revisions: 20})
		require.ErrorIs(t, err, ErrLimited)
	})
}

func TestNoSpace(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 10}}, func(t *testing.T, e *fake, kv *KV) {
		put := func() error { _, err := kv.Put(t.Context(), "k", "v"); return err }
		require.NoError(t, put())
		require.NoError(t, put())
		var waits sync.WaitGroup
		for range 3 {
			waits.Go(func() {
				if err := put(); err != nil {
					require.ErrorIs(t, err, rpctypes.ErrNoSpace)
				}
			})
		}
		synctest.Wait()
		e.fails(rpctypes.ErrNoSpace)
		waits.Wait()
		sent := e.sent()
		require.Equal(t, 3, sent, "the first that waited was told by etcd, the others by what it was told")
		err := put()
		var none *NoSpaceError
		require.ErrorAs(t, err, &none)
		require.ErrorIs(t, err, rpctypes.ErrNoSpace, "callers who look for etcd's find it")
		_, err = kv.Delete(t.Context(), "k")
		require.ErrorIs(t, err, rpctypes.ErrNoSpace, "it was sent: the fake refuses all")
		require.Equal(t, sent+1, e.sent())

		e.fails(nil)
		require.ErrorIs(t, put(), ErrNoSpace, "nobody knows yet")
		time.Sleep(probeEvery)
		require.NoError(t, put())
		require.NoError(t, put())
		require.False(t, kv.Stats().NoSpace)
	})
}

// TestTooManyRequests slows writes down, and less and less.
func TestTooManyRequests(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 1000}}, func(t *testing.T, e *fake, kv *KV) {
		e.fails(rpctypes.ErrTooManyRequests)
		for range 3 {
			_, err := kv.Put(t.Context(), "k", "v")
			require.Equal(t, rpctypes.ErrTooManyRequests, err)
		}
		e.fails(nil)
		require.InDelta(t, 125, kv.Stats().Limit.Revisions, 1)
		time.Sleep(5 * time.Second)
		_, err := kv.Put(t.Context(), "k", "v")
		require.NoError(t, err)
		require.Equal(t, Rates{Revisions: 1000}, kv.Stats().Limit)
	})
}

// TestNearTheQuota: writes are slowed down, and then refused before etcd would.
func TestNearTheQuota(t *testing.T) {
	var mu sync.Mutex
	b := Backend{Quota: 100 << 20}
	set := func(size, inUse int64) {
		mu.Lock()
		defer mu.Unlock()
		b.Size, b.InUse = size<<20, inUse<<20
	}
	cfg := Config{Rates: Rates{Revisions: 1000}, Backend: func(context.Context) (Backend, error) {
		mu.Lock()
		defer mu.Unlock()
		return b, nil
	}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		put := func() error {
			_, err := kv.Put(t.Context(), "k", "v")
			synctest.Wait() // it has asked
			return err
		}
		set(50, 10)
		require.NoError(t, put())
		require.Equal(t, Rates{Revisions: 1000}, kv.Stats().Limit)
		set(90, 87)
		time.Sleep(10 * time.Second)
		require.NoError(t, put())
		require.InDelta(t, 1000*(1-(0.87-0.80)/0.15), kv.Stats().Limit.Revisions, 1)
		set(99, 97)
		time.Sleep(time.Second)
		require.NoError(t, put(), "it does not know yet")
		var near *QuotaError
		require.ErrorAs(t, put(), &near)
		require.ErrorContains(t, near, "raise --quota-backend-bytes")
		require.EqualValues(t, 97<<20, near.InUse)
		set(99, 20) // a compaction has made room in the file
		time.Sleep(time.Second)
		require.ErrorIs(t, put(), ErrQuota, "it does not know yet")
		require.NoError(t, put(), "what is free in it is used again")
		require.Equal(t, Rates{Revisions: 1000}, kv.Stats().Limit)
	})
}

// TestDerived gives the rate of bytes that keeps the backend within its quota.
func TestDerived(t *testing.T) {
	cfg := Config{Retention: 5 * time.Minute, CompactionInterval: time.Minute, Backend: func(context.Context) (Backend, error) {
		return Backend{Quota: 1000 << 20, Size: 600 << 20, InUse: 80 << 20}, nil
	}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		_, err := kv.Put(t.Context(), "k", "v")
		require.NoError(t, err)
		synctest.Wait()
		require.InDelta(t, (800<<20-80<<20)/360.0, kv.Stats().Limit.Bytes, 1)
	})
}

// TestOverload asks ten times for what there is, for a minute.
func TestOverload(t *testing.T) {
	cfg := Config{Rates: Rates{Revisions: 500}, MaxWaiting: 1000, Rules: []Rule{
		{Prefix: "critical/", Class: Critical}, {Prefix: "elastic/", Class: Elastic, Reject: true},
	}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		e.delay = ms
		var all sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ask := func(key string, every time.Duration, f func(time.Duration, error)) {
			all.Go(func() {
				for ctx.Err() == nil {
					all.Go(func() {
						began := time.Now()
						one, cancel := context.WithTimeout(ctx, time.Second)
						defer cancel()
						_, err := kv.Put(one, key, "v")
						f(time.Since(began), err)
					})
					time.Sleep(every)
				}
			})
		}
		ignore := func(time.Duration, error) {}
		ask("normal/1", 400*time.Microsecond, ignore)  // 2,500 a second
		ask("elastic/1", 400*time.Microsecond, ignore) // and as many
		var mu sync.Mutex
		var took []time.Duration
		ask("critical/1", 10*ms, func(d time.Duration, err error) { // 100, of 222 that are its share
			mu.Lock()
			defer mu.Unlock()
			require.NoError(t, err)
			took = append(took, d)
		})
		all.Wait()
		require.GreaterOrEqual(t, float64(e.count(0, time.Minute)), 0.95*500*60)
		for from := time.Duration(0); from <= 55*time.Second; from += 100 * ms {
			require.LessOrEqual(t, float64(e.count(from, from+5*time.Second)), 1.05*500*5, "from %v", from)
		}
		require.Equal(t, ms, slices.Max(took), "what is critical and within its share does not wait at all")
		require.LessOrEqual(t, kv.Stats().Waiting, 1000)
		t.Logf("%d writes went; %+v", e.sent(), kv.Stats())
	})
}

// TestWhatIsWrongWithAConfig is said with the values and the remedy, all of it at once.
func TestWhatIsWrongWithAConfig(t *testing.T) {
	for says, cfg := range map[string]Config{
		"Rates.Revisions is -1":                        {Rates: Rates{Revisions: -1}},
		"Burst is -1s: it is to be positive":           {Burst: -time.Second},
		"two rules for the prefix \"a\"":               {Rules: []Rule{{Prefix: "a"}, {Prefix: "a"}}},
		"has Class(7): use Normal":                     {Rules: []Rule{{Class: 7}}},
		"Shared is set, Rates.Revisions is 0":          {Shared: true},
		"Register is set, Shared is not":               {Register: true},
		"Lease is nil: set it to the client's":         {Register: true},
		"Retention is 1m0s, Backend is nil":            {Retention: time.Minute},
		"CompactionInterval is 1m0s, Retention is 0":   {CompactionInterval: time.Minute},
		"MaxWaiting is -1":                             {MaxWaiting: -1},
		"Weights[Elastic] is 0: set all of them above": {Weights: [numClasses]float64{Normal: 1, Critical: 1}},
	} {
		_, err := New(&fake{}, cfg)
		require.ErrorIs(t, err, ErrConfig, says)
		require.ErrorContains(t, err, says)
	}
	_, err := NewKV(nil, Config{})
	require.ErrorIs(t, err, ErrConfig)
	require.NoError(t, Config{}.Validate())
	require.Equal(t, "Normal Critical Elastic Class(9)", fmt.Sprint(Normal, " ", Critical, " ", Elastic, " ", Class(9)))
}
