// Command v37 is an etcd server that tells what it keeps in memory. Its arguments are the
// name of a configuration file, in etcd's format, and "exact" or "plain": whether every
// allocation is recorded.
package main

import (
	"fmt"
	"math"
	"os"
	"reflect"

	"github.com/kvwrap/kvwrap/internal/servers/probe"
	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/raft/v3"
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
		probe.Profile()
	}
	probe.Watch()
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
	b := e.Server.Backend()
	return probe.Serve(probe.Member{
		Version: version.Version,
		Entries: func() probe.Entries { return entries(storage(e)) },
		Commit:  b.ForceCommit,
		Size:    b.Size,
		InUse:   b.SizeInUse,
		Ended:   e.Err(),
	})
}

// storage returns what holds the raft log of e. The server does not show it; it is set
// once, before the server is ready, and has a mutex of its own.
func storage(e *embed.Etcd) *raft.MemoryStorage {
	field := reflect.ValueOf(e.Server).Elem().FieldByName("r").FieldByName("raftStorage")
	return (*raft.MemoryStorage)(field.UnsafePointer())
}

func entries(s *raft.MemoryStorage) (e probe.Entries) {
	e.First, _ = s.FirstIndex()
	e.Last, _ = s.LastIndex()
	all, err := s.Entries(e.First, e.Last+1, math.MaxUint64)
	if err != nil {
		return e // it has none, or was compacted in between
	}
	e.Number = len(all)
	for i := range all {
		e.PayloadBytes += int64(len(all[i].Data))
	}
	return e
}
