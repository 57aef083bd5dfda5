package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"
)

// server is a child process that runs "serve".
type server struct {
	ready
	ctx context.Context // has ended, with the reason as its cause, once the process has

	process *exec.Cmd
	stdin   io.WriteCloser
	answers *bufio.Reader
	stderr  tail
	ended   chan struct{} // closed when it has
}

// startServer starts a server and waits until it is ready. When the process ends,
// end is told why; ctx is to end with it.
func startServer(ctx context.Context, end context.CancelCauseFunc, catchUp uint64) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &server{ctx: ctx, ended: make(chan struct{})}
	s.process = exec.Command(self, "serve", "--snapshot-catchup-entries", strconv.FormatUint(catchUp, 10))
	s.process.Stderr = &s.stderr
	if s.stdin, err = s.process.StdinPipe(); err != nil {
		return nil, err
	}
	// A pipe of our own, since Wait would close that of StdoutPipe under a reader.
	stdout, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.process.Stdout = theirs
	s.answers = bufio.NewReader(stdout)
	err = s.process.Start()
	theirs.Close()
	if err != nil {
		stdout.Close()
		return nil, fmt.Errorf("starting an etcd: %w", err)
	}
	go func() {
		err := s.process.Wait()
		end(fmt.Errorf("the etcd of the demo has ended: %v: %s", err, s.stderr.last()))
		stdout.Close()
		close(s.ended)
	}()
	if err := s.answer(&s.ready); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// liveHeap returns what lives on the server's heap, in bytes.
func (s *server) liveHeap() (uint64, error) {
	if _, err := io.WriteString(s.stdin, "measure\n"); err != nil {
		return 0, errors.Join(err, context.Cause(s.ctx))
	}
	var m measured
	err := s.answer(&m)
	return m.LiveHeapBytes, err
}

// answer reads what the server says next, until the context of s ends.
func (s *server) answer(to any) error {
	type read struct {
		line []byte
		err  error
	}
	answered := make(chan read, 1)
	go func() {
		line, err := s.answers.ReadBytes('\n')
		answered <- read{line, err}
	}()
	select {
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	case r := <-answered:
		if r.err != nil {
			<-s.ended // it says why
			return context.Cause(s.ctx)
		}
		return json.Unmarshal(r.line, to)
	}
}

// stop ends the process, by force if it takes too long, and leaves no files.
func (s *server) stop() error {
	s.stdin.Close()
	var killed error
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		killed = s.process.Process.Kill()
		<-s.ended
	}
	if s.Dir == "" {
		return killed
	}
	return errors.Join(killed, os.RemoveAll(s.Dir)) // it has done so itself, unless it was killed
}

// tail is a writer that remembers the last line.
type tail struct {
	mu  sync.Mutex
	all []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, p...)
	t.all = t.all[max(0, len(t.all)-4<<10):]
	return len(p), nil
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.all), []byte("\n"))
	return string(lines[len(lines)-1])
}
