//go:build unix

package etcdtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

const (
	roleEnv     = "KVWRAP_TEST_ROLE"
	argumentEnv = "KVWRAP_TEST_ARGUMENT"
)

// Role is what a child process does in place of running tests. It ends when the
// standard input does, which is when the test that started it is gone.
type Role func(argument string) error

// Main has a child process play its role, the members of a cluster ours and others
// the given ones, and does not return then. A TestMain calls it first.
func Main(roles map[string]Role) {
	name := os.Getenv(roleEnv)
	role := roles[name]
	switch {
	case name == "":
		return
	case name == memberRole:
		role = serveMember
	case role == nil:
		role = func(string) error { return errors.New("there is no such role") }
	}
	if err := role(os.Getenv(argumentEnv)); err != nil {
		fmt.Fprintf(os.Stderr, "test process %d, %s: %v\n", os.Getpid(), name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Process is a child of the test: the same binary in a role, or another program.
//
// It is killed by whoever started it. Where nobody is left to do so, since the
// test has panicked or was killed itself, the child finds the end of its standard
// input; a paused one finds nothing, and is the system's, see attributes.
type Process struct {
	In  io.WriteCloser
	Out *bufio.Reader

	cmd  *exec.Cmd
	done chan struct{}
}

// StartProcess starts a child in the given role, which [Main] knows.
func StartProcess(role, argument string) (*Process, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role, argumentEnv+"="+argument)
	return StartCommand(cmd)
}

// StartCommand starts another program as a child, which is to end when its standard
// input does.
func StartCommand(cmd *exec.Cmd) (*Process, error) {
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attributes()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{In: in, Out: bufio.NewReader(out), cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		cmd.Wait() // that it was killed is no error
	}()
	return p, nil
}

// Pause stops the process where it is, until Continue.
func (p *Process) Pause() error { return p.cmd.Process.Signal(syscall.SIGSTOP) }

// Continue lets a paused process go on.
func (p *Process) Continue() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Kill ends the process at once, paused or not, and waits until it has ended.
// Killing twice is fine.
func (p *Process) Kill() {
	p.cmd.Process.Kill() // fails where it has ended already
	<-p.done
}
