package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// demo is the gateway's case: the statistics of all pipelines in one key, written
// again and again.
type demo struct {
	pipelines int
	changed   float64 // per cent of the pipelines, from one publish to the next
	publishes int
	catchUp   uint64 // of the demo's own servers
	cluster   clusterFlags
}

// logCompaction is the number of entries that etcd 3.6 and 3.7 let come before
// they drop those older than the catch-up entries from memory again
// (shouldSnapshotToMemory in etcdserver/server.go).
const logCompaction = 101

// What --pipelines and --publishes are with --endpoints: a value within etcd's
// default --max-request-bytes of 1.5 MiB, and not too many of it.
const (
	clusterPipelines = 700
	clusterPublishes = 10
)

func demoCommand() *cobra.Command {
	var d demo
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Plays a gateway's statistics through a plain client and through kvwrap, side by side",
		Long: `Plays the case that kvwrap was made for: a gateway that writes the statistics of
all its pipelines, about 2 MB, into one key every few seconds. Each publish is
made twice, through the plain client and through kvwrap, and what it costs etcd
is measured.

Without --endpoints it starts two etcd servers of its own, one for each side, as
child processes on the loopback interface, and removes them afterwards. With
--endpoints it plays on that cluster, below a prefix of its own that it removes
afterwards; the server's memory is then projected and not measured.

"demo offsets" plays the other case, a broker that commits offsets.

The other flags that say how to reach the cluster may be left out where the
environment has etcdctl's variables: ETCDCTL_CACERT, ETCDCTL_USER and so on;
--endpoints may not. A flag wins.

Exit codes: 0 played; 1 failed, or the command line is wrong; 2 the cluster
cannot be reached; 130 interrupted.`,
		Example: `  shapecheck demo
  shapecheck demo --changed 10
  shapecheck demo offsets
  shapecheck demo --endpoints 10.0.0.1:2379,10.0.0.2:2379`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.check(cmd.Flags().Changed); err != nil {
				return err
			}
			return d.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().IntVar(&d.pipelines, "pipelines", 1000, fmt.Sprintf("pipelines of the gateway, about 2 KB each; with --endpoints %d", clusterPipelines))
	cmd.Flags().Float64Var(&d.changed, "changed", 3, "per cent of the pipelines that change from one publish to the next")
	cmd.Flags().IntVar(&d.publishes, "publishes", 210, fmt.Sprintf("publishes on each side; with --endpoints %d", clusterPublishes))
	cmd.Flags().Uint64Var(&d.catchUp, "snapshot-catchup-entries", 100, "of the demo's own servers; etcd's default is 5000")
	d.cluster.register(cmd)
	cmd.AddCommand(offsetsCommand())
	return cmd
}

// check refuses what cannot be played.
func (d *demo) check(set func(flag string) bool) error {
	own := !set("endpoints")
	if !own && !set("pipelines") {
		d.pipelines = clusterPipelines
	}
	if !own && !set("publishes") {
		d.publishes = clusterPublishes
	}
	switch {
	case d.pipelines < 1 || d.pipelines > 4000:
		return fmt.Errorf("--pipelines is %d: choose 1 to 4000", d.pipelines)
	case !(d.changed >= 0 && d.changed <= 100):
		return fmt.Errorf("--changed is %v: choose 0 to 100 per cent", d.changed)
	case d.publishes < 1 || d.publishes > 1e6:
		return fmt.Errorf("--publishes is %d: choose 1 to 1000000", d.publishes)
	case !own && set("snapshot-catchup-entries"):
		return fmt.Errorf("--snapshot-catchup-entries is for the demo's own servers: leave it out with --endpoints")
	case own && (d.catchUp < 1 || d.catchUp > 1e6):
		return fmt.Errorf("--snapshot-catchup-entries is %d: choose 1 to 1000000", d.catchUp)
	case own && uint64(d.publishes) < d.catchUp+logCompaction:
		return fmt.Errorf("--publishes is %d, --snapshot-catchup-entries %d: choose %d publishes or more, so that the raft log fills",
			d.publishes, d.catchUp, d.catchUp+logCompaction)
	}
	return d.cluster.check(set)
}

func (d *demo) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	began := time.Now()
	p, r := newProgress(stderr), &result{demo: d}
	r.plain.key, r.wrapped.key = "plain", "kvwrap"
	play := func(ctx context.Context) error { return d.play(ctx, p, r) }
	sides := []*side{&r.plain, &r.wrapped}
	if len(d.cluster.endpoints) == 0 {
		err = onOwnServers(ctx, p, d.catchUp, sides, play)
	} else {
		most := (d.publishes + 1) * d.pipelines * 2 * 2200 // bytes, on both sides
		err = onCluster(ctx, p, &d.cluster, most, "choose less --publishes or --pipelines", sides, play)
	}
	p.end()
	if err != nil {
		return err
	}
	r.took = time.Since(began)
	return r.print(stdout)
}
