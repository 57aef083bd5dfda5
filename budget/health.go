package budget

import (
	"cmp"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/size"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Bounds of the levels of a member's health. Bloat is the size of the database file
// over what is in use of it, quota use the size over the quota.
//
// From 0.8 of the quota on a member warns: what is left above is what a budget that is
// derived from the quota leaves free. From 0.95 on it is an error: of the default of 2
// GiB 100 MiB are left, which a publisher of large values fills in seconds, and the write
// that does raises the alarm NOSPACE.
//
// 5,000 entries that are committed and not applied are where etcd refuses writes, with
// "too many requests".
const (
	healthWarnBloat       = 1.5
	healthDefragmentBloat = 2
	healthErrorBloat      = 3

	healthWarnQuota  = 0.8
	healthErrorQuota = 0.95

	healthWarnLag = 5000

	defaultHealthQuota   = 2 << 30   // etcd's
	defaultHealthMinFree = 100 << 20 // is written again in seconds, and not worth a stall
)

// HealthID is the ID of a member, written as etcdctl writes it, in hexadecimal.
type HealthID uint64

func (id HealthID) String() string { return strconv.FormatUint(uint64(id), 16) }

// MarshalText returns what String does.
func (id HealthID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText returns.
func (id *HealthID) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 16, 64)
	*id = HealthID(n)
	return err
}

// HealthRole is what a member is to its cluster; empty where it does not answer, unless
// it is a learner.
type HealthRole string

// The roles.
const (
	HealthLeader   HealthRole = "leader"
	HealthFollower HealthRole = "follower"
	HealthLearner  HealthRole = "learner"
)

// HealthLevel says how a member is. Levels are ordered.
type HealthLevel int

// The levels.
const (
	HealthOK         HealthLevel = iota
	HealthWarn                   // bloat of 1.5, 0.8 of the quota, or 5,000 entries to apply
	HealthDefragment             // bloat of 2; or 0.8 of the quota, where a defragmentation frees a twentieth of it
	HealthError                  // bloat of 3, 0.95 of the quota, an alarm, an error, or no answer
)

var healthLevels = []string{"ok", "warn", "defragment", "error"}

func (l HealthLevel) String() string {
	if l < 0 || int(l) >= len(healthLevels) {
		return fmt.Sprintf("HealthLevel(%d)", int(l))
	}
	return healthLevels[l]
}

// MarshalText returns what String does.
func (l HealthLevel) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText returns.
func (l *HealthLevel) UnmarshalText(text []byte) error {
	i := slices.Index(healthLevels, string(text))
	if i < 0 {
		return fmt.Errorf("budget: %q is no level of health: it is one of %s", text, strings.Join(healthLevels, ", "))
	}
	*l = HealthLevel(i)
	return nil
}

// severity returns that of a line of the log.
func (l HealthLevel) severity() slog.Level {
	switch l {
	case HealthOK:
		return slog.LevelInfo
	case HealthError:
		return slog.LevelError
	}
	return slog.LevelWarn
}

// HealthAlarm is an alarm that is raised, "NOSPACE" or "CORRUPT".
type HealthAlarm struct {
	Member HealthID `json:"member"` // by whom; it may have been removed since
	Alarm  string   `json:"alarm"`
}

// Health is what the members of a cluster have said of themselves, each at its own
// moment of one round. It is a value: nothing changes it.
type Health struct {
	At      time.Time      `json:"at"`
	Members []HealthMember `json:"members"` // by name
	Alarms  []HealthAlarm  `json:"alarms,omitempty"`

	// AlarmsError says why the list of alarms could not be had, which takes a quorum.
	// What members say of alarms stands in their Errors then.
	AlarmsError string `json:"alarmsError,omitempty"`
}

// HealthMember is a member of a cluster. Where it does not answer, Error says why, and
// only its ID, Name and Alarms are known, and whether it is a learner. A member of etcd
// 3.6 or later does not answer while it is being defragmented, either.
type HealthMember struct {
	ID       HealthID   `json:"id"`
	Name     string     `json:"name"`
	Endpoint string     `json:"endpoint,omitempty"` // at which it has answered
	Role     HealthRole `json:"role,omitempty"`
	Leader   HealthID   `json:"leader"` // whom it follows; 0 where it knows none
	Version  string     `json:"version,omitempty"`

	DbSize      int64   `json:"dbSizeBytes"`      // of the file
	DbSizeInUse int64   `json:"dbSizeInUseBytes"` // the rest is reused; defragmentation gives it back
	Bloat       float64 `json:"bloat"`            // DbSize / DbSizeInUse

	Quota        int64   `json:"quotaBytes"`             // of DbSize; 0 where there is none
	QuotaAssumed bool    `json:"quotaAssumed,omitempty"` // the member, of etcd 3.5, does not say
	QuotaUse     float64 `json:"quotaUse"`               // DbSize / Quota

	Revision     int64  `json:"revision"`
	RaftIndex    uint64 `json:"raftIndex"` // committed
	AppliedIndex uint64 `json:"raftAppliedIndex"`
	Lag          uint64 `json:"lag"` // entries that some member knows to be committed and this one has not applied

	Alarms []string `json:"alarms,omitempty"`
	Errors []string `json:"errors,omitempty"` // as the member gives them
	Error  string   `json:"error,omitempty"`  // why there is no answer

	Level   HealthLevel `json:"level"`
	Reasons []string    `json:"reasons,omitempty"` // for the level
	Advice  string      `json:"advice,omitempty"`

	err error // of which Error is the text
}

// The advice.
const (
	adviseDefragment = "defragment"
	adviseRoom       = "compact, delete keys or raise the quota"
	adviseReach      = "start the member, or remove it from the cluster"
)

// Free returns how many bytes a defragmentation would give back.
func (m HealthMember) Free() int64 { return m.DbSize - m.DbSizeInUse }

// nearQuota reports whether there is little left of the quota, and giving back what is
// free would change that. Then the usual bounds, which weigh a stall against some space
// on a disk, do not count.
func (m HealthMember) nearQuota() bool {
	return m.Quota > 0 && m.QuotaUse >= healthWarnQuota && float64(m.Free()) >= (1-healthErrorQuota)*float64(m.Quota)
}

// healthAnswer is what a member has said.
type healthAnswer struct {
	member   *pb.Member
	endpoint string
	status   *clientv3.StatusResponse // nil where err is not
	err      error
}

// healthBounds are what newHealth takes from a configuration.
type healthBounds struct {
	quota   int64 // of members that do not say
	minFree int64 // below which bloat is no news
}

// newHealth sums up the answers of one round.
func newHealth(at time.Time, answers []healthAnswer, alarms []*pb.AlarmMember, alarmsErr error, bounds healthBounds) Health {
	h := Health{At: at}
	if alarmsErr != nil {
		h.AlarmsError = alarmsErr.Error()
	}
	for _, a := range alarms {
		h.Alarms = append(h.Alarms, HealthAlarm{Member: HealthID(a.MemberID), Alarm: a.Alarm.String()})
	}
	var committed uint64
	for _, a := range answers {
		if a.err == nil {
			committed = max(committed, a.status.RaftIndex)
		}
	}
	for _, a := range answers {
		m := newHealthMember(a, committed, bounds)
		for _, alarm := range h.Alarms {
			if alarm.Member == m.ID {
				m.Alarms = append(m.Alarms, alarm.Alarm)
			}
		}
		m.judge(bounds)
		h.Members = append(h.Members, m)
	}
	slices.SortFunc(h.Members, func(a, b HealthMember) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return h
}

func newHealthMember(a healthAnswer, committed uint64, bounds healthBounds) HealthMember {
	m := HealthMember{ID: HealthID(a.member.ID), Name: a.member.Name}
	if a.member.IsLearner {
		m.Role = HealthLearner
	}
	if a.err != nil {
		m.err, m.Error = a.err, a.err.Error()
		return m
	}
	s := a.status
	m.Endpoint, m.Version, m.Leader, m.Errors = a.endpoint, s.Version, HealthID(s.Leader), s.Errors
	switch {
	case s.IsLearner:
		m.Role = HealthLearner
	case m.Leader == m.ID:
		m.Role = HealthLeader
	default:
		m.Role = HealthFollower
	}
	m.DbSize, m.DbSizeInUse = s.DbSize, s.DbSizeInUse
	if m.DbSizeInUse > 0 {
		m.Bloat = float64(m.DbSize) / float64(m.DbSizeInUse)
	}
	m.Quota = s.DbSizeQuota
	if m.Quota == 0 {
		m.Quota, m.QuotaAssumed = bounds.quota, true
	}
	m.Quota = max(m.Quota, 0) // a negative one is none
	if m.Quota > 0 {
		m.QuotaUse = float64(m.DbSize) / float64(m.Quota)
	}
	if s.Header != nil {
		m.Revision = s.Header.Revision
	}
	m.RaftIndex, m.AppliedIndex = s.RaftIndex, s.RaftAppliedIndex
	if committed > m.AppliedIndex {
		m.Lag = committed - m.AppliedIndex
	}
	return m
}

// judge sets the level, with its reasons and what to do.
func (m *HealthMember) judge(bounds healthBounds) {
	advised := HealthOK
	finds := func(l HealthLevel, advice, format string, args ...any) {
		m.Reasons = append(m.Reasons, fmt.Sprintf(format, args...))
		m.Level = max(m.Level, l)
		if advice != "" && l > advised {
			m.Advice, advised = advice, l
		}
	}
	if len(m.Alarms) > 0 {
		finds(HealthError, "", "alarm %s", strings.Join(m.Alarms, ", "))
	}
	if m.Error != "" {
		finds(HealthError, adviseReach, "no answer")
		return
	}
	if len(m.Errors) > 0 {
		finds(HealthError, "", "the member has errors")
	}
	if m.Lag >= healthWarnLag {
		finds(HealthWarn, "", "%d entries to apply", m.Lag)
	}
	if m.Free() >= bounds.minFree {
		switch {
		case m.Bloat >= healthErrorBloat:
			finds(HealthError, adviseDefragment, "bloat %.2f", m.Bloat)
		case m.Bloat >= healthDefragmentBloat:
			finds(HealthDefragment, adviseDefragment, "bloat %.2f", m.Bloat)
		case m.Bloat >= healthWarnBloat:
			finds(HealthWarn, "", "bloat %.2f", m.Bloat)
		}
	}
	if m.QuotaUse >= healthWarnQuota {
		level, advice := HealthWarn, adviseRoom
		if m.nearQuota() {
			level, advice = HealthDefragment, adviseDefragment
		}
		if m.QuotaUse >= healthErrorQuota {
			level = HealthError
		}
		finds(level, advice, "%.1f %% of the quota", 100*m.QuotaUse)
	}
}

// String returns all in one line.
func (h Health) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d members", len(h.Members))
	for _, m := range h.Members {
		fmt.Fprintf(&b, "; %s", m)
	}
	for _, a := range h.Alarms {
		fmt.Fprintf(&b, "; alarm %s of member %s", a.Alarm, a.Member)
	}
	if h.AlarmsError != "" {
		fmt.Fprintf(&b, "; alarms unknown: %s", h.AlarmsError)
	}
	return b.String()
}

// String returns what matters in a line.
func (m HealthMember) String() string {
	who := strings.TrimSpace(fmt.Sprintf("%s (%s) %s", m.Name, m.ID, m.Role))
	if m.Error != "" {
		return fmt.Sprintf("%s: %s: no answer: %s", who, m.Level, m.Error)
	}
	s := fmt.Sprintf("%s: %s: %s, %s in use, bloat %.2f, %.1f %% of the quota, lag %d", who, m.Level,
		size.Bytes(float64(m.DbSize)), size.Bytes(float64(m.DbSizeInUse)), m.Bloat, 100*m.QuotaUse, m.Lag)
	if m.Advice != "" {
		s += ": " + m.Advice
	}
	return s
}

// attrs returns the member as the attributes of a line of the log.
func (m HealthMember) attrs() []slog.Attr {
	attrs := []slog.Attr{
		slog.String("health", m.Level.String()),
		slog.String("member", m.ID.String()),
		slog.String("name", m.Name),
		slog.String("role", string(m.Role)),
	}
	if m.Error != "" {
		attrs = append(attrs, slog.String("error", m.Error))
	} else {
		attrs = append(attrs,
			slog.String("endpoint", m.Endpoint),
			slog.String("version", m.Version),
			slog.Int64("db_size_bytes", m.DbSize),
			slog.Int64("db_size_in_use_bytes", m.DbSizeInUse),
			slog.Float64("bloat", rounded(m.Bloat)),
			slog.Int64("quota_bytes", m.Quota),
			slog.Bool("quota_assumed", m.QuotaAssumed),
			slog.Float64("quota_use", rounded(m.QuotaUse)),
			slog.Int64("revision", m.Revision),
			slog.Uint64("raft_index", m.RaftIndex),
			slog.Uint64("raft_applied_index", m.AppliedIndex),
			slog.Uint64("lag", m.Lag),
		)
	}
	list := func(name string, of []string) {
		if len(of) > 0 {
			attrs = append(attrs, slog.Any(name, of))
		}
	}
	list("alarms", m.Alarms)
	list("errors", m.Errors)
	list("reasons", m.Reasons)
	if m.Advice != "" {
		attrs = append(attrs, slog.String("advice", m.Advice))
	}
	return attrs
}

// rounded returns a ratio as a log has it.
func rounded(ratio float64) float64 { return math.Round(ratio*1000) / 1000 }

// HealthCrossing says that a member has changed its level.
type HealthCrossing struct {
	Member   HealthMember
	From, To HealthLevel
}

// healthCrossings returns who has changed the level since before, and brings that up to
// date. A member that is new was ok; one that is gone is forgotten.
func healthCrossings(before map[HealthID]HealthLevel, h Health) (crossed []HealthCrossing) {
	there := make(map[HealthID]bool)
	for _, m := range h.Members {
		there[m.ID] = true
		if from := before[m.ID]; from != m.Level {
			crossed = append(crossed, HealthCrossing{Member: m, From: from, To: m.Level})
		}
		before[m.ID] = m.Level
	}
	for id := range before {
		if !there[id] {
			delete(before, id)
		}
	}
	return crossed
}
