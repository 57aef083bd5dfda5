package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// The demo measures the memory of an etcd server, so that the server has to have
// a process of its own: this program again, with the hidden command "serve". The
// two talk in lines of JSON. The server says once that it is ready, and answers
// every line that it reads with what it measures. When its standard input ends, as it
// does however the parent ends, it stops and removes its files.

// ready is what a server says first.
type ready struct {
	Endpoint string `json:"endpoint"`
	Dir      string `json:"dir"`
}

// measured is what a server answers.
type measured struct {
	LiveHeapBytes uint64 `json:"live_heap_bytes"` // after a garbage collection
}

// maxRequestBytes is the --max-request-bytes of the demo's servers.
const maxRequestBytes = 8 << 20

func serveCommand() *cobra.Command {
	var catchUp uint64
	cmd := &cobra.Command{
		Use:    "serve",
		Short:  "Runs the etcd server of a demo until standard input ends",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Ctrl-C and the end of a terminal reach the parent, too, which closes
			// our input; and a parent that was killed reads no log any more.
			signal.Ignore(os.Interrupt, syscall.SIGHUP, syscall.SIGPIPE)
			return serve(catchUp, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().Uint64Var(&catchUp, "snapshot-catchup-entries", 5000, "as of etcd")
	return cmd
}

func serve(catchUp uint64, stdin io.Reader, stdout io.Writer) (err error) {
	debug.SetGCPercent(50) // only what lives is measured
	dir, err := os.MkdirTemp("", "shapecheck-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.RemoveAll(dir); err == nil {
			err = rerr
		}
	}()
	server, err := startEtcd(dir, catchUp)
	if err != nil {
		return err
	}
	defer server.Close()
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		return err
	case <-time.After(30 * time.Second):
		return fmt.Errorf("etcd is not ready after 30 seconds")
	}
	answers := json.NewEncoder(stdout)
	if err := answers.Encode(ready{Endpoint: server.Clients[0].Addr().String(), Dir: dir}); err != nil {
		return err
	}
	questions := bufio.NewScanner(stdin)
	for questions.Scan() {
		if err := answers.Encode(measure(server)); err != nil {
			return err
		}
	}
	return questions.Err()
}

func startEtcd(dir string, catchUp uint64) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Name = "demo"
	cfg.Dir = dir
	loopback := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = loopback, loopback
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = loopback, loopback
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = true
	cfg.MaxRequestBytes = maxRequestBytes
	cfg.SnapshotCatchUpEntries = catchUp
	cfg.LogLevel = "error"
	cfg.LogOutputs = []string{"stderr"}
	return embed.StartEtcd(cfg)
}

func measure(server *embed.Etcd) measured {
	server.Server.Backend().ForceCommit() // so that its write buffers are not counted
	runtime.GC()
	runtime.GC() // what pools held through the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return measured{LiveHeapBytes: m.HeapAlloc}
}
