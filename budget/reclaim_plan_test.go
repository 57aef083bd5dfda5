package budget

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func filledOptions(t *testing.T, o ReclaimOptions) ReclaimOptions {
	o, err := o.filled()
	require.NoError(t, err)
	return o
}

func sized(size, used int64) func(*clientv3.StatusResponse) {
	return func(s *clientv3.StatusResponse) { s.DbSize, s.DbSizeInUse = size*mib, used*mib }
}

func TestReclaimWorthwhile(t *testing.T) {
	for name, c := range map[string]struct {
		opts ReclaimOptions
		edit func(*clientv3.StatusResponse)
		want bool
		why  string
	}{
		"half of it free":         {ReclaimOptions{}, sized(1000, 500), true, "frees 524 MB of 1.05 GB, bloat 2.00"},
		"bloat of 1.5":            {ReclaimOptions{}, sized(600, 400), true, "bloat 1.50"},
		"bloat below":             {ReclaimOptions{}, sized(599, 400), false, "below a bloat of 1.50"},
		"100 MiB free":            {ReclaimOptions{}, sized(110, 10), true, ""},
		"less free":               {ReclaimOptions{}, sized(109, 10), false, "to free less than 105 MB"},
		"MinFree":                 {ReclaimOptions{MinFree: 5 * mib}, sized(15, 10), true, ""},
		"MinBloat":                {ReclaimOptions{MinBloat: 3}, sized(1000, 400), false, "below a bloat of 3.00"},
		"near the quota":          {ReclaimOptions{}, sized(1900, 1700), true, "92.8 % of the quota"},
		"nothing to be had there": {ReclaimOptions{}, sized(1900, 1800), false, "below a bloat of"},
		"a small quota": {ReclaimOptions{}, func(s *clientv3.StatusResponse) {
			sized(16, 12)(s)
			s.DbSizeQuota = 16 * mib
		}, true, "100.0 % of the quota"},
		"a learner": {ReclaimOptions{}, func(s *clientv3.StatusResponse) {
			sized(1000, 100)(s)
			s.IsLearner = true
		}, false, "etcd defragments no learner"},
	} {
		t.Run(name, func(t *testing.T) {
			got, why := worthwhile(healthOf(answerOf(2, c.edit)).Members[0], filledOptions(t, c.opts))
			require.Equal(t, c.want, got, why)
			require.Contains(t, why, c.why)
		})
	}
}

// TestReclaimOrder has the leader change while members are done.
func TestReclaimOrder(t *testing.T) {
	learner := func(s *clientv3.StatusResponse) { s.IsLearner = true }
	led := func(by uint64) func(*clientv3.StatusResponse) {
		return func(s *clientv3.StatusResponse) { s.Leader = by }
	}
	done := make(map[HealthID]bool)
	for _, step := range []struct {
		leader uint64
		want   HealthID
	}{{1, 4}, {1, 2}, {3, 1}, {1, 3}} {
		h := healthOf(answerOf(1, led(step.leader)), answerOf(2, led(step.leader)), answerOf(3, led(step.leader)), answerOf(4, learner))
		m, ok := reclaimNext(h, done)
		require.True(t, ok)
		require.Equal(t, step.want, m.ID)
		done[m.ID] = true
	}
	_, ok := reclaimNext(healthOf(answerOf(1, nil), answerOf(2, nil), answerOf(3, nil), answerOf(4, learner)), done)
	require.False(t, ok)
}

func TestReclaimDoubt(t *testing.T) {
	refused := errors.New("connection refused")
	type status = *clientv3.StatusResponse
	for name, c := range map[string]struct {
		third   func(status)
		alarms  []*pb.AlarmMember
		alarm   error
		unheard bool
		learner bool
		applied int64
		why     string // empty for no doubt
	}{
		"all is well":            {},
		"has applied":            {applied: 7000},
		"has not applied":        {applied: 7001, why: "at revision 7000, and 7001 was written"},
		"no answer":              {unheard: true, why: "does not answer: connection refused"},
		"no answer of a learner": {unheard: true, learner: true},
		"no leader":              {third: func(s status) { s.Leader = 0 }, why: "follows 0, another member 1"},
		"another leader":         {third: func(s status) { s.Leader = 2 }, why: "follows 2, another member 1"},
		"1000 entries behind":    {third: func(s status) { s.RaftAppliedIndex = 7000 }},
		"1001 entries behind":    {third: func(s status) { s.RaftAppliedIndex = 6999 }, why: "1001 entries behind, 1000 are allowed"},
		"a learner is behind":    {learner: true, third: func(s status) { s.IsLearner, s.RaftAppliedIndex = true, 1 }},
		"an error":               {third: func(s status) { s.Errors = []string{"no leader"} }, why: `the error "no leader"`},
		"NOSPACE": {
			third:  func(s status) { s.Errors = []string{"memberID:3  alarm:NOSPACE"} },
			alarms: []*pb.AlarmMember{{MemberID: 3, Alarm: pb.AlarmType_NOSPACE}},
		},
		"CORRUPT":            {alarms: []*pb.AlarmMember{{MemberID: 3, Alarm: pb.AlarmType_CORRUPT}}, why: "alarm CORRUPT"},
		"alarms not known":   {alarm: errors.New("no quorum"), why: "alarms are not known: no quorum"},
		"a voter is missing": {learner: true, third: func(s status) { s.IsLearner = true }, why: ""},
	} {
		t.Run(name, func(t *testing.T) {
			third := answerOf(3, c.third)
			third.member.IsLearner = c.learner
			if c.unheard {
				third.status, third.err = nil, refused
			}
			h := newHealth(time.Now(), []healthAnswer{answerOf(1, nil), answerOf(2, nil), third}, c.alarms, c.alarm, standardBounds)
			err := reclaimDoubt(h, reclaimVoters(h), c.applied, filledOptions(t, ReclaimOptions{}))
			if c.why == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrReclaimDoubt)
			require.ErrorContains(t, err, c.why)
			if c.unheard {
				require.ErrorIs(t, err, refused)
			}
		})
	}
	two := healthOf(answerOf(1, nil), answerOf(2, nil))
	require.ErrorContains(t, reclaimDoubt(two, []HealthID{1, 2, 3}, 0, filledOptions(t, ReclaimOptions{})), "were [1 2 3] and are [1 2]")
	stray := healthOf(answerOf(2, nil), answerOf(3, nil))
	require.ErrorContains(t, reclaimDoubt(stray, []HealthID{2, 3}, 0, filledOptions(t, ReclaimOptions{})), "follows 1", "a leader that is no member")
}

func TestReclaimPlanIsPrinted(t *testing.T) {
	h := newHealth(time.Now(), []healthAnswer{
		answerOf(1, sized(1000, 400)), answerOf(2, sized(50, 49)),
		answerOf(3, func(s *clientv3.StatusResponse) { s.IsLearner = true }),
	}, []*pb.AlarmMember{{MemberID: 2, Alarm: pb.AlarmType_NOSPACE}}, nil, standardBounds)
	p := planReclaim(h, filledOptions(t, ReclaimOptions{KeepRevisions: 100}))
	require.Equal(t, `compact to revision 6901, which keeps 100
leave m3 (3), learner: etcd defragments no learner: promote it first, or remove it and add it again
look again, when it is compacted, at m2 (2), follower: frees 1.05 MB of 52.4 MB, bloat 1.02: not worth it below a bloat of 1.50
defragment m1 (1), leader: frees 629 MB of 1.05 GB, bloat 2.50
disarm NOSPACE of member 2, if enough is free
frees 629 MB on all members now, and what compaction frees besides, which is not known before
`, p.String())
	p = planReclaim(h, filledOptions(t, ReclaimOptions{KeepRevisions: 7001}))
	require.Zero(t, p.Compact)
	require.Contains(t, p.String(), "compact nothing: there are less than 7001 revisions")

	lost := answerOf(2, nil)
	lost.status, lost.err = nil, errors.New("connection refused")
	p = planReclaim(healthOf(answerOf(1, nil), lost), filledOptions(t, ReclaimOptions{}))
	require.Contains(t, p.String(), "not now: budget: reclaim has stopped: member m2 (2): it does not answer: connection refused")
	require.Contains(t, p.String(), "leave m2 (2), of unknown role: no answer")
}

func TestReclaimOptions(t *testing.T) {
	_, err := ReclaimOptions{KeepRevisions: -1, MinBloat: 0.5, MinFree: -1, CatchUpTimeout: -1, LockTTL: time.Second}.filled()
	for _, name := range []string{"KeepRevisions is -1", "MinBloat is 0.5", "MinFree is -1", "CatchUpTimeout is -1ns", "LockTTL is 1s"} {
		require.ErrorContains(t, err, name)
	}
	_, err = PlanReclaim(t.Context(), nil, ReclaimOptions{})
	require.Error(t, err)
}

// TestReclaimDisarmsNothingWhileAMemberIsFull, before it asks anybody.
func TestReclaimDisarmsNothingWhileAMemberIsFull(t *testing.T) {
	full := sized(1950, 1900)
	for why, edit := range map[string]func(*clientv3.StatusResponse){
		"delete keys or raise the quota": full,
		"remove the learner": func(s *clientv3.StatusResponse) {
			full(s)
			s.IsLearner = true
		},
	} {
		h := newHealth(time.Now(), []healthAnswer{answerOf(1, nil), answerOf(2, edit)}, []*pb.AlarmMember{{MemberID: 2, Alarm: pb.AlarmType_NOSPACE}}, nil, standardBounds)
		err := (&reclaim{}).disarm(t.Context(), h)
		var doubt *ReclaimDoubtError
		require.ErrorAs(t, err, &doubt)
		require.Equal(t, "disarm", doubt.Step)
		require.EqualValues(t, 2, doubt.Member)
		require.Contains(t, doubt.Reason, "2044723200 bytes of a quota of 2147483648 are used still")
		require.Contains(t, doubt.Reason, why)
	}
}
