// Package probe tells what an etcd server in the same process keeps in memory. It has a
// module of its own, without dependencies, so that servers of every version can import
// it: what differs between them is in [Member].
package probe

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
)

// Member is a server, as the main of its version knows it.
type Member struct {
	Version string // of etcd
	Entries func() Entries
	Commit  func() // commits what the backend has not committed yet
	Size    func() int64
	InUse   func() int64
	Ended   <-chan error // tells when the server has ended by itself
}

// Entries is what raft's storage holds.
type Entries struct {
	First, Last  uint64 // indexes
	Number       int
	PayloadBytes int64
}

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

// Serve answers measurements over HTTP on the loopback interface. It writes the address
// to the standard output, and returns when the server has ended, or the standard input
// has: then the parent is gone, or has had enough.
func Serve(m Member) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(m.measure())
	}))
	fmt.Println(l.Addr())
	parent := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(parent)
	}()
	select {
	case err := <-m.Ended:
		return err
	case <-parent:
		return nil
	}
}

func (m *Member) measure() Measurement {
	anonymous := rss() // before the collections that follow
	peak := max(most.Load(), anonymous)
	// A page that a transaction has freed counts as free in the one after the next.
	for range 3 {
		m.Commit()
	}
	// The heap profile is as of the last collection but one.
	for range 3 {
		runtime.GC()
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	r := Measurement{
		Version: m.Version, Entries: m.Entries(),
		LiveHeap: stats.HeapAlloc, AnonymousRSS: anonymous, PeakAnonymous: peak,
		DbSize: m.Size(), DbSizeInUse: m.InUse(),
	}
	r.RaftLog, r.TreeIndex = attribute()
	return r
}
