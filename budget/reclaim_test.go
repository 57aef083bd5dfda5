//go:build unix

package budget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// watched counts the defragmentations of all reclaims that it is given to, and can step
// in.
type watched struct {
	mu            sync.Mutex
	running, most int
	endpoints     []string // in order
	next          string

	// begins and ends are called before and after the nth defragmentation, from 1 on, and
	// answered after each other request.
	begins, ends func(n int, endpoint string)
	answered     func(request any)
}

// watch returns a client of the members that another one is of, and options for it.
func (w *watched) watch(t *testing.T, cli *clientv3.Client) (*clientv3.Client, ReclaimOptions) {
	watching, err := clientv3.New(clientv3.Config{
		Endpoints: cli.Endpoints(), Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(w.intercept)},
	})
	require.NoError(t, err)
	t.Cleanup(func() { watching.Close() })
	opts := small()
	opts.OnStep = func(s ReclaimStep) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.next = s.Member.Endpoint
	}
	return watching, opts
}

func (w *watched) plan(t *testing.T, cli *clientv3.Client) (*ReclaimPlan, error) {
	cli, opts := w.watch(t, cli)
	return PlanReclaim(t.Context(), cli, opts)
}

func (w *watched) reclaim(t *testing.T, cli *clientv3.Client) (ReclaimResult, error) {
	cli, opts := w.watch(t, cli)
	return Reclaim(t.Context(), cli, opts)
}

func (w *watched) intercept(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method != pb.Maintenance_Defragment_FullMethodName {
		err := invoke(ctx, method, req, reply, conn, opts...)
		if w.answered != nil {
			w.answered(req)
		}
		return err
	}
	w.mu.Lock()
	endpoint := w.next
	w.endpoints = append(w.endpoints, endpoint)
	n := len(w.endpoints)
	w.running++
	w.most = max(w.most, w.running)
	w.mu.Unlock()
	if w.begins != nil {
		w.begins(n, endpoint)
	}
	err := invoke(ctx, method, req, reply, conn, opts...)
	w.mu.Lock()
	w.running--
	w.mu.Unlock()
	if w.ends != nil {
		w.ends(n, endpoint)
	}
	return err
}

// small are options for files of some MiB.
func small() ReclaimOptions {
	return ReclaimOptions{
		KeepRevisions: 1, MinFree: mib, RequestTimeout: 2 * time.Second, CatchUpTimeout: 20 * time.Second,
		Logger: slog.New(slog.DiscardHandler),
	}
}

// overwrite puts 8 MiB into few keys, of which compaction leaves little.
func overwrite(t *testing.T, cli *clientv3.Client) {
	value := strings.Repeat("x", 128<<10)
	for i := range 64 {
		_, err := cli.Put(t.Context(), fmt.Sprint("large", i%4), value)
		require.NoError(t, err)
	}
}

// nothingLeft checks that no lock is there.
func nothingLeft(t *testing.T, cli *clientv3.Client) {
	t.Helper()
	resp, err := cli.Get(t.Context(), defaultReclaimLock, clientv3.WithPrefix())
	require.NoError(t, err)
	require.Empty(t, resp.Kvs)
	_, err = cli.RoleGet(t.Context(), reclaimLockRole)
	require.ErrorIs(t, err, rpctypes.ErrRoleNotFound)
}

// writers put one key after the other, each at a member of its own.
type writers struct {
	t        *testing.T
	stop     context.CancelFunc
	wg       sync.WaitGroup
	acked    [3]atomic.Int64
	longest  [3]atomic.Int64 // time between two answers, in ns
	failures atomic.Int64
}

func startWriters(t *testing.T, m *etcdtest.Members) *writers {
	ctx, stop := context.WithCancel(context.Background())
	w := &writers{t: t, stop: stop}
	t.Cleanup(w.end)
	for i, endpoint := range m.Direct() {
		cli, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
		require.NoError(t, err)
		w.wg.Go(func() {
			defer cli.Close()
			last := time.Now()
			for ctx.Err() == nil {
				n := w.acked[i].Load()
				_, err := cli.Put(ctx, fmt.Sprintf("written/%d/%06d", i, n), strings.Repeat("v", 200))
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					w.failures.Add(1) // it may be there, and is put again
					continue
				}
				w.acked[i].Add(1)
				w.longest[i].Store(max(w.longest[i].Load(), int64(time.Since(last))))
				last = time.Now()
			}
		})
	}
	return w
}

func (w *writers) end() {
	w.stop()
	w.wg.Wait()
}

// more waits until a writer has had n answers more.
func (w *writers) more(i int, n int64) {
	from := w.acked[i].Load()
	eventually(w.t, func() bool { return w.acked[i].Load() >= from+n })
}

// check reads all that was acknowledged.
func (w *writers) check(cli *clientv3.Client) {
	w.end()
	for i := range w.acked {
		resp, err := cli.Get(w.t.Context(), fmt.Sprintf("written/%d/", i), clientv3.WithPrefix(), clientv3.WithKeysOnly())
		require.NoError(w.t, err)
		there := make(map[string]bool)
		for _, kv := range resp.Kvs {
			there[string(kv.Key)] = true
		}
		for n := range w.acked[i].Load() {
			require.True(w.t, there[fmt.Sprintf("written/%d/%06d", i, n)])
		}
	}
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it has not happened in 20 seconds")
		}
	}
}

// startMembers starts three, each in a process, and a client of them. Settings are etcd's.
func startMembers(t *testing.T, settings map[string]any) (*etcdtest.Members, *clientv3.Client) {
	m := etcdtest.StartMembers(t, 3, settings)
	cli, err := clientv3.New(clientv3.Config{Endpoints: m.Direct(), Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	return m, cli
}

func indexOf(m *etcdtest.Members, endpoint string) int {
	for i, address := range m.Direct() {
		if strings.HasSuffix(endpoint, address) {
			return i
		}
	}
	return -1
}

// TestReclaimUnderLoad reclaims three members that are written to. The first one is slow:
// it is paused when its turn comes, until others have taken writes.
func TestReclaimUnderLoad(t *testing.T) {
	m, cli := startMembers(t, nil)
	overwrite(t, cli)
	load := startWriters(t, m)
	for i := range 3 {
		load.more(i, 20)
	}
	w := &watched{begins: func(n int, endpoint string) {
		if n > 1 {
			return
		}
		slow := indexOf(m, endpoint)
		require.NoError(t, m.Pause(slow))
		load.more((slow+1)%3, 100)
		load.more((slow+2)%3, 100)
		require.NoError(t, m.Continue(slow))
	}}
	p, err := w.plan(t, cli)
	require.NoError(t, err)
	require.NoError(t, p.Doubt)
	require.Len(t, p.Steps, 3)
	require.Equal(t, HealthLeader, p.Steps[2].Member.Role)
	result, err := p.Run(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, w.most)
	require.Len(t, w.endpoints, 3)
	require.Len(t, result.Members, 3)
	require.Equal(t, p.Compact, result.Compacted)
	for i, r := range result.Members {
		require.True(t, r.Defragment, r.Reason)
		require.Equal(t, p.Steps[i].Member.ID, r.Member.ID)
		require.Greater(t, r.Member.DbSize, int64(8*mib))
		require.Less(t, r.After.DbSize, int64(4*mib), "what was compacted is deleted on each member before")
	}
	require.Equal(t, HealthLeader, result.Members[2].Member.Role)
	nothingLeft(t, cli)
	load.check(cli)
	t.Logf("%v", result)
	for i := range 3 {
		t.Logf("member %d: %d writes, the longest stall %v, %d failures", i, load.acked[i].Load(), time.Duration(load.longest[i].Load()).Round(time.Millisecond), load.failures.Load())
	}

	again, err := w.reclaim(t, cli)
	require.NoError(t, err)
	require.Len(t, w.endpoints, 3, "there is nothing to be had")
	for _, r := range again.Members {
		require.False(t, r.Defragment)
		require.NotEmpty(t, r.Reason)
	}
}

// TestReclaimStopsWhenAMemberIsLost kills the first member before its defragmentation is
// asked for, or in the middle of it, or another one after it.
func TestReclaimStopsWhenAMemberIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		other int // 0 for itself
		early bool
	}{
		"before":  {early: true},
		"itself":  {},
		"another": {other: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, cli := startMembers(t, nil)
			overwrite(t, cli)
			lost := -1
			w := &watched{}
			w.begins = func(_ int, endpoint string) {
				lost = (indexOf(m, endpoint) + c.other) % 3
				switch {
				case c.early:
					m.Kill(lost)
				case c.other == 0:
					require.NoError(t, m.Pause(lost))
					time.AfterFunc(50*time.Millisecond, func() { m.Kill(lost) }) // when the request is under way
				}
			}
			w.ends = func(int, string) { m.Kill(lost) }
			watching, opts := w.watch(t, cli)
			opts.CatchUpTimeout, opts.RequestTimeout = 2*time.Second, time.Second
			result, err := Reclaim(t.Context(), watching, opts)
			var doubt *ReclaimDoubtError
			require.ErrorAs(t, err, &doubt)
			require.ErrorIs(t, err, ErrReclaimDoubt)
			require.Len(t, w.endpoints, 1, "nothing further is defragmented: %v", err)
			require.NotZero(t, doubt.Member)
			require.Equal(t, fmt.Sprint("m", lost), doubt.Name)
			if c.other == 0 {
				require.Equal(t, "defragment", doubt.Step)
				require.Contains(t, doubt.Reason, "may be at it still")
				require.Empty(t, result.Members)
			} else {
				require.Equal(t, "wait", doubt.Step)
				require.Contains(t, doubt.Reason, "for 2s: it does not answer")
				require.Len(t, result.Members, 1)
			}
			require.NotNil(t, doubt.Err)
			p, err := PlanReclaim(t.Context(), cli, opts)
			require.NoError(t, err)
			require.ErrorIs(t, p.Doubt, ErrReclaimDoubt)

			require.NoError(t, m.Restart(lost))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			require.NoError(t, m.Ready(ctx))
			w.begins, w.ends = nil, nil
			opts.CatchUpTimeout = 20 * time.Second
			result, err = Reclaim(t.Context(), cli, opts)
			require.NoError(t, err)
			require.Len(t, result.Members, 3)
			require.Equal(t, 1, w.most)
			nothingLeft(t, cli)
		})
	}
}

// embedded starts a member in this process, with two client URLs, and a client of it.
func embedded(t *testing.T, edit func(*embed.Config)) (*etcdtest.Cluster, *clientv3.Client) {
	c := etcdtest.Start(t, 1, func(cfg *embed.Config) {
		etcdtest.Advertise(t, 2)(cfg)
		if edit != nil {
			edit(cfg)
		}
	})
	return c, c.Client(t)
}

// TestReclaimFollowsTheLeader moves the leadership after each step to a member that was
// not done yet: to the one whose turn would be next.
func TestReclaimFollowsTheLeader(t *testing.T) {
	t.Parallel()
	m, cli := startMembers(t, nil)
	overwrite(t, cli)
	w := &watched{}
	p, err := w.plan(t, cli)
	require.NoError(t, err)
	var led []HealthID // who led when a member was done
	ids := make(map[int]HealthID)
	for _, step := range p.Steps {
		ids[indexOf(m, step.Member.Endpoint)] = step.Member.ID
	}
	w.begins = func(int, string) { led = append(led, ids[m.Leader(t.Context())]) }
	w.ends = func(n int, _ string) {
		if n > 1 {
			return
		}
		next := p.Steps[1].Member.ID
		leader, err := clientv3.New(clientv3.Config{Endpoints: m.Direct()[m.Leader(t.Context()):][:1], Logger: zap.NewNop()})
		require.NoError(t, err)
		defer leader.Close()
		_, err = leader.MoveLeader(t.Context(), uint64(next))
		require.NoError(t, err)
		eventually(t, func() bool { return ids[m.Leader(t.Context())] == next })
	}
	result, err := p.Run(t.Context())
	require.NoError(t, err)
	require.Len(t, w.endpoints, 3)
	require.Equal(t, []HealthID{p.Steps[2].Member.ID, p.Steps[1].Member.ID, p.Steps[1].Member.ID}, led)
	var done []HealthID
	for _, r := range result.Members {
		done = append(done, r.Member.ID)
	}
	require.Equal(t, []HealthID{p.Steps[0].Member.ID, p.Steps[2].Member.ID, p.Steps[1].Member.ID}, done)
	require.Equal(t, HealthLeader, result.Members[2].Member.Role)
	nothingLeft(t, cli)
}

// TestReclaimWithALearner reports it, and does the others.
func TestReclaimWithALearner(t *testing.T) {
	c, _ := embedded(t, nil)
	cli := c.ClientOf(t, c.Endpoints()[0])
	overwrite(t, cli)
	learner := c.AddLearner(t)
	w := &watched{}
	result, err := w.reclaim(t, cli)
	require.NoError(t, err)
	require.Len(t, w.endpoints, 1, "once, with two client URLs")
	require.Len(t, result.Members, 2)
	require.Equal(t, HealthLearner, result.Members[0].Member.Role)
	require.False(t, result.Members[0].Defragment)
	require.Contains(t, result.String(), "etcd defragments no learner")
	require.True(t, result.Members[1].Defragment)

	// The day that etcd does, so can we.
	_, err = cli.Defragment(t.Context(), learner.Config().AdvertiseClientUrls[0].String())
	require.ErrorContains(t, err, "rpc not supported for learner")
}

// TestReclaimIsToldToStop while a defragmentation runs.
func TestReclaimIsToldToStop(t *testing.T) {
	t.Parallel()
	_, cli := startMembers(t, nil)
	overwrite(t, cli)
	ctx, cancel := context.WithCancel(t.Context())
	w := &watched{begins: func(int, string) { cancel() }}
	watching, opts := w.watch(t, cli)
	result, err := Reclaim(ctx, watching, opts)
	require.ErrorIs(t, err, context.Canceled)
	require.Len(t, w.endpoints, 1)
	require.Len(t, result.Members, 1, "it was waited for")
	require.Less(t, result.Members[0].After.DbSize, result.Members[0].Member.DbSize)
	nothingLeft(t, cli)

	result, err = Reclaim(ctx, cli, small())
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, result.Members)
}

// TestReclaimAsAUser passes etcd's error on, and leaves nothing.
func TestReclaimAsAUser(t *testing.T) {
	c, root := etcdtest.StartAuth(t)
	overwrite(t, root)
	c.AddUser(t, root, "limited", etcdtest.Permission{Key: "\x00kvw/", RangeEnd: "\x00kvw0", Type: clientv3.PermissionType(clientv3.PermReadWrite)})
	c.AddUser(t, root, "nobody")
	for _, user := range []string{"limited", "nobody"} {
		cli := c.ClientAs(t, user)
		p, err := PlanReclaim(t.Context(), cli, small())
		require.NoError(t, err)
		require.ErrorIs(t, p.Doubt, rpctypes.ErrPermissionDenied, "the plan says so")
		require.ErrorContains(t, p.Doubt, "reclaim as a user with the role root")
		_, err = Reclaim(t.Context(), cli, small())
		require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
		require.ErrorIs(t, err, ErrReclaimDoubt)
		nothingLeft(t, root)
	}
	result, err := Reclaim(t.Context(), root, small())
	require.NoError(t, err)
	require.True(t, result.Members[0].Defragment)
	nothingLeft(t, root)
}

// TestReclaimsAtOnce has several begin together, and one begin while another runs.
func TestReclaimsAtOnce(t *testing.T) {
	t.Parallel()
	_, cli := startMembers(t, nil)
	overwrite(t, cli)
	w := &watched{}
	w.begins = func(int, string) {
		_, err := w.reclaim(t, cli)
		var busy *ReclaimBusyError
		require.ErrorAs(t, err, &busy)
		require.Equal(t, defaultReclaimLock, busy.Key)
		require.Contains(t, busy.Holder, "process ")
		p, err := PlanReclaim(t.Context(), cli, small())
		require.NoError(t, err)
		require.ErrorAs(t, p.Doubt, &busy, "the plan says so")
	}
	_, err := w.reclaim(t, cli)
	require.NoError(t, err)
	require.Len(t, w.endpoints, 3)

	overwrite(t, cli)
	w = &watched{}
	var (
		wg   sync.WaitGroup
		ran  atomic.Int64
		gate = make(chan struct{})
		errs = make(chan error, 8)
	)
	w.begins = func(int, string) { // nobody begins when somebody has ended
		eventually(t, func() bool { return len(errs) == cap(errs)-1 })
	}
	for range cap(errs) {
		cli, opts := w.watch(t, cli)
		wg.Go(func() {
			<-gate
			if _, err := Reclaim(t.Context(), cli, opts); err != nil {
				errs <- err
				return
			}
			ran.Add(1)
		})
	}
	close(gate)
	wg.Wait()
	close(errs)
	require.EqualValues(t, 1, ran.Load())
	require.Equal(t, 1, w.most)
	require.Len(t, w.endpoints, 3)
	for err := range errs {
		require.ErrorIs(t, err, ErrReclaimBusy)
	}
	nothingLeft(t, cli)
}

// TestReclaimLosesItsLock in the middle: somebody deletes it, and somebody else takes one.
func TestReclaimLosesItsLock(t *testing.T) {
	for name, c := range map[string]struct {
		full  bool
		steal func(*clientv3.Client)
	}{
		"the key": {steal: func(cli *clientv3.Client) {
			_, err := cli.Delete(t.Context(), defaultReclaimLock)
			require.NoError(t, err)
			_, err = cli.Put(t.Context(), defaultReclaimLock, "somebody else")
			require.NoError(t, err)
		}},
		"the role": {full: true, steal: func(cli *clientv3.Client) {
			_, err := cli.RoleDelete(t.Context(), reclaimLockRole)
			require.NoError(t, err)
			_, err = cli.RoleAdd(t.Context(), reclaimLockRole)
			require.NoError(t, err)
			_, err = cli.RoleGrantPermission(t.Context(), reclaimLockRole, "somebody else", "", clientv3.PermissionType(clientv3.PermRead))
			require.NoError(t, err)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, cli := startMembers(t, map[string]any{"quota-backend-bytes": smallQuota})
			if overwrite(t, cli); c.full {
				fill(t, cli, func(i int) string { return fmt.Sprint("large", i%4) })
			}
			w := &watched{ends: func(int, string) { c.steal(cli) }}
			_, err := w.reclaim(t, cli)
			var doubt *ReclaimDoubtError
			require.ErrorAs(t, err, &doubt)
			require.Equal(t, "lock", doubt.Step)
			require.NotContains(t, doubt.Reason, "for 20s", "there is nothing to wait for")
			require.Len(t, w.endpoints, 1)
			_, err = Reclaim(t.Context(), cli, small())
			require.ErrorIs(t, err, ErrReclaimBusy, "the other one's is left")
			require.ErrorContains(t, err, "somebody else")
		})
	}
}

// fill puts values until the alarm is raised.
func fill(t *testing.T, cli *clientv3.Client, key func(int) string) {
	value := strings.Repeat("x", 128<<10)
	for i := range 1000 {
		if _, err := cli.Put(t.Context(), key(i), value); errors.Is(err, rpctypes.ErrNoSpace) {
			return
		} else {
			require.NoError(t, err)
		}
	}
	t.Fatal("there is no end of space")
}

const smallQuota = 16 * mib

func noSpace(cfg *embed.Config) { cfg.QuotaBackendBytes = smallQuota }

// TestReclaimUnderNoSpace gets a cluster to take writes again. The lock is a role, which
// is there while it runs, and keeps others away.
func TestReclaimUnderNoSpace(t *testing.T) {
	t.Parallel()
	_, cli := startMembers(t, map[string]any{"quota-backend-bytes": smallQuota})
	fill(t, cli, func(i int) string { return fmt.Sprint("large", i%4) })
	eventually(t, func() bool { // every client is refused
		_, err := cli.Put(t.Context(), "k", "v")
		return errors.Is(err, rpctypes.ErrNoSpace)
	})
	_, err := cli.Grant(t.Context(), 60)
	require.ErrorIs(t, err, rpctypes.ErrNoSpace, "a lease, for a lock")

	w := &watched{}
	w.begins = func(int, string) {
		_, err := w.reclaim(t, cli)
		var busy *ReclaimBusyError
		require.ErrorAs(t, err, &busy)
		require.Equal(t, reclaimLockRole, busy.Role)
		require.Contains(t, busy.Holder, "process ")
		require.ErrorContains(t, err, "etcdctl role delete kvwrap-reclaim")
	}
	p, err := w.plan(t, cli)
	require.NoError(t, err)
	require.NotEmpty(t, p.Disarm)
	result, err := p.Run(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, w.most)
	require.Len(t, w.endpoints, 3)
	require.NotEmpty(t, result.Disarmed)
	for _, r := range result.Members {
		require.Less(t, r.After.DbSize, int64(2*mib))
	}
	alarms, err := cli.AlarmList(t.Context())
	require.NoError(t, err)
	require.Empty(t, alarms.Alarms)
	overwrite(t, cli)
	nothingLeft(t, cli)
	t.Logf("%v", result)
}

// TestReclaimUnderNoSpaceFindsNone has live keys fill the quota. The alarm stays.
func TestReclaimUnderNoSpaceFindsNone(t *testing.T) {
	_, cli := embedded(t, noSpace)
	var (
		result ReclaimResult
		err    error
	)
	for round := 0; err == nil && round < 10; round++ { // a twentieth may be free by chance, which is enough
		fill(t, cli, func(i int) string { return fmt.Sprint("key", round, "/", i) })
		result, err = Reclaim(t.Context(), cli, small())
	}
	var doubt *ReclaimDoubtError
	require.ErrorAs(t, err, &doubt)
	require.Equal(t, "disarm", doubt.Step)
	require.Contains(t, doubt.Reason, "delete keys or raise the quota")
	require.Empty(t, result.Disarmed)
	alarms, err := cli.AlarmList(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, alarms.Alarms)
	nothingLeft(t, cli)

	// Deletes are taken.
	_, err = cli.Delete(t.Context(), "key", clientv3.WithPrefix())
	require.NoError(t, err)
	result, err = Reclaim(t.Context(), cli, small())
	require.NoError(t, err)
	require.NotEmpty(t, result.Disarmed)
	_, err = cli.Put(t.Context(), "k", "v")
	require.NoError(t, err)
}

// TestReclaimWhenTheAlarmComesBack at once, or after a write that succeeds.
func TestReclaimWhenTheAlarmComesBack(t *testing.T) {
	for name, back := range map[string]func(any) bool{
		"a write has failed": func(request any) bool {
			r, ok := request.(*pb.AlarmRequest)
			return ok && r.Action == pb.AlarmRequest_DEACTIVATE
		},
		"is raised": func(request any) bool {
			_, ok := request.(*pb.DeleteRangeRequest)
			return ok
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, cli := embedded(t, nil)
			server := c.Members[0].Server
			raise := func() {
				_, err := server.Alarm(t.Context(), &pb.AlarmRequest{MemberID: uint64(server.MemberID()), Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE})
				require.NoError(t, err)
			}
			raise()
			w := &watched{answered: func(request any) {
				if back(request) {
					raise()
				}
			}}
			result, err := w.reclaim(t, cli)
			var doubt *ReclaimDoubtError
			require.ErrorAs(t, err, &doubt)
			require.Equal(t, "disarm", doubt.Step)
			require.Contains(t, doubt.Reason, name)
			require.Len(t, result.Disarmed, 1)
			nothingLeft(t, cli)
		})
	}
}

// TestReclaimLocksExclude has the alarm be raised while one that has the key runs, and a
// role be left by one that was killed.
func TestReclaimLocksExclude(t *testing.T) {
	c, cli := embedded(t, noSpace)
	overwrite(t, cli)
	second := c.Client(t)
	w := &watched{begins: func(int, string) {
		fill(t, second, func(i int) string { return fmt.Sprint("large", i%4) })
		_, err := Reclaim(t.Context(), second, small())
		var busy *ReclaimBusyError
		require.ErrorAs(t, err, &busy)
		require.Equal(t, defaultReclaimLock, busy.Key, "the key that was put before")
		require.Contains(t, busy.Holder, "process ")
		_, err = second.RoleGet(t.Context(), reclaimLockRole)
		require.ErrorIs(t, err, rpctypes.ErrRoleNotFound)
		_, err = second.Delete(t.Context(), "large", clientv3.WithPrefix())
		require.NoError(t, err)
	}}
	_, err := w.reclaim(t, cli)
	require.Equal(t, 1, w.most)
	var doubt *ReclaimDoubtError
	require.ErrorAs(t, err, &doubt, "what was put in the meantime is not compacted")
	require.Equal(t, "defragment", doubt.Step)
	require.Contains(t, doubt.Reason, "its file had")
	_, err = Reclaim(t.Context(), cli, small())
	require.NoError(t, err)

	_, err = cli.RoleAdd(t.Context(), reclaimLockRole)
	require.NoError(t, err)
	_, err = Reclaim(t.Context(), cli, small())
	require.ErrorIs(t, err, ErrReclaimBusy)
	require.ErrorContains(t, err, "etcdctl role delete kvwrap-reclaim")
	_, err = cli.RoleDelete(t.Context(), reclaimLockRole)
	require.NoError(t, err)
	_, err = Reclaim(t.Context(), cli, small())
	require.NoError(t, err)
	nothingLeft(t, cli)
}
