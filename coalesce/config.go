package coalesce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Mode says what becomes of puts that wait together.
type Mode uint8

const (
	// Off sends each put on its own, as it comes; but for those of [Stage.PutAsync].
	Off Mode = iota
	// GroupCommit lets puts share a transaction, and so a raft entry and a
	// revision. Each is written: a version of its key, and an event on it.
	GroupCommit
	// LastWriteWins is GroupCommit, and of the puts of one key that wait together
	// it writes the newest alone. All of them are answered with that one. The
	// others are no versions of the key, and no events. Puts with WithPrevKV,
	// WithIgnoreValue or WithIgnoreLease, on another lease, or under another fence
	// stay apart.
	LastWriteWins
	// Max is as LastWriteWins, but the largest number stays, and a number that is
	// not larger than the one that is stored is not written. Numbers are unsigned
	// decimals of any length, or of one length and compared byte by byte, as big
	// endian ones are. A stored number never becomes smaller through a put of this
	// mode, whoever else writes it: each is under a comparison with what is
	// stored. What does not compare is a [*NumberError]. A number that stays, under
	// another lease than that of the put, is put on that one. Puts with WithPrevKV,
	// WithIgnoreValue or WithIgnoreLease, transactions, and values so large that they
	// are chunked are not of this mode: they write what they say.
	Max
)

func (m Mode) String() string {
	if names := [...]string{"Off", "GroupCommit", "LastWriteWins", "Max"}; int(m) < len(names) {
		return names[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// Rule says how writes of keys with a prefix are coalesced. Of several rules that
// apply to a key, the one with the longest prefix does.
type Rule struct {
	// Prefix begins the keys that the rule is for. "" is all keys.
	Prefix string

	// Mode says what becomes of puts that wait together. Default Off; all other
	// fields take another one.
	Mode Mode

	// Transactions lets a transaction join a batch whole, if it has no comparisons
	// and holds puts and deletes alone, of keys whose rules all say so. It stays
	// atomic. Not with Max.
	Transactions bool

	// StaleReads lets reads go past writes that wait. They return what etcd has,
	// without these. By default a read makes what waits in its range be sent, and
	// waits for it; a poller then turns each of its polls into a batch.
	StaleReads bool

	// SkipUnchanged does not write a value that the key has already, on the same
	// lease, as far as this process knows; that it still has it is made sure of in
	// the same transaction. Such a put is answered as if it had been written, but is
	// no version of the key and no event. It is sent under the
	// sequence of this process (see the package documentation).
	SkipUnchanged bool

	// Retry sends a batch again after an error after which it is not known whether
	// it was applied, and makes sure that it is applied once. Puts then return no
	// such error before their context ends. Writes of [Stage.PutAsync] are always
	// tried again.
	Retry bool

	// Linger is how long a write waits for others, at the most; up to an hour. Default 0: a batch
	// is sent as soon as the one before has been answered, and what comes in the
	// meantime is the next one. More is fewer revisions for a longer wait.
	Linger time.Duration

	// FlushEvery is how long a write of [Stage.PutAsync] waits, at the most, before it
	// is sent; up to an hour. Default 0, as Linger.
	FlushEvery time.Duration
}

// Config configures the coalescing of writes. The zero value of a field means its
// default; a Config is copied and never changed. Without rules nothing is coalesced but
// the puts of [Stage.PutAsync].
type Config struct {
	// Rules, in any order.
	Rules []Rule

	// MaxOps bounds the operations of one batch, each of a key of its own. Default
	// 1024, from 1 to 4096. They may be more than the server's --max-txn-ops, 128 by
	// default: a batch nests transactions to get by with that.
	MaxOps int

	// MaxEntryBytes bounds the raft entry of one batch, marshalled. Default 64 KiB;
	// from 4 KiB to 1 MiB. A write that is larger goes alone.
	MaxEntryBytes int

	// InFlight bounds how many batches are under way at a time. Default 2, up to 64: while
	// one is under way the next fills; it is sent when that has been answered, or when 256
	// operations wait or as many as one batch holds. One that has had no answer for 250 ms
	// does not count, since the member that it went to may hang. With 1 batches are larger, revisions
	// fewer, and a third of the throughput is lost (docs/decisions/0008-batches.md).
	// Writes of one key are never under way together, and batches under the sequence of
	// this process never at all.
	InFlight int

	// MaxPendingBytes bounds what PutAsync has taken and not yet written: keys,
	// values, and 256 bytes for each. Default 16 MiB.
	MaxPendingBytes int

	// RejectWhenFull has PutAsync refuse a put, with a [*FullError], that would be
	// more than MaxPendingBytes. By default it waits for room.
	RejectWhenFull bool

	// OnError is told of each put by PutAsync that was given up and has no promise.
	// It is called as promises are. Default: nobody is told, but for Stats.
	OnError func(key []byte, err error)

	// CloseTimeout bounds how long Close waits for what PutAsync has taken. Default
	// five seconds.
	CloseTimeout time.Duration

	// RequestTimeout bounds one attempt to send a batch under the sequence of this process,
	// for which the next one has to wait. Where it is not sent again its puts fail with
	// context.DeadlineExceeded. Default five seconds.
	RequestTimeout time.Duration

	// RememberBytes bounds the memory for what is known to be stored: for each key of a
	// rule with SkipUnchanged or Max about 240 bytes, the key, and under Max the value.
	// Default 8 MiB, at least 1 MiB.
	RememberBytes int

	// Admit, if it is not nil, is asked before a batch under the sequence of this process is
	// sent, with a context that does not end after RequestTimeout: what paces proposals has
	// it wait there. The batch is sent with the context that it returns, and done is called
	// when that is over.
	Admit func(ctx context.Context, r *pb.TxnRequest) (admitted context.Context, done func(), err error)

	// Span, if it is not nil, is told of each batch of several writes, "kvwrap batch". Its
	// requests are made with the context that it returns, and end is called when that is over, with
	// nil, since each of the writes has an error of its own. The package kvotel makes spans
	// of them.
	Span func(ctx context.Context, step string, about ...slog.Attr) (spanned context.Context, end func(error))

	// Lease grants and keeps the lease of this process's sequence. It is granted when
	// that is first needed, for PutAsync, Retry or SkipUnchanged, and revoked by Close.
	// Required where a rule has one of these, and for PutAsync.
	Lease clientv3.Lease

	// SessionTTL is the time to live of that lease. Default one minute, at least a
	// second.
	SessionTTL time.Duration

	// SequencePrefix begins the key that stands for this process, one of 32 hexadecimal
	// digits. Default "\x00kvw/\x00\x02sequence/", which kvwrap hides from the
	// application.
	SequencePrefix string
}

const (
	defaultMaxOps          = 1024
	defaultMaxEntryBytes   = 64 << 10
	defaultMaxPendingBytes = 16 << 20
	defaultRememberBytes   = 8 << 20
	defaultTimeout         = 5 * time.Second
	defaultSessionTTL      = time.Minute
	defaultSequencePrefix  = "\x00kvw/\x00\x02sequence/"

	// maxMaxOps is what transactions nested once hold within the server's default
	// of 128: 64 of 64 each.
	maxMaxOps        = 4096
	minMaxEntryBytes = 4 << 10
	minRememberBytes = 1 << 20 // several times what one batch looks at
	maxMaxEntryBytes = 1 << 20

	// A time below minWait was written without its unit.
	minWait, maxWait = time.Microsecond, time.Hour
)

// Validate returns the error that [New] would, which joins all that is wrong.
func (c Config) Validate() error {
	_, err := c.filled()
	return err
}

// filled returns c with its defaults, or an error that joins all that is wrong.
func (c Config) filled() (Config, error) {
	var errs []error
	wrong := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	within := func(name string, v *int, standard, least, most int) {
		choose := fmt.Sprintf("%d to %d", least, most)
		if most == math.MaxInt {
			choose = fmt.Sprintf("%d or more", least)
		}
		if *v = cmp.Or(*v, standard); *v < least || *v > most {
			wrong("%s is %d: choose %s, or 0 for the default", name, *v, choose)
		}
	}
	atLeast := func(name string, v *time.Duration, standard, least time.Duration) {
		if *v = cmp.Or(*v, standard); *v < least {
			wrong("%s is %v: choose %v or more, or 0 for the default", name, *v, least)
		}
	}
	within("MaxOps", &c.MaxOps, defaultMaxOps, 1, maxMaxOps)
	within("MaxEntryBytes", &c.MaxEntryBytes, defaultMaxEntryBytes, minMaxEntryBytes, maxMaxEntryBytes)
	within("InFlight", &c.InFlight, 2, 1, 64)
	within("MaxPendingBytes", &c.MaxPendingBytes, defaultMaxPendingBytes, 1, math.MaxInt)
	within("RememberBytes", &c.RememberBytes, defaultRememberBytes, minRememberBytes, math.MaxInt)
	atLeast("CloseTimeout", &c.CloseTimeout, defaultTimeout, time.Nanosecond)
	atLeast("RequestTimeout", &c.RequestTimeout, defaultTimeout, time.Millisecond)
	atLeast("SessionTTL", &c.SessionTTL, defaultSessionTTL, time.Second)
	c.SequencePrefix = cmp.Or(c.SequencePrefix, defaultSequencePrefix)

	c.Rules = slices.Clone(c.Rules)
	prefixes := make(map[string]bool)
	for _, r := range c.Rules {
		if prefixes[r.Prefix] {
			wrong("two rules for the prefix %q: leave one", r.Prefix)
		}
		prefixes[r.Prefix] = true
		if r.Mode > Max {
			wrong("rule %q: the mode is %d: choose Off, GroupCommit, LastWriteWins or Max", r.Prefix, r.Mode)
		}
		if set := r.set(); r.Mode == Off && len(set) > 0 {
			wrong("rule %q: the mode is Off, which has no use for %s: choose GroupCommit, LastWriteWins or Max", r.Prefix, strings.Join(set, ", "))
		}
		if r.Mode == Max && r.Transactions {
			wrong("rule %q: the mode is Max and Transactions is set: transactions are written as they are, so choose LastWriteWins or leave Transactions out", r.Prefix)
		}
		for name, d := range map[string]time.Duration{"Linger": r.Linger, "FlushEvery": r.FlushEvery} {
			if d != 0 && (d < minWait || d > maxWait) {
				wrong("rule %q: %s is %v: choose %v to %v, as in 50*time.Millisecond, or 0", r.Prefix, name, d, minWait, maxWait)
			}
		}
		if c.Lease == nil && (r.Retry || r.SkipUnchanged || r.FlushEvery > 0) {
			wrong("rule %q has Retry, SkipUnchanged or FlushEvery, and Lease is nil: set it to the client's", r.Prefix)
		}
	}
	return c, errors.Join(errs...)
}

// refuses returns the error for a put that is no number under Max.
func (r *Rule) refuses(p *pb.PutRequest) error {
	if r.Mode == Max && !depends(p) && !number(p.Value) {
		return &NumberError{Key: p.Key, Value: p.Value}
	}
	return nil
}

// set names the fields that take a mode.
func (r Rule) set() (names []string) {
	for name, is := range map[string]bool{
		"Transactions": r.Transactions, "StaleReads": r.StaleReads, "SkipUnchanged": r.SkipUnchanged,
		"Retry": r.Retry, "Linger": r.Linger != 0, "FlushEvery": r.FlushEvery != 0,
	} {
		if is {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// rules finds the rule of a key.
type rules []*Rule // the longest prefix first; the last one is for every key

func newRules(all []Rule) rules {
	rs := make(rules, 0, len(all)+1)
	for i := range all {
		rs = append(rs, &all[i])
	}
	slices.SortFunc(rs, func(a, b *Rule) int { return cmp.Compare(len(b.Prefix), len(a.Prefix)) })
	return append(rs, &Rule{})
}

func (rs rules) of(key []byte) *Rule {
	for _, r := range rs {
		if len(key) >= len(r.Prefix) && string(key[:len(r.Prefix)]) == r.Prefix {
			return r
		}
	}
	panic("unreachable: the last rule is for every key")
}
