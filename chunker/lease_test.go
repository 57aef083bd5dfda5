package chunker

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (e *env) grant() clientv3.LeaseID {
	e.Helper()
	resp, err := e.cli.Grant(e.ctx, 600)
	require.NoError(e, err)
	return resp.ID
}

func (e *env) revoke(id clientv3.LeaseID) {
	e.Helper()
	_, err := e.cli.Revoke(e.ctx, id)
	require.NoError(e, err)
}

// TestChunksGoWithTheirKey revokes leases and sees that nothing stays.
func TestChunksGoWithTheirKey(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	one, two := e.grant(), e.grant()
	inline, staged := text(90<<10, "i"), text(500<<10, "s")
	for _, value := range []string{inline, staged} {
		e.put("k", value, clientv3.WithLease(one))
		e.revoke(one)
		require.Empty(t, e.stored())
		one = e.grant()

		// Moved with its value, and with a new one that is nearly the same.
		e.put("k", value, clientv3.WithLease(one))
		e.put("k", "", clientv3.WithIgnoreValue(), clientv3.WithLease(two))
		e.revoke(one)
		e.holds("k", value)
		one = e.grant()
		e.put("k", value+"x", clientv3.WithLease(one))
		e.revoke(two)
		e.holds("k", value+"x")
		two = e.grant()
		e.put("k", value, clientv3.WithIgnoreLease())
		e.revoke(one)
		require.Empty(t, e.stored())
		one = e.grant()

		// Taken off.
		e.put("k", value, clientv3.WithLease(one))
		e.put("k", value)
		e.revoke(one)
		e.holds("k", value)
		require.Empty(t, e.orphans())
		one = e.grant()
		_, err := e.kv.Delete(e.ctx, "k")
		require.NoError(t, err)
	}
}

// TestAKeyThatAPlainClientMoved has its manifest on another lease than its
// chunks, which nobody can prevent. The next write puts that right.
func TestAKeyThatAPlainClientMoved(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	one, two := e.grant(), e.grant()
	value := text(200<<10, "v")
	e.put("k", value, clientv3.WithLease(one))
	_, err := e.cli.Put(e.ctx, "k", "", clientv3.WithIgnoreValue(), clientv3.WithLease(two))
	require.NoError(t, err)
	e.holds("k", value)
	e.put("k", value+"x", clientv3.WithLease(two))
	e.revoke(one)
	e.holds("k", value+"x")
	require.Empty(t, e.orphans())

	_, err = e.cli.Put(e.ctx, "k", "", clientv3.WithIgnoreValue())
	require.NoError(t, err)
	e.put("k", "", clientv3.WithIgnoreValue(), clientv3.WithIgnoreLease())
	e.revoke(two)
	e.holds("k", value+"x")
}

// TestTheSessionIsLost takes the lease of unfinished writes away.
func TestTheSessionIsLost(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	e.put("k", text(500<<10, "a"))
	first := e.kv.stage.session.Held()
	require.NotZero(t, first)
	e.revoke(first)
	e.put("k", incompressible(500<<10, "b"))
	e.holds("k", incompressible(500<<10, "b"))
	require.NotEqual(t, first, e.kv.stage.session.Held())
	require.Empty(t, e.orphans())
}

func TestCloseRevokesTheSession(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	e.put("small", "value")
	require.Zero(t, e.kv.stage.session.Held(), "a lease for nothing")
	e.put("k", text(500<<10, "a"))
	id := e.kv.stage.session.Held()
	require.NoError(t, e.kv.Close())
	require.NoError(t, e.kv.Close())
	left, err := e.cli.TimeToLive(e.ctx, id)
	require.NoError(t, err)
	require.EqualValues(t, -1, left.TTL)

	e.holds("k", text(500<<10, "a"))
	e.put("small", "other")
	_, err = e.kv.Put(e.ctx, "k", incompressible(500<<10, "b"))
	require.ErrorIs(t, err, ErrClosed)
	e.holds("k", text(500<<10, "a"))
	require.Empty(t, e.orphans())
}

// TestALeaseThatIsNotThere is the put's own, while the session's has less than a
// second left.
func TestALeaseThatIsNotThere(t *testing.T) {
	e := newEnv(t, Config{SessionTTL: time.Second}, nil)
	_, err := e.kv.Put(e.ctx, "k", incompressible(200<<10, "x"), clientv3.WithLease(12345))
	require.ErrorIs(t, err, rpctypes.ErrLeaseNotFound)
	held, err := e.cli.Leases(e.ctx)
	require.NoError(t, err)
	require.Len(t, held.Leases, 1, "one session")
}

// slowLease waits with its grant until it is told.
type slowLease struct {
	clientv3.Lease
	asked, proceed chan struct{}
}

func (l slowLease) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	close(l.asked)
	<-l.proceed
	return l.Lease.Grant(ctx, ttl)
}

func TestCloseWhileALeaseIsGranted(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	l := slowLease{e.cli.Lease, make(chan struct{}), make(chan struct{})}
	kv, _ := e.another(Config{Lease: l})
	put := make(chan error)
	go func() {
		_, err := kv.Put(e.ctx, "k", incompressible(200<<10, "x"))
		put <- err
	}()
	<-l.asked
	require.NoError(t, kv.Close())
	close(l.proceed)
	require.ErrorIs(t, <-put, ErrClosed)
	held, err := e.cli.Leases(e.ctx)
	require.NoError(t, err)
	require.Empty(t, held.Leases)
}
