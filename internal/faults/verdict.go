//go:build unix

package faults

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// verdict reads what is there at the end, reports what is wrong with all that has
// happened, and returns how much that is.
func (r *run) verdict() int {
	last, err := kvwrap.New(r.direct, kvwrap.Config{})
	require.NoError(r, err)
	r.h.end(r, len(r.clients)+len(r.writing), performer{last, last.Lease()}, r.seen, r.watching)
	require.NoError(r, last.Close())
	happened, dir := r.seen.close(), keep(r)
	violations := r.h.check(happened)
	violations = append(violations, r.watching.compare(happened)...)
	violations = append(violations, r.h.linearizable(dir)...)
	r.h.report(r, dir, happened, violations)
	return len(violations)
}

// end reads all keys, makes one last write, and waits until all witnesses have seen
// it. Then they are closed.
func (h *history) end(t testing.TB, client int, p performer, witnesses ...*witness) {
	for n := range int(h.started.Load()/h.epoch) + 1 {
		res := h.do(client, request{Kind: getAll, Keys: keysOf(epoch(n)), Prefix: epoch(n), Timeout: time.Minute}, p.do)
		if res.Outcome != ok {
			t.Errorf("the last read: %v", res.Error)
		}
	}
	last := request{Kind: put, Keys: []string{prefix + "end"}, Values: []value{{ID: "end", Size: 100}}, Timeout: time.Minute}
	res := h.do(client, last, p.do)
	require.Equal(t, ok, res.Outcome, res.Error)
	for _, w := range witnesses {
		require.Eventually(t, func() bool {
			revision, err := w.seen()
			return revision >= res.Revision || err != nil
		}, time.Minute, 10*time.Millisecond, "a watch does not come to the end")
		if _, err := w.seen(); err != nil {
			t.Errorf("a watch has ended: %v", err)
		}
		w.close()
	}
}

// report reports what is wrong with a history, and keeps all that is known of it in
// a directory.
func (h *history) report(t testing.TB, dir func() string, happened []event, violations []string) {
	if len(violations) == 0 {
		return
	}
	require.NoError(t, h.dump(dir(), happened))
	for i, v := range violations {
		if i == 20 {
			t.Errorf("and %d more", len(violations)-i)
			break
		}
		t.Error(v)
	}
	t.Errorf("the history is in %s", dir())
}

// keep returns a function that makes a directory, once it is called, which stays.
func keep(t testing.TB) func() string {
	return sync.OnceValue(func() string {
		dir, err := os.MkdirTemp("", "kvwrap-faults-")
		require.NoError(t, err)
		return dir
	})
}

// sweep ends all sessions, sweeps what writers have left behind that did not come
// to an end, and returns how much of that there still is.
func (r *run) sweep() int {
	ctx := r.Context()
	leases, err := r.direct.Leases(ctx)
	require.NoError(r, err)
	for _, l := range leases.Leases {
		if _, err := r.direct.Revoke(ctx, l.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) { // it has ended by itself
			require.NoError(r, err)
		}
	}
	kv, err := kvwrap.New(r.direct, kvwrap.Config{})
	require.NoError(r, err)
	swept, err := kv.Sweep(ctx)
	require.NoError(r, err)
	require.NoError(r, kv.Close())
	r.Logf("the sweep: %+v", swept)
	all, err := r.direct.Get(ctx, "\x00", clientv3.WithFromKey())
	require.NoError(r, err)
	left, err := orphans(all.Kvs)
	require.NoError(r, err, "-faults.seed %d", r.seed)
	return len(left)
}
