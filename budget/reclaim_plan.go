package budget

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/size"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ReclaimOptions say what a reclaim does, and when it stops. The zero value is safe and
// useful.
type ReclaimOptions struct {
	// KeepRevisions is how many of the newest revisions stay readable. All before are
	// compacted: watches and reads from there on get etcd's ErrCompacted. Default 1,000;
	// more than there are compacts nothing.
	KeepRevisions int64

	// A member is defragmented where its bloat, size over what is in use of it, is MinBloat
	// at least, default 1.5, and what is free MinFree bytes, default 100 MiB. Else it is left
	// as it is, which is said. But near its quota, from 0.8 of it on, a member is defragmented
	// where that frees a twentieth of the quota.
	MinBloat float64
	MinFree  int64

	// Quota is that of members which do not say, those of etcd 3.5, in bytes: their
	// --quota-backend-bytes. Default 2 GiB, etcd's own; negative where there is none.
	Quota int64

	// MaxLag is how many entries behind a voting member may be when another one is
	// defragmented. Default 1,000; etcd refuses writes at 5,000.
	MaxLag uint64

	// CatchUpTimeout bounds how long a reclaim waits, before each step, until all voting
	// members answer and are not more than MaxLag behind. Default 2 minutes.
	CatchUpTimeout time.Duration

	// RequestTimeout bounds each request but compactions and defragmentations. Default 5
	// seconds.
	RequestTimeout time.Duration

	// LockKey is the key that a reclaim holds, so that one at a time runs in a cluster: all
	// are to use the same. LockTTL is how long it stays when a reclaim has crashed, at least
	// 5 seconds. Default "\x00kvw/\x00\x02reclaim", below the reserved prefix, and a minute.
	LockKey string
	LockTTL time.Duration

	// Logger gets a line for each step. Default [slog.Default].
	Logger *slog.Logger

	// OnStep is told what Run is about to do with a member, by the goroutine that called
	// Run, which waits for it.
	OnStep func(ReclaimStep)
}

const defaultReclaimLock = "\x00kvw/\x00\x02reclaim"

func (o ReclaimOptions) filled() (ReclaimOptions, error) {
	o.KeepRevisions = cmp.Or(o.KeepRevisions, 1000)
	o.MinBloat = cmp.Or(o.MinBloat, healthWarnBloat)
	o.MinFree = cmp.Or(o.MinFree, defaultHealthMinFree)
	o.Quota = cmp.Or(o.Quota, defaultHealthQuota)
	o.MaxLag = cmp.Or(o.MaxLag, 1000)
	o.CatchUpTimeout = cmp.Or(o.CatchUpTimeout, 2*time.Minute)
	o.RequestTimeout = cmp.Or(o.RequestTimeout, 5*time.Second)
	o.LockKey = cmp.Or(o.LockKey, defaultReclaimLock)
	o.LockTTL = cmp.Or(o.LockTTL, time.Minute)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	var errs []error
	wrong := func(is bool, format string, args ...any) {
		if is {
			errs = append(errs, fmt.Errorf("%w: ReclaimOptions."+format, append([]any{ErrConfig}, args...)...))
		}
	}
	wrong(o.KeepRevisions < 1, "KeepRevisions is %d: choose 1 or more, or 0 for the default", o.KeepRevisions)
	wrong(!(o.MinBloat >= 1), "MinBloat is %v: choose 1 or more, or 0 for the default", o.MinBloat)
	wrong(o.MinFree < 1, "MinFree is %d: choose 1 byte or more, or 0 for the default", o.MinFree)
	wrong(o.CatchUpTimeout < 0 || o.RequestTimeout < 0, "CatchUpTimeout is %v, RequestTimeout %v: choose more than 0, or 0 for the default", o.CatchUpTimeout, o.RequestTimeout)
	wrong(o.LockTTL < 5*time.Second, "LockTTL is %v: choose 5s or more, or 0 for the default", o.LockTTL)
	return o, errors.Join(errs...)
}

// ReclaimStep is what a reclaim does with a member.
type ReclaimStep struct {
	Member     HealthMember
	Defragment bool
	Reason     string // for doing it, or not
}

// ReclaimPlan is what a reclaim would do, as [PlanReclaim] has found the cluster. Run
// does it: it decides again about each member when its turn has come, by what compaction
// has freed and by who leads then.
type ReclaimPlan struct {
	Health  Health
	Compact int64         // the revision that Run compacts to; 0 for none, which a caller may set
	Steps   []ReclaimStep // in their order
	Disarm  []HealthAlarm // of NOSPACE, when all is done

	// Doubt is why Run would not begin with the cluster as it was, nil for nothing: a
	// [*ReclaimDoubtError], or a [*ReclaimBusyError]. Run waits for members, up to
	// CatchUpTimeout; it does not for another reclaim, or for the role root.
	Doubt error

	cli  *clientv3.Client
	opts ReclaimOptions // filled
}

// planReclaim is PlanReclaim when the members have been asked.
func planReclaim(h Health, opts ReclaimOptions) *ReclaimPlan {
	p := &ReclaimPlan{Health: h, Doubt: reclaimDoubt(h, reclaimVoters(h), 0, opts), opts: opts}
	p.Compact = max(0, h.revision()-(opts.KeepRevisions-1))
	done := make(map[HealthID]bool)
	for {
		m, ok := reclaimNext(h, done)
		if !ok {
			break
		}
		done[m.ID] = true
		step := ReclaimStep{Member: m}
		step.Defragment, step.Reason = worthwhile(m, opts)
		p.Steps = append(p.Steps, step)
	}
	for _, a := range h.Alarms {
		if a.Alarm == alarmNoSpace {
			p.Disarm = append(p.Disarm, a)
		}
	}
	return p
}

// revision is the newest that a member has.
func (h Health) revision() (revision int64) {
	for _, m := range h.Members {
		revision = max(revision, m.Revision)
	}
	return revision
}

// reclaimNext returns whose turn it is: learners, then followers, and the leader, whoever
// that is by now, when nobody else is left.
func reclaimNext(h Health, done map[HealthID]bool) (next HealthMember, ok bool) {
	rank := map[HealthRole]int{HealthLearner: 0, HealthFollower: 1, "": 2, HealthLeader: 3}
	for _, m := range h.Members {
		if !done[m.ID] && (!ok || rank[m.Role] < rank[next.Role]) {
			next, ok = m, true
		}
	}
	return next, ok
}

// worthwhile reports whether a member is to be defragmented, and why, or why not.
func worthwhile(m HealthMember, opts ReclaimOptions) (bool, string) {
	frees := fmt.Sprintf("frees %s of %s, bloat %.2f", size.Bytes(float64(m.Free())), size.Bytes(float64(m.DbSize)), m.Bloat)
	switch {
	case m.Role == HealthLearner:
		return false, "etcd defragments no learner: promote it first, or remove it and add it again"
	case m.Error != "":
		return false, "no answer"
	case m.nearQuota():
		return true, fmt.Sprintf("%s, and %.1f %% of the quota are used", frees, 100*m.QuotaUse)
	case m.Bloat < opts.MinBloat:
		return false, fmt.Sprintf("%s: not worth it below a bloat of %.2f", frees, opts.MinBloat)
	case m.Free() < opts.MinFree:
		return false, fmt.Sprintf("%s: not worth it to free less than %s", frees, size.Bytes(float64(opts.MinFree)))
	}
	return true, frees
}

// mayFree reports whether compaction may free so much that a member is worth it then.
func (p *ReclaimPlan) mayFree(m HealthMember) bool {
	return p.Compact > 0 && m.voter() && m.Error == ""
}

const alarmNoSpace = "NOSPACE"

func (m HealthMember) voter() bool { return m.Role != HealthLearner }

// reclaimVoters returns the voting members, in order.
func reclaimVoters(h Health) (voters []HealthID) {
	for _, m := range h.Members {
		if m.voter() {
			voters = append(voters, m.ID)
		}
	}
	slices.Sort(voters)
	return voters
}

// reclaimDoubt returns why no member may be defragmented now, nil where nothing speaks
// against it: all voting members are those that the reclaim began with, answer, follow
// one leader that is one of them, have no error but NOSPACE, and have applied what they
// are to have.
//
// That a quorum would do without one that does not answer is not enough. Whatever is
// wrong with that one may befall the next one, and the one that is being defragmented
// is no help then.
func reclaimDoubt(h Health, voters []HealthID, applied int64, opts ReclaimOptions) error {
	if now := reclaimVoters(h); !slices.Equal(now, voters) {
		return &ReclaimDoubtError{Reason: fmt.Sprintf("the voting members were %v and are %v: reclaim again when that is done", voters, now), final: true}
	}
	if len(voters) == 0 {
		return &ReclaimDoubtError{Reason: "there is no voting member"}
	}
	if h.AlarmsError != "" {
		return &ReclaimDoubtError{Reason: "the alarms are not known: " + h.AlarmsError}
	}
	for _, a := range h.Alarms {
		if a.Alarm != alarmNoSpace {
			return &ReclaimDoubtError{Member: a.Member, Reason: fmt.Sprintf("the alarm %s is raised: repair the member first", a.Alarm), final: true}
		}
	}
	var leader HealthID
	for _, m := range h.Members {
		doubt := func(err error, format string, args ...any) error {
			return &ReclaimDoubtError{Member: m.ID, Name: m.Name, Reason: fmt.Sprintf(format, args...), Err: err}
		}
		if !m.voter() {
			continue
		}
		if m.Error != "" {
			return doubt(m.err, "it does not answer: %s: %s", m.Error, adviseReach)
		}
		for _, e := range m.Errors {
			if !isNoSpace(e) {
				return doubt(nil, "it has the error %q: repair it first", e)
			}
		}
		if leader == 0 {
			leader = m.Leader
		}
		if m.Leader != leader || !slices.Contains(voters, m.Leader) {
			return doubt(nil, "it follows %s, another member %s: find out why they do not agree on a leader", m.Leader, leader)
		}
		if m.Lag > opts.MaxLag {
			return doubt(nil, "it is %d entries behind, %d are allowed: wait until it has caught up, write less, or allow more", m.Lag, opts.MaxLag)
		}
		if m.Revision < applied {
			return doubt(nil, "it is at revision %d, and %d was written before: wait until it has caught up", m.Revision, applied)
		}
	}
	return nil
}

// String returns the plan in lines, for somebody who is to agree.
func (p *ReclaimPlan) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if p.Doubt != nil {
		line("not now: %v", p.Doubt)
	}
	if p.Compact > 0 {
		line("compact to revision %d, which keeps %d", p.Compact, p.opts.KeepRevisions)
	} else if p.Health.revision() >= p.opts.KeepRevisions {
		line("compact nothing: that is done")
	} else {
		line("compact nothing: there are less than %d revisions", p.opts.KeepRevisions)
	}
	var frees int64
	for _, s := range p.Steps {
		verb := "leave"
		switch {
		case s.Defragment:
			verb = "defragment"
			frees += s.Member.Free()
		case p.mayFree(s.Member):
			verb = "look again, when it is compacted, at"
		}
		line("%s %s (%s), %s: %s", verb, s.Member.Name, s.Member.ID, cmp.Or(s.Member.Role, "of unknown role"), s.Reason)
	}
	for _, a := range p.Disarm {
		line("disarm %s of member %s, if enough is free", a.Alarm, a.Member)
	}
	if p.Compact > 0 {
		line("frees %s on all members now, and what compaction frees besides, which is not known before", size.Bytes(float64(frees)))
	} else {
		line("frees %s on all members", size.Bytes(float64(frees)))
	}
	return b.String()
}
