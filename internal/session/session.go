// Package session keeps a lease of this process: what stands in etcd for its being
// alive. Stages attach to it what is to go when the process has.
package session

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Session holds a lease. It is granted when it is first needed, kept alive until
// Close, and granted anew after it was lost, for instance in a long partition. Its
// methods are safe for concurrent use.
type Session struct {
	lease  clientv3.Lease
	ttl    time.Duration
	closed error

	ctx    context.Context // of the lease's keep-alive; ends with close
	cancel context.CancelFunc
	turn   chan struct{} // holds a token while nobody grants

	mu      sync.Mutex
	id      clientv3.LeaseID   // NoLease where none is held
	end     context.CancelFunc // of its keep-alive
	wg      sync.WaitGroup     // the readers of keep-alive responses
	retired []retired          // leases
}

// New returns a session whose leases live for ttl. Get returns the error closed once
// Close was called. Nothing is sent.
func New(lease clientv3.Lease, ttl time.Duration, closed error) *Session {
	s := &Session{lease: lease, ttl: ttl, closed: closed, turn: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.turn <- struct{}{}
	return s
}

// Get returns the lease, granting one where none is held.
func (s *Session) Get(ctx context.Context) (clientv3.LeaseID, error) {
	if id := s.Held(); id != clientv3.NoLease {
		return id, nil
	}
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return clientv3.NoLease, ctx.Err()
	case <-s.ctx.Done():
		return clientv3.NoLease, s.closed
	}
	if id := s.Held(); id != clientv3.NoLease {
		return id, nil
	}
	if s.ctx.Err() != nil {
		return clientv3.NoLease, s.closed
	}
	granted, err := s.lease.Grant(ctx, Seconds(s.ttl))
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
		return clientv3.NoLease, errors.Join(s.closed, err)
	}
	return granted.ID, nil
}

// hold keeps the lease, unless the session is closed.
func (s *Session) hold(id clientv3.LeaseID, alive <-chan *clientv3.LeaseKeepAliveResponse, end context.CancelFunc) bool {
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

// Held returns the lease that is held, [clientv3.NoLease] where none is.
func (s *Session) Held() clientv3.LeaseID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

func (s *Session) forget(id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == id {
		s.id = clientv3.NoLease
	}
}

// Retire lets the lease id expire. Get returns another one from now on.
func (s *Session) Retire(id clientv3.LeaseID) {
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

// Leases returns the one that is held and those that are left to expire.
func (s *Session) Leases() []clientv3.LeaseID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases()
}

// leases is Leases under mu.
func (s *Session) leases() (ids []clientv3.LeaseID) {
	if s.id != clientv3.NoLease {
		ids = append(ids, s.id)
	}
	for _, r := range s.retired {
		ids = append(ids, r.id)
	}
	return ids
}

// Seconds returns d as the time to live of a lease, rounded up.
func Seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// lost is told that a request that names the lease id found a lease missing. It
// reports whether it was this one, which is then forgotten.
func (s *Session) lost(ctx context.Context, id clientv3.LeaseID) (bool, error) {
	left, err := s.lease.TimeToLive(ctx, id)
	if err != nil || left.TTL >= 0 { // -1 where there is none
		return false, err
	}
	s.forget(id)
	return true, nil
}

// With calls f with the lease, and again with another one where f finds that there is no
// lease and it was this one: a request may name others, too.
func (s *Session) With(ctx context.Context, f func(clientv3.LeaseID) error) error {
	for {
		id, err := s.Get(ctx)
		if err != nil {
			return err
		}
		if err = f(id); !errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
			return err
		}
		if lost, lerr := s.lost(ctx, id); lerr != nil {
			return lerr
		} else if !lost {
			return err
		}
	}
}

// Close revokes the leases, and with them what is attached to them.
func (s *Session) Close(ctx context.Context) error {
	s.mu.Lock()
	s.cancel()
	ids := s.leases() // before the end of its keep-alive makes the session forget one
	s.mu.Unlock()
	s.wg.Wait()
	for _, id := range ids {
		if _, err := s.lease.Revoke(ctx, id); err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
			return err
		}
	}
	return nil
}
