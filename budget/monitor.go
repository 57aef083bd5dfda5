package budget

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/kvwrap/kvwrap/internal/wait"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// MonitorConfig configures a [Monitor]. Its zero value is safe and useful.
type MonitorConfig struct {
	// Interval is the time between two rounds, about: half as much to one and a half
	// times, so that the processes of a cluster do not ask together. Default 5 minutes, at
	// least a second.
	Interval time.Duration

	// Timeout bounds each request. Default 5 seconds.
	Timeout time.Duration

	// Quota is that of members which do not say, those of etcd 3.5, in bytes: their
	// --quota-backend-bytes. Default 2 GiB, etcd's own; negative where there is none.
	Quota int64

	// MinFree is below how many bytes that a defragmentation would give back bloat is no
	// news: a file of 20 KB with a bloat of 3 is no reason for a stall. Default 100 MiB;
	// negative for none.
	MinFree int64

	// Logger gets a line for each member in each round: at info, at warn from
	// [HealthWarn] on, at error from [HealthError] on. Default [slog.Default].
	Logger *slog.Logger

	// OnHealth is told what each round has found. OnThreshold is told when a member has
	// another level than the round before, upward or back; at first all are ok. Both are
	// called by the goroutine of the loop, one after the other, and are not to call Close.
	OnHealth    func(Health)
	OnThreshold func(HealthCrossing)
}

func (c MonitorConfig) filled() (MonitorConfig, error) {
	c.Interval = cmp.Or(c.Interval, 5*time.Minute)
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	c.Quota = cmp.Or(c.Quota, defaultHealthQuota)
	c.MinFree = cmp.Or(c.MinFree, defaultHealthMinFree)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	var errs []error
	if c.Interval < time.Second {
		errs = append(errs, fmt.Errorf("%w: MonitorConfig.Interval is %v: choose 1s or more, or 0 for the default", ErrConfig, c.Interval))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("%w: MonitorConfig.Timeout is %v: choose more than 0, or 0 for the default", ErrConfig, c.Timeout))
	}
	return c, errors.Join(errs...)
}

// Monitor asks the members of a cluster regularly how they are, and logs it. Start
// begins, Close ends it; Check asks once. Its methods are safe for concurrent use.
//
// It goes through the client that it is given, with its TLS and user. With
// authentication any user may ask.
type Monitor struct {
	cli healthClient
	cfg MonitorConfig

	ctx    context.Context // of the loop
	cancel context.CancelFunc

	mu      sync.Mutex // against a Start beside a Close
	started bool
	wg      sync.WaitGroup
}

// healthClient is what a round asks; a client is one.
type healthClient interface {
	MemberList(context.Context, ...clientv3.OpOption) (*clientv3.MemberListResponse, error)
	Status(context.Context, string) (*clientv3.StatusResponse, error)
	AlarmList(context.Context) (*clientv3.AlarmResponse, error)
	Endpoints() []string
}

// NewMonitor returns a monitor of the cluster of cli, which is to be closed after it.
// Nothing is sent.
func NewMonitor(cli *clientv3.Client, cfg MonitorConfig) (*Monitor, error) {
	if cli == nil {
		return nil, fmt.Errorf("%w: the client of a Monitor is nil: make one with clientv3.New", ErrConfig)
	}
	return newMonitor(cli, cfg)
}

func newMonitor(cli healthClient, cfg MonitorConfig) (*Monitor, error) {
	cfg, err := cfg.filled()
	if err != nil {
		return nil, err
	}
	m := &Monitor{cli: cli, cfg: cfg}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

// Start begins with the rounds, the first one at once. Starting again, or after Close,
// does nothing.
func (m *Monitor) Start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started || m.ctx.Err() != nil {
		return
	}
	m.started = true
	m.wg.Go(m.run)
}

// Close ends the loop, in the middle of a round as well, and waits for it. Closing
// again waits, too.
func (m *Monitor) Close() error {
	m.mu.Lock()
	m.cancel()
	m.mu.Unlock()
	m.wg.Wait()
	return nil
}

// Check asks all members once. It neither logs nor calls back, and works without Start
// and after Close. Members that do not answer are no error: they are in what it returns.
// Its error says that no endpoint of the client's could tell who the members are, and
// wraps etcd's.
func (m *Monitor) Check(ctx context.Context) (Health, error) {
	return lookHealth(ctx, m.cli, m.cfg.Timeout, healthBounds{m.cfg.Quota, m.cfg.MinFree}, clientv3.WithSerializable())
}

func (m *Monitor) run() {
	levels := make(map[HealthID]HealthLevel)
	for {
		m.round(levels)
		if !wait.For(m.ctx, wait.Jittered(m.cfg.Interval)) {
			return
		}
	}
}

// round asks and tells. Levels are those of the round before.
func (m *Monitor) round(levels map[HealthID]HealthLevel) {
	h, err := m.Check(m.ctx)
	if m.ctx.Err() != nil {
		return // what was cut short says nothing
	}
	if err != nil {
		m.cfg.Logger.LogAttrs(m.ctx, slog.LevelError, "etcd members", slog.String("error", err.Error()))
		return
	}
	known := make(map[HealthID]bool)
	for _, member := range h.Members {
		known[member.ID] = true
		m.cfg.Logger.LogAttrs(m.ctx, member.Level.severity(), "etcd member", member.attrs()...)
	}
	for _, a := range h.Alarms {
		if !known[a.Member] {
			m.cfg.Logger.LogAttrs(m.ctx, slog.LevelError, "etcd alarm of a member that was removed",
				slog.String("member", a.Member.String()), slog.String("alarm", a.Alarm))
		}
	}
	if m.cfg.OnHealth != nil {
		m.cfg.OnHealth(h)
	}
	for _, c := range healthCrossings(levels, h) {
		if m.cfg.OnThreshold != nil {
			m.cfg.OnThreshold(c)
		}
	}
}

// healthAttempts is how often a question is asked that any endpoint answers: the client
// goes from one to the next, and does not know of a member that is stopped or stalled
// while its connection stands.
const healthAttempts = 3

// lookHealth asks all members, and for the alarms. It waits for the slowest one, for
// timeout at the most per client URL.
func lookHealth(ctx context.Context, cli healthClient, timeout time.Duration, bounds healthBounds, opts ...clientv3.OpOption) (Health, error) {
	var (
		asked     sync.WaitGroup
		alarms    *clientv3.AlarmResponse
		alarmsErr error
	)
	asked.Go(func() { alarms, alarmsErr = attempted(ctx, timeout, cli.AlarmList) })
	answers, err := askMembers(ctx, cli, timeout, opts...)
	asked.Wait()
	if err != nil {
		return Health{}, err
	}
	var raised []*pb.AlarmMember
	if alarmsErr == nil {
		raised = alarms.Alarms
	}
	return newHealth(time.Now(), answers, raised, alarmsErr, bounds), nil
}

// askMembers asks all members how they are.
func askMembers(ctx context.Context, cli healthClient, timeout time.Duration, opts ...clientv3.OpOption) ([]healthAnswer, error) {
	list, err := attempted(ctx, timeout, func(ctx context.Context) (*clientv3.MemberListResponse, error) {
		return cli.MemberList(ctx, opts...)
	})
	if err != nil {
		return nil, fmt.Errorf("budget: asking for the members of the cluster: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		all     sync.WaitGroup
		mu      sync.Mutex
		answers = make([]healthAnswer, len(list.Members))
		left    = len(answers)
	)
	answered := func(i int, a healthAnswer) {
		mu.Lock()
		defer mu.Unlock()
		if answers[i].status != nil {
			return
		}
		if answers[i] = a; a.status != nil {
			if left--; left == 0 {
				cancel()
			}
		}
	}
	advertised := make(map[string]bool)
	for i, member := range list.Members {
		for _, url := range member.ClientURLs {
			advertised[address(url)] = true
		}
		all.Go(func() { answered(i, askHealth(ctx, cli, member, timeout)) })
	}
	// Members may advertise what is not reached from here. The client's endpoints are.
	for _, endpoint := range cli.Endpoints() {
		if advertised[address(endpoint)] {
			continue
		}
		all.Go(func() {
			status, err := within(ctx, timeout, func(ctx context.Context) (*clientv3.StatusResponse, error) { return cli.Status(ctx, endpoint) })
			if err != nil {
				return
			}
			for i, member := range list.Members {
				if member.ID == status.Header.GetMemberId() {
					answered(i, healthAnswer{member: member, endpoint: endpoint, status: status})
				}
			}
		})
	}
	all.Wait()
	return answers, nil
}

// address returns where an endpoint is, without how it is spoken to.
func address(endpoint string) string {
	if _, after, ok := strings.Cut(endpoint, "://"); ok {
		return after
	}
	return endpoint
}

func attempted[T any](ctx context.Context, timeout time.Duration, ask func(context.Context) (T, error)) (answer T, err error) {
	for range healthAttempts {
		if answer, err = within(ctx, timeout, ask); err == nil || ctx.Err() != nil {
			break
		}
	}
	return answer, err
}

func within[T any](ctx context.Context, timeout time.Duration, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return ask(ctx)
}

// askHealth asks one member, at each of its client URLs until it answers. What answers
// there as another member does not count.
func askHealth(ctx context.Context, cli healthClient, member *pb.Member, timeout time.Duration) healthAnswer {
	var errs []error
	for _, endpoint := range member.ClientURLs {
		status, err := within(ctx, timeout, func(ctx context.Context) (*clientv3.StatusResponse, error) { return cli.Status(ctx, endpoint) })
		if err == nil && status.Header.GetMemberId() != member.ID {
			err = fmt.Errorf("member %s answers there", HealthID(status.Header.GetMemberId()))
		}
		if err == nil {
			return healthAnswer{member: member, endpoint: endpoint, status: status}
		}
		errs = append(errs, fmt.Errorf("%s: %w", endpoint, err))
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("the member has no client URL: it has not started yet"))
	}
	return healthAnswer{member: member, err: errors.Join(errs...)}
}
