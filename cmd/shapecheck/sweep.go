package main

import (
	"context"
	"fmt"
	"io"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/client/v3/namespace"
)

// sweep deletes what writes have left behind.
type sweep struct {
	rate      int
	namespace string
	space     spaceFlags
	cluster   clusterFlags
}

func sweepCommand() *cobra.Command {
	var s sweep
	cmd := &cobra.Command{
		Use:   "sweep",
		Short: "Deletes chunks that writes which crashed, or clients without kvwrap, have left behind",
		Long: `Deletes the chunks that no value names and that no write under way can commit
any more. Applications may go on, and so may their own sweeps: one at a time
runs in a cluster, the others wait. It may be interrupted and run again.

With authentication it takes a user with the role root, or who may read all keys
with large values and read and write below the reserved prefix.
` + clusterHelp + `

Exit codes: 0 swept; 1 failed, or the command line is wrong; 2 the cluster
cannot be reached; 130 interrupted, and what was deleted stays so.`,
		Example: `  shapecheck sweep --endpoints 10.0.0.1:2379
  shapecheck sweep --endpoints 10.0.0.1:2379 --namespace app/ --rate 20`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().IntVar(&s.rate, "rate", 100, "requests a second, one or two for each key with chunks")
	cmd.Flags().StringVar(&s.namespace, "namespace", "", "of the applications' clients, where they have one (namespace.NewKV)")
	s.space.register(cmd)
	s.cluster.register(cmd)
	return cmd
}

func (s *sweep) run(ctx context.Context, stdout io.Writer) error {
	if s.rate < 1 {
		return fmt.Errorf("--rate %d: give 1 request a second or more", s.rate)
	}
	space, err := s.space.keyspace()
	if err != nil {
		return err
	}
	cli, err := s.cluster.connect(ctx, 0)
	if err != nil {
		return err
	}
	defer cli.Close()
	kv, err := chunker.NewKV(namespace.NewKV(cli.KV, s.namespace), chunker.Config{
		ReservedPrefix: space.Prefix(), SweepRate: s.rate, Lease: namespace.NewLease(cli.Lease, s.namespace),
	})
	if err != nil {
		return err
	}
	defer kv.Close()
	result, err := kv.Sweep(ctx)
	if err != nil && result.Keys == 0 {
		return err
	}
	fmt.Fprintf(stdout, "Below %q: keys with chunks: %d. Chunks deleted: %d. Writes under way: %d.\n",
		s.namespace+space.Prefix(), result.Keys, result.Deleted, result.Writes)
	if result.Writes > 0 {
		fmt.Fprintln(stdout, "A process that has crashed counts as a write under way until its lease expires, a minute by default.")
	}
	if result.Left > 0 {
		fmt.Fprintf(stdout, "Left for another sweep, because they are written all the time, or cannot be read by this user or version: %d keys.\n", result.Left)
	}
	return err
}
