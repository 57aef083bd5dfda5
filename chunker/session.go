package chunker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// session holds the lease that the anchors of this process are attached to. The
// lease is granted when it is first needed, kept alive until close, and granted
// anew after it was lost, for instance in a long partition.
type session struct {
	lease clientv3.Lease
	ttl   time.Duration

	ctx    context.Context // of the lease's keep-alive; ends with close
	cancel context.CancelFunc
	turn   chan struct{} // holds a token while nobody grants

	mu      sync.Mutex
	id      clientv3.LeaseID   // NoLease where none is held
	end     context.CancelFunc // of its keep-alive
	wg      sync.WaitGroup     // the readers of keep-alive responses
	retired []retired          // leases
}

func newSession(lease clientv3.Lease, ttl time.Duration) *session {
	s := &session{lease: lease, ttl: ttl, turn: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.turn <- struct{}{}
	return s
}

// get returns the lease, granting one where none is held.
func (s *session) get(ctx context.Context) (clientv3.LeaseID, error) {
	if id := s.held(); id != clientv3.NoLease {
		return id, nil
	}
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return clientv3.NoLease, ctx.Err()
	case <-s.ctx.Done():
		return clientv3.NoLease, ErrClosed
	}
	if id := s.held(); id != clientv3.NoLease {
		return id, nil
	}
	if s.ctx.Err() != nil {
		return clientv3.NoLease, ErrClosed
	}
	granted, err := s.lease.Grant(ctx, seconds(s.ttl))
	if err != nil {
		return clientv3.NoLease, err
	}
	kept, end := context.WithCancel(s.ctx)
	alive, err := s.lease.KeepAlive(kept, granted.ID)
	if err != nil {
		end()
		return clientv3.NoLease, err
	}
	if !s.hold(granted.ID, alive, end) {
		end()
		_, err := s.lease.Revoke(ctx, granted.ID) // closed meanwhile
		return clientv3.NoLease, errors.Join(ErrClosed, err)
	}
	return granted.ID, nil
}

// hold keeps the lease, unless the session is closed.
func (s *session) hold(id clientv3.LeaseID, alive <-chan *clientv3.LeaseKeepAliveResponse, end context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.id, s.end = id, end
	s.wg.Go(func() {
		defer end()
		for range alive {
		}
		s.forget(id) // expired, or the session is closed
	})
	return true
}

func (s *session) held() clientv3.LeaseID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

func (s *session) forget(id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == id {
		s.id = clientv3.NoLease
	}
}

// retire lets the lease id expire. Writes that have their anchors on it begin
// again when these are gone.
func (s *session) retire(id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id != id || id == clientv3.NoLease {
		return
	}
	s.id = clientv3.NoLease
	s.end()
	expired := time.Now().Add(-2 * s.ttl)
	s.retired = slices.DeleteFunc(s.retired, func(r retired) bool { return r.at.Before(expired) })
	s.retired = append(s.retired, retired{id, time.Now()})
}

// retired is a lease that is left to expire.
type retired struct {
	id clientv3.LeaseID
	at time.Time
}

// leases returns those that anchors of this process may be on. It is called under mu.
func (s *session) leases() (ids []clientv3.LeaseID) {
	if s.id != clientv3.NoLease {
		ids = append(ids, s.id)
	}
	for _, r := range s.retired {
		ids = append(ids, r.id)
	}
	return ids
}

// seconds returns d as the time to live of a lease, rounded up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// lost is told that a request that names the lease id found a lease missing. It
// reports whether it was this one, which is then forgotten.
func (s *session) lost(ctx context.Context, id clientv3.LeaseID) (bool, error) {
	left, err := s.lease.TimeToLive(ctx, id)
	if err != nil || left.TTL >= 0 { // -1 where there is none
		return false, err
	}
	s.forget(id)
	return true, nil
}

// close revokes the leases, and with them the anchors of writes that are still
// under way.
func (s *session) close(ctx context.Context) error {
	s.mu.Lock()
	s.cancel()
	ids := s.leases() // before the end of its keep-alive makes the session forget one
	s.mu.Unlock()
	s.wg.Wait()
	for _, id := range ids {
		if _, err := s.lease.Revoke(ctx, id); err != nil && !is(err, rpctypes.ErrLeaseNotFound) {
			return err
		}
	}
	return nil
}
