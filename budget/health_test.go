package budget

import (
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

var standardBounds = healthBounds{defaultHealthQuota, defaultHealthMinFree}

// answerOf returns what a member says whose leader is 1, edited.
func answerOf(id uint64, edit func(*clientv3.StatusResponse)) healthAnswer {
	s := &clientv3.StatusResponse{
		Header: &pb.ResponseHeader{MemberId: id, Revision: 7000}, Version: "3.7.3", Leader: 1,
		DbSize: 50 * mib, DbSizeInUse: 50 * mib, DbSizeQuota: 2 * gib, RaftIndex: 8000, RaftAppliedIndex: 8000,
	}
	if edit != nil {
		edit(s)
	}
	return healthAnswer{member: &pb.Member{ID: id, Name: "m" + HealthID(id).String()}, endpoint: "e" + HealthID(id).String(), status: s}
}

func healthOf(answers ...healthAnswer) Health {
	return newHealth(time.Unix(0, 0), answers, nil, nil, standardBounds)
}

func TestHealthLevels(t *testing.T) {
	sizes := func(size, used int64) func(*clientv3.StatusResponse) {
		return func(s *clientv3.StatusResponse) { s.DbSize, s.DbSizeInUse = size, used }
	}
	for name, c := range map[string]struct {
		edit   func(*clientv3.StatusResponse)
		level  HealthLevel
		advice string
	}{
		"as it should be":             {nil, HealthOK, ""},
		"a small file":                {sizes(20<<10, 4<<10), HealthOK, ""},
		"just below the floor":        {sizes(100*mib+100, 101), HealthOK, ""},
		"at the floor":                {sizes(100*mib+101, 101), HealthError, adviseDefragment},
		"an empty backend":            {sizes(0, 0), HealthOK, ""},
		"bloat below 1.5":             {sizes(1499*mib, 1000*mib), HealthOK, ""},
		"bloat of 1.5":                {sizes(1500*mib, 1000*mib), HealthWarn, ""},
		"bloat below 2":               {sizes(1399*mib, 700*mib), HealthWarn, ""},
		"bloat of 2":                  {sizes(1400*mib, 700*mib), HealthDefragment, adviseDefragment},
		"bloat of 3":                  {sizes(1500*mib, 500*mib), HealthError, adviseDefragment},
		"0.8 of the quota, all used":  {sizes(1640*mib, 1600*mib), HealthWarn, adviseRoom},
		"0.8 of the quota, some free": {sizes(1640*mib, 1500*mib), HealthDefragment, adviseDefragment},
		"below 0.8":                   {sizes(1638*mib, 1500*mib), HealthOK, ""},
		"0.95":                        {sizes(1946*mib, 1900*mib), HealthError, adviseRoom},
		"0.95, some free":             {sizes(1946*mib, 1800*mib), HealthError, adviseDefragment},
		"no quota": {func(s *clientv3.StatusResponse) {
			sizes(20*gib, 20*gib)(s)
			s.DbSizeQuota = -1
		}, HealthOK, ""},
		"another quota": {func(s *clientv3.StatusResponse) {
			sizes(4*gib, 4*gib)(s)
			s.DbSizeQuota = 8 * gib
		}, HealthOK, ""},
		"etcd 3.5 does not say the quota": {func(s *clientv3.StatusResponse) {
			sizes(4*gib, 4*gib)(s)
			s.DbSizeQuota = 0
		}, HealthError, adviseRoom},
		"4999 entries behind": {func(s *clientv3.StatusResponse) { s.RaftAppliedIndex = 3001 }, HealthOK, ""},
		"5000 entries behind": {func(s *clientv3.StatusResponse) { s.RaftAppliedIndex = 3000 }, HealthWarn, ""},
		"an error":            {func(s *clientv3.StatusResponse) { s.Errors = []string{"etcdserver: no leader"} }, HealthError, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := healthOf(answerOf(1, c.edit)).Members[0]
			require.Equal(t, c.level, m.Level, "%v", m.Reasons)
			require.Equal(t, c.advice, m.Advice)
			require.Equal(t, m.Level == HealthOK, len(m.Reasons) == 0)
		})
	}
}

func TestHealthOfACluster(t *testing.T) {
	gone := answerOf(4, nil)
	gone.status, gone.err = nil, errors.New("connection refused")
	h := newHealth(time.Unix(0, 0), []healthAnswer{
		answerOf(3, func(s *clientv3.StatusResponse) { s.IsLearner, s.RaftIndex, s.RaftAppliedIndex = true, 8100, 7000 }),
		answerOf(2, func(s *clientv3.StatusResponse) { s.DbSizeQuota = 0 }),
		gone,
		answerOf(1, nil),
	}, []*pb.AlarmMember{{MemberID: 2, Alarm: pb.AlarmType_NOSPACE}, {MemberID: 0xabc, Alarm: pb.AlarmType_CORRUPT}}, nil, standardBounds)

	require.Equal(t, []HealthAlarm{{2, "NOSPACE"}, {0xabc, "CORRUPT"}}, h.Alarms)
	require.Len(t, h.Members, 4)
	leader, follower, learner, lost := h.Members[0], h.Members[1], h.Members[2], h.Members[3]
	require.Equal(t, HealthLeader, leader.Role)
	require.EqualValues(t, 100, leader.Lag, "somebody knows of more than itself")
	require.Equal(t, HealthFollower, follower.Role)
	require.True(t, follower.QuotaAssumed)
	require.EqualValues(t, 2*gib, follower.Quota)
	require.Equal(t, []string{"NOSPACE"}, follower.Alarms)
	require.Equal(t, HealthError, follower.Level)
	require.Equal(t, HealthLearner, learner.Role)
	require.EqualValues(t, 1100, learner.Lag)
	require.Equal(t, HealthError, lost.Level)
	require.Equal(t, "connection refused", lost.Error)

	const want = "4 members" +
		"; m1 (1) leader: ok: 52.4 MB, 52.4 MB in use, bloat 1.00, 2.4 % of the quota, lag 100" +
		"; m2 (2) follower: error: 52.4 MB, 52.4 MB in use, bloat 1.00, 2.4 % of the quota, lag 100" +
		"; m3 (3) learner: ok: 52.4 MB, 52.4 MB in use, bloat 1.00, 2.4 % of the quota, lag 1100" +
		"; m4 (4): error: no answer: connection refused" +
		"; alarm NOSPACE of member 2; alarm CORRUPT of member abc"
	require.Equal(t, want, h.String())

	text, err := json.Marshal(h)
	require.NoError(t, err)
	require.Contains(t, string(text), `"id":"1","name":"m1","endpoint":"e1","role":"leader","leader":"1","version":"3.7.3","dbSizeBytes":52428800,`)
	require.Contains(t, string(text), `"level":"error"`)
	var again Health
	require.NoError(t, json.Unmarshal(text, &again))
	again.Members[3].err = lost.err
	again.At = h.At
	require.Equal(t, h, again)
	require.Error(t, json.Unmarshal([]byte(`{"members":[{"level":"fine"}]}`), &again))
}

// TestHealthCrossings has a member get worse and better again.
func TestHealthCrossings(t *testing.T) {
	level := func(l HealthLevel) Health { return Health{Members: []HealthMember{{ID: 1, Level: l}, {ID: 2}}} }
	before := make(map[HealthID]HealthLevel)
	for i, step := range []struct {
		h    Health
		want []HealthLevel // from, to
	}{
		{level(HealthOK), nil},
		{level(HealthWarn), []HealthLevel{HealthOK, HealthWarn}},
		{level(HealthWarn), nil},
		{level(HealthError), []HealthLevel{HealthWarn, HealthError}},
		{level(HealthOK), []HealthLevel{HealthError, HealthOK}},
		{level(HealthWarn), []HealthLevel{HealthOK, HealthWarn}},
		{Health{Members: []HealthMember{{ID: 2}}}, nil}, // removed
		{level(HealthWarn), []HealthLevel{HealthOK, HealthWarn}},
	} {
		crossed := healthCrossings(before, step.h)
		if step.want == nil {
			require.Empty(t, crossed, "step %d", i)
			continue
		}
		require.Len(t, crossed, 1, "step %d", i)
		require.Equal(t, step.want, []HealthLevel{crossed[0].From, crossed[0].To}, "step %d", i)
		require.EqualValues(t, 1, crossed[0].Member.ID)
	}
}

// TestHealthLines looks at a line of the log as a collector does.
func TestHealthLines(t *testing.T) {
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(&out, nil))
	m := healthOf(answerOf(1, func(s *clientv3.StatusResponse) { s.DbSize, s.DbSizeInUse = 1*gib, 512*mib })).Members[0]
	log.LogAttrs(t.Context(), m.Level.severity(), "etcd member", m.attrs()...)
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(out.String()), &line))
	delete(line, "time")
	require.Equal(t, map[string]any{
		"msg": "etcd member", "level": "WARN", "health": "defragment", "member": "1", "name": "m1", "role": "leader", "endpoint": "e1", "version": "3.7.3",
		"db_size_bytes": float64(1 * gib), "db_size_in_use_bytes": float64(512 * mib), "bloat": 2.0,
		"quota_bytes": float64(2 * gib), "quota_assumed": false, "quota_use": 0.5,
		"revision": 7000.0, "raft_index": 8000.0, "raft_applied_index": 8000.0, "lag": 0.0,
		"reasons": []any{"bloat 2.00"}, "advice": "defragment",
	}, line)
	require.Equal(t, []slog.Level{slog.LevelInfo, slog.LevelWarn, slog.LevelWarn, slog.LevelError},
		[]slog.Level{HealthOK.severity(), HealthWarn.severity(), HealthDefragment.severity(), HealthError.severity()})
}
