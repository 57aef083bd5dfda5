package shaper

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Server is what decides how much a member of a cluster keeps: its version and its flags.
// Zero values are the defaults of the version. It is a value; nothing changes it.
type Server struct {
	// Version of etcd, as a member's Status says it: "3.5.35", "3.7". Its first two numbers
	// decide; 3.5, 3.6 and 3.7 are known.
	Version string `json:"version"`
	// SnapshotCount is --snapshot-count: the entries between two snapshots on disk. Zero is
	// the default, 100,000 on 3.5 and 10,000 on 3.6 and 3.7. On 3.5 it decides about memory
	// too, on 3.6 and 3.7 only about what is in memory after a restart.
	SnapshotCount uint64 `json:"snapshotCount"`
	// CatchUpEntries is --snapshot-catchup-entries (--experimental-snapshot-catchup-entries
	// on 3.5): the entries that are kept for slow followers. Zero is the default, 5,000, as
	// it is for etcd itself.
	CatchUpEntries uint64 `json:"catchUpEntries"`
	// Quota is --quota-backend-bytes, in bytes. Zero is the default, 2 GiB; below zero there
	// is none.
	Quota int64 `json:"quota"`
	// Compaction is what discards old revisions. The zero value is etcd's default, nothing.
	Compaction Compaction `json:"compaction"`
	// GOGC is the environment variable of the server's process, in per cent. Zero is Go's
	// default, 100.
	GOGC int `json:"gogc"`
}

// CompactionMode is what --auto-compaction-mode says.
type CompactionMode string

const (
	CompactNone     CompactionMode = ""         // etcd does not compact by itself
	CompactPeriodic CompactionMode = "periodic" // by time
	CompactRevision CompactionMode = "revision" // by number of revisions
)

// Compaction is how old revisions are discarded.
type Compaction struct {
	Mode CompactionMode `json:"mode,omitempty"`
	// Retention is for how long revisions are kept, under CompactPeriodic.
	Retention time.Duration `json:"retention,omitempty"` // nanoseconds
	// Revisions is how many are kept, under CompactRevision.
	Revisions int64 `json:"revisions,omitempty"`
}

// interval returns the time between two compactions: Retention, but an hour at most
// (getCompactInterval in etcdserver/api/v3compactor/periodic.go), or five minutes
// (revInterval in revision.go).
func (c Compaction) interval() time.Duration {
	if c.Mode == CompactPeriodic {
		return min(c.Retention, time.Hour)
	}
	return 5 * time.Minute
}

// kept returns for how long revisions are kept by a compaction when so many are made in a
// second. The periodic compactor notes the revision ten times in an interval, and compacts
// at the oldest one that it has noted, which is a tenth of the interval older than
// Retention.
func (c Compaction) kept(revisions float64) (seconds float64) {
	if c.Mode == CompactPeriodic {
		return c.Retention.Seconds() + c.interval().Seconds()/10
	}
	return float64(c.Revisions) / revisions
}

// ErrInput is matched by every error of [Project] and of the Validate methods.
var ErrInput = errors.New("shaper: invalid input")

// InputError is something that cannot be projected.
type InputError struct {
	Field  string // "Load.Entries[2].PerSecond"
	Value  any
	Remedy string
}

func (e *InputError) Error() string {
	value := fmt.Sprint(e.Value)
	if s, ok := e.Value.(string); ok {
		value = strconv.Quote(s)
	}
	return fmt.Sprintf("%v: %s is %s: %s", ErrInput, e.Field, value, e.Remedy)
}

func (e *InputError) Unwrap() error { return ErrInput }

// What can be projected: bounds that no server comes near, within which all figures are
// finite numbers.
const (
	maxPerSecond = 1e7
	maxBytes     = 1 << 30
	maxEntries   = 1e9
	maxKeys      = 1e9
	maxDuration  = 100 * 365 * 24 * time.Hour
)

// Validate returns what is wrong with s, joined; each an [*InputError].
func (s Server) Validate() error {
	var errs []error
	wrong := func(field string, value any, remedy string) {
		errs = append(errs, &InputError{Field: "Server." + field, Value: value, Remedy: remedy})
	}
	if _, err := s.minor(); err != nil {
		errs = append(errs, err)
	}
	if s.SnapshotCount > maxEntries {
		wrong("SnapshotCount", s.SnapshotCount, "choose at most 1,000,000,000, or 0 for the default of the version")
	}
	if s.CatchUpEntries > maxEntries {
		wrong("CatchUpEntries", s.CatchUpEntries, "choose at most 1,000,000,000, or 0 for the default, 5000")
	}
	if s.GOGC < 0 || s.GOGC > 10_000 {
		wrong("GOGC", s.GOGC, "choose 1 to 10,000 per cent, or 0 for the default, 100; without collections memory has no bound")
	}
	switch c := s.Compaction; c.Mode {
	case CompactNone:
		if c.Retention != 0 {
			wrong("Compaction.Retention", c.Retention, "set Mode to CompactPeriodic, or leave it 0")
		}
		if c.Revisions != 0 {
			wrong("Compaction.Revisions", c.Revisions, "set Mode to CompactRevision, or leave it 0")
		}
	case CompactPeriodic:
		if c.Retention <= 0 || c.Retention > maxDuration {
			wrong("Compaction.Retention", c.Retention, "set for how long revisions are kept, as --auto-compaction-retention does")
		}
		if c.Revisions != 0 {
			wrong("Compaction.Revisions", c.Revisions, "set Mode to CompactRevision, or leave it 0")
		}
	case CompactRevision:
		if c.Revisions <= 0 || c.Revisions > math.MaxInt64/1000 {
			wrong("Compaction.Revisions", c.Revisions, "set how many revisions are kept, as --auto-compaction-retention does")
		}
		if c.Retention != 0 {
			wrong("Compaction.Retention", c.Retention, "set Mode to CompactPeriodic, or leave it 0")
		}
	default:
		wrong("Compaction.Mode", string(c.Mode), `choose "periodic", "revision", or nothing where etcd does not compact by itself`)
	}
	return errors.Join(errs...)
}

// minor returns the second number of the version.
func (s Server) minor() (int, error) {
	numbers := strings.Split(strings.TrimPrefix(s.Version, "v"), ".")
	if len(numbers) >= 2 && numbers[0] == "3" {
		switch numbers[1] {
		case "5":
			return 5, nil
		case "6":
			return 6, nil
		case "7":
			return 7, nil
		}
	}
	return 0, &InputError{Field: "Server.Version", Value: s.Version,
		Remedy: "give the version that a member's Status has, of 3.5, 3.6 or 3.7"}
}

// withDefaults fills in what is zero: DefaultSnapshotCount and DefaultSnapshotCatchUpEntries
// in etcdserver/server.go, which takes zero for them too; DefaultQuotaBytes in
// storage/quota.go.
func (s Server) withDefaults() Server {
	if s.SnapshotCount == 0 {
		s.SnapshotCount = 10_000
		if minor, _ := s.minor(); minor == 5 {
			s.SnapshotCount = 100_000
		}
	}
	if s.CatchUpEntries == 0 {
		s.CatchUpEntries = 5000
	}
	if s.Quota == 0 {
		s.Quota = 2 << 30
	}
	if s.GOGC == 0 {
		s.GOGC = 100
	}
	return s
}
