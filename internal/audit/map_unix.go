//go:build unix

package audit

import (
	"os"
	"syscall"
)

// mapFile returns the content of f as memory that is read from the file when it is looked at.
func mapFile(f *os.File, size int64) (data []byte, unmap func() error, err error) {
	data, err = syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ, syscall.MAP_SHARED)
	return data, func() error { return syscall.Munmap(data) }, err
}
