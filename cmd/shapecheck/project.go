package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// project says what a member of a cluster comes to keep.
type project struct {
	in      projectInput
	whatIf  []string
	explain bool
	sample  time.Duration
	audit   string // a file
	prefix  string // of the audit
	output  outputFlag
	cluster clusterFlags
}

// projectInput is what --what-if may change.
type projectInput struct {
	flags  *pflag.FlagSet
	server serverFlags

	writes                              float64
	txnPuts, keys, keyBytes             int
	valueBytes                          size.Value
	leased                              bool
	liveBytes                           size.Value
	liveKeys                            int
	duration                            time.Duration
	watchers                            int
	scaleWrites, scaleValues, scaleKeys float64

	revision, dbSize int64 // of an audit
}

// loadFlags are those that a sample takes the place of.
var loadFlags = []string{"writes", "txn-puts", "keys", "key-bytes", "value-bytes", "leased", "live-bytes", "live-keys"}

func (in *projectInput) register() *pflag.FlagSet {
	flags := pflag.NewFlagSet("project", pflag.ContinueOnError)
	flags.Float64Var(&in.writes, "writes", 1, "a second, each a put or a transaction")
	flags.IntVar(&in.txnPuts, "txn-puts", 0, "puts of a transaction; 0 for single puts")
	flags.IntVar(&in.keys, "keys", 1, "that the puts go round over")
	flags.IntVar(&in.keyBytes, "key-bytes", 64, "length of a key")
	flags.Var(&in.valueBytes, "value-bytes", "length of a value")
	flags.BoolVar(&in.leased, "leased", false, "the keys are on leases")
	flags.Var(&in.liveBytes, "live-bytes", "what other keys take, which nobody writes")
	flags.IntVar(&in.liveKeys, "live-keys", 0, "how many these are")
	flags.DurationVar(&in.duration, "for", 0, "how long the load goes on; 0 is for ever")
	flags.IntVar(&in.watchers, "watchers", 0, "clients that watch these keys")
	flags.Float64Var(&in.scaleWrites, "scale-writes", 1, "so many times the writes")
	flags.Float64Var(&in.scaleValues, "scale-values", 1, "values so many times as long")
	flags.Float64Var(&in.scaleKeys, "scale-keys", 1, "so many times the keys")
	in.server.register(flags)
	in.flags = flags
	return flags
}

func projectCommand() *cobra.Command {
	var p project
	cmd := &cobra.Command{
		Use:   "project",
		Short: "Projects what each member of a cluster comes to keep, in memory and on disk",
		Long: `Projects the raft log, memory, the database file and the time to the quota of
each member under a load. The load is what flags say, or what --sample finds:
everything that is written to a cluster in that time, by whomever. A sample
watches all keys, so the cluster sends it each value once; it writes nothing.
With --audit it is from a report that "audit -w json" has saved: keys, lengths,
the rate, what there is already, the servers' version and quota; flags win. The
rate is that of all keys, each written in its turn; of a part (--prefix), and of
an audit of a file, it is not known, and --writes has to say it.

All figures are estimates, each with a low and a high value. --explain gives
their formulas.

Each --what-if is another projection with some of the flags below changed. The
table then has the expected values side by side.
` + clusterHelp + `

Exit codes: 0 projected; 1 failed, or the command line is wrong; 2 the cluster
cannot be reached; 130 interrupted.`,
		Example: `  shapecheck project --writes 0.6 --keys 3 --value-bytes 2MB
  shapecheck project --writes 5000 --value-bytes 19 --keys 200 \
      --what-if "auto-compaction-retention=1h" \
      --what-if "auto-compaction-retention=1h txn-puts=50 writes=100"
  shapecheck project --endpoints 10.0.0.1:2379 --sample 30s \
      --what-if scale-writes=3 \
      --what-if "scale-writes=3 quota-backend-bytes=8GiB"
  shapecheck audit --db snapshot.db -w json > saved.json
  shapecheck project --audit saved.json --prefix stats/ --writes 40`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.run(cmd.Context(), cmd.Flags(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().AddFlagSet(p.in.register())
	cmd.Flags().StringArrayVar(&p.whatIf, "what-if", nil, `flags to change, as in "writes=3 value-bytes=1MB"; may be given again`)
	cmd.Flags().BoolVar(&p.explain, "explain", false, "say how each figure is come by")
	cmd.Flags().DurationVar(&p.sample, "sample", 0, "watch the cluster at --endpoints for so long, and take what is written for the load")
	cmd.Flags().StringVar(&p.audit, "audit", "", "take the load from this report of audit -w json, but for flags")
	cmd.Flags().StringVar(&p.prefix, "prefix", "", "with --audit: the load is the keys with this prefix of the report")
	p.output.register(cmd)
	p.cluster.register(cmd)
	return cmd
}

// projected is a column of the table.
type projected struct {
	WhatIf     string            `json:"whatIf,omitempty"`
	Load       shaper.Load       `json:"load"`
	Projection shaper.Projection `json:"projection"`
}

// projectDocument is all of it, for programs.
type projectDocument struct {
	Sample *sample  `json:"sample,omitempty"`
	Audit  *audited `json:"audit,omitempty"`
	projected
	WhatIf []projected `json:"whatIf,omitempty"`
}

func (p *project) run(ctx context.Context, flags *pflag.FlagSet, stdout, stderr io.Writer) error {
	json, err := p.output.json()
	if err != nil {
		return err
	}
	if err := p.check(flags); err != nil {
		return err
	}
	inputs := []*projectInput{&p.in}
	for _, change := range p.whatIf {
		in, err := p.in.changed(change, p.sample > 0)
		if err != nil {
			return err
		}
		inputs = append(inputs, in)
	}
	var found *sample
	var saved *audited
	if p.audit != "" {
		if saved, err = readAudited(p.audit, p.prefix); err != nil {
			return err
		}
		for _, in := range inputs {
			if err := in.fill(saved, p.audit); err != nil {
				return err
			}
		}
	}
	if p.sample > 0 {
		progress := newProgress(stderr)
		if found, err = p.cluster.sample(ctx, "", p.sample, progress, nil); err != nil {
			return err
		}
		progress.end()
	}
	var all []projected
	for i, in := range inputs {
		one, err := in.project(found, saved)
		if err != nil {
			return err
		}
		if i > 0 {
			one.WhatIf = p.whatIf[i-1]
		}
		all = append(all, one)
	}
	if json {
		return writeJSON(stdout, projectDocument{found, saved, all[0], all[1:]})
	}
	if found != nil {
		fmt.Fprintf(stdout, "%s\n\n", found)
	}
	if saved != nil {
		fmt.Fprintf(stdout, "%s\n\n", saved)
	}
	if len(all) == 1 {
		fmt.Fprint(stdout, all[0].Projection)
	} else if err := sideBySide(stdout, all); err != nil {
		return err
	}
	if p.explain {
		fmt.Fprintf(stdout, "\n%s", all[0].Projection.Explain())
	}
	return nil
}

func (p *project) check(flags *pflag.FlagSet) error {
	if p.sample < 0 || p.sample > 0 && p.sample < time.Second {
		return fmt.Errorf("--sample %v: choose 1s or more", p.sample)
	}
	switch {
	case p.sample > 0 && p.audit != "":
		return fmt.Errorf("--sample %v and --audit %s: choose one of them", p.sample, p.audit)
	case p.prefix != "" && p.audit == "":
		return fmt.Errorf("--prefix %q is for --audit: say of which report", p.prefix)
	}
	if p.sample == 0 {
		if flags.Changed("endpoints") {
			return fmt.Errorf("--endpoints is for --sample: say how long to watch, as in --sample 30s")
		}
		if !flags.Changed("value-bytes") && p.audit == "" {
			return fmt.Errorf("--value-bytes is missing: give the length of a value, or --sample 30s with --endpoints, or --audit")
		}
		return nil
	}
	for _, name := range loadFlags {
		if flags.Changed(name) {
			return fmt.Errorf("--%s and --sample: the sample has the load; --scale-writes, --scale-values and --scale-keys change it", name)
		}
	}
	return nil
}

// changed returns a copy with flags set as in "writes=3 value-bytes=1MB".
func (in *projectInput) changed(change string, sampled bool) (*projectInput, error) {
	other := &projectInput{}
	flags := other.register()
	var err error
	in.flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed { // on the command line, whose flag set has the same flags
			err = errors.Join(err, flags.Set(f.Name, f.Value.String()))
		}
	})
	if err != nil {
		return nil, err
	}
	words := strings.Fields(change)
	if len(words) == 0 {
		return nil, fmt.Errorf(`--what-if %q: name flags to change, as in "writes=3 value-bytes=1MB"`, change)
	}
	for _, word := range words {
		name, value, ok := strings.Cut(strings.TrimPrefix(word, "--"), "=")
		switch {
		case !ok || flags.Lookup(name) == nil:
			return nil, fmt.Errorf("--what-if %q: %q is no flag that it may change: write it as in value-bytes=1MB; see shapecheck project --help", change, word)
		case sampled && slices.Contains(loadFlags, name):
			return nil, fmt.Errorf("--what-if %q: the sample has the load; scale-writes, scale-values and scale-keys change it", change)
		}
		if err := flags.Set(name, value); err != nil {
			return nil, fmt.Errorf("--what-if %q: %w", change, err)
		}
	}
	return other, nil
}

// project projects what is set, or what was found.
func (in *projectInput) project(found *sample, saved *audited) (projected, error) {
	server, err := in.server.server()
	if err != nil {
		return projected{}, err
	}
	l, err := in.load()
	if err != nil {
		return projected{}, err
	}
	if saved != nil {
		saved.server(&in.server, &server)
	}
	if found != nil {
		if l = found.load(); !in.server.givenVersion() {
			server.Version = found.Version
		}
		if !in.server.givenMost() {
			server.Quota = found.Quota
		}
	}
	for name, by := range map[string]float64{"scale-writes": in.scaleWrites, "scale-values": in.scaleValues, "scale-keys": in.scaleKeys} {
		if !(by >= 0 && by <= 1e6) {
			return projected{}, fmt.Errorf("--%s %v: choose 0 to 1,000,000", name, by)
		}
	}
	l = scaled(l, in.scaleWrites, in.scaleValues, in.scaleKeys)
	l.For, l.WatchStreams = in.duration, in.watchers
	p, err := shaper.Project(server, l)
	return projected{Load: l, Projection: p}, inFlags(err, map[string]string{
		"Load.Entries.PerSecond": "writes", "Load.Records.PerSecond": "writes", "Load.Entries.Bytes": "value-bytes",
		"Load.Records.KeyBytes": "key-bytes", "Load.Records.ValueBytes": "value-bytes", "Load.Records.Keys": "keys",
		"Load.Live.Keys": "live-keys", "Load.Live.InUse": "live-bytes", "Load.WatchStreams": "watchers", "Load.For": "for",
	})
}

func (in *projectInput) load() (shaper.Load, error) {
	value, err := in.valueBytes.Length("value-bytes")
	switch {
	case err != nil:
		return shaper.Load{}, err
	case in.txnPuts < 0 || in.txnPuts > 1e6:
		return shaper.Load{}, fmt.Errorf("--txn-puts %d: choose 1 to 1,000,000, or 0 for single puts", in.txnPuts)
	case in.keyBytes < 0 || in.keyBytes > 1<<30:
		return shaper.Load{}, fmt.Errorf("--key-bytes %d: choose less than 1GiB", in.keyBytes)
	case in.keys < 0 || in.keys > 1e9:
		return shaper.Load{}, fmt.Errorf("--keys %d: choose 0 to 1,000,000,000", in.keys)
	}
	entry := shaper.EntryRate{PerSecond: in.writes, Bytes: shaper.PutProposal(in.keyBytes, value, in.leased)}
	record := shaper.RecordRate{PerSecond: in.writes, KeyBytes: in.keyBytes, ValueBytes: value, Keys: in.keys, Leased: in.leased}
	if in.txnPuts > 0 {
		entry.Bytes = shaper.TxnProposal(in.txnPuts, in.keyBytes, value, in.leased)
		record.PerSecond *= float64(in.txnPuts)
	}
	return shaper.Load{
		Entries: []shaper.EntryRate{entry}, Records: []shaper.RecordRate{record},
		Live: shaper.Live{Revision: in.revision, InUse: int64(in.liveBytes), Keys: in.liveKeys, DbSize: in.dbSize},
	}, nil
}

// scaled returns a load with so many times the writes and keys, and values so many times
// as long. Of entries it is known only what values have of all of them together.
func scaled(l shaper.Load, writes, values, keys float64) shaper.Load {
	var inValues, inEntries float64
	for _, r := range l.Records {
		inValues += r.PerSecond * float64(r.ValueBytes)
	}
	for _, e := range l.Entries {
		inEntries += e.PerSecond * float64(e.Bytes)
	}
	entries := 1.0
	if inEntries > 0 {
		entries += (values - 1) * min(1, inValues/inEntries)
	}
	l.Entries, l.Records = slices.Clone(l.Entries), slices.Clone(l.Records)
	for i := range l.Entries {
		l.Entries[i].PerSecond *= writes
		l.Entries[i].Bytes = int(math.Round(float64(l.Entries[i].Bytes) * entries))
	}
	for i := range l.Records {
		r := &l.Records[i]
		r.PerSecond *= writes
		r.ValueBytes = int(math.Round(float64(r.ValueBytes) * values))
		if keys != 1 {
			r.Keys = int(max(1, math.Round(float64(r.Keys)*keys)))
		}
	}
	return l
}

// sideBySide writes the expected figures of several projections.
func sideBySide(w io.Writer, all []projected) error {
	fmt.Fprintf(w, "0: as it is\n")
	for i, p := range all[1:] {
		fmt.Fprintf(w, "%d: %s\n", i+1, p.WhatIf)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\n%-30s", "expected")
	for i := range all {
		fmt.Fprintf(t, "\t%d", i)
	}
	fmt.Fprint(t, "\t\n")
	for _, f := range all[0].Projection.Figures {
		fmt.Fprintf(t, "%-30s", f.Name)
		for _, p := range all {
			fmt.Fprintf(t, "\t%s", figureOf(f.Unit, p.Projection.Get(f.Name).Expected))
		}
		fmt.Fprint(t, "\t\n")
	}
	return t.Flush()
}

// sample takes a sample of the cluster, through a client that over, if it is not nil, has
// changed.
func (f *clusterFlags) sample(ctx context.Context, prefix string, took time.Duration, p *progress, over func(*clientv3.Client) error) (*sample, error) {
	cli, err := f.connect(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer cli.Close()
	if over != nil {
		if err := over(cli); err != nil {
			return nil, err
		}
	}
	timer := time.NewTimer(took)
	defer timer.Stop()
	return takeSample(ctx, cli, prefix, took, timer.C, p)
}

// String says what was found.
func (s *sample) String() string {
	t := s.Traffic.Total
	line := fmt.Sprintf("In %v: %.1f revisions/s, %.1f records/s of %s/s, about %d keys; largest entry about %s.",
		s.Took.Round(100*time.Millisecond), t.PerSecond(t.Revisions), t.PerSecond(t.Records), bytesOf(int(t.PerSecond(t.KeyBytes+t.ValueBytes))),
		s.Traffic.Keys, bytesOf(s.Traffic.LargestEntryBytes))
	if s.Others > 0 {
		line += fmt.Sprintf("\nRaft entries that changed none of these keys: %.1f/s, taken for %d B each.", t.PerSecond(s.Others), otherEntryBytes)
	}
	for i, p := range s.Traffic.Heaviest {
		if i == 3 {
			break
		}
		line += fmt.Sprintf("\n  below %q: %d records, %s", p.Prefix, p.Records, bytesOf(int(p.Bytes)))
	}
	return line
}
