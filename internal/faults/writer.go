//go:build unix

package faults

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// newClient returns a client that finds a member again soon after it was away.
func newClient(endpoints []string, opts ...grpc.DialOption) (*clientv3.Client, error) {
	again := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, Logger: zap.NewNop(),
		DialOptions: append(opts, grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: time.Second})),
	})
}

const writerRole = "writer"

// assignment is what a writer process is told when it starts.
type assignment struct {
	Endpoints []string
	Load      string // of loads
	Config    int    // of its configs
}

// serveWriter is a process that carries out one request after the other, each a
// line on its standard input, and answers with a line each.
func serveWriter(argument string) error {
	var a assignment
	if err := json.Unmarshal([]byte(argument), &a); err != nil {
		return err
	}
	cli, err := newClient(a.Endpoints)
	if err != nil {
		return err
	}
	cfg := loads[a.Load].configs[a.Config]
	cfg.Chunk.SessionTTL = sessionTTL
	kv, err := kvwrap.New(cli, cfg)
	if err != nil {
		return err
	}
	p := performer{kv, kv.Lease()}
	in := bufio.NewScanner(os.Stdin)
	for out := json.NewEncoder(os.Stdout); in.Scan(); {
		var r request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			return err
		}
		if err := out.Encode(p.do(r)); err != nil {
			return err
		}
	}
	return in.Err()
}

// writer has a process carry out requests, and another one when that was killed.
type writer struct {
	argument string

	mu      sync.Mutex
	process *etcdtest.Process
	killed  *etcdtest.Process // the last one that was; the same while there is none that should live
	closed  bool
}

func newWriter(a assignment) (*writer, error) {
	argument, err := json.Marshal(a)
	return &writer{argument: string(argument)}, err
}

// do is called by one goroutine. Where the process ends before it has answered the
// outcome is not known.
func (w *writer) do(r request) result {
	p, err := w.start()
	if err != nil {
		return result{Outcome: failed, Error: err.Error()}
	}
	var res result
	err = exchange(p, r, &res)
	if err == nil {
		return res
	}
	res = result{Outcome: unknown, Error: "the process was killed"}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.killed != p {
		res.Wrong = fmt.Sprintf("the writer process has ended by itself: %v", err)
		w.killed = p
		p.Kill()
	}
	return res
}

func exchange(p *etcdtest.Process, r request, res *result) error {
	if err := json.NewEncoder(p.In).Encode(r); err != nil {
		return err
	}
	line, err := p.Out.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, res)
}

var errClosed = errors.New("the writer is closed")

// start returns the process, a new one where the last one was killed.
func (w *writer) start() (*etcdtest.Process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, errClosed
	}
	if w.process != w.killed {
		return w.process, nil
	}
	p, err := etcdtest.StartProcess(writerRole, w.argument)
	if err != nil {
		return nil, err
	}
	w.process = p
	return p, nil
}

// with calls f with the process, if there is one that lives.
func (w *writer) with(f func(*etcdtest.Process) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.process == w.killed {
		return nil
	}
	return f(w.process)
}

func (w *writer) kill() error {
	return w.with(func(p *etcdtest.Process) error {
		w.killed = p
		p.Kill()
		return nil
	})
}

// close kills the process for good.
func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.kill()
}
