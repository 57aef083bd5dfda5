package etcdtest

import "syscall"

// attributes has the system kill a child that its parent has left behind, paused
// or not.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
