package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
)

// verify reads every value in chunks.
type verify struct {
	namespace string
	output    outputFlag
	space     spaceFlags
	cluster   clusterFlags
}

func verifyCommand() *cobra.Command {
	var v verify
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Reads every value in chunks, and says which are damaged and which chunks are orphaned",
		Long: `Reads every key and every chunk as they are at one revision, checks each value
that is stored in chunks as every read does, and lists those that are damaged
and the chunks that no value names. Writes under way are not taken for damage.
It writes nothing, and takes the memory of a few of the largest values, whatever
the number of keys. Applications may go on. Where the revision is compacted
meanwhile, it goes on with the next key at a newer one, and says so.

With authentication it takes a user who may read all keys: the role root, or
read permission from \x00 on; with --namespace, on the keys that begin with it.
` + clusterHelp + `

Values of clients with another reserved prefix, or in a namespace, are not
verified; it says with which flags they are. Run it for each.

Exit codes: 0 all is well; 1 failed, or some values are for another version,
reserved prefix or namespace, or the command line is wrong; 2 the cluster cannot
be reached; 10 chunks are orphaned or on another lease than their key, or there
are keys that are not kvwrap's; 20 values are damaged; 130 interrupted, with
what was found until then.`,
		Example: `  shapecheck verify --endpoints 10.0.0.1:2379
  shapecheck verify --endpoints 10.0.0.1:2379 --namespace app/ -w json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return v.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&v.namespace, "namespace", "", "of the applications' clients, where they have one (namespace.NewKV)")
	v.output.register(cmd)
	v.space.register(cmd)
	v.cluster.register(cmd)
	return cmd
}

func (v *verify) run(ctx context.Context, stdout, stderr io.Writer) error {
	json, err := v.output.json()
	if err != nil {
		return err
	}
	space, err := v.space.keyspace()
	if err != nil {
		return err
	}
	cli, err := v.cluster.connect(ctx, 0)
	if err != nil {
		return err
	}
	defer cli.Close()
	progress := newProgress(stderr)
	stored := namespace.NewKV(cli.KV, v.namespace)
	report, failed := verified(ctx, stored, v.namespace, space, progress)
	progress.end()
	if json {
		err = writeJSON(stdout, report)
	} else {
		err = report.print(stdout)
	}
	return errors.Join(err, report.verdict(failed))
}

// verified reads all there is in a namespace. What it returns beside an error is what was found until
// then.
func verified(ctx context.Context, stored clientv3.KV, namespace string, space format.Keyspace, p *progress) (*verifyReport, error) {
	report := &verifyReport{}
	all := 0
	c := &checker{space: space, namespace: namespace, found: report.add}
	c.done = func() {
		if c.Keys%max(1, all/1000) == 0 { // a terminal is slower than etcd
			p.count("verifying", min(c.Keys, all), max(1, all))
		}
	}
	defer func() { report.checkCounts = c.checkCounts }()
	who := `with the role root, or who may read all keys, from "\x00" on`
	if namespace != "" {
		who = fmt.Sprintf("who may read all keys with the prefix %q", namespace)
	}
	for stuck := 0; ; {
		at, err := stored.Get(ctx, space.Prefix(), clientv3.WithCountOnly())
		if err != nil {
			return report, asking(who, "asking for the revision", err)
		}
		pin := pinned{stored, at.Header.Revision, who}
		if report.Revision = pin.revision; all == 0 {
			if all, err = pin.count(ctx, space); err != nil {
				return report, err
			}
		}
		before := string(c.from)
		err = c.run(ctx, pin)
		if !errors.Is(err, rpctypes.ErrCompacted) {
			report.Complete = err == nil
			return report, err
		}
		if report.Compacted++; string(c.from) == before {
			stuck++
		} else {
			stuck = 0
		}
		if stuck == 5 {
			return report, fmt.Errorf("reading keys from %q on: %w, again and again: verify when there is less to do, or keep revisions for longer", c.from, err)
		}
		p.say("revision %d was compacted meanwhile: going on at a newer one", pin.revision)
	}
}

// count counts the keys of applications.
func (p pinned) count(ctx context.Context, space format.Keyspace) (n int, err error) {
	for _, r := range space.Logical(format.Range{Key: firstKey, End: []byte{0}}) {
		resp, err := p.stored.Get(ctx, string(r.Key), clientv3.WithRange(string(r.End)), clientv3.WithRev(p.revision), clientv3.WithCountOnly())
		if err != nil {
			return 0, asking(p.who, "counting keys", err)
		}
		n += int(resp.Count)
	}
	return n, nil
}

// mostFindings is how many of a kind are listed; all are counted.
const mostFindings = 1000

// findings are those of one kind.
type findings struct {
	Count  int       `json:"count"`
	Chunks int       `json:"chunks,omitempty"`
	Listed []finding `json:"listed,omitempty"` // the first ones
}

// verifyReport is what was found.
type verifyReport struct {
	Revision  int64 `json:"revision"`  // at which was read, the last one
	Complete  bool  `json:"complete"`  // all was read
	Compacted int   `json:"compacted"` // how often it went on at another revision
	checkCounts

	Damaged    findings `json:"damaged"`
	Unread     findings `json:"unread"`
	Orphaned   findings `json:"orphaned"`
	OtherLease findings `json:"otherLease"`
	Strange    findings `json:"strange"`
}

func (r *verifyReport) of(kind findingKind) *findings {
	return [findingKinds]*findings{&r.Damaged, &r.Unread, &r.Orphaned, &r.OtherLease, &r.Strange}[kind]
}

func (r *verifyReport) add(f finding) {
	to := r.of(f.kind)
	to.Count++
	to.Chunks += f.Chunks
	if len(to.Listed) < mostFindings {
		to.Listed = append(to.Listed, f)
	}
}

// verdict returns the error for what was found, which has its exit code.
func (r *verifyReport) verdict(failed error) error {
	switch {
	case failed != nil && errors.Is(failed, context.Canceled):
		return failed
	case r.Damaged.Count > 0:
		return errors.Join(exitError{fmt.Errorf("%d values are damaged", r.Damaged.Count), exitCritical}, failed)
	case failed != nil:
		return failed
	case r.Unread.Count > 0:
		return fmt.Errorf("%d values are for another version, reserved prefix or namespace, and were not verified", r.Unread.Count)
	case r.Orphaned.Count+r.OtherLease.Count+r.Strange.Count > 0:
		return exitError{errors.New("no value is damaged, but there are chunks or keys that should not be as they are"), exitWarning}
	}
	return nil
}

func (r *verifyReport) print(w io.Writer) error {
	partial := ""
	if !r.Complete {
		partial = "Partial: not all was read. "
	}
	fmt.Fprintf(w, "%sKeys at revision %d: %d. In chunks: %d, in envelopes: %d, together %s. Chunks read: %d.\n",
		partial, r.Revision, r.Keys, r.Chunked, r.Envelopes, bytesOf(r.ValueBytes), r.Chunks)
	if r.Compacted > 0 {
		fmt.Fprintf(w, "Not one moment: %d times a revision was compacted, and it went on at a newer one.\n", r.Compacted)
	}
	if r.Writes > 0 {
		fmt.Fprintf(w, "Writes under way: %d, which have staged %d chunks. A process that has crashed counts until its lease expires.\n", r.Writes, r.WriteChunks)
	}
	well := true
	for kind, title := range [findingKinds]string{
		damaged:  "Damaged values: %d. Put them again, or restore them from a snapshot.",
		unread:   "Not verified, of another version, reserved prefix or namespace: %d.",
		orphaned: "Keys with orphaned chunks: %d. shapecheck sweep deletes these.",
		leased:   "Values with chunks on another lease: %d. They cannot be read when that expires: put them again.",
		strange:  "Keys below the reserved prefix that are not kvwrap's: %d. Find out whose they are.",
	} {
		f := r.of(findingKind(kind))
		if f.Count == 0 {
			continue
		}
		well = false
		fmt.Fprintf(w, title+"\n", f.Count)
		for _, one := range f.Listed {
			fmt.Fprintf(w, "  %q", one.Key)
			if one.Revision > 0 {
				fmt.Fprintf(w, ", revision %d", one.Revision)
			}
			switch {
			case one.Reason != "":
				fmt.Fprintf(w, ": %s", one.Reason)
			case one.Chunks > 0:
				fmt.Fprintf(w, ": %d chunks", one.Chunks)
			}
			fmt.Fprintln(w)
		}
		if more := f.Count - len(f.Listed); more > 0 {
			fmt.Fprintf(w, "  and %d more\n", more)
		}
	}
	if well && r.Complete {
		fmt.Fprintln(w, "All is well.")
	}
	return nil
}
