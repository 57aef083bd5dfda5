//go:build unix && !linux

package etcdtest

import "syscall"

// attributes makes a child a process group of its own, which the system continues
// when the parent of a paused child is gone, so that it sees the end of its input.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
