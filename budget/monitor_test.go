package budget

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// pretendedMembers answers as members do, on the clock of a bubble.
type pretendedMembers struct {
	mu      sync.Mutex
	list    []*pb.Member
	answers map[string]*clientv3.StatusResponse // by endpoint; what is not there does not answer
	alarms  []*pb.AlarmMember
	err     error // of the list
	asked   []string
}

func (p *pretendedMembers) MemberList(context.Context, ...clientv3.OpOption) (*clientv3.MemberListResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &clientv3.MemberListResponse{Members: p.list}, p.err
}

func (p *pretendedMembers) Status(ctx context.Context, endpoint string) (*clientv3.StatusResponse, error) {
	p.mu.Lock()
	p.asked = append(p.asked, endpoint)
	s := p.answers[endpoint]
	p.mu.Unlock()
	if s == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s, nil
}

// Endpoints returns none: what is asked is what the members advertise.
func (p *pretendedMembers) Endpoints() []string { return nil }

func (p *pretendedMembers) AlarmList(context.Context) (*clientv3.AlarmResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &clientv3.AlarmResponse{Alarms: p.alarms}, nil
}

func (p *pretendedMembers) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// pretend returns two members; the second has two client URLs.
func pretend() *pretendedMembers {
	return &pretendedMembers{
		list: []*pb.Member{{ID: 1, Name: "m1", ClientURLs: []string{"a"}}, {ID: 2, Name: "m2", ClientURLs: []string{"b", "c"}}},
		answers: map[string]*clientv3.StatusResponse{
			"a": answerOf(1, nil).status, "b": answerOf(2, nil).status, "c": answerOf(2, nil).status,
		},
	}
}

// told is what a monitor has called back with.
type told struct {
	mu      sync.Mutex
	rounds  []Health
	at      []time.Time
	crossed []HealthCrossing
}

func (o *told) config() MonitorConfig {
	return MonitorConfig{
		Logger: slog.New(slog.DiscardHandler),
		OnHealth: func(h Health) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.rounds, o.at = append(o.rounds, h), append(o.at, time.Now())
		},
		OnThreshold: func(c HealthCrossing) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.crossed = append(o.crossed, c)
		},
	}
}

// times returns when the rounds were.
func (o *told) times() []time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.at)
}

// TestMonitorAsksRegularly starts a monitor twice and lets it run for a day.
func TestMonitorAsksRegularly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cli, seen := pretend(), &told{}
		m, err := newMonitor(cli, seen.config())
		require.NoError(t, err)
		begin := time.Now()
		m.Start()
		m.Start()
		synctest.Wait()
		require.Len(t, seen.times(), 1, "the first round is at once")
		require.WithinDuration(t, begin, seen.times()[0], 0)
		<-time.After(24 * time.Hour)
		require.NoError(t, m.Close())
		require.NoError(t, m.Close())
		require.InDelta(t, 24*12, len(seen.at), 60)
		for i, at := range seen.at[1:] {
			require.GreaterOrEqual(t, at.Sub(seen.at[i]), 150*time.Second)
			require.LessOrEqual(t, at.Sub(seen.at[i]), 450*time.Second)
		}
		require.Len(t, cli.asked, 2*len(seen.at), "each member once, also one with two client URLs")
		require.Empty(t, seen.crossed)
		rounds := len(seen.at)
		m.Start()
		<-time.After(time.Hour)
		require.Len(t, seen.at, rounds, "Close has ended it")
		_, err = m.Check(t.Context())
		require.NoError(t, err)
	})
}

// TestMonitorTellsEdges has a member's file grow and shrink.
func TestMonitorTellsEdges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cli, seen := pretend(), &told{}
		m, err := newMonitor(cli, seen.config())
		require.NoError(t, err)
		m.Start()
		for _, size := range []int64{100, 160, 170, 220, 310, 100} {
			cli.set(func() {
				s := answerOf(2, nil).status
				s.DbSize, s.DbSizeInUse = 4*size*mib, 400*mib
				cli.answers["b"] = s
			})
			<-time.After(15 * time.Minute) // two rounds, at the least
			synctest.Wait()
		}
		cli.set(func() { cli.answers = nil })
		<-time.After(8 * time.Minute)
		require.NoError(t, m.Close())
		var levels []HealthLevel
		for _, c := range seen.crossed {
			levels = append(levels, c.From, c.To)
		}
		require.Equal(t, []HealthLevel{
			HealthOK, HealthWarn, HealthWarn, HealthDefragment, HealthDefragment, HealthError, HealthError, HealthOK,
			HealthOK, HealthError, HealthOK, HealthError, // nobody answers
		}, levels)
	})
}

// TestMonitorWhenNobodyAnswers asks at all client URLs, for as long as Timeout says.
func TestMonitorWhenNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cli := pretend()
		m, err := newMonitor(cli, MonitorConfig{Timeout: 2 * time.Second})
		require.NoError(t, err)
		delete(cli.answers, "b")
		begin := time.Now()
		h, err := m.Check(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2*time.Second, time.Since(begin))
		require.Equal(t, "c", h.Members[1].Endpoint)

		cli.answers["c"] = answerOf(1, nil).status // another member
		h, err = m.Check(t.Context())
		require.NoError(t, err)
		require.Equal(t, HealthError, h.Members[1].Level)
		require.Equal(t, "b: context deadline exceeded\nc: member 1 answers there", h.Members[1].Error)

		cli.list[1].ClientURLs = nil
		h, err = m.Check(t.Context())
		require.NoError(t, err)
		require.Contains(t, h.Members[1].Error, "has not started")

		cli.err = errors.New("no endpoint")
		_, err = m.Check(t.Context())
		require.ErrorIs(t, err, cli.err)
	})
}

// TestMonitorCloseEndsARound that hangs.
func TestMonitorCloseEndsARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cli, seen := pretend(), &told{}
		cli.answers = nil
		cfg := seen.config()
		cfg.Timeout = time.Hour
		m, err := newMonitor(cli, cfg)
		require.NoError(t, err)
		begin := time.Now()
		m.Start()
		synctest.Wait()
		require.NoError(t, m.Close())
		require.Zero(t, time.Since(begin))
		require.Empty(t, seen.rounds, "what was cut short says nothing")
	})
}

func TestMonitorConfig(t *testing.T) {
	_, err := NewMonitor(nil, MonitorConfig{})
	require.Error(t, err)
	_, err = newMonitor(pretend(), MonitorConfig{Interval: time.Millisecond})
	require.ErrorContains(t, err, "Interval is 1ms")
	m, err := newMonitor(pretend(), MonitorConfig{Quota: 10 * mib, MinFree: 1})
	require.NoError(t, err)
	m.cli.(*pretendedMembers).answers["a"].DbSizeQuota = 0
	m.cli.(*pretendedMembers).answers["a"].DbSizeInUse = 10 * mib
	h, err := m.Check(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 10*mib, h.Members[0].Quota)
	require.Equal(t, []string{"bloat 5.00", "500.0 % of the quota"}, h.Members[0].Reasons)
	require.NoError(t, m.Close())
}

// TestMonitorOfServers asks a member with two client URLs, and a learner.
func TestMonitorOfServers(t *testing.T) {
	c := etcdtest.Start(t, 1, etcdtest.Advertise(t, 2))
	learner := c.AddLearner(t)
	var log bytes.Buffer
	rounds := make(chan Health, 1)
	m, err := NewMonitor(c.ClientOf(t, c.Endpoints()[0]), MonitorConfig{
		Logger: slog.New(slog.NewJSONHandler(&log, nil)), OnHealth: func(h Health) { rounds <- h },
	})
	require.NoError(t, err)
	m.Start()
	h := <-rounds
	require.NoError(t, m.Close())
	require.Len(t, h.Members, 2)
	leader, other := h.Members[0], h.Members[1]
	require.Equal(t, HealthLeader, leader.Role)
	require.EqualValues(t, c.Members[0].Server.MemberID(), leader.ID)
	require.Equal(t, c.Members[0].Config().AdvertiseClientUrls[0].String(), leader.Endpoint)
	require.EqualValues(t, 2*gib, leader.Quota)
	require.False(t, leader.QuotaAssumed)
	require.NotZero(t, leader.DbSizeInUse)
	require.Equal(t, HealthOK, leader.Level, "%v", leader.Reasons)
	require.Equal(t, HealthLearner, other.Role)
	require.EqualValues(t, learner.Server.MemberID(), other.ID)

	lines := bytes.Split(bytes.TrimSpace(log.Bytes()), []byte("\n"))
	require.Len(t, lines, 2)
	var line map[string]any
	require.NoError(t, json.Unmarshal(lines[0], &line))
	require.EqualValues(t, leader.DbSize, line["db_size_bytes"])
	require.Equal(t, "INFO", line["level"])
}

// TestMonitorAlarms asks a cluster with an alarm, and as a user without permissions.
func TestMonitorAlarms(t *testing.T) {
	c, root := etcdtest.StartAuth(t)
	c.AddUser(t, root, "anybody")
	cli := c.ClientAs(t, "anybody")
	id := uint64(c.Members[0].Server.MemberID())
	_, err := c.Members[0].Server.Alarm(t.Context(), &pb.AlarmRequest{MemberID: id, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE})
	require.NoError(t, err)
	m, err := NewMonitor(cli, MonitorConfig{})
	require.NoError(t, err)
	h, err := m.Check(t.Context())
	require.NoError(t, err)
	require.Equal(t, []HealthAlarm{{HealthID(id), "NOSPACE"}}, h.Alarms)
	require.Equal(t, []string{"NOSPACE"}, h.Members[0].Alarms)
	require.Contains(t, h.Members[0].Errors[0], "alarm:NOSPACE")
	require.Equal(t, HealthError, h.Members[0].Level)
}
