package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
)

// tune turns targets into settings.
type tune struct {
	workload                shaper.Workload
	valueBytes, objectBytes size.Value
	raftLog, backend, file  size.Value
	revisions               float64
	tmpfs                   bool
	server                  serverFlags
	sample                  time.Duration
	audit                   string // a file
	namespace               string
	output                  outputFlag
	space                   spaceFlags
	cluster                 clusterFlags
}

func tuneCommand() *cobra.Command {
	var t tune
	cmd := &cobra.Command{
		Use:   "tune",
		Short: "Chooses settings of kvwrap and of etcd for what an application writes",
		Long: `Chooses the settings of kvwrap and the flags of etcd with which what an
application writes stays within targets, says why each is chosen, and what they
come to beside a plain client. It is for keys of one kind; run it for each
kind.

With --sample it watches the keys with --prefix and takes their number, the
lengths of keys and values and the time between two writes from what it sees;
flags win. Chunked values count as what applications see. What a sample cannot
see, such as how much of a value changes, is for flags to say. Keys that are
written less than once in that time are seen less than they should be: choose
it longer than their interval.

With --audit it is from a report that "audit -w json" has saved: of all keys, or
those with --prefix, their number and lengths, the rate, the servers' version
and quota; flags win. The rate is that of all keys, each written in its turn; of
a part, and of an audit of a file, it is not known, and --interval has to say
it.

All figures are estimates.
` + clusterHelp + `

Exit codes: 0 the targets are met; 1 failed, or the command line is wrong; 2 the
cluster cannot be reached; 10 a target cannot be met, and the plan has the
nearest settings; 130 interrupted.`,
		Example: `  shapecheck tune --keys 1 --writers 3 --value-bytes 2MB --interval 5s \
      --changed 0.03 --raft-log 512MiB
  shapecheck tune --prefix offsets/ --keys 200 --key-bytes 30 --value-bytes 19 \
      --interval 40ms --freshness 250ms --latest --increasing --polled
  shapecheck tune --endpoints 10.0.0.1:2379 --sample 30s --prefix stats/
  shapecheck audit --endpoints 10.0.0.1:2379 -w json > saved.json
  shapecheck tune --audit saved.json --prefix stats/ --interval 5s`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.run(cmd.Context(), cmd.Flags(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f, w := cmd.Flags(), &t.workload
	f.StringVar(&w.Prefix, "prefix", "", "that the keys begin with")
	f.IntVar(&w.Keys, "keys", 1, "that each writer writes again and again")
	f.IntVar(&w.Writers, "writers", 1, "processes that write, each to keys of its own")
	f.IntVar(&w.KeyBytes, "key-bytes", 0, "length of a key; 0 is 64, or more where --prefix is longer")
	f.Var(&t.valueBytes, "value-bytes", "length of a value, on the average")
	f.DurationVar(&w.Interval, "interval", 0, "between two writes of a key")
	f.Float64Var(&w.Changed, "changed", 1, "part of a value that changes from one write to the next, to 1")
	f.Var(&t.objectBytes, "object-bytes", "length of the objects of a value that change as a whole; without it 2KiB")
	f.Float64Var(&w.Compression, "compression", 2.8, "how many times smaller zstd makes a value; 1 for what cannot be compressed")
	f.Float64Var(&w.Unchanged, "unchanged", 0, "part of the writes that change nothing, to less than 1")
	f.DurationVar(&w.Freshness, "freshness", 0, "how much later than it is put a value may be in etcd (PutAsync); 0 has puts wait")
	f.BoolVar(&w.Latest, "latest", false, "nobody needs the values in between")
	f.BoolVar(&w.Increasing, "increasing", false, "values are numbers, of which the largest counts")
	f.BoolVar(&w.Polled, "polled", false, "keys are read all the time, and need not show what waits")
	f.Var(&t.raftLog, "raft-log", "target: memory of the raft log of each member; without it 512MiB")
	f.Float64Var(&t.revisions, "revisions", 0, "target: revisions a second of all writers together")
	f.Var(&t.backend, "backend-bytes", "target: bytes a second that the backend grows by")
	f.Var(&t.file, "file", "target: size of the database file; without it four fifths of the quota")
	f.BoolVar(&t.tmpfs, "tmpfs", false, "members keep their data in memory")
	f.DurationVar(&t.sample, "sample", 0, "watch the cluster at --endpoints for so long")
	f.StringVar(&t.namespace, "namespace", "", "of the applications' clients, where they have one (namespace.NewKV)")
	f.StringVar(&t.audit, "audit", "", "take the workload from this report of audit -w json, but for flags")
	t.server.register(f)
	t.output.register(cmd)
	t.space.register(cmd)
	t.cluster.register(cmd)
	return cmd
}

// workloadNames are the flags of the fields of a workload and of targets.
var workloadNames = map[string]string{
	"Workload.Prefix": "prefix", "Workload.Keys": "keys", "Workload.Writers": "writers", "Workload.KeyBytes": "key-bytes",
	"Workload.ValueBytes": "value-bytes", "Workload.Interval": "interval", "Workload.Changed": "changed",
	"Workload.ObjectBytes": "object-bytes", "Workload.Compression": "compression", "Workload.Unchanged": "unchanged",
	"Workload.Freshness": "freshness", "Target.RaftLogBytes": "raft-log", "Target.RevisionsPerSecond": "revisions",
	"Target.BackendBytesPerSecond": "backend-bytes", "Target.FileBytes": "file",
}

// tuneDocument is a plan, for programs.
type tuneDocument struct {
	Sample *sample     `json:"sample,omitempty"`
	Audit  *audited    `json:"audit,omitempty"`
	Plan   shaper.Plan `json:"plan"`
	Config string      `json:"config"` // in Go
}

func (t *tune) run(ctx context.Context, flags *pflag.FlagSet, stdout, stderr io.Writer) error {
	json, err := t.output.json()
	if err != nil {
		return err
	}
	server, err := t.server.server()
	if err != nil {
		return err
	}
	space, err := t.space.keyspace()
	if err != nil {
		return err
	}
	if t.sample < 0 || t.sample > 0 && t.sample < time.Second {
		return fmt.Errorf("--sample %v: choose 1s or more", t.sample)
	}
	if t.sample > 0 && t.audit != "" {
		return fmt.Errorf("--sample %v and --audit %s: choose one of them", t.sample, t.audit)
	}
	if t.sample == 0 && flags.Changed("endpoints") {
		return fmt.Errorf("--endpoints is for --sample: say how long to watch, as in --sample 30s")
	}
	if t.workload.ValueBytes, err = t.valueBytes.Length("value-bytes"); err != nil {
		return err
	}
	if t.workload.ObjectBytes, err = t.objectBytes.Length("object-bytes"); err != nil {
		return err
	}
	var found *sample
	var saved *audited
	if t.audit != "" {
		if saved, err = readAudited(t.audit, t.workload.Prefix); err != nil {
			return err
		}
		if err := saved.fill(&t.workload, t.audit, flags.Changed); err != nil {
			return err
		}
		saved.server(&t.server, &server)
	}
	if t.sample > 0 {
		progress := newProgress(stderr)
		if found, err = t.take(ctx, space, progress); err != nil {
			return err
		}
		progress.end()
		if err := observed(&t.workload, found, flags.Changed); err != nil {
			return err
		}
		if !t.server.givenVersion() {
			server.Version = found.Version
		}
		if !t.server.givenMost() {
			server.Quota = found.Quota
		}
	}
	cfg, plan, err := kvwrap.Tune(t.workload, shaper.Target{
		RaftLogBytes: int64(t.raftLog), RevisionsPerSecond: t.revisions, BackendBytesPerSecond: float64(t.backend),
		FileBytes: int64(t.file), Server: server, Tmpfs: t.tmpfs,
	})
	if err != nil {
		return inFlags(err, workloadNames)
	}
	if t.space.reservedPrefix != defaultPrefix {
		cfg.Chunk.ReservedPrefix = space.Prefix()
	}
	if json {
		err = writeJSON(stdout, tuneDocument{found, saved, plan, goConfig(cfg)})
	} else {
		if found != nil {
			fmt.Fprintf(stdout, "%s\n\n", found)
		}
		if saved != nil {
			fmt.Fprintf(stdout, "%s\n\n", saved)
		}
		_, err = fmt.Fprintf(stdout, "%s\n%s", plan, goConfig(cfg))
	}
	if err == nil && len(plan.Unmet) > 0 {
		err = exitError{fmt.Errorf("%d of the targets cannot be met; the plan has the nearest settings", len(plan.Unmet)), exitWarning}
	}
	return err
}

// take takes a sample of what applications see of the keys.
func (t *tune) take(ctx context.Context, space format.Keyspace, p *progress) (*sample, error) {
	return t.cluster.sample(ctx, t.workload.Prefix, t.sample, p, func(cli *clientv3.Client) error {
		cli.KV, cli.Watcher, cli.Lease = namespace.NewKV(cli.KV, t.namespace), namespace.NewWatcher(cli.Watcher, t.namespace), namespace.NewLease(cli.Lease, t.namespace)
		_, err := kvwrap.Install(cli, kvwrap.Config{Chunk: chunker.Config{ReadOnly: true, ReservedPrefix: space.Prefix(), MaxValueBytes: maxValueBytes}})
		return err
	})
}

// observed fills in what a sample has seen, but for what is set.
func observed(w *shaper.Workload, s *sample, set func(flag string) bool) error {
	t := s.Traffic.Total
	puts := t.Records - t.Tombstones
	if puts == 0 || s.Traffic.Keys == 0 {
		return fmt.Errorf("nobody has put a key with the prefix %q in %v: sample for longer, or give --keys, --value-bytes and --interval", w.Prefix, s.Took.Round(time.Second))
	}
	if !set("keys") {
		w.Keys = max(1, int(s.Traffic.Keys)/max(1, w.Writers))
	}
	if !set("key-bytes") {
		w.KeyBytes = int(t.KeyBytes / t.Records)
	}
	if !set("value-bytes") {
		w.ValueBytes = max(1, int(t.ValueBytes/puts))
	}
	if !set("interval") {
		w.Interval = time.Duration(float64(s.Took) * float64(s.Traffic.Keys) / float64(puts))
	}
	return nil
}

// goConfig returns a configuration as Go.
func goConfig(c kvwrap.Config) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("kvwrap.Config{")
	fields := []string{fmt.Sprintf("MaxEntryBytes: %d", c.Chunk.MaxEntryBytes)}
	add := func(is bool, format string, args ...any) {
		if is {
			fields = append(fields, fmt.Sprintf(format, args...))
		}
	}
	add(c.Chunk.ReservedPrefix != "", "ReservedPrefix: %q", c.Chunk.ReservedPrefix)
	line("\tChunk: chunker.Config{%s},", strings.Join(fields, ", "))
	fields = nil
	add(c.Budget.Rates.Revisions > 0, "Rates: budget.Rates{Revisions: %v}", c.Budget.Rates.Revisions)
	add(c.Budget.Shared, "Shared: true")
	add(c.Budget.Register, "Register: true")
	if len(fields) > 0 {
		line("\tBudget: budget.Config{%s},", strings.Join(fields, ", "))
	}
	for _, r := range c.Rules {
		fields = []string{fmt.Sprintf("Prefix: %q", r.Prefix)}
		add(r.Coalesce != coalesce.Off, "Coalesce: coalesce.%s", r.Coalesce)
		add(r.StaleReads, "StaleReads: true")
		add(r.SkipUnchanged, "SkipUnchanged: true")
		add(r.FlushEvery > 0, "FlushEvery: %s", goDuration(r.FlushEvery))
		line("\tRules: []kvwrap.Rule{{%s}},", strings.Join(fields, ", "))
	}
	line("}")
	return b.String()
}

// goDuration writes a duration as Go in the largest unit that holds it exactly.
func goDuration(d time.Duration) string {
	for _, u := range []struct {
		of   time.Duration
		name string
	}{{time.Hour, "time.Hour"}, {time.Minute, "time.Minute"}, {time.Second, "time.Second"}, {time.Millisecond, "time.Millisecond"}, {time.Microsecond, "time.Microsecond"}} {
		switch {
		case d == u.of:
			return u.name
		case d%u.of == 0:
			return fmt.Sprintf("%d * %s", d/u.of, u.name)
		}
	}
	return fmt.Sprintf("%d * time.Nanosecond", d)
}
