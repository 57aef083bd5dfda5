package budget

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/kvwrap/kvwrap/internal/wait"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// The sentinels that errors of a reclaim match with errors.Is. What etcd has said is
// wrapped, unchanged.
var (
	// ErrReclaimBusy is matched by [*ReclaimBusyError].
	ErrReclaimBusy = errors.New("budget: another reclaim")
	// ErrReclaimDoubt is matched by [*ReclaimDoubtError].
	ErrReclaimDoubt = errors.New("budget: reclaim has stopped")
)

// ReclaimDoubtError says that a reclaim has stopped because something was not as it
// should be. Members that were defragmented before are fine, and in the result; after it
// none was touched, and no alarm disarmed unless Step is "disarm".
type ReclaimDoubtError struct {
	Step   string   // "lock", "compact", "wait", "defragment" or "disarm"; empty in a plan
	Member HealthID // 0 where it is about none
	Name   string
	Reason string // with numbers, and what to do
	Err    error  // etcd's, or nil

	final bool // waiting does not help
}

// in returns e with the step, where it has none.
func (e *ReclaimDoubtError) in(step string) *ReclaimDoubtError {
	with := *e
	with.Step = cmp.Or(e.Step, step)
	return &with
}

func (e *ReclaimDoubtError) Error() string {
	var at []string
	if e.Step != "" {
		at = append(at, e.Step)
	}
	if e.Member != 0 {
		at = append(at, strings.TrimSpace("member "+e.Name)+" ("+e.Member.String()+")")
	}
	return strings.Join(append([]string{ErrReclaimDoubt.Error()}, append(at, e.Reason)...), ": ")
}

func (e *ReclaimDoubtError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrReclaimDoubt}
	}
	return []error{ErrReclaimDoubt, e.Err}
}

// ReclaimedMember is what a reclaim has done with a member.
type ReclaimedMember struct {
	ReclaimStep               // as it was before
	After       HealthMember  // as it was after, where it was defragmented
	Took        time.Duration // how long the member was stalled, about
}

// ReclaimResult says what was done, also after an error.
type ReclaimResult struct {
	Compacted int64 // the revision; 0 for none
	Members   []ReclaimedMember
	Disarmed  []HealthAlarm

	// Revisions is how many it has made itself, with its lock and a write to see whether
	// NOSPACE comes back. Where the cluster's revision is that of the plan and these, nobody
	// else has written since, and compacting again would only make as many more.
	Revisions int64
}

// String returns the result in lines.
func (r ReclaimResult) String() string {
	var b strings.Builder
	if r.Compacted > 0 {
		fmt.Fprintf(&b, "compacted to revision %d\n", r.Compacted)
	}
	for _, m := range r.Members {
		if m.Defragment {
			fmt.Fprintf(&b, "defragmented %s (%s), %s: %s to %s in %v\n", m.Member.Name, m.Member.ID, m.Member.Role,
				size.Bytes(float64(m.Member.DbSize)), size.Bytes(float64(m.After.DbSize)), m.Took.Round(time.Millisecond))
		} else {
			fmt.Fprintf(&b, "left %s (%s), %s: %s\n", m.Member.Name, m.Member.ID, m.Member.Role, m.Reason)
		}
	}
	for _, a := range r.Disarmed {
		fmt.Fprintf(&b, "disarmed %s of member %s\n", a.Alarm, a.Member)
	}
	return b.String()
}

// Reclaim is [PlanReclaim] and Run.
func Reclaim(ctx context.Context, cli *clientv3.Client, opts ReclaimOptions) (ReclaimResult, error) {
	p, err := PlanReclaim(ctx, cli, opts)
	if err != nil {
		return ReclaimResult{}, err
	}
	return p.Run(ctx)
}

// PlanReclaim asks the members of the cluster how they are, and whether this user may
// reclaim and nobody else does, and returns what a reclaim would do. It changes nothing. Its
// error is about the options, or says that there is no quorum to tell who the members are.
//
// It and Run go past the client's KV and Lease, on its connection, or one that is like it
// to a member: an installed kvwrap, or a namespace, does not matter.
func PlanReclaim(ctx context.Context, cli *clientv3.Client, opts ReclaimOptions) (*ReclaimPlan, error) {
	opts, err := opts.filled()
	if err != nil {
		return nil, err
	}
	if cli == nil {
		return nil, fmt.Errorf("%w: the client of a reclaim is nil: make one with clientv3.New", ErrConfig)
	}
	h, err := lookHealth(ctx, cli, opts.RequestTimeout, opts.bounds())
	if err != nil {
		return nil, err
	}
	p := planReclaim(h, opts)
	p.cli = cli
	if p.Doubt == nil {
		l := &reclaimLock{cli: cli, kv: clientv3.NewKV(cli), key: opts.LockKey}
		_, err := within(ctx, opts.RequestTimeout, func(ctx context.Context) (struct{}, error) { return struct{}{}, l.look(ctx) })
		p.Doubt = lockDoubt(err)
	}
	return p, nil
}

func (o ReclaimOptions) bounds() healthBounds { return healthBounds{o.Quota, o.MinFree} }

// Run takes the lock, compacts, and waits until each voting member has deleted what was
// compacted. Then it defragments one member after the other, by ID, the leader last,
// whoever that is by then: leadership is not moved. Before each one it proves that it
// still has the lock and waits until all voting members are healthy and have caught up.
// At last it disarms NOSPACE, where enough was freed, and proves by a write that the alarm
// does not come back.
//
// A member that is defragmented neither reads nor applies writes until it is done, about
// 5 to 20 seconds for each GiB that is in use; clients that are connected to it wait.
// Others go on: it still votes.
//
// At the first doubt Run stops, with a [*ReclaimDoubtError], or a [*ReclaimBusyError]
// where another reclaim runs. The result says what was done until then. When ctx ends it
// stops before the next step, with an error that wraps that of ctx. But a
// defragmentation that has begun is waited for, however long it takes: etcd cannot break
// it off, and who does not wait for it does not know when the next one may begin. It ends
// early when the connection does; then the member may still be at it, and Run stops.
//
// It may be called again, also after an error: what is done already is not worth doing
// twice. Several at a time are refused, but for one.
func (p *ReclaimPlan) Run(ctx context.Context) (ReclaimResult, error) {
	if p.cli == nil {
		return ReclaimResult{}, errors.New("budget: the plan is not one that PlanReclaim has made")
	}
	r := &reclaim{plan: p, cli: p.cli, opts: p.opts, log: p.opts.Logger}
	err := r.run(ctx)
	if err != nil {
		r.log.LogAttrs(ctx, slog.LevelError, "etcd reclaim has stopped", slog.String("error", err.Error()))
	}
	return r.result, err
}

// reclaim is one run.
type reclaim struct {
	plan *ReclaimPlan
	cli  *clientv3.Client
	opts ReclaimOptions
	log  *slog.Logger

	lock   *reclaimLock
	voters []HealthID // that it has begun with
	result ReclaimResult
}

func (r *reclaim) run(ctx context.Context) (err error) {
	r.voters = reclaimVoters(r.plan.Health)
	if r.lock, err = takeReclaimLock(ctx, r.cli, r.opts); err != nil {
		return err
	}
	defer func() {
		if e := r.lock.release(ctx); e != nil {
			err = errors.Join(err, e)
		}
		r.result.Revisions = r.lock.revisions
	}()
	h, err := r.settled(ctx)
	if err != nil {
		return err
	}
	if err := r.compact(ctx, h); err != nil {
		return err
	}
	done := make(map[HealthID]bool)
	for {
		if h, err = r.settled(ctx); err != nil {
			return err
		}
		m, ok := reclaimNext(h, done)
		if !ok {
			return r.disarm(ctx, h)
		}
		if err := r.member(ctx, m); err != nil {
			return err
		}
		done[m.ID] = true
	}
}

// settled proves that the lock is held, waits until nothing speaks against defragmenting
// a member, and returns how the cluster is then.
//
// Each voting member is to have applied what was written when the lock was taken. That
// proves that none is in a defragmentation, of a reclaim that was killed for instance,
// also where a member of etcd 3.5 answers in the middle of one.
func (r *reclaim) settled(ctx context.Context) (h Health, err error) {
	for {
		var revision int64
		proved := time.Now()
		if err = r.until(ctx, func(ctx context.Context) (err error) {
			revision, err = within(ctx, r.opts.RequestTimeout, r.lock.prove)
			return err
		}); err != nil {
			return h, err
		}
		if err = r.until(ctx, func(ctx context.Context) (err error) {
			if h, err = lookHealth(ctx, r.cli, r.opts.RequestTimeout, r.opts.bounds()); err != nil {
				return err
			}
			return reclaimDoubt(h, r.voters, revision, r.opts)
		}); err != nil || time.Since(proved) < r.opts.LockTTL/4 {
			return h, err
		}
	}
}

// reclaimPoll is how long a reclaim waits before it asks again, about.
const reclaimPoll = 200 * time.Millisecond

// until calls f until it returns nil or what does not pass, for CatchUpTimeout at the most.
func (r *reclaim) until(ctx context.Context, f func(context.Context) error) error {
	waiting, cancel := context.WithTimeout(ctx, r.opts.CatchUpTimeout)
	defer cancel()
	var last *ReclaimDoubtError
	for {
		err := f(waiting)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("budget: reclaim was told to stop: %w", ctx.Err())
		}
		if last == nil || waiting.Err() == nil { // what ends with the time is no reason
			if !errors.As(err, &last) {
				last = &ReclaimDoubtError{Reason: err.Error(), Err: err}
			}
		}
		if last.final {
			return last.in("wait")
		}
		if !wait.For(waiting, wait.Jittered(reclaimPoll)) && ctx.Err() == nil {
			last.Reason = fmt.Sprintf("for %v: %s", r.opts.CatchUpTimeout, last.Reason)
			return last.in("wait")
		}
	}
}

// compact compacts, and waits on each voting member until what was compacted is deleted
// there: a file that is defragmented before has that still. To ask a member for a
// compaction that was made is to wait for it.
//
// It does so three times, with a write between, since what a member says of its free
// space is late, on a cluster that nobody writes to for ever: the backend counts a page
// as free when a transaction has begun after the one that has freed it, and after the
// last that reads it, and has been committed. Each compaction commits.
func (r *reclaim) compact(ctx context.Context, h Health) error {
	if r.plan.Compact == 0 {
		return nil
	}
	for range 3 {
		for _, m := range h.Members {
			if !m.voter() {
				continue
			}
			err := r.at(ctx, m, func(conn *grpc.ClientConn) error {
				_, err := pb.NewKVClient(conn).Compact(ctx, &pb.CompactionRequest{Revision: r.plan.Compact, Physical: true}, grpc.WaitForReady(false))
				return err
			})
			if ctx.Err() != nil {
				return fmt.Errorf("budget: reclaim was told to stop while it compacted to revision %d, which goes on: %w", r.plan.Compact, ctx.Err())
			}
			if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
				return &ReclaimDoubtError{Step: "compact", Member: m.ID, Name: m.Name, Err: err,
					Reason: fmt.Sprintf("compacting to revision %d at %s: %v", r.plan.Compact, m.Endpoint, err)}
			}
			r.result.Compacted = r.plan.Compact
		}
		if err := r.lock.touch(ctx); err != nil {
			return &ReclaimDoubtError{Step: "compact", Reason: fmt.Sprintf("a write after it has failed: %v", err), Err: err}
		}
	}
	r.log.LogAttrs(ctx, slog.LevelInfo, "etcd compacted", slog.Int64("revision", r.plan.Compact))
	return nil
}

// at makes a request at one endpoint, which is not to wait until that is there: the client
// would otherwise keep a defragmentation, which has no deadline, until the member is
// started again, be that days later.
func (r *reclaim) at(ctx context.Context, m HealthMember, request func(*grpc.ClientConn) error) error {
	conn, err := r.cli.Dial(m.Endpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	status, err := within(ctx, r.opts.RequestTimeout, func(ctx context.Context) (*pb.StatusResponse, error) {
		return pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
	})
	if err != nil {
		return rpctypes.Error(err)
	}
	if id := HealthID(status.Header.GetMemberId()); id != m.ID { // behind something that has several
		return fmt.Errorf("member %s answers at %s: have each member reached at an address of its own", id, m.Endpoint)
	}
	return rpctypes.Error(request(conn))
}

// member defragments a member, if it is worth it, as it was just found.
func (r *reclaim) member(ctx context.Context, m HealthMember) error {
	step := ReclaimStep{Member: m}
	step.Defragment, step.Reason = worthwhile(m, r.opts)
	attrs := []slog.Attr{slog.String("member", m.ID.String()), slog.String("name", m.Name), slog.String("role", string(m.Role)),
		slog.String("reason", step.Reason), slog.Int64("db_size_bytes", m.DbSize), slog.Int64("db_size_in_use_bytes", m.DbSizeInUse)}
	if !step.Defragment {
		r.log.LogAttrs(ctx, slog.LevelInfo, "etcd member is left as it is", attrs...)
		if r.opts.OnStep != nil {
			r.opts.OnStep(step)
		}
		r.result.Members = append(r.result.Members, ReclaimedMember{ReclaimStep: step})
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("budget: reclaim was told to stop before member %s (%s): %w", m.Name, m.ID, ctx.Err())
	}
	r.log.LogAttrs(ctx, slog.LevelInfo, "etcd member is being defragmented", attrs...)
	if r.opts.OnStep != nil {
		r.opts.OnStep(step)
	}
	ctx = context.WithoutCancel(ctx)
	doubt := func(err error, format string, args ...any) error {
		return &ReclaimDoubtError{Step: "defragment", Member: m.ID, Name: m.Name, Reason: fmt.Sprintf(format, args...), Err: err}
	}
	begin := time.Now()
	err := r.at(ctx, m, func(conn *grpc.ClientConn) error {
		_, err := pb.NewMaintenanceClient(conn).Defragment(ctx, &pb.DefragmentRequest{}, grpc.WaitForReady(false))
		return err
	})
	took := time.Since(begin)
	if err != nil {
		return doubt(err, "after %v: %v: it may be at it still: wait until it answers \"etcdctl endpoint status\", and reclaim again", took, err)
	}
	a := askHealth(ctx, r.cli, &pb.Member{ID: uint64(m.ID), Name: m.Name, ClientURLs: []string{m.Endpoint}}, r.opts.RequestTimeout)
	after := newHealthMember(a, 0, r.opts.bounds())
	after.judge(r.opts.bounds())
	r.result.Members = append(r.result.Members, ReclaimedMember{ReclaimStep: step, After: after, Took: took})
	switch {
	case a.err != nil:
		return doubt(a.err, "it was defragmented in %v and does not answer: %v: %s", took, a.err, adviseReach)
	case after.Revision < m.Revision || after.AppliedIndex < m.AppliedIndex:
		return doubt(nil, "it was at revision %d, entry %d, and is at %d, %d after: it has lost data: remove it and add it again", m.Revision, m.AppliedIndex, after.Revision, after.AppliedIndex)
	case after.DbSize >= m.DbSize:
		return doubt(nil, "it was defragmented in %v, its file had %d bytes and has %d, of which %d are in use: write less while a reclaim runs", took, m.DbSize, after.DbSize, after.DbSizeInUse)
	}
	r.log.LogAttrs(ctx, slog.LevelInfo, "etcd member was defragmented", slog.String("member", m.ID.String()), slog.String("name", m.Name),
		slog.Duration("took", took), slog.Int64("db_size_bytes", after.DbSize), slog.Int64("db_size_in_use_bytes", after.DbSizeInUse))
	return nil
}

// disarm disarms NOSPACE on a cluster that has settled, where all members have room, and
// sees whether that lasts.
func (r *reclaim) disarm(ctx context.Context, h Health) error {
	doubt := func(m HealthMember, err error, format string, args ...any) error {
		return &ReclaimDoubtError{Step: "disarm", Member: m.ID, Name: m.Name, Reason: fmt.Sprintf(format, args...), Err: err}
	}
	if len(h.Alarms) == 0 {
		return nil
	}
	for _, m := range h.Members { // a learner raises the alarm, too
		if m.QuotaUse < healthErrorQuota {
			continue
		}
		remedy := "delete keys or raise the quota, and reclaim again"
		if !m.voter() {
			remedy = "remove the learner, reclaim again and add it again"
		}
		return doubt(m, nil, "%d bytes of a quota of %d are used still, %d of them in use: the alarm would come back: %s", m.DbSize, m.Quota, m.DbSizeInUse, remedy)
	}
	for _, a := range h.Alarms {
		if _, err := within(ctx, r.opts.RequestTimeout, func(ctx context.Context) (*clientv3.AlarmResponse, error) {
			return r.cli.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: uint64(a.Member), Alarm: pb.AlarmType_NOSPACE})
		}); err != nil {
			return doubt(HealthMember{ID: a.Member}, err, "disarming %s: %v: see \"etcdctl alarm list\", and reclaim again", a.Alarm, err)
		}
		r.result.Disarmed = append(r.result.Disarmed, a)
	}
	if _, err := within(ctx, r.opts.RequestTimeout, r.lock.probe); err != nil {
		return doubt(HealthMember{}, err, "NOSPACE was disarmed, and a write has failed: %v: see \"etcdctl alarm list\", and reclaim again", err)
	}
	left, err := within(ctx, r.opts.RequestTimeout, r.cli.AlarmList)
	if err != nil {
		return doubt(HealthMember{}, err, "NOSPACE was disarmed, and whether it has come back is not known: %v: see \"etcdctl alarm list\"", err)
	}
	if len(left.Alarms) > 0 {
		return doubt(HealthMember{}, nil, "NOSPACE was disarmed, and %v is raised: write less, or raise the quota, and reclaim again", left.Alarms)
	}
	r.log.LogAttrs(ctx, slog.LevelInfo, "etcd alarm NOSPACE is disarmed")
	return nil
}
