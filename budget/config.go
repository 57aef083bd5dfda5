package budget

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sort"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Class says how urgent the writes under a rule are. Classes share the budget by weight;
// what one does not use is lent to the others, and a class within its share waits for none
// of them.
type Class int

const (
	// Normal is the class of writes that no rule speaks of.
	Normal Class = iota
	// Critical is for what an application cannot go on without: leader keys, locks,
	// configuration.
	Critical
	// Elastic is for what may be late: statistics, caches.
	Elastic

	numClasses = 3
)

func (c Class) String() string {
	if c < 0 || c >= numClasses {
		return fmt.Sprintf("Class(%d)", int(c))
	}
	return [...]string{"Normal", "Critical", "Elastic"}[c]
}

// Rule says how writes of keys with a prefix are paced. Of several rules that apply to a
// key, the one with the longest prefix does; of the keys of a transaction, the one of the
// most urgent class.
type Rule struct {
	Prefix string
	Class  Class
	// Reject has a write that cannot go at once be refused, in place of waiting. It waits
	// only for what is not known yet: until the client is registered, and for the first
	// answer of Backend, see there.
	Reject bool
}

// Config configures a budget. The meaning of a zero field is its default; a Config is
// copied and never changed. Without Rates and Backend nothing is paced, and it costs nothing.
type Config struct {
	// Rates is what may be proposed in a second: revisions, one for each put, delete or
	// transaction, and bytes as etcd's quota counts them. Zero is no limit.
	Rates Rates
	// Burst is how much of a second's budget may go at once after a pause. What goes in any
	// time is at most the rates over that time, twice Burst, and one request for each class.
	// The default is 100 milliseconds.
	Burst time.Duration
	// Weights are the shares of the classes, by Class. The default is 4 for Normal, 4 for
	// Critical and 1 for Elastic.
	Weights [numClasses]float64
	// Rules gives classes to prefixes. Without a rule writes are Normal, and wait.
	Rules []Rule
	// MaxWaiting is how many writes of each class may wait. The next is refused. The
	// default is 10,000.
	MaxWaiting int

	// Shared makes Rates.Revisions what all clients of the cluster together may take, others
	// than those of this package included: each client follows the revision in the headers
	// of its responses and takes what is left to it. Without Register a client does not know
	// how many there are: it begins with a 500th, is at its part after some 3 seconds where
	// nobody else writes, and all are within a tenth of it after 15.
	Shared bool
	// Register has clients of a shared budget count each other by keys on leases, so that a
	// client starts with its part and gives way to a new one within a second or so; its
	// first write waits until it is registered. It takes one revision for each client, once. It
	// needs Lease.
	Register bool
	// Lease grants the leases of Register.
	Lease clientv3.Lease
	// RegisterPrefix is where the keys of Register are. The default is below kvwrap's
	// reserved prefix: "\x00kvw/\x00\x02client/".
	RegisterPrefix string
	// SessionTTL is how long a client that has died is counted. The default is 15 seconds.
	SessionTTL time.Duration

	// Backend asks for the state of the backend, see [Members]. Where it is set, writes are
	// slowed down from four fifths of the quota on, or when a member falls behind, and
	// refused where less than a fiftieth of the quota is free, so that the alarm NOSPACE is
	// not raised: not by writes that go through this client, however fast they are, nor by
	// others that grow about as fast as before. It is asked while there are writes: every
	// BackendEvery, every second where writes are slowed down, and when an eighth of what is
	// free may have been written. A write waits for it, a second at the most, where it is not
	// certain that there is room; so do those after the first 64 KiB until it has answered for
	// the first time, five seconds at the most. Where it fails for half a minute it says
	// nothing any more, and writes go on.
	Backend func(context.Context) (Backend, error)
	// Quota is that of the members, where none says what it is, which is so of etcd 3.5, in
	// bytes: their --quota-backend-bytes. Zero is none: such members are not watched then.
	Quota int64
	// BackendEvery is how often Backend is asked. The default is 10 seconds.
	BackendEvery time.Duration
	// Retention is for how long revisions are kept before they are compacted, and
	// CompactionInterval how often that is done, as the cluster does it. Where Retention is
	// set, a rate of bytes is derived that keeps the backend within four fifths of its
	// quota: (0.8 quota - in use after a compaction) / (Retention + CompactionInterval).
	// It needs Backend. Zero is none.
	Retention, CompactionInterval time.Duration
}

const defaultRegisterPrefix = "\x00kvw/\x00\x02client/"

// Validate returns what is wrong with c, joined.
func (c Config) Validate() error {
	var errs []error
	wrong := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	rate := func(name string, v float64) {
		if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
			wrong("%s is %v: it is to be positive, or zero for no limit", name, v)
		}
	}
	rate("Rates.Revisions", c.Rates.Revisions)
	rate("Rates.Bytes", c.Rates.Bytes)
	for _, d := range []struct {
		name string
		d    time.Duration
		zero string
	}{
		{"Burst", c.Burst, "its default"}, {"SessionTTL", c.SessionTTL, "its default"}, {"BackendEvery", c.BackendEvery, "its default"},
		{"Retention", c.Retention, "none"}, {"CompactionInterval", c.CompactionInterval, "none"},
	} {
		if d.d < 0 {
			wrong("%s is %v: it is to be positive, or zero for %s", d.name, d.d, d.zero)
		}
	}
	for class, w := range c.Weights {
		if c.Weights != [numClasses]float64{} && !(w > 0 && !math.IsInf(w, 0)) {
			wrong("Weights[%v] is %v: set all of them above zero, or none", Class(class), w)
		}
	}
	if c.Quota < 0 {
		wrong("Quota is %d: it is to be positive, or zero for none", c.Quota)
	}
	if c.MaxWaiting < 0 {
		wrong("MaxWaiting is %d: it is to be positive, or zero for its default", c.MaxWaiting)
	}
	prefixes := map[string]bool{}
	for _, r := range c.Rules {
		if prefixes[r.Prefix] {
			wrong("two rules for the prefix %q: leave one", r.Prefix)
		}
		prefixes[r.Prefix] = true
		if r.Class < 0 || r.Class >= numClasses {
			wrong("the rule for %q has %v: use Normal, Critical or Elastic", r.Prefix, r.Class)
		}
	}
	if c.Shared && c.Rates.Revisions == 0 {
		wrong("Shared is set, Rates.Revisions is 0: set what all clients together may take in a second")
	}
	if c.Register && !c.Shared {
		wrong("Register is set, Shared is not: set both, or neither")
	}
	if c.Register && c.Lease == nil {
		wrong("Register is set, Lease is nil: set it to the client's Lease")
	}
	if c.Retention > 0 && c.Backend == nil {
		wrong("Retention is %v, Backend is nil: set it to Members(client), so that the quota is known", c.Retention)
	}
	if c.CompactionInterval > 0 && c.Retention == 0 {
		wrong("CompactionInterval is %v, Retention is 0: set for how long the cluster keeps revisions", c.CompactionInterval)
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	orDuration := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	orDuration(&c.Burst, 100*time.Millisecond)
	orDuration(&c.SessionTTL, 15*time.Second)
	orDuration(&c.BackendEvery, 10*time.Second)
	if c.Weights == [numClasses]float64{} {
		c.Weights = [numClasses]float64{Normal: 4, Critical: 4, Elastic: 1}
	}
	if c.MaxWaiting == 0 {
		c.MaxWaiting = 10_000
	}
	if c.RegisterPrefix == "" {
		c.RegisterPrefix = defaultRegisterPrefix
	}
	c.Rules = append([]Rule(nil), c.Rules...)
	return c
}

// Paces reports whether anything is held back.
func (c Config) Paces() bool { return c.Rates != Rates{} || c.Backend != nil }

// rules finds the rule of a key.
type rules []*rule // the longest prefix first; the last one is for every key

// rule is a Rule and what waits under it.
type rule struct {
	Rule
	flow flow
}

func newRules(all []Rule, l *limiter) rules {
	rs := make(rules, 0, len(all)+1)
	for _, r := range append(all, Rule{}) {
		rs = append(rs, &rule{Rule: r, flow: flow{class: &l.classes[r.Class]}})
	}
	sort.SliceStable(rs[:len(all)], func(i, j int) bool { return len(rs[i].Prefix) > len(rs[j].Prefix) })
	return rs
}

func (rs rules) of(key []byte) *rule {
	for _, r := range rs[:len(rs)-1] {
		if n := len(r.Prefix); len(key) >= n && string(key[:n]) == r.Prefix {
			return r
		}
	}
	return rs[len(rs)-1]
}

// urgency orders classes: Critical first.
func (c Class) urgency() int { return [...]int{Normal: 1, Critical: 0, Elastic: 2}[c] }
