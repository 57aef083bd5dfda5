//go:build unix

package budget

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"context"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

const clientRole = "client of a shared budget"

// sharing is what a process of a shared budget is told.
type sharing struct {
	Endpoints []string
	Revisions float64
	Register  bool
}

// serveClient writes as fast as its share allows, and says every second how often it has.
func serveClient(argument string) error {
	var a sharing
	if err := json.Unmarshal([]byte(argument), &a); err != nil {
		return err
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: a.Endpoints, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	kv, err := NewKV(cli.KV, Config{Rates: Rates{Revisions: a.Revisions}, Shared: true, Register: a.Register, Lease: cli.Lease})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	var mu sync.Mutex
	var all sync.WaitGroup
	n := 0
	for range 8 {
		all.Go(func() {
			for ctx.Err() == nil {
				if _, err := kv.Put(ctx, fmt.Sprint("k", os.Getpid()), "v"); err == nil {
					mu.Lock()
					n++
					mu.Unlock()
				}
			}
		})
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		<-tick.C
		mu.Lock()
		fmt.Println(n)
		n = 0
		mu.Unlock()
	}
	all.Wait()
	return errors.Join(kv.Close(), cli.Close())
}

// TestProcessesShareABudget: eight processes that do not know each other but by their
// registrations keep to one budget, in equal parts, while others write, too.
func TestProcessesShareABudget(t *testing.T) {
	const processes, revisions = 8, 400
	cluster := etcdtest.Start(t, 1, nil)
	argument, err := json.Marshal(sharing{Endpoints: cluster.Client(t).Endpoints(), Revisions: revisions, Register: true})
	require.NoError(t, err)
	var mu sync.Mutex
	said := make([][]int, processes)
	for i := range processes {
		p, err := etcdtest.StartProcess(clientRole, string(argument))
		require.NoError(t, err)
		t.Cleanup(p.Kill)
		go func() {
			for lines := bufio.NewScanner(p.Out); lines.Scan(); {
				n, err := strconv.Atoi(lines.Text())
				if err == nil {
					mu.Lock()
					said[i] = append(said[i], n)
					mu.Unlock()
				}
			}
		}()
	}
	cli := cluster.Client(t)
	revision := func() int64 {
		resp, err := cli.Get(t.Context(), "k")
		require.NoError(t, err)
		return resp.Header.Revision
	}
	seconds := func(n int) { // waits until all have said so many
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return !slices.ContainsFunc(said, func(s []int) bool { return len(s) < n })
		}, time.Minute, 10*time.Millisecond)
	}
	seconds(4)
	before, began := revision(), time.Now()
	seconds(8)
	rate := float64(revision()-before) / time.Since(began).Seconds()
	mu.Lock()
	defer mu.Unlock()
	var sum, squares float64
	for _, s := range said {
		mine := 0
		for _, n := range s[4:8] {
			mine += n
		}
		sum, squares = sum+float64(mine), squares+float64(mine*mine)
	}
	jain := sum * sum / (processes * squares)
	t.Logf("%.0f revisions a second of %d, Jain's index %.3f", rate, revisions, jain)
	require.InDelta(t, revisions, rate, revisions/10)
	require.GreaterOrEqual(t, jain, 0.95)
}

// TestADerivedBudgetKeepsFromNoSpace on a server with a small quota that compacts, with
// demand that fills it in a second.
func TestADerivedBudgetKeepsFromNoSpace(t *testing.T) {
	const quota, kept = 16 << 20, 2 * time.Second
	// fill writes for a time, or until there is no space.
	fill := func(kv clientv3.KV, d time.Duration) (bytes int, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		var mu sync.Mutex
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				value := strings.Repeat("x", 16<<10)
				for ctx.Err() == nil {
					_, e := kv.Put(ctx, fmt.Sprint("k", i), value)
					mu.Lock()
					switch {
					case e == nil:
						bytes += len(value)
					case ctx.Err() == nil && !errors.Is(e, context.DeadlineExceeded) && !errors.Is(e, ErrLimited):
						err = cmp.Or(err, e)
						cancel()
					}
					mu.Unlock()
				}
			})
		}
		all.Wait()
		return bytes, err
	}
	serve := func() *clientv3.Client {
		return etcdtest.Start(t, 1, func(c *embed.Config) {
			c.QuotaBackendBytes = quota
			c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, kept.String()
		}).Client(t)
	}
	_, err := fill(serve().KV, time.Minute)
	require.ErrorIs(t, err, rpctypes.ErrNoSpace, "a plain client")

	cli := serve()
	status := func(ctx context.Context) (Backend, error) {
		st, err := cli.Status(ctx, cli.Endpoints()[0])
		if err != nil {
			return Backend{}, err
		}
		return Backend{Size: st.DbSize, InUse: st.DbSizeInUse, Quota: st.DbSizeQuota}, nil
	}
	kv, err := NewKV(cli.KV, Config{Backend: status, BackendEvery: 200 * time.Millisecond, Retention: kept, CompactionInterval: kept})
	require.NoError(t, err)
	defer kv.Close()
	_, err = kv.Put(t.Context(), "k", "v")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return kv.Stats().Limit.Bytes > 0 }, 10*time.Second, time.Millisecond, "the quota is known")
	bytes, err := fill(kv, 8*time.Second)
	require.NoError(t, err)
	b, err := status(t.Context())
	require.NoError(t, err)
	t.Logf("%d bytes were written, %+v; %+v", bytes, b, kv.Stats())
	require.Greater(t, bytes, quota/2)
	alarms, err := cli.AlarmList(t.Context())
	require.NoError(t, err)
	require.Empty(t, alarms.Alarms)
}

// TestNoSpaceOnEtcd: writes are refused, reads and deletes go on, and when there is space
// again it is found out.
func TestNoSpaceOnEtcd(t *testing.T) {
	cluster := etcdtest.Start(t, 1, func(c *embed.Config) { c.QuotaBackendBytes = 4 << 20 })
	cli := cluster.Client(t)
	kv, err := NewKV(cli.KV, Config{Rates: Rates{Revisions: 10_000}})
	require.NoError(t, err)
	defer kv.Close()
	value := strings.Repeat("x", 1<<20)
	for i := 0; err == nil; i++ {
		_, err = kv.Put(t.Context(), fmt.Sprint("k", i), value)
	}
	require.ErrorIs(t, err, rpctypes.ErrNoSpace, "etcd's own, as it is")
	require.NotErrorIs(t, err, ErrNoSpace)
	_, err = kv.Put(t.Context(), "k", "v")
	require.ErrorIs(t, err, ErrNoSpace)
	_, err = kv.Get(t.Context(), "k0")
	require.NoError(t, err)
	deleted, err := kv.Delete(t.Context(), "k", clientv3.WithPrefix())
	require.NoError(t, err)
	require.NotZero(t, deleted.Deleted)
	_, err = kv.Compact(t.Context(), deleted.Header.Revision, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	_, err = cli.Defragment(t.Context(), cli.Endpoints()[0])
	require.NoError(t, err)
	_, err = cli.AlarmDisarm(t.Context(), &clientv3.AlarmMember{})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err := kv.Put(t.Context(), "k", "v")
		return err == nil
	}, 10*time.Second, 10*time.Millisecond)
	require.False(t, kv.Stats().NoSpace)
}

// load asks for far more than there is of a budget, for a time: critical puts, few enough
// for their share, beside a crowd. It returns how long the critical ones took, and how
// long refusals did.
func load(t testing.TB, kv clientv3.KV, d time.Duration) (critical, refusals paired.Durations, went []time.Time) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 190 {
		all.Go(func() {
			for ctx.Err() == nil {
				one, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
				began := time.Now()
				_, err := kv.Put(one, fmt.Sprint("crowd/", i), "v")
				took := time.Since(began)
				cancel()
				mu.Lock()
				if err == nil {
					went = append(went, began.Add(took))
				} else if errors.Is(err, ErrLimited) && !errors.Is(err, context.DeadlineExceeded) {
					refusals = append(refusals, took)
				}
				mu.Unlock()
				if err != nil {
					select { // so many of them ask for ten times what there is
					case <-time.After(20 * time.Millisecond):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		began := time.Now()
		_, err := kv.Put(t.Context(), "critical/1", "v")
		require.NoError(t, err)
		critical = append(critical, time.Since(began))
		mu.Lock()
		went = append(went, time.Now())
		mu.Unlock()
		<-tick.C
	}
	all.Wait()
	return critical, refusals, went
}

// most returns how many of the times are in the fullest window.
func most(times []time.Time, window time.Duration) (n int) {
	slices.SortFunc(times, time.Time.Compare)
	first := 0
	for last := range times {
		for times[last].Sub(times[first]) >= window {
			first++
		}
		n = max(n, last-first+1)
	}
	return n
}

var benchDuration = flag.Duration("budget.duration", 5*time.Second, "how long BenchmarkOverload asks for too much")

// BenchmarkOverload has a crowd ask for ten times what there is, on an etcd, and says what
// has gone of the budget, how soon the others were refused, and how long critical puts
// took, as a ratio to those without the crowd.
func BenchmarkOverload(b *testing.B) {
	const revisions = 500
	members := etcdtest.StartMembers(b, 1, nil) // a process of its own: what is measured is the client's
	cli, err := clientv3.New(clientv3.Config{Endpoints: members.Direct(), Logger: zap.NewNop()})
	require.NoError(b, err)
	defer cli.Close()
	kv, err := NewKV(cli.KV, Config{Rates: Rates{Revisions: revisions}, Rules: []Rule{{Prefix: "critical/", Class: Critical}}})
	require.NoError(b, err)
	defer kv.Close()
	for range b.N {
		var alone paired.Durations
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for began := time.Now(); time.Since(began) < *benchDuration/2; <-tick.C {
			alone.Time(func() {
				_, err := kv.Put(b.Context(), "critical/1", "v")
				require.NoError(b, err)
			})
		}
		before := kv.Stats()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		heapBefore := int64(m.HeapAlloc)
		critical, refusals, went := load(b, kv, *benchDuration)
		after := kv.Stats()
		asked := len(went) + int(after.Refused-before.Refused+after.Left-before.Left)
		var heap runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&heap)
		b.ReportMetric(float64(int64(heap.HeapAlloc)-heapBefore)/1e6, "heap-MB-grown")
		b.ReportMetric(float64(len(went))/benchDuration.Seconds()/revisions, "of-budget")
		b.ReportMetric(float64(most(went, 5*time.Second))/5/revisions, "fullest-5s-of-budget")
		b.ReportMetric(float64(asked)/benchDuration.Seconds()/revisions, "demand-of-budget")
		b.ReportMetric(float64(refusals.Quantile(0.99).Microseconds()), "refusal-p99-us")
		b.ReportMetric(float64(critical.Quantile(0.99))/float64(alone.Quantile(0.99)), "critical-p99-ratio")
		b.ReportMetric(float64(critical.Median())/float64(alone.Median()), "critical-p50-ratio")
	}
}

// BenchmarkPut compares a small put below the budget with the plain client's.
func BenchmarkPut(b *testing.B) {
	cli := etcdtest.Start(b, 1, nil).Client(b)
	kv, err := NewKV(cli.KV, Config{Rates: Rates{Revisions: 1e6, Bytes: 1e9}, Rules: []Rule{{Prefix: "a"}, {Prefix: "k", Class: Critical}}})
	require.NoError(b, err)
	defer kv.Close()
	paired.Benchmark(b, nil, func() { cli.Put(b.Context(), "k", "v") }, func() { kv.Put(b.Context(), "k", "v") })
}

// TestTheQuotaIsNotReachedBySlowLargePuts, each of which takes pages in a row, and a leaf that
// is written again, nor by those that nobody waits for.
func TestTheQuotaIsNotReachedBySlowLargePuts(t *testing.T) {
	const quota = 32 << 20
	for name, timeout := range map[string]time.Duration{"waiting": time.Minute, "giving up": 10 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			cli := etcdtest.Start(t, 1, func(e *embed.Config) { e.QuotaBackendBytes = quota }).Client(t)
			kv, err := NewKV(cli.KV, Config{Backend: Members(cli)})
			require.NoError(t, err)
			defer kv.Close()
			value := strings.Repeat("x", 1<<20)
			commit := time.NewTicker(130 * time.Millisecond) // of the backend, one for each put
			defer commit.Stop()
			for i, refused := 0, 0; i < 60 && refused < 10; i++ {
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				_, err := kv.Put(ctx, fmt.Sprint(i), value)
				cancel()
				if errors.Is(err, ErrQuota) {
					refused++
				} else if err != nil { // of whatever has come first: its context, the pace, a server that is busy
					var limit *LimitError
					known := errors.Is(err, context.DeadlineExceeded) || errors.As(err, &limit) || errors.Is(err, rpctypes.ErrTimeout)
					require.True(t, known, "%v", err)
				}
				<-commit.C
			}
			_, err = cli.Grant(t.Context(), 60) // somebody's, which is refused by a full member, too
			require.NoError(t, err)
			alarms, err := cli.AlarmList(t.Context())
			require.NoError(t, err)
			require.Empty(t, alarms.Alarms)
		})
	}
}

// TestTheQuotaIsNotReached by a crowd that nothing else holds back, whatever their values
// take of pages.
func TestTheQuotaIsNotReached(t *testing.T) {
	for _, c := range []struct {
		quota, value int
	}{{16 << 20, 60 << 10}, {128 << 20, 4100}} {
		t.Run(fmt.Sprintf("quota=%d/value=%d", c.quota, c.value), func(t *testing.T) {
			cli := etcdtest.Start(t, 1, func(e *embed.Config) { e.QuotaBackendBytes = int64(c.quota) }).Client(t)
			kv, err := NewKV(cli.KV, Config{Backend: Members(cli)})
			require.NoError(t, err)
			defer kv.Close()
			value := strings.Repeat("x", c.value)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			var all sync.WaitGroup
			for i := range 32 {
				all.Go(func() {
					for refused := 0; refused < 4; {
						_, err := kv.Put(t.Context(), fmt.Sprint("k", i), value)
						switch {
						case err == nil:
							refused = 0
						case !errors.Is(err, ErrQuota):
							t.Error(err)
							return
						default: // at once
							refused++
							<-tick.C
						}
					}
				})
			}
			all.Wait()
			st, err := cli.Status(t.Context(), cli.Endpoints()[0])
			require.NoError(t, err)
			t.Logf("%.3f of the quota", float64(st.DbSize)/float64(c.quota))
			require.Greater(t, st.DbSize, int64(c.quota)*9/10)
			alarms, err := cli.AlarmList(t.Context())
			require.NoError(t, err)
			require.Empty(t, alarms.Alarms)
		})
	}
}
