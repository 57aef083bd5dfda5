package contract

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var leaseCases = []testCase{
	{"a lease says which keys are attached to it", func(f *fixture) {
		one, two := f.lease(), f.lease()
		attached := func(ones, twos []string) {
			f.Helper()
			f.ElementsMatch(ones, f.attached(one))
			f.ElementsMatch(twos, f.attached(two))
		}
		attached(nil, nil)
		f.put("\x00", f.v("1"), clientv3.WithLease(one))
		f.put("a", "small", clientv3.WithLease(one))
		f.put("b", f.v("2"), clientv3.WithLease(one))
		f.put("\xff", "", clientv3.WithLease(two))
		f.put("none", f.v("3"))
		attached([]string{"\x00", "a", "b"}, []string{"\xff"})
		f.put("b", "", clientv3.WithIgnoreValue(), clientv3.WithLease(two)) // moves with its value
		f.put("a", f.v("4"), clientv3.WithLease(two))                       // and with another one
		attached([]string{"\x00"}, []string{"a", "b", "\xff"})
		f.put("\x00", f.v("5"), clientv3.WithIgnoreLease())
		f.put("a", "small", clientv3.WithIgnoreLease())
		attached([]string{"\x00"}, []string{"a", "b", "\xff"})
		f.put("a", f.v("6")) // leaves its lease
		f.put("\xff", "", clientv3.WithIgnoreValue())
		attached([]string{"\x00"}, []string{"b"})
		f.txn(nil, ops{
			clientv3.OpPut("c", f.v("7"), clientv3.WithLease(one)),
			clientv3.OpPut("d", f.v("8"), clientv3.WithLease(two)),
			clientv3.OpDelete("b"),
		}, nil)
		attached([]string{"\x00", "c"}, []string{"d"})
		f.del("", clientv3.WithPrefix())
		attached(nil, nil)

		resp, err := f.TimeToLive(f.ctx, one)
		f.NoError(err)
		f.EqualValues(600, resp.GrantedTTL)
		f.Positive(resp.TTL)
		f.LessOrEqual(resp.TTL, resp.GrantedTTL)
		f.Empty(resp.Keys, "keys are told where they are asked for")
	}},
	{"a lease that is revoked takes its keys in one revision", func(f *fixture) {
		lease, other := f.lease(), f.lease()
		f.put("a", f.v("1"), clientv3.WithLease(lease))
		f.put("b", "", clientv3.WithLease(lease))
		f.put("c", f.v("2"), clientv3.WithLease(other))
		last := f.put("d", f.v("3"), clientv3.WithLease(lease)).Header.Revision
		resp, err := f.Revoke(f.ctx, lease)
		f.NoError(err)
		f.header(resp.Header)
		f.Greater(resp.Header.Revision, last)
		_, err = f.Revoke(f.ctx, lease)
		f.Equal(rpctypes.ErrLeaseNotFound, err)
		_, err = f.KeepAliveOnce(f.ctx, lease)
		f.Equal(rpctypes.ErrLeaseNotFound, err)
		ttl, err := f.TimeToLive(f.ctx, lease, clientv3.WithAttachedKeys())
		f.NoError(err)
		f.EqualValues(-1, ttl.TTL)
		f.Empty(ttl.Keys)
		f.ElementsMatch([]string{"c"}, f.attached(other))
		f.value("c", f.v("2"))
		f.goneAtOnce(last, "a", f.v("1"), "b", "", "d", f.v("3"))
	}},
	{"a lease that expires takes its keys in one revision", func(f *fixture) {
		if f.bytes == 0 {
			f.Skip("it takes a second: once is enough")
		}
		granted, err := f.Grant(f.ctx, 1)
		f.NoError(err)
		f.txn(nil, ops{
			clientv3.OpPut("a", f.v("1"), clientv3.WithLease(granted.ID)),
			clientv3.OpPut("b", "small", clientv3.WithLease(granted.ID)),
			clientv3.OpPut("d", f.v("2"), clientv3.WithLease(granted.ID)),
		}, nil)
		last := f.put("c", f.v("3")).Header.Revision
		f.Eventually(func() bool { return f.get("a", clientv3.WithCountOnly()).Count == 0 }, time.Minute, 20*time.Millisecond)
		f.value("c", f.v("3"))
		_, err = f.Put(f.ctx, "a", f.v("1"), clientv3.WithLease(granted.ID))
		f.Equal(rpctypes.ErrLeaseNotFound, err)
		f.goneAtOnce(last, "a", f.v("1"), "b", "small", "d", f.v("2"))
	}},
	{"leases are listed", func(f *fixture) {
		one, two, gone := f.lease(), f.lease(), f.lease()
		f.put("a", f.v("1"), clientv3.WithLease(one))
		_, err := f.Revoke(f.ctx, gone)
		f.NoError(err)
		resp, err := f.Leases(f.ctx)
		f.NoError(err)
		f.header(resp.ResponseHeader)
		f.Contains(resp.Leases, clientv3.LeaseStatus{ID: one})
		f.Contains(resp.Leases, clientv3.LeaseStatus{ID: two})
		f.NotContains(resp.Leases, clientv3.LeaseStatus{ID: gone})
	}},
	{"a lease is kept alive", func(f *fixture) {
		lease := f.lease()
		f.put("a", f.v("1"), clientv3.WithLease(lease))
		once, err := f.KeepAliveOnce(f.ctx, lease)
		f.NoError(err)
		f.Equal(lease, once.ID)
		f.EqualValues(600, once.TTL)
		f.header(once.ResponseHeader)

		ctx, cancel := context.WithCancel(f.ctx)
		alive, err := f.KeepAlive(ctx, lease)
		f.NoError(err)
		kept, ok := <-alive
		f.True(ok)
		f.Equal(lease, kept.ID)
		f.EqualValues(600, kept.TTL)
		cancel()
		for range alive {
		}
		f.EqualValues(lease, f.value("a", f.v("1")).Lease)
	}},
}

// attached returns the keys that are attached to a lease.
func (f *fixture) attached(lease clientv3.LeaseID) (keys []string) {
	f.Helper()
	resp, err := f.TimeToLive(f.ctx, lease, clientv3.WithAttachedKeys())
	f.NoError(err)
	f.header(resp.ResponseHeader)
	f.Equal(lease, resp.ID)
	for _, key := range resp.Keys {
		keys = append(keys, string(key))
	}
	return keys
}

// goneAtOnce checks that a lease has taken these keys and no others, all with one
// revision after last. It ends the case where there is no Watcher.
func (f *fixture) goneAtOnce(last int64, keysAndValues ...string) {
	f.Helper()
	gone := func(revision int64) (n int) {
		for i := 0; i < len(keysAndValues); i += 2 {
			kvs := f.get(keysAndValues[i], clientv3.WithRev(revision)).Kvs
			if len(kvs) == 0 {
				n++
			} else {
				f.equal(keysAndValues[i+1], kvs[0].Value)
			}
		}
		return n
	}
	revision := last
	for gone(revision) == 0 {
		revision++
	}
	f.Greater(revision, last)
	f.Equal(len(keysAndValues)/2, gone(revision), "keys that revision %d has taken", revision)

	var dels []change
	for i := 0; i < len(keysAndValues); i += 2 {
		dels = append(dels, del(keysAndValues[i]).over(keysAndValues[i+1]))
	}
	w := f.watch("", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(last+1))
	f.Equal(revision, w.seesAtOnce(dels...)[0].Kv.ModRevision)
}
