package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
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
made twice, through the plain client and through kvwrap, and what it costs etcd is
measured.

Without --endpoints it starts two etcd servers of its own, one for each side, as
child processes on the loopback interface, and removes them afterwards. With
--endpoints it plays on that cluster, below a prefix of its own that it removes
afterwards; the server's memory is then projected and not measured.`,
		Example: `  shapecheck demo
  shapecheck demo --changed 10
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
		return usagef("--pipelines is %d: choose 1 to 4000", d.pipelines)
	case !(d.changed >= 0 && d.changed <= 100):
		return usagef("--changed is %v: choose 0 to 100 per cent", d.changed)
	case d.publishes < 1:
		return usagef("--publishes is %d: choose 1 or more", d.publishes)
	case !own && set("snapshot-catchup-entries"):
		return usagef("--snapshot-catchup-entries is for the demo's own servers: leave it out with --endpoints")
	case own && d.catchUp < 1:
		return usagef("--snapshot-catchup-entries is 0: choose 1 or more")
	case own && uint64(d.publishes) < d.catchUp+logCompaction:
		return usagef("--publishes is %d, --snapshot-catchup-entries %d: choose %d publishes or more, so that the raft log fills",
			d.publishes, d.catchUp, d.catchUp+logCompaction)
	}
	for _, e := range d.cluster.endpoints {
		if e == "" {
			return usagef("--endpoints %q has an empty address: leave the flag out to play on servers of the demo's own", d.cluster.endpoints)
		}
	}
	if !own && (len(d.cluster.endpoints) == 0 || d.cluster.dialTimeout <= 0) {
		return usagef("--endpoints %q, --dial-timeout %v: give an address and a time", d.cluster.endpoints, d.cluster.dialTimeout)
	}
	for _, flag := range []string{"cacert", "cert", "key", "user", "password", "dial-timeout"} {
		if own && set(flag) {
			return usagef("--%s is for --endpoints, which is not set", flag)
		}
	}
	return nil
}

func (d *demo) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	began := time.Now()
	play := d.onOwnServers
	if len(d.cluster.endpoints) > 0 {
		play = d.onCluster
	}
	p := newProgress(stderr)
	r, err := play(ctx, p)
	p.end()
	if err != nil {
		return err
	}
	r.demo, r.took = d, time.Since(began)
	return r.print(stdout)
}

// onOwnServers plays on two servers that it starts and stops.
func (d *demo) onOwnServers(ctx context.Context, p *progress) (r *result, err error) {
	p.say("starting two etcd servers on the loopback interface")
	servers := make([]*server, 2)
	defer func() {
		for _, s := range servers {
			if s != nil {
				err = errors.Join(err, s.stop())
			}
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx) // a server that ends ends the play, and is the reason
	defer cancel(nil)
	for i := range servers {
		if servers[i], err = startServer(ctx, cancel, d.catchUp); err != nil {
			return nil, err
		}
	}
	r = &result{}
	sides := []*side{&r.plain, &r.wrapped}
	for i, s := range sides {
		s.server = servers[i]
		if s.writer, err = newClient(clientv3.Config{Endpoints: []string{servers[i].Endpoint}, MaxCallSendMsgSize: maxRequestBytes}); err != nil {
			return nil, err
		}
		defer s.writer.Close()
		if s.reader, err = newClient(clientv3.Config{Endpoints: []string{servers[i].Endpoint}}); err != nil {
			return nil, err
		}
		defer s.reader.Close()
	}
	if err := d.play(ctx, p, r); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	return r, nil
}

// onCluster plays on the cluster that the flags name.
func (d *demo) onCluster(ctx context.Context, p *progress) (r *result, err error) {
	cfg, err := d.cluster.config(maxRequestBytes)
	if err != nil {
		return nil, err
	}
	owner, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	defer owner.Close()
	p.say("asking %v for room", cfg.Endpoints)
	most := (d.publishes + 1) * d.pipelines * 2 * 2200 // bytes, on both sides
	if err := room(ctx, owner, d.cluster.dialTimeout, most, "choose less --publishes or --pipelines"); err != nil {
		return nil, err
	}
	prefix := fmt.Sprintf("kvwrap-demo/%s/", scratchName())
	defer func() {
		// Also after an interrupt.
		p.say("removing %q", prefix)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if _, derr := owner.Delete(ctx, prefix, clientv3.WithPrefix()); derr != nil {
			err = errors.Join(err, fmt.Errorf("removing what stands below %q: %w", prefix, derr))
		}
	}()
	r = &result{}
	for _, s := range []*side{&r.plain, &r.wrapped} {
		for _, cli := range []**clientv3.Client{&s.writer, &s.reader} {
			if *cli, err = newClient(cfg); err != nil {
				return nil, err
			}
			defer (*cli).Close()
			(*cli).KV = namespace.NewKV((*cli).KV, prefix)
			(*cli).Lease = namespace.NewLease((*cli).Lease, prefix)
		}
	}
	r.plain.key, r.wrapped.key = "plain", "kvwrap"
	return r, d.play(ctx, p, r)
}
