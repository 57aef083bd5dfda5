package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
)

// A demo has two sides, each with clients of its own, and plays on servers that it starts,
// one for each side, or on a cluster of the user's.

// onOwnServers plays on servers that it starts and stops.
func onOwnServers(ctx context.Context, p *progress, catchUp uint64, sides []*side, play func(context.Context) error) (err error) {
	p.say("starting two etcd servers on the loopback interface")
	defer func() {
		for _, s := range sides {
			if s.server != nil {
				err = errors.Join(err, s.server.stop())
			}
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx) // a server that ends ends the play, and is the reason
	defer cancel(nil)
	for _, s := range sides {
		if s.server, err = startServer(ctx, cancel, catchUp); err != nil {
			return err
		}
	}
	for _, s := range sides {
		if s.writer, err = newClient(clientv3.Config{Endpoints: []string{s.server.Endpoint}, MaxCallSendMsgSize: maxRequestBytes}); err != nil {
			return err
		}
		defer s.writer.Close()
		if s.reader, err = newClient(clientv3.Config{Endpoints: []string{s.server.Endpoint}}); err != nil {
			return err
		}
		defer s.reader.Close()
	}
	if err := play(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return nil
}

// onCluster plays on the cluster that the flags name, below a prefix that it removes
// afterwards. It takes so many bytes of room; the remedy is what makes them less.
func onCluster(ctx context.Context, p *progress, f *clusterFlags, bytes int, remedy string, sides []*side, play func(context.Context) error) (err error) {
	cfg, err := f.config(maxRequestBytes)
	if err != nil {
		return err
	}
	owner, err := newClient(cfg)
	if err != nil {
		return err
	}
	defer owner.Close()
	p.say("asking %v for room", cfg.Endpoints)
	if err := room(ctx, owner, f.dialTimeout, bytes, remedy); err != nil {
		return err
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
	for _, s := range sides {
		for _, cli := range []**clientv3.Client{&s.writer, &s.reader} {
			if *cli, err = newClient(cfg); err != nil {
				return err
			}
			defer (*cli).Close()
			(*cli).KV = namespace.NewKV((*cli).KV, prefix)
			(*cli).Lease = namespace.NewLease((*cli).Lease, prefix)
		}
	}
	return play(ctx)
}

// check refuses flags that do not go together: those of a cluster where there is none, and
// where there is one without an address. Set says which flags are.
func (f *clusterFlags) check(set func(flag string) bool) error {
	for _, e := range f.endpoints {
		if e == "" {
			return fmt.Errorf("--endpoints %q has an empty address: leave the flag out to play on servers of the demo's own", f.endpoints)
		}
	}
	own := !set("endpoints")
	switch {
	case !own && len(f.endpoints) == 0:
		return fmt.Errorf("--endpoints is empty: give an address, or leave the flag out to play on servers of the demo's own")
	case !own && f.dialTimeout <= 0:
		return fmt.Errorf("--dial-timeout is %v: give a time above zero, as in 5s", f.dialTimeout)
	}
	for _, flag := range []string{"cacert", "cert", "key", "user", "password", "insecure-skip-tls-verify", "dial-timeout", "command-timeout"} {
		if own && set(flag) {
			return fmt.Errorf("--%s is for --endpoints, which is not set", flag)
		}
	}
	return nil
}
