package budget

import (
	"errors"
	"fmt"
	"time"

	"github.com/kvwrap/kvwrap/internal/wire"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// The sentinels that errors of this package match with errors.Is. After each of them
// nothing was sent. etcd's own errors pass through unchanged.
var (
	// ErrConfig is matched by every error of [New] and [NewKV].
	ErrConfig = errors.New("budget: invalid config")
	// ErrLimited is matched by [*LimitError].
	ErrLimited = errors.New("budget: limited")
	// ErrQuota is matched by [*QuotaError].
	ErrQuota = errors.New("budget: the backend is near its quota")
	// ErrNoSpace is matched by [*NoSpaceError].
	ErrNoSpace = errors.New("budget: the cluster has no space")
)

// LimitError refuses a write for which there is no budget in time: its context ends
// before it could go, its rule does not let it wait, or too many wait already.
type LimitError struct {
	Prefix     string // of the rule
	Class      Class
	Cost       Cost          // of the write
	Limit      Rates         // what may be taken in a second, at the moment
	Demand     Rates         // what was asked for in the last second
	Waiting    int           // writes of the class
	Wait       time.Duration // for how long this one would have waited
	RetryAfter time.Duration // when it would not have been refused, if nothing else came
	Full       bool          // because as many wait as may
}

func (e *LimitError) Error() string {
	why := fmt.Sprintf("would wait %v, longer than it may", e.Wait.Round(time.Millisecond))
	if e.Full {
		why = fmt.Sprintf("%d of its class wait already, which is Config.MaxWaiting", e.Waiting)
	}
	return fmt.Sprintf("%v: a %v write of %v (rule %q) %s: %v are asked for, %v may go: try again after %v, or raise the budget",
		ErrLimited, e.Class, e.Cost, e.Prefix, why, e.Demand, e.Limit, e.RetryAfter.Round(time.Millisecond))
}

func (e *LimitError) Unwrap() []error { return []error{ErrLimited, wire.ErrNotSent} }

// QuotaError refuses a write that could make the backend reach its quota, after which the
// cluster would take no writes at all.
type QuotaError struct {
	Backend
	Cost Cost
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("%v: a write of %d bytes was not sent: %d bytes of %d are taken, %d of them in use: compact and defragment, as Reclaim does, or raise --quota-backend-bytes",
		ErrQuota, e.Cost.Bytes, e.Size, e.Quota, e.InUse)
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
	return fmt.Sprintf("%d revisions and %d bytes", c.Revisions, c.Bytes)
}

func (r Rates) String() string {
	part := func(v float64, unit string) string {
		if v == 0 {
			return "any " + unit
		}
		return fmt.Sprintf("%.4g %s/s", v, unit)
	}
	return part(r.Revisions, "revisions") + " and " + part(r.Bytes, "bytes")
}
