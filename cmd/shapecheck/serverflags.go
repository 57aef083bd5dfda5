package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/spf13/pflag"
)

// serverFlags are those of etcd that decide how much a member keeps, by etcd's names.
type serverFlags struct {
	version                 string
	snapshotCount, catchUp  uint64
	quota                   size.Value
	compaction, retention   string
	gogc                    int
	givenVersion, givenMost func() bool // the version, the quota
}

func (f *serverFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.version, "etcd-version", shaper.NewestKnown, "of the servers: 3.5, 3.6 or 3.7")
	flags.Uint64Var(&f.snapshotCount, "snapshot-count", 0, "as of etcd; 0 is the version's default")
	flags.Uint64Var(&f.catchUp, "snapshot-catchup-entries", 0, "as of etcd; 0 is the default, 5000")
	f.registerBackend(flags)
	flags.IntVar(&f.gogc, "gogc", 0, "GOGC in etcd's environment; 0 is Go's default, 100")
	f.givenVersion = func() bool { return flags.Changed("etcd-version") }
}

// registerBackend registers those that decide about the database alone.
func (f *serverFlags) registerBackend(flags *pflag.FlagSet) {
	flags.Var(&f.quota, "quota-backend-bytes", "as of etcd; without it the default, 2GiB; below 0 none")
	flags.StringVar(&f.compaction, "auto-compaction-mode", "periodic", "as of etcd: periodic or revision")
	flags.StringVar(&f.retention, "auto-compaction-retention", "0", "as of etcd: 1h, 30m, a number of hours or of revisions; 0 compacts nothing")
	f.givenMost = func() bool { return flags.Changed("quota-backend-bytes") }
}

// mostHours is a hundred years.
const mostHours = 100 * 365 * 24

func (f *serverFlags) server() (shaper.Server, error) {
	s := shaper.Server{Version: f.version, SnapshotCount: f.snapshotCount, CatchUpEntries: f.catchUp, Quota: int64(f.quota), GOGC: f.gogc}
	var err error
	s.Compaction, err = f.autoCompaction()
	return s, err
}

// autoCompaction reads the flags about compaction.
func (f *serverFlags) autoCompaction() (c shaper.Compaction, err error) {
	number, err := strconv.ParseInt(f.retention, 10, 64)
	switch {
	case f.compaction != "periodic" && f.compaction != "revision":
		return c, fmt.Errorf("--auto-compaction-mode %q: choose periodic or revision", f.compaction)
	case err == nil && number == 0:
		return c, nil
	case f.compaction == "revision" && err == nil:
		return shaper.Compaction{Mode: shaper.CompactRevision, Revisions: number}, nil
	case f.compaction == "periodic" && err == nil && (number < 0 || number > mostHours):
		return c, fmt.Errorf("--auto-compaction-retention %q: choose up to %d hours, 100 years, or 0 to compact nothing", f.retention, mostHours)
	case f.compaction == "periodic" && err == nil:
		return shaper.Compaction{Mode: shaper.CompactPeriodic, Retention: time.Duration(number) * time.Hour}, nil
	case f.compaction == "periodic":
		d, err := time.ParseDuration(f.retention)
		if err != nil {
			return c, fmt.Errorf("--auto-compaction-retention %q: write it as in 1h, or as a number of hours", f.retention)
		}
		return shaper.Compaction{Mode: shaper.CompactPeriodic, Retention: d}, nil
	}
	return c, fmt.Errorf("--auto-compaction-retention %q: with --auto-compaction-mode revision it is a number of revisions", f.retention)
}

// serverNames are the flags of the fields of a shaper.Server.
var serverNames = map[string]string{
	"Server.Version": "etcd-version", "Server.SnapshotCount": "snapshot-count", "Server.CatchUpEntries": "snapshot-catchup-entries",
	"Server.GOGC": "gogc", "Server.Compaction.Retention": "auto-compaction-retention", "Server.Compaction.Revisions": "auto-compaction-retention",
	"Server.Compaction.Mode": "auto-compaction-mode",
}

var index = regexp.MustCompile(`\[\d+\]`)

// inFlags returns the errors of shaper with the flags in place of the fields.
func inFlags(err error, names map[string]string) error {
	if err == nil {
		return nil
	}
	var said []string
	var walk func(error)
	walk = func(err error) {
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range many.Unwrap() {
				walk(e)
			}
			return
		}
		var input *shaper.InputError
		if !errors.As(err, &input) {
			said = append(said, err.Error())
			return
		}
		field := index.ReplaceAllString(input.Field, "")
		name, ok := names[field]
		if !ok {
			name, ok = serverNames[field]
		}
		if ok {
			field = "--" + name
		}
		line := fmt.Sprintf("%s %v: %s", field, input.Value, input.Remedy)
		if len(said) == 0 || said[len(said)-1] != line { // entries and records are of one flag
			said = append(said, line)
		}
	}
	walk(err)
	return fmt.Errorf("%s", strings.Join(said, "\n"))
}
