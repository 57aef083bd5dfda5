// Command server is an etcd server that tells what it keeps in memory. Its arguments are the
// name of a configuration file, in etcd's format, and "exact" or "plain": whether every
// allocation is recorded.
//
// It is a module of its own, of one version of etcd for each of its module files: that of 3.7
// is go.mod, and -modfile chooses another. So it names nothing that is not in all of them.
package main

import (
	"fmt"
	"os"

	"go.etcd.io/etcd/server/v3/embed"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: %s CONFIG exact|plain", os.Args[0])
	}
	if os.Args[2] == "exact" {
		profile()
	}
	watch()
	cfg, err := embed.ConfigFromFile(os.Args[1])
	if err != nil {
		return err
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return err
	}
	return serve(e)
}
