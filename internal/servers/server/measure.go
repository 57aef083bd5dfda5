package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/server/v3/embed"
)

// Measurement is what a server has at one time. It is taken after a garbage collection.
type Measurement struct {
	Version       string
	Entries       Entries
	LiveHeap      uint64 // bytes of live objects
	RaftLog       uint64 // bytes of them that the heap profile attributes to the raft log
	TreeIndex     uint64 // and to the index of keys
	AnonymousRSS  uint64 // bytes; 0 where the system does not tell
	PeakAnonymous uint64 // the most that was seen, looking a hundred times a second
	DbSize        int64
	DbSizeInUse   int64
}

// serve answers measurements over HTTP on the loopback interface. It writes the address
// to the standard output, and returns when the server has ended, or the standard input
// has: then the parent is gone, or has had enough.
func serve(e *embed.Etcd) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(measure(e))
	}))
	fmt.Println(l.Addr())
	parent := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(parent)
	}()
	select {
	case err := <-e.Err():
		return err
	case <-parent:
		return nil
	}
}

func measure(e *embed.Etcd) Measurement {
	anonymous := rss() // before the collections that follow
	peak := max(most.Load(), anonymous)
	b := e.Server.Backend()
	// A page that a transaction has freed counts as free in the one after the next.
	for range 3 {
		b.ForceCommit()
	}
	// The heap profile is as of the last collection but one.
	for range 3 {
		runtime.GC()
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	r := Measurement{
		Version: version.Version, Entries: entries(e),
		LiveHeap: stats.HeapAlloc, AnonymousRSS: anonymous, PeakAnonymous: peak,
		DbSize: b.Size(), DbSizeInUse: b.SizeInUse(),
	}
	r.RaftLog, r.TreeIndex = attribute()
	return r
}
