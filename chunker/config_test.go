package chunker

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestEveryKnobTurns shows for each field of Config that it changes what is
// stored, sent or refused. A new field without a case fails.
func TestEveryKnobTurns(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	value := text(150<<10, "v")
	// wrote returns how many keys a put of value makes, and the largest proposal.
	wrote := func(cfg Config, value string) (keys, largest int) {
		t.Helper()
		e.cluster.Wipe(t)
		kv, sent := e.another(cfg)
		_, err := kv.Put(e.ctx, "k", value)
		require.NoError(t, err)
		return len(e.stored()), sent.Take().Largest()
	}
	keys, _ := wrote(Config{}, value)
	require.Greater(t, keys, 10)

	cases := map[string]func(t *testing.T){
		"Threshold": func(t *testing.T) {
			n, _ := wrote(Config{}, "small")
			require.Equal(t, 1, n)
			n, _ = wrote(Config{Threshold: 5}, "small")
			require.Equal(t, 2, n, "a value of as many bytes as the threshold is chunked")
			n, _ = wrote(Config{Threshold: 6}, "small")
			require.Equal(t, 1, n)
		},
		"MaxEntryBytes": func(t *testing.T) {
			random := incompressible(200<<10, "r")
			_, largest := wrote(Config{}, random)
			require.LessOrEqual(t, largest, 64<<10)
			_, largest = wrote(Config{MaxEntryBytes: 128 << 10}, random)
			require.Greater(t, largest, 96<<10)
		},
		"MaxValueBytes": func(t *testing.T) {
			kv, _ := e.another(Config{MaxValueBytes: 1000})
			_, err := kv.Put(e.ctx, "k", value)
			require.ErrorIs(t, err, ErrValueTooLarge)
		},
		"ChunkBytes": func(t *testing.T) {
			n, _ := wrote(Config{ChunkBytes: 16 << 10}, value)
			require.Less(t, n, keys/2)
		},
		"ReservedPrefix": func(t *testing.T) {
			wrote(Config{ReservedPrefix: "\x00mine/"}, value)
			mine := 0
			for key := range e.stored() {
				if strings.HasPrefix(key, "\x00mine/") {
					mine++
				}
			}
			require.Greater(t, mine, 10)
		},
		"ReadOnly": func(t *testing.T) {
			n, _ := wrote(Config{ReadOnly: true}, value)
			require.Equal(t, 1, n)
		},
		"CacheBytes": func(t *testing.T) {
			reads := func(cfg Config) int {
				kv, sent := e.another(cfg)
				_, err := kv.Put(e.ctx, "k", value)
				require.NoError(t, err)
				sent.Take()
				_, err = kv.Get(e.ctx, "k")
				require.NoError(t, err)
				return sent.Take().Requests
			}
			require.Equal(t, 1, reads(Config{}))
			require.Equal(t, 2, reads(Config{CacheBytes: 1}))
		},
		"Lease": func(t *testing.T) {
			granted := 0
			random := Config{Lease: countingLease{e.cluster.Client(t), &granted}}
			wrote(random, incompressible(200<<10, "r"))
			require.Equal(t, 1, granted)
		},
		"SessionTTL": func(t *testing.T) {
			ttl := func(cfg Config) int64 {
				e.cluster.Wipe(t)
				kv, _ := e.another(cfg)
				_, err := kv.Put(e.ctx, "k", incompressible(200<<10, "r"))
				require.NoError(t, err)
				held, err := e.cli.TimeToLive(e.ctx, kv.stage.session.Held())
				require.NoError(t, err)
				return held.GrantedTTL
			}
			require.EqualValues(t, 60, ttl(Config{}))
			require.EqualValues(t, 20, ttl(Config{SessionTTL: 19500 * time.Millisecond}))
		},
		"SweepInterval": func(t *testing.T) { // in a bubble: TestBackgroundSweeps
			for _, refused := range []Config{{SweepInterval: time.Second, Lease: e.cli.Lease}, {SweepInterval: time.Hour, ReadOnly: true}} {
				_, err := NewKV(e.cli.KV, refused)
				require.ErrorIs(t, err, ErrConfig)
				require.ErrorContains(t, err, "SweepInterval is")
			}
		},
		"SweepRate": func(t *testing.T) { // TestASweepIsPaced
			_, err := NewKV(e.cli.KV, Config{SweepRate: -1, Lease: e.cli.Lease})
			require.ErrorContains(t, err, "SweepRate is -1")
			kv, _ := e.another(Config{SweepRate: 7})
			require.EqualValues(t, 7, kv.stage.sweepPace.Limit())
		},
		"OnSweep": func(t *testing.T) {
			swept := make(chan error, 1)
			e.another(Config{SweepInterval: 2 * time.Second, OnSweep: func(_ SweepResult, err error) {
				select {
				case swept <- err:
				default: // there was one
				}
			}})
			require.NoError(t, <-swept)
		},
		"Admit": func(t *testing.T) {
			var refuse error
			var revisions, bytes, ended int
			type admitted struct{}
			kv, sent := e.another(Config{Admit: func(ctx context.Context, key []byte, r, b int) (context.Context, func(), error) {
				require.Equal(t, "admitted", string(key))
				revisions, bytes = r, b
				return context.WithValue(ctx, admitted{}, true), func() { ended++ }, refuse
			}})
			_, err := kv.Put(e.ctx, "small", "v")
			require.NoError(t, err)
			require.Zero(t, revisions)
			sent.Take()
			_, err = kv.Put(e.ctx, "admitted", incompressible(400<<10, "one"))
			require.NoError(t, err)
			counts := sent.Take()
			require.Equal(t, len(counts.Proposals), revisions)
			require.InEpsilon(t, counts.ProposedBytes(), bytes, 0.2)
			require.Equal(t, 1, ended)

			refuse = errors.New("not now")
			_, err = kv.Put(e.ctx, "admitted", incompressible(400<<10, "two"))
			require.Equal(t, refuse, err)
			require.Empty(t, sent.Take().Proposals, "nothing was sent")
			require.Equal(t, 1, ended)
		},
		"Span": func(t *testing.T) {
			var mu sync.Mutex
			open, steps := 0, map[string]int{}
			failed := errors.New("the step was not told how it ended")
			kv, _ := e.another(Config{Span: func(ctx context.Context, step string, about ...slog.Attr) (context.Context, func(error)) {
				mu.Lock()
				defer mu.Unlock()
				open++
				steps[step]++
				return ctx, func(err error) {
					mu.Lock()
					defer mu.Unlock()
					open--
					if step == "kvwrap write" {
						failed = err
					}
				}
			}})
			_, err := kv.Put(e.ctx, "small", "v")
			require.NoError(t, err)
			require.Empty(t, steps, "one request is no step")
			_, err = kv.Put(e.ctx, "spanned", incompressible(400<<10, "one"))
			require.NoError(t, err)
			require.Equal(t, map[string]int{"kvwrap write": 1, "kvwrap stage": 1, "kvwrap commit": 1}, steps)
			require.NoError(t, failed)

			ctx, cancel := context.WithCancel(e.ctx)
			cancel()
			_, err = kv.Put(ctx, "spanned", incompressible(400<<10, "two"))
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorIs(t, failed, context.Canceled)
			require.NoError(t, kv.Close())
			require.Zero(t, open, "each has ended")
		},
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		require.Contains(t, cases, field.Name)
		t.Run(field.Name, cases[field.Name])
	}
}

// countingLease counts leases granted.
type countingLease struct {
	clientv3.Lease
	granted *int
}

func (l countingLease) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	*l.granted++
	return l.Lease.Grant(ctx, ttl)
}
