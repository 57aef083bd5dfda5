package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/internal/audit"
	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/kvwrap/kvwrap/internal/wait"
	"github.com/spf13/cobra"
)

// auditing is an audit: of a file or of a cluster.
type auditing struct {
	db, html         string
	output           outputFlag
	compare, dataDir string
	separator        string
	depth, top       int
	rate             size.Value
	revisions        float64
	sample           time.Duration
	failOn, warnOn   string
	space            spaceFlags
	cluster          clusterFlags

	server           serverFlags
	config           audit.Config
	assume           audit.Assume
	critical, warnOf []audit.Condition
	before           *audit.Report
}

func auditCommand() *cobra.Command {
	var a auditing
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Says what takes the space of an etcd, what is written most, and what to do",
		Long: `Reads every key of a cluster, or every revision in a database file, and reports
the verdict, the members, sizes, prefixes, the largest and busiest keys, leases,
and what to do, with the setting or command for it.

A file (--db) is a snapshot, or member/snap/db of a member that does not run. It
is read where it lies, never written to, and says what old revisions take. A
live cluster is read at one revision; what old revisions take cannot be read
from it.

The time to the quota needs a rate of writes: it is measured on a live cluster
(--sample), and given for a file (--revisions-per-second).

With authentication it takes a user with the role root.

Conditions (--fail-on, --warn-on) are a figure, < or >, and a value, separated
by commas; or the words warning and critical, for the verdict. Figures:
  ` + strings.ReplaceAll(wrapped80(audit.FigureNames()), "\n", "\n  ") + `
` + clusterHelp + `

Exit codes: 0 the audit is whole, and no condition is met; 1 it failed, or is
partial, or a condition cannot be judged, or the command line is wrong; 2 the
cluster cannot be reached; 10 a condition of --warn-on is met; 20 a condition of
--fail-on is met; 130 interrupted: what was read until then is printed, marked
as partial.`,
		Example: `  shapecheck audit --endpoints 10.0.0.1:2379
  shapecheck audit --db snapshot.db -w json
  shapecheck audit --db snapshot.db --html report.html
  shapecheck audit --endpoints 10.0.0.1:2379 \
      --fail-on "max-value>512KiB,time-to-quota<24h,bloat>2"`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&a.db, "db", "", "audit this database file or snapshot in place of a cluster")
	f.StringVar(&a.html, "html", "", "also write the report as a page of HTML to this file")
	f.StringVar(&a.compare, "compare", "", "say what has changed since this earlier audit, written with -w json")
	f.StringVar(&a.dataDir, "data-dir", "", "also read the write-ahead log in this data directory of a member; without --db and --endpoints its database, too, of a member that does not run")
	f.IntVar(&a.depth, "depth", 2, "components of the prefixes")
	f.StringVar(&a.separator, "separator", "/", "what separates the components of keys, one byte")
	f.IntVar(&a.top, "top", 10, "how many keys are listed")
	f.Var(&a.rate, "rate", "read at most this much a second from a live cluster, as in 20MiB")
	a.server.registerBackend(f)
	f.Lookup("quota-backend-bytes").Usage = "as of etcd, where the members do not say it themselves; without it the default, 2GiB; below 0 none"
	f.Lookup("auto-compaction-retention").Usage = "as of etcd; without it, as the last compaction has left it"
	f.Lookup("auto-compaction-retention").DefValue = ""
	f.Float64Var(&a.revisions, "revisions-per-second", 0, "the rate of writes to project, where it is not to be measured")
	f.DurationVar(&a.sample, "sample", 2*time.Second, "measure the rate of writes of a live cluster for this long at least; 0 does not measure it")
	f.StringVar(&a.failOn, "fail-on", "", "exit with 20 where one of these conditions is met")
	f.StringVar(&a.warnOn, "warn-on", "", "exit with 10 where one of these conditions is met")
	a.output.register(cmd, asHTML)
	complete(cmd, "auto-compaction-mode", "periodic", "revision")
	a.space.register(cmd)
	a.cluster.register(cmd)
	return cmd
}

// wrapped80 breaks a list at spaces.
func wrapped80(s string) string {
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(s) {
		if column > 0 && column+len(word) > 78 {
			b.WriteByte('\n')
			column = 0
		}
		if column > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(word)
		column += len(word) + 1
	}
	return b.String()
}

// check reads the flags.
func (a *auditing) check() (err error) {
	if err := a.output.check(); err != nil {
		return err
	}
	switch {
	case len(a.separator) != 1:
		return fmt.Errorf("--separator %q: give one byte, as /", a.separator)
	case a.depth < 1 || a.depth > 100:
		return fmt.Errorf("--depth %d: choose 1 to 100", a.depth)
	case a.top < 1 || a.top > 1000:
		return fmt.Errorf("--top %d: choose 1 to 1000", a.top)
	case !(a.revisions >= 0) || math.IsInf(a.revisions, 1):
		return fmt.Errorf("--revisions-per-second %v: give 0 or more", a.revisions)
	case a.sample < 0:
		return fmt.Errorf("--sample %v: give a time of zero or more", a.sample)
	case a.db != "" && a.cluster.flags.Changed("endpoints"):
		return fmt.Errorf("--db %s and --endpoints: give one of them", a.db)
	case a.db != "" && a.rate != 0:
		return fmt.Errorf("--rate %d is for a live cluster: leave it away with --db", a.rate)
	}
	if a.dataDir != "" && a.db == "" && !a.cluster.flags.Changed("endpoints") {
		a.db = filepath.Join(a.dataDir, "member", "snap", "db")
	}
	a.config = audit.Config{Separator: a.separator[0], Depth: a.depth, Top: a.top}
	if a.config.Space, err = a.space.keyspace(); err != nil {
		return err
	}
	if a.cluster.flags.Changed("rate") && (a.rate <= 0 || a.rate > math.MaxInt32) {
		return fmt.Errorf("--rate %d: choose a size up to 2GB, as 20MiB", a.rate)
	}
	a.assume.RevisionsPerSecond = a.revisions
	a.assume.Quota = int64(a.server.quota)
	if a.cluster.flags.Changed("auto-compaction-retention") {
		c, err := a.server.autoCompaction()
		if err != nil {
			return err
		}
		a.assume.Compaction = &c
	}
	if a.critical, err = audit.ParseConditions(a.failOn); err != nil {
		return fmt.Errorf("--fail-on: %w", err)
	}
	if a.warnOf, err = audit.ParseConditions(a.warnOn); err != nil {
		return fmt.Errorf("--warn-on: %w", err)
	}
	if a.compare != "" {
		if a.before, err = readReport("compare", a.compare); err != nil {
			return err
		}
	}
	return nil
}

// Memory of an audit is a table of plain numbers, which the collector need not follow: it is
// cheap to collect garbage early, and what is garbage is not to come on top.
const (
	auditMemory = 80 << 20
	auditGOGC   = 25
)

func (a *auditing) run(ctx context.Context, stdout, stderr io.Writer) error {
	if err := a.check(); err != nil {
		return err
	}
	var page *page
	if a.html != "" {
		var err error
		if page, err = newPage(a.html, a.db, a.compare); err != nil {
			return err
		}
		defer page.abandon()
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(auditMemory))
	defer debug.SetGCPercent(debug.SetGCPercent(auditGOGC))
	p := newProgress(stderr)
	begin, current := time.Now(), 1
	show := func(done, all uint64, pass, passes int) {
		if pass != current {
			begin, current = time.Now(), pass
		}
		if p.terminal {
			p.line(progressLine(done, all, pass, passes, time.Since(begin)))
		}
	}
	var r *audit.Report
	var err error
	if a.db != "" {
		r, err = a.file(ctx, show)
	} else {
		r, err = a.live(ctx, show)
	}
	p.end()
	if r == nil {
		return err
	}
	if a.dataDir != "" && ctx.Err() == nil {
		log, e := audit.ReadWAL(ctx, filepath.Join(a.dataDir, "member", "wal"), a.config)
		if e != nil {
			return e
		}
		r.SetRaftLog(log)
	}
	r.Judge(a.assume)
	if a.before != nil {
		r.Compare(a.before)
	}
	if e := a.write(r, stdout); e != nil {
		return e
	}
	err = a.verdict(ctx, r, err)
	if page != nil {
		if e := page.write(r); e != nil {
			fmt.Fprintln(stderr, "shapecheck:", e)
			var exit exitError
			if err == nil || errors.As(err, &exit) && exit.code == exitWarning {
				return exitError{errors.New("the page of HTML is missing"), exitFailed}
			}
		}
	}
	return err
}

// progressLine says how far an audit has come, since when this pass began.
func progressLine(done, all uint64, pass, passes int, took time.Duration) string {
	perSecond := float64(done) / max(took.Seconds(), 1e-3)
	left := time.Duration(float64(all-min(done, all)) / max(perSecond, 1) * float64(time.Second))
	line := fmt.Sprintf("%d of about %d records, %.0f a second, %v left", done, all, perSecond, left.Round(time.Second))
	if passes > 1 {
		line += fmt.Sprintf(" of part %d of %d", pass, passes)
	}
	return line
}

func (a *auditing) file(ctx context.Context, show audit.Progress) (*audit.Report, error) {
	db, err := audit.OpenDB(a.db)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	return db.Audit(ctx, a.config, show)
}

func (a *auditing) live(ctx context.Context, show audit.Progress) (*audit.Report, error) {
	cli, err := a.cluster.connect(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer cli.Close()
	monitor, err := budget.NewMonitor(cli, budget.MonitorConfig{Timeout: a.cluster.commandTimeout, Quota: a.assume.Quota})
	if err != nil {
		return nil, err
	}
	defer monitor.Close()
	before, err := monitor.Check(ctx)
	if refused(err) {
		return nil, rootOnly("asking for the members", err)
	}
	if err != nil {
		return nil, unreachable(ctx, fmt.Errorf("asking for the members: %w", err))
	}
	begin := before.At
	l := &audit.Live{KV: cli.KV, Watcher: cli.Watcher, Config: a.config, BytesPerSecond: int(a.rate), Stall: a.cluster.commandTimeout, Progress: show}
	r, err := l.Audit(ctx)
	if r == nil {
		return nil, rootOnly("reading", err)
	}
	r.Source.Endpoints = a.cluster.endpoints
	if err != nil || ctx.Err() != nil { // nobody waits for a cluster that is gone
		describe(r, before)
		if err != nil {
			err = rootOnly("reading", err)
		}
		return r, err
	}
	if left := a.sample - time.Since(begin); left > 0 && a.revisions == 0 {
		wait.For(ctx, left)
	}
	health := before
	after, err := monitor.Check(ctx)
	switch {
	case ctx.Err() != nil:
		r.Partial = true
		r.Notes = append(r.Notes, "interrupted while the rate of writes was measured")
	case err != nil:
		r.Partial = true
		r.Notes = append(r.Notes, fmt.Sprintf("the members did not answer at the end: %v", err))
	default:
		health = after
		if seconds := after.At.Sub(begin).Seconds(); a.revisions == 0 && a.sample > 0 {
			a.assume.Measured = seconds
			a.assume.RevisionsPerSecond = float64(max(newest(after)-newest(before), 0)) / seconds
		}
	}
	describe(r, health)
	if leases, err := cli.Leases(ctx); err == nil { // a user may not be allowed to
		r.Leases.Granted = len(leases.Leases)
	}
	return r, nil
}

// newest is the newest revision that a member has.
func newest(h budget.Health) (revision int64) {
	for _, m := range h.Members {
		revision = max(revision, m.Revision)
	}
	return revision
}

// describe fills in what the members have said.
func describe(r *audit.Report, h budget.Health) {
	r.AlarmsUnknown = h.AlarmsError != ""
	for _, m := range h.Members {
		r.Members = append(r.Members, audit.Member{
			ID: m.ID.String(), Name: m.Name, Role: string(m.Role), Version: m.Version, DbSize: m.DbSize, InUse: m.DbSizeInUse,
			Bloat: m.Bloat, Quota: m.Quota, QuotaUse: m.QuotaUse, Lag: m.Lag, Alarms: m.Alarms, Error: m.Error,
		})
		if b := &r.Backend; m.DbSize > b.Size {
			*b = audit.Backend{Size: m.DbSize, InUse: m.DbSizeInUse, Bloat: m.Bloat, Quota: m.Quota, QuotaAssumed: m.QuotaAssumed}
			r.Source.Version = m.Version
		}
	}
}

func (a *auditing) write(r *audit.Report, w io.Writer) error {
	switch a.output.format {
	case asJSON:
		return writeJSON(w, r)
	case asHTML:
		return r.HTML(w)
	}
	return r.Text(w)
}

// page is a file of HTML, which takes its place when it is whole.
type page struct {
	path string
	file *os.File
}

// newPage makes room for a page, before there is something to write. It is none of the files
// that are read.
func newPage(path string, read ...string) (*page, error) {
	if there, err := os.Stat(path); err == nil {
		for _, name := range read {
			if other, err := os.Stat(name); err == nil && os.SameFile(there, other) {
				return nil, fmt.Errorf("--html %s: this file is read: give another one", path)
			}
		}
		if !there.Mode().IsRegular() {
			return nil, fmt.Errorf("--html %s: it is a directory or a device: give a file", path)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, fmt.Errorf("--html: %w", err)
	}
	return &page{path, f}, nil
}

func (p *page) write(r *audit.Report) error {
	err := errors.Join(r.HTML(p.file), p.file.Chmod(0o644), p.file.Close())
	if err == nil {
		err = os.Rename(p.file.Name(), p.path)
	}
	if err != nil {
		return fmt.Errorf("--html: %w", err)
	}
	return nil
}

// abandon removes what has not taken its place.
func (p *page) abandon() {
	p.file.Close()
	os.Remove(p.file.Name())
}

// verdict is how the command ends: an error, with its exit code, or nil.
func (a *auditing) verdict(ctx context.Context, r *audit.Report, err error) error {
	fatal, unknown := r.Broken(a.critical)
	warned, unknownToo := r.Broken(a.warnOf)
	unknown = append(unknown, unknownToo...)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case len(fatal) > 0:
		return exitError{errors.New(strings.Join(fatal, "; ")), exitCritical}
	case err != nil:
		return err
	case r.Partial:
		return errors.New("the audit is partial: see its notes")
	case len(unknown) > 0:
		return fmt.Errorf("%s: this is not known here: give --revisions-per-second for time-to-quota, audit a file (--db) for history", strings.Join(unknown, ", "))
	case len(warned) > 0:
		return exitError{errors.New(strings.Join(warned, "; ")), exitWarning}
	}
	return nil
}
