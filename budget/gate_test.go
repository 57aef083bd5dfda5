package budget

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// disk is a backend that grows, behind a fake.
type disk struct {
	*fake
	quota  int64
	size   atomic.Int64
	lost   atomic.Bool // whether answers are, of what is applied
	broken atomic.Bool // whether it cannot be asked for
	takes  time.Duration
}

func (d *disk) Put(ctx context.Context, r *pb.PutRequest, opts ...grpc.CallOption) (*pb.PutResponse, error) {
	d.size.Add(int64(len(r.Value)))
	if d.lost.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return d.fake.Put(ctx, r, opts...)
}

func (d *disk) backend(context.Context) (Backend, error) {
	time.Sleep(d.takes)
	if d.broken.Load() {
		return Backend{}, errors.New("not now")
	}
	return Backend{Quota: d.quota, Size: d.size.Load(), InUse: d.size.Load()}, nil
}

// onDisk runs f with a stage over a disk.
func onDisk(t *testing.T, quota, size int64, cfg Config, f func(t *testing.T, d *disk, put func(bytes int) error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := &disk{fake: &fake{began: time.Now()}, quota: quota}
		d.size.Store(size)
		cfg.Backend = d.backend
		s, err := New(d, cfg)
		require.NoError(t, err)
		defer func() { require.NoError(t, s.Close()) }()
		f(t, d, func(bytes int) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if d.lost.Load() {
				ctx, cancel = context.WithTimeout(ctx, 20*ms)
				defer cancel()
			}
			_, err := s.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, bytes)})
			return err
		})
	})
}

// TestWhatHadNoAnswerCounts, since etcd may have applied it.
func TestWhatHadNoAnswerCounts(t *testing.T) {
	onDisk(t, 100*mib, 50*mib, Config{}, func(t *testing.T, d *disk, put func(int) error) {
		for range 4 {
			require.NoError(t, put(1))
			time.Sleep(time.Second)
		}
		d.lost.Store(true)
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				for range 100 {
					if err := put(mib); errors.Is(err, ErrNotSent) {
						time.Sleep(10 * ms)
					}
				}
			})
		}
		all.Wait()
		require.Less(t, d.size.Load(), int64(100*mib))
		require.Greater(t, d.size.Load(), int64(60*mib))
	})
}

// TestAFastWriterThatHasPaused is not refused by what it would have written meanwhile.
func TestAFastWriterThatHasPaused(t *testing.T) {
	for _, every := range []time.Duration{0, 5 * time.Minute} {
		onDisk(t, 2<<30, 200*mib, Config{BackendEvery: every}, func(t *testing.T, d *disk, put func(int) error) {
			d.takes = 20 * ms
			for range 600 {
				require.NoError(t, put(mib))
				time.Sleep(10 * ms)
			}
			time.Sleep(25*time.Second + 2*every)
			require.NoError(t, put(100))
		})
	}
}

// TestABurstIsCountedOnce: what has been in the size for long is not presumed again.
func TestABurstIsCountedOnce(t *testing.T) {
	onDisk(t, 128*mib, 10*mib, Config{}, func(t *testing.T, d *disk, put func(int) error) {
		for range 4 {
			require.NoError(t, put(1))
			time.Sleep(time.Second)
		}
		for range 40 {
			require.NoError(t, put(mib))
		}
		time.Sleep(20 * time.Second)
		for range 40 {
			before := time.Now()
			require.NoError(t, put(1))
			require.Less(t, time.Since(before), 500*ms)
			time.Sleep(10 * ms)
		}
	})
}

// TestABackendThatFails is presumed nothing of after half a minute, however seldom it is
// asked for.
func TestABackendThatFails(t *testing.T) {
	onDisk(t, 100*mib, 99*mib, Config{BackendEvery: 5 * time.Minute}, func(t *testing.T, d *disk, put func(int) error) {
		require.NoError(t, put(1))
		synctest.Wait()
		require.ErrorIs(t, put(1), ErrQuota)
		d.broken.Store(true)
		failed := time.Now()
		for put(1) != nil {
			time.Sleep(100 * ms)
		}
		require.InDelta(t, 31, time.Since(failed).Seconds(), 2)
	})
}

// TestBeforeTheBackendIsKnown little is written, whoever waits for tokens, and where it
// cannot be asked for only for some seconds.
func TestBeforeTheBackendIsKnown(t *testing.T) {
	for name, cfg := range map[string]Config{"at once": {}, "who waits for tokens": {Rates: Rates{Revisions: 100}, Burst: ms}} {
		t.Run(name, func(t *testing.T) {
			onDisk(t, 64*mib, 60*mib, cfg, func(t *testing.T, d *disk, put func(int) error) {
				d.takes = 3 * time.Second
				d.broken.Store(true)
				var all sync.WaitGroup
				for range 100 {
					all.Go(func() { put(60 << 10) })
				}
				time.Sleep(4900 * ms)
				require.LessOrEqual(t, d.sent(), 1)
				time.Sleep(10 * time.Second)
				require.Equal(t, 100, d.sent())
				all.Wait()
			})
		})
	}
}

// TestWhoDoesNotWaitIsToldByALook, also when the backend was not seen yet: a refusal has
// numbers.
func TestWhoDoesNotWaitIsToldByALook(t *testing.T) {
	cfg := Config{Rules: []Rule{{Prefix: "k", Reject: true}}}
	onDisk(t, 100*mib, 50*mib, cfg, func(t *testing.T, d *disk, put func(int) error) {
		d.takes = 20 * ms
		began := time.Now()
		require.NoError(t, put(100<<10))
		require.Equal(t, 20*ms, time.Since(began))
	})
	onDisk(t, 100*mib, 99*mib, cfg, func(t *testing.T, d *disk, put func(int) error) {
		d.takes = 20 * ms
		began := time.Now()
		var full *QuotaError
		require.ErrorAs(t, put(100<<10), &full)
		require.Equal(t, 20*ms, time.Since(began))
		require.Equal(t, Backend{Quota: 100 * mib, Size: 99 * mib, InUse: 99 * mib}, full.Backend)
		require.Zero(t, d.sent())
	})
}

// TestABackendThatNeverAnswers does not hold up a write for ever.
func TestABackendThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		s, err := New(&fake{began: time.Now()}, Config{Backend: func(context.Context) (Backend, error) {
			<-hang
			return Backend{}, nil
		}})
		require.NoError(t, err)
		began := time.Now()
		_, err = s.Put(t.Context(), &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 100<<10)})
		require.NoError(t, err)
		require.InDelta(t, 5, time.Since(began).Seconds(), 0.5)
		close(hang)
		require.NoError(t, s.Close())
	})
}

// TestWhoBeginsNearTheQuota and has no limit is slowed down from what is worth something.
func TestWhoBeginsNearTheQuota(t *testing.T) {
	cfg := Config{Backend: func(context.Context) (Backend, error) {
		return Backend{Quota: 1000 * mib, Size: 810 * mib, InUse: 810 * mib}, nil
	}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var all sync.WaitGroup
		e.delay = ms
		crowd(ctx, &all, kv, "k", 10)
		all.Wait()
		require.Greater(t, e.sent(), 20_000)
		require.Contains(t, kv.Stats().Why, "81 % of the backend's quota are in use")
	})
}

// TestALowerRevisionIsAskedForSeldom after a restore.
func TestALowerRevisionIsAskedForSeldom(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 0.5}, Shared: true}, func(t *testing.T, e *fake, kv *KV) {
		e.revision = 1000
		var asked atomic.Int32
		s, err := New(counted{e, &asked}, Config{Rates: Rates{Revisions: 0.5}, Shared: true})
		require.NoError(t, err)
		defer s.Close()
		put := func() { s.Put(t.Context(), &pb.PutRequest{Key: []byte("k")}) }
		put()
		e.mu.Lock()
		e.revision = 10
		e.mu.Unlock()
		go put()
		time.Sleep(11 * time.Second)
		require.NotZero(t, asked.Load())
		require.LessOrEqual(t, asked.Load(), int32(11))
	})
}

// counted counts reads.
type counted struct {
	*fake
	n *atomic.Int32
}

func (c counted) Range(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (*pb.RangeResponse, error) {
	c.n.Add(1)
	time.Sleep(ms)
	return c.fake.Range(ctx, r, opts...)
}

// TestSpaceIsFoundWhileDeletesTakeTheBudget: who waits for tokens has not tried.
func TestSpaceIsFoundWhileDeletesTakeTheBudget(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 100}}, func(t *testing.T, e *fake, _ *KV) {
		s, err := New(deleting{e}, Config{Rates: Rates{Revisions: 100}})
		require.NoError(t, err)
		defer s.Close()
		put := func() error { _, err := s.Put(t.Context(), &pb.PutRequest{Key: []byte("k")}); return err }
		e.fails(rpctypes.ErrNoSpace)
		require.Error(t, put())
		e.fails(nil) // disarmed
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var all sync.WaitGroup
		for range 30 {
			all.Go(func() {
				for ctx.Err() == nil {
					_, err := s.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("k")})
					require.NoError(t, err)
				}
			})
		}
		found := false
		for ctx.Err() == nil && !found {
			found = put() == nil
			time.Sleep(100 * ms)
		}
		require.True(t, found)
		cancel()
		all.Wait()
	})
}

// deleting always has a key to delete.
type deleting struct{ *fake }

func (deleting) DeleteRange(context.Context, *pb.DeleteRangeRequest, ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	time.Sleep(ms)
	return &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{ClusterId: 1, Revision: 5}, Deleted: 1}, nil
}

// TestAnAllowanceAndOthers: requests within one that are made again do not take what is
// under way of others, and what they do not write is given back to the class.
func TestAnAllowanceAndOthers(t *testing.T) {
	bubble(t, Config{Rates: Rates{Revisions: 1e6}}, func(t *testing.T, e *fake, kv *KV) {
		e.delay = time.Second
		go kv.Put(t.Context(), "other", string(make([]byte, mib)))
		synctest.Wait()
		e.delay = 0
		ctx, done, err := kv.stage.Admit(t.Context(), []byte("k"), Cost{Revisions: 1, Bytes: mib})
		require.NoError(t, err)
		for range 3 {
			_, err = kv.Put(ctx, "k", string(make([]byte, mib-257)))
			require.NoError(t, err)
		}
		done()
		flying := func() int {
			kv.stage.mu.Lock()
			defer kv.stage.mu.Unlock()
			return kv.stage.gate.flying
		}
		require.GreaterOrEqual(t, flying(), mib, "the other one is under way")
		time.Sleep(2 * time.Second)
		require.Zero(t, flying())
	})
	cfg := Config{Rates: Rates{Revisions: 90}, Burst: time.Second, Rules: []Rule{{Prefix: "c/", Class: Critical}}}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		txn := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("c/1")}}}}}
		for range 100 {
			ctx, done, err := kv.stage.AdmitTxn(t.Context(), txn)
			require.NoError(t, err)
			_, err = kv.stage.Txn(ctx, txn) // which does not hold
			require.NoError(t, err)
			done()
		}
		require.Zero(t, kv.stage.limiter.classes[Critical].assured.wait(time.Now(), Cost{Revisions: 1}))
	})
}

// TestCloseForgetsTheBackend, and an answer that comes then.
func TestCloseForgetsTheBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(&fake{began: time.Now()}, Config{Backend: func(context.Context) (Backend, error) {
			time.Sleep(time.Second)
			return Backend{Quota: 100, Size: 100, InUse: 100}, nil
		}})
		require.NoError(t, err)
		for range 2 {
			_, err = s.Put(t.Context(), &pb.PutRequest{Key: []byte("k")})
			require.NoError(t, err)
			require.NoError(t, s.Close())
		}
	})
}

// TestYouthEnds after some seconds, however small the budget is.
func TestYouthEnds(t *testing.T) {
	for _, revisions := range []float64{1, 10, 1000} {
		bubble(t, Config{Rates: Rates{Revisions: revisions}, Shared: true}, func(t *testing.T, e *fake, kv *KV) {
			_, err := kv.Put(t.Context(), "k", "v")
			require.NoError(t, err)
			require.True(t, kv.stage.share.young(time.Now()))
			time.Sleep(3 * time.Second)
			require.False(t, kv.stage.share.young(time.Now()))
		})
	}
}

// TestARegistrationThatHangs is said in the error of who waits for it.
func TestARegistrationThatHangs(t *testing.T) {
	cfg := Config{Rates: Rates{Revisions: 1000}, Shared: true, Register: true, Lease: hangingLease{}, SessionTTL: time.Second}
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := kv.Put(ctx, "k", "v")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, ErrNotSent)
		require.ErrorContains(t, err, "it is not registered yet")
		_, err = kv.Put(t.Context(), "k", "v")
		require.NoError(t, err)
		require.InDelta(t, 5, time.Since(e.began).Seconds(), 0.5)
		st := kv.Stats()
		require.EqualValues(t, 1, st.Delayed)
		require.EqualValues(t, 1, st.Left)
		require.InDelta(t, 5, st.Waited.Seconds(), 0.5)
	})
}

// hangingLease never grants one.
type hangingLease struct{ clientv3.Lease }

func (hangingLease) Grant(ctx context.Context, _ int64) (*clientv3.LeaseGrantResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestMembersOfTwoVersions: the one that does not say its quota has that of the other.
func TestMembersOfTwoVersions(t *testing.T) {
	h := Health{Members: []HealthMember{
		{Name: "3.6", DbSize: 500, DbSizeInUse: 500, Quota: 1000},
		{Name: "3.5", DbSize: 999, DbSizeInUse: 400, QuotaAssumed: true},
	}}
	b, err := h.backend()
	require.NoError(t, err)
	require.Equal(t, Backend{Size: 999, InUse: 400, Quota: 1000}, b)
}
