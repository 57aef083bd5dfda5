package budget

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/kvwrap/kvwrap/internal/wire"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// The sentinels that errors of this package match with errors.Is. After each of those of a
// write nothing was sent, and they match ErrNotSent, too. etcd's own errors pass through
// unchanged.
var (
	// ErrNotSent is matched by each error that refuses a write: it was not applied, and may
	// be tried again.
	ErrNotSent = wire.ErrNotSent
	// ErrConfig is matched by every error about a configuration or options.
	ErrConfig = errors.New("budget: invalid config")
	// ErrLimited is matched by [*LimitError].
	ErrLimited = errors.New("budget: limited")
	// ErrQuota is matched by [*QuotaError].
	ErrQuota = errors.New("budget: the backend is near its quota")
	// ErrNoSpace is matched by [*NoSpaceError].
	ErrNoSpace = errors.New("budget: the cluster has no space")
)

// LimitError refuses a write for which there is no budget in time: its context ends
// before it could go, or has ended while it waited, its rule does not let it wait, or too
// many wait already.
type LimitError struct {
	Prefix     string // of the rule
	Class      Class
	Cost       Cost          // of the write
	Limit      Rates         // what may be taken in a second, at the moment
	Why        string        // the limit is not what Config says; empty where it is
	Demand     Rates         // what was asked for in the last second
	Waiting    int           // writes of the class
	Wait       time.Duration // for how long this one would have waited, or has
	RetryAfter time.Duration // when it would not have been refused, if nothing else came
	Full       bool          // because as many wait as may
	Err        error         // of the context, where that has ended while it waited
}

func (e *LimitError) Error() string {
	why := fmt.Sprintf("would wait %v, longer than it may", round(e.Wait))
	switch {
	case e.Err != nil:
		why = fmt.Sprintf("has waited %v: %v", round(e.Wait), e.Err)
	case e.Full:
		why = fmt.Sprintf("%d of its class wait already, which is Config.MaxWaiting", e.Waiting)
	}
	limit, remedy := e.Limit.String(), "raise the budget"
	if e.Why != "" {
		limit, remedy = fmt.Sprintf("%v (%s)", e.Limit, e.Why), "write less"
	}
	return fmt.Sprintf("%v: a %v write of %v (rule %q) was not sent, it %s: %v are asked for, %s may go: try again after %v, or %s",
		ErrLimited, e.Class, e.Cost, e.Prefix, why, e.Demand, limit, round(e.RetryAfter), remedy)
}

func round(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

func (e *LimitError) Unwrap() []error {
	errs := []error{ErrLimited, wire.ErrNotSent}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}

// QuotaError refuses a write that could make the backend reach its quota, after which the
// cluster would take no writes at all.
type QuotaError struct {
	Backend
	Ahead int64 // bytes that may have come to Size since it was seen
	Cost  Cost
}

func (e *QuotaError) Error() string {
	since := ""
	if e.Ahead > 0 {
		since = fmt.Sprintf(", and up to %s were written since that was seen", size.Bytes(float64(e.Ahead)))
	}
	return fmt.Sprintf("%v: a write of %s was not sent: %s of %s are taken, %s of them in use%s: compact and defragment, as Reclaim does, or raise --quota-backend-bytes",
		ErrQuota, size.Bytes(float64(e.Cost.Bytes)), size.Bytes(float64(e.Size)), size.Bytes(float64(e.Quota)), size.Bytes(float64(e.InUse)), since)
}

func (e *QuotaError) Unwrap() []error { return []error{ErrQuota, wire.ErrNotSent} }

// NoSpaceError refuses a write while the cluster's NOSPACE alarm is armed, as etcd would.
// It matches etcd's error, too.
type NoSpaceError struct {
	Since time.Time // when etcd first said so
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("%v since %s: reads, deletes and compactions go on: compact, defragment and disarm the alarm, as Reclaim does",
		ErrNoSpace, e.Since.Format(time.TimeOnly))
}

func (e *NoSpaceError) Unwrap() []error {
	return []error{ErrNoSpace, rpctypes.ErrNoSpace, wire.ErrNotSent}
}

func (c Cost) String() string {
	if c.Revisions == 1 {
		return fmt.Sprintf("1 revision and %s", size.Bytes(float64(c.Bytes)))
	}
	return fmt.Sprintf("%d revisions and %s", c.Revisions, size.Bytes(float64(c.Bytes)))
}

func (r Rates) String() string {
	var parts []string
	if r.Revisions != 0 {
		parts = append(parts, strconv.FormatFloat(math.Round(r.Revisions*100)/100, 'f', -1, 64)+" revisions/s")
	}
	if r.Bytes != 0 {
		parts = append(parts, size.Bytes(r.Bytes)+"/s")
	}
	return cmp.Or(strings.Join(parts, " and "), "any rate")
}
