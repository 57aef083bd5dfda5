package coalesce

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestWhatIsWrongWithAConfig(t *testing.T) {
	lease := clientv3.Lease(newFake())
	for name, c := range map[string]struct {
		cfg  Config
		says string
	}{
		"ops":            {Config{MaxOps: 5000}, "MaxOps is 5000: choose 1 to 4096, or 0 for the default"},
		"entry":          {Config{MaxEntryBytes: 100}, "MaxEntryBytes is 100: choose 4096 to 1048576"},
		"in flight":      {Config{InFlight: -1}, "InFlight is -1: choose 1 to 64"},
		"pending":        {Config{MaxPendingBytes: -5}, "MaxPendingBytes is -5"},
		"remember":       {Config{RememberBytes: 200}, "RememberBytes is 200: choose 1048576 or more"},
		"close":          {Config{CloseTimeout: -time.Second}, "CloseTimeout is -1s"},
		"request":        {Config{RequestTimeout: time.Nanosecond}, "RequestTimeout is 1ns: choose 1ms or more"},
		"session":        {Config{SessionTTL: time.Millisecond}, "SessionTTL is 1ms: choose 1s or more"},
		"two rules":      {Config{Rules: []Rule{{Prefix: "a"}, {Prefix: "a"}}}, `two rules for the prefix "a": leave one`},
		"no such mode":   {Config{Rules: []Rule{{Mode: 9}}}, "the mode is 9: choose Off, GroupCommit, LastWriteWins or Max"},
		"off":            {Config{Rules: []Rule{{Prefix: "a", Linger: ms, StaleReads: true}}}, `rule "a": the mode is Off, which has no use for Linger, StaleReads: choose GroupCommit`},
		"max":            {Config{Rules: []Rule{{Mode: Max, Transactions: true}}}, "the mode is Max and Transactions is set"},
		"linger":         {Config{Rules: []Rule{{Mode: Max, Linger: -time.Second}}}, "Linger is -1s: choose 1µs to 1h0m0s, as in 50*time.Millisecond, or 0"},
		"no unit":        {Config{Rules: []Rule{{Mode: Max, FlushEvery: 50}}}, "FlushEvery is 50ns: choose 1µs to 1h0m0s"},
		"without leases": {Config{Rules: []Rule{{Mode: Max, Retry: true}}}, "Lease is nil: set it to the client's"},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "without leases" {
				c.cfg.Lease = lease
			}
			_, err := New(newFake(), c.cfg)
			require.ErrorIs(t, err, ErrConfig)
			require.ErrorContains(t, err, c.says)
			require.Equal(t, err, c.cfg.Validate())
		})
	}
	_, err := New(newFake(), Config{MaxOps: -1, InFlight: 100})
	require.ErrorContains(t, err, "MaxOps is -1")
	require.ErrorContains(t, err, "InFlight is 100", "all that is wrong is said at once")
	_, err = NewKV(nil, Config{})
	require.ErrorIs(t, err, ErrConfig)
	require.NoError(t, Config{}.Validate())
}

func TestAConfigIsCopied(t *testing.T) {
	all := []Rule{{Prefix: "a", Mode: GroupCommit}}
	s, err := New(newFake(), Config{Rules: all})
	require.NoError(t, err)
	all[0] = Rule{Prefix: "b"}
	require.Equal(t, GroupCommit, s.rules.of([]byte("ax")).Mode)
	require.NoError(t, s.Close())
}

func TestTheLongestPrefixApplies(t *testing.T) {
	rs := newRules([]Rule{{Prefix: "a", Mode: GroupCommit}, {Prefix: "a/b", Mode: Max}, {Prefix: "a/b/c"}})
	for key, mode := range map[string]Mode{"": Off, "b": Off, "a": GroupCommit, "a/": GroupCommit, "a/b": Max, "a/bx": Max, "a/b/c/d": Off} {
		require.Equal(t, mode, rs.of([]byte(key)).Mode, "%q", key)
	}
	require.Equal(t, "Off GroupCommit LastWriteWins Max Mode(9)", fmt.Sprint(Off, " ", GroupCommit, " ", LastWriteWins, " ", Max, " ", Mode(9)))
}

func TestPutAsyncWithoutALease(t *testing.T) {
	s, err := New(newFake(), Config{})
	require.NoError(t, err)
	kv := &KV{KV: clientv3.NewKVFromKVClient(s, nil), stage: s}
	told := make(chan error, 1)
	kv.PutAsync(t.Context(), "k", "v", func(_ *clientv3.PutResponse, err error) { told <- err })
	require.ErrorIs(t, <-told, ErrConfig)
	require.NoError(t, kv.Close())
}

// TestEveryKnobTurns holds those fields of a Config to what they say that no other test
// is about.
func TestEveryKnobTurns(t *testing.T) {
	t.Run("RememberBytes", func(t *testing.T) {
		skipped := func(most int) (n uint64) {
			bubble(t, Config{Rules: []Rule{{Mode: GroupCommit, SkipUnchanged: true}}, RememberBytes: most}, func(t *testing.T, e *fake, kv *KV) {
				for range 2 {
					for i := range 10 {
						mustPut(t, kv, fmt.Sprintf("%0*d", 128<<10-memoBytes, i), "v")
					}
				}
				n = kv.Stats().Skipped
			})
			return n
		}
		require.EqualValues(t, 10, skipped(0))
		require.EqualValues(t, 10, skipped(10*128<<10))
		require.Zero(t, skipped(9*128<<10), "in turns, the one that is asked for is the one that was forgotten")
	})
	t.Run("SequencePrefix", func(t *testing.T) {
		bubble(t, Config{SequencePrefix: "own/"}, func(t *testing.T, e *fake, kv *KV) {
			kv.PutAsync(t.Context(), "k", "v", nil)
			require.NoError(t, kv.Flush(t.Context()))
			for key := range e.kvs {
				require.True(t, key == "k" || strings.HasPrefix(key, "own/") && len(key) == 4+32, "%q", key)
			}
			require.Len(t, e.kvs, 2)
		})
	})
	t.Run("SessionTTL", func(t *testing.T) {
		e := newEnv(t, Config{SessionTTL: 77 * time.Second}, nil)
		e.kv.PutAsync(e.ctx, "k", "v", nil)
		require.NoError(t, e.kv.Flush(e.ctx))
		left, err := e.cli.TimeToLive(e.ctx, e.kv.stage.session.Held())
		require.NoError(t, err)
		require.EqualValues(t, 77, left.GrantedTTL)
	})
	t.Run("MaxOps", func(t *testing.T) {
		bubble(t, Config{Rules: []Rule{{Mode: GroupCommit, Linger: ms}}, MaxOps: 3}, func(t *testing.T, e *fake, kv *KV) {
			together(6, func(i int) { mustPut(t, kv, fmt.Sprint(i), "v") })
			require.Len(t, e.writes(), 2)
		})
	})
	t.Run("OnError", func(t *testing.T) {
		var failed []string
		cfg := Config{Rules: []Rule{{Mode: LastWriteWins, FlushEvery: ms}}, OnError: func(key []byte, err error) { failed = append(failed, fmt.Sprintf("%s: %v", key, err)) }}
		bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
			kv.PutAsync(t.Context(), "k", "v", nil, clientv3.WithLease(99))
			kv.PutAsync(t.Context(), "l", "v", nil)
			require.Error(t, kv.Flush(t.Context()))
			require.Equal(t, []string{"k: etcdserver: requested lease not found"}, failed)
			kv.PutAsync(t.Context(), "", "v", nil)
			require.NoError(t, kv.Flush(t.Context()), "it was not taken, so that nothing waits")
			require.Equal(t, ": etcdserver: key is not provided", failed[1])
			require.Len(t, failed, 2)
			for range 3 {
				kv.PutAsync(t.Context(), "k", "v", nil, clientv3.WithLease(99))
			}
			var some *FlushError
			require.ErrorAs(t, kv.Flush(t.Context()), &some)
			require.Equal(t, 3, some.Failed)
			require.Equal(t, "k", string(some.Key))
			require.Len(t, failed, 5, "of each put")
		})
	})
}

// TestMemory forgets what was not used for the longest time.
func TestMemory(t *testing.T) {
	m := newMemory(3 * (memoBytes + 1))
	for _, key := range []string{"a", "b", "c"} {
		m.set([]byte(key), memo{revision: 1})
	}
	require.NotNil(t, m.get([]byte("a")))
	m.set([]byte("d"), memo{revision: 1})
	require.Nil(t, m.get([]byte("b")))
	require.NotNil(t, m.get([]byte("a")))
	m.set([]byte("a"), memo{revision: 2})
	require.EqualValues(t, 2, m.get([]byte("a")).revision)
	m.forget([]byte("a"))
	require.Nil(t, m.get([]byte("a")))
	m.clear()
	require.Equal(t, 3*(memoBytes+1), m.room)
	require.Nil(t, m.get([]byte("d")))
	m.set([]byte("e"), memo{value: make([]byte, 10*memoBytes)})
	require.NotNil(t, m.get([]byte("e")), "the last one is kept, however large")
	m.set([]byte("f"), memo{})
	require.Nil(t, m.get([]byte("e")))
	require.Equal(t, 2*(memoBytes+1), m.room)
}
