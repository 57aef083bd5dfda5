package chunker

import (
	"context"
	"fmt"
	"time"

	"github.com/kvwrap/kvwrap/internal/session"
	"github.com/kvwrap/kvwrap/internal/wait"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// The sweeps of a cluster take turns by a key below the reserved prefix, the lock,
// on a lease of its own that is kept alive while the sweep runs. Background sweeps
// leave another key behind, the mark, on a lease that lives for half an interval:
// while it is there no background sweep begins, so that a cluster of many clients
// is not swept more often than one of a few.
const (
	lockName = "sweep/lock"
	markName = "sweep/mark"
)

// sweepLock is the lock while it is held.
type sweepLock struct {
	key     []byte
	created int64 // CreateRevision
	release func()
}

// question asks whether the lock is held.
func (l *sweepLock) question() question {
	return question{
		ranges: []*pb.RangeRequest{{Key: l.key, KeysOnly: true}},
		answer: func(_ context.Context, _ *evidence, found []*mvccpb.KeyValue) error {
			if len(found) == 0 || found[0].CreateRevision != l.created {
				return ErrSweepLost
			}
			return nil
		},
	}
}

// held returns the comparison that holds while the lock is.
func (l *sweepLock) held() *pb.Compare { return compareCreate(l.key, l.created) }

// lockPoll is how often a sweep that waits for another one looks, about.
const lockPoll = time.Second

// lockSweep takes the lock, as soon as nobody else has it.
func (s *Stage) lockSweep(ctx context.Context) (*sweepLock, error) {
	for {
		lock, holder, err := s.tryLock(ctx)
		if lock != nil || err != nil {
			return lock, err
		}
		select {
		case <-time.After(wait.Jittered(lockPoll)):
		case <-ctx.Done():
			return nil, fmt.Errorf("chunker: waiting for the sweep of %s to end: %w", holder, ctx.Err())
		}
	}
}

// tryLock takes the lock, unless somebody has it or one of the keys in absent is
// there. Then it returns who put that.
func (s *Stage) tryLock(ctx context.Context, absent ...[]byte) (lock *sweepLock, holder []byte, err error) {
	if s.cfg.Lease == nil {
		return nil, nil, fmt.Errorf("%w: Lease is nil: a sweep takes a lock with it", ErrConfig)
	}
	lock = &sweepLock{key: s.space.Own(lockName)}
	take := &pb.TxnRequest{}
	for _, key := range append(absent, lock.key) {
		found, err := s.inner.Range(ctx, &pb.RangeRequest{Key: key})
		if err != nil {
			return nil, nil, err
		}
		if len(found.Kvs) > 0 {
			return nil, found.Kvs[0].Value, nil
		}
		take.Compare = append(take.Compare, compareCreate(key, 0))
	}
	granted, err := s.cfg.Lease.Grant(ctx, session.Seconds(s.cfg.SessionTTL))
	if err != nil {
		return nil, nil, err
	}
	kept, end := context.WithCancel(ctx)
	lock.release = func() {
		end()
		// Without an answer it expires by itself.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		s.cfg.Lease.Revoke(ctx, granted.ID)
	}
	alive, err := s.cfg.Lease.KeepAlive(kept, granted.ID)
	if err != nil {
		lock.release()
		return nil, nil, err
	}
	go func() {
		for range alive {
		}
	}()
	take.Success = []*pb.RequestOp{wire.Put(&pb.PutRequest{Key: lock.key, Value: anchorValue(), Lease: int64(granted.ID)})}
	resp, err := s.inner.Txn(ctx, take)
	if err != nil || !resp.Succeeded {
		lock.release()
		return nil, []byte("another client"), err
	}
	lock.created = resp.Header.Revision
	return lock, nil, nil
}

// sweepRegularly sweeps about every Config.SweepInterval until ctx ends, unless
// another client of the cluster has.
func (s *Stage) sweepRegularly(ctx context.Context) {
	for {
		select {
		case <-time.After(wait.Jittered(s.cfg.SweepInterval)):
		case <-ctx.Done():
			return
		}
		result, due, err := s.sweepIfDue(ctx)
		if ctx.Err() != nil || !due && err == nil {
			continue
		}
		if err != nil {
			s.stats.sweepErrors.Add(1)
		}
		if s.cfg.OnSweep != nil {
			s.cfg.OnSweep(result, err)
		}
	}
}

// sweepIfDue sweeps unless a sweep is running or has been run a short while ago.
func (s *Stage) sweepIfDue(ctx context.Context) (result SweepResult, due bool, err error) {
	mark := s.space.Own(markName)
	lock, _, err := s.tryLock(ctx, mark)
	if lock == nil {
		return result, false, s.sweepDenied(err)
	}
	defer lock.release()
	if result, err = s.sweep(ctx, lock); err != nil {
		return result, true, err
	}
	granted, err := s.cfg.Lease.Grant(ctx, session.Seconds(s.cfg.SweepInterval/2))
	if err != nil {
		return result, true, err
	}
	_, err = s.inner.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{lock.held()},
		Success: []*pb.RequestOp{wire.Put(&pb.PutRequest{Key: mark, Value: anchorValue(), Lease: int64(granted.ID)})},
	})
	return result, true, err
}
