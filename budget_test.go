package kvwrap

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestPressureMakesBatchesLarger: the budget is below the coalescer, so that callers who
// share a batch share what it takes.
func TestPressureMakesBatchesLarger(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{
		Rules:  []Rule{{Coalesce: coalesce.GroupCommit}},
		Budget: budget.Config{Rates: budget.Rates{Revisions: 20}},
	})
	began := time.Now()
	together(200, func(i int) {
		for range 5 {
			_, err := kv.Put(t.Context(), fmt.Sprint("k", i), "v")
			require.NoError(t, err)
		}
	})
	stats := kv.Stats()
	t.Logf("1000 puts in %v, %d batches", time.Since(began), stats.Coalesce.Batches)
	require.Less(t, stats.Coalesce.Batches, uint64(100), "alone 1000 puts would take 50 seconds")
}

// TestALargePutIsAdmittedWhole, or refused before anything of it was sent.
func TestALargePutIsAdmittedWhole(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{Budget: budget.Config{Rates: budget.Rates{Revisions: 1000, Bytes: 16 << 10}}})
	value := statistics()
	_, err := kv.Put(t.Context(), "k", value)
	require.NoError(t, err)
	before := stored(t, s.cli)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = kv.Put(ctx, "another", strings.ToUpper(value))
	var limited *budget.LimitError
	require.ErrorAs(t, err, &limited)
	require.Greater(t, limited.Cost.Revisions, 2)
	require.Equal(t, before, stored(t, s.cli))

	require.NoError(t, kv.SetRates(budget.Rates{Revisions: 1000, Bytes: 1 << 30}), "and for who waits")
	_, err = kv.Put(t.Context(), "another", value)
	require.NoError(t, err)
}

// TestRatesReachWhoWaits already.
func TestRatesReachWhoWaits(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{Budget: budget.Config{Rates: budget.Rates{Revisions: 0.001}}})
	_, err := kv.Put(t.Context(), "k", "1")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := kv.Put(t.Context(), "k", "2")
		done <- err
	}()
	require.Eventually(t, func() bool { return kv.Stats().Budget.Waiting == 1 }, 10*time.Second, time.Millisecond)
	_, err = kv.Get(t.Context(), "k")
	require.NoError(t, err, "reads are not held back")
	require.NoError(t, kv.SetRates(budget.Rates{Revisions: 1000}))
	require.NoError(t, <-done)
	require.ErrorIs(t, kv.SetRates(budget.Rates{Revisions: -1}), budget.ErrConfig)
}

func TestWhatIsWrongWithABudget(t *testing.T) {
	s := newSide(t)
	_, err := New(s.cli, Config{
		Budget: budget.Config{Rules: []budget.Rule{{Prefix: "a"}}, Rates: budget.Rates{Bytes: -1}},
		Rules:  []Rule{{Prefix: "a", Class: 9}, {Prefix: "b"}, {Prefix: "b"}},
	})
	require.Equal(t, 1, strings.Count(err.Error(), `the prefix "b"`), "said once: %v", err)
	require.ErrorContains(t, err, "Config.Budget.Rules is set: set Config.Rules in its place")
	require.ErrorContains(t, err, "Rates.Bytes is -1")
	require.ErrorContains(t, err, "Class(9)")
	require.ErrorIs(t, err, budget.ErrConfig)
}

// TestRegistrationsAreHidden below the reserved prefix.
func TestRegistrationsAreHidden(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{Budget: budget.Config{Rates: budget.Rates{Revisions: 1000}, Shared: true, Register: true}})
	_, err := kv.Put(t.Context(), "k", "v")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return kv.Stats().Budget.Clients == 1 }, 10*time.Second, time.Millisecond)
	resp, err := kv.Get(t.Context(), "\x00", clientv3.WithFromKey())
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1)
	require.Len(t, stored(t, s.cli), 2)
	require.NoError(t, kv.Close())
	require.Len(t, stored(t, s.cli), 1)
}

// TestWritesBehindOutlastABudget: the wait for a budget does not count as that for an answer.
func TestWritesBehindOutlastABudget(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{
		Rules:    []Rule{{Coalesce: coalesce.GroupCommit, FlushEvery: time.Millisecond}},
		Coalesce: coalesce.Config{RequestTimeout: 100 * time.Millisecond, CloseTimeout: 30 * time.Second},
		Budget:   budget.Config{Rates: budget.Rates{Revisions: 2}},
	})
	told := make(chan error, 10)
	for i := range 10 {
		kv.PutAsync(t.Context(), fmt.Sprint("k", i%3), fmt.Sprint(i), func(_ *clientv3.PutResponse, err error) { told <- err })
	}
	for range 10 {
		require.NoError(t, <-told)
	}
	for i, version := range []int64{4, 3, 3} {
		resp, err := s.cli.Get(t.Context(), fmt.Sprint("k", i))
		require.NoError(t, err)
		require.Equal(t, version, resp.Kvs[0].Version)
	}
	require.Zero(t, kv.Stats().Budget.Refused)
}

// TestWritesBehindWaitWithOthers: what would wait for longer than a batch may take is in the
// queue as everybody is.
func TestWritesBehindWaitWithOthers(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{Budget: budget.Config{Rates: budget.Rates{Revisions: 50}}, Coalesce: coalesce.Config{RequestTimeout: 100 * time.Millisecond}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		together(50, func(i int) { // a queue of a second
			for ctx.Err() == nil {
				kv.Put(ctx, fmt.Sprint("others", i), "v") // without a deadline it is not refused
			}
		})
	}()
	require.Eventually(t, func() bool { return kv.Stats().Budget.Waiting > 40 }, 10*time.Second, time.Millisecond)
	kv.PutAsync(t.Context(), "k", "v", nil)
	require.NoError(t, kv.Flush(t.Context()))
	require.Zero(t, kv.Stats().Budget.Refused)
	cancel()
	<-done
}

// TestRejectIsForWhomItIsFor: what shares a batch with it waits.
func TestRejectIsForWhomItIsFor(t *testing.T) {
	s := newSide(t)
	kv := s.over(t, Config{
		Rules:  []Rule{{Prefix: "c/", Coalesce: coalesce.GroupCommit, Class: budget.Critical, Reject: true}, {Prefix: "n/", Coalesce: coalesce.GroupCommit}},
		Budget: budget.Config{Rates: budget.Rates{Revisions: 20}},
	})
	together(40, func(i int) {
		for j := range 10 {
			if i%4 == 0 {
				kv.Put(t.Context(), fmt.Sprint("c/", i), fmt.Sprint(j))
				continue
			}
			_, err := kv.Put(t.Context(), fmt.Sprint("n/", i), fmt.Sprint(j))
			require.NoError(t, err)
		}
	})
}
