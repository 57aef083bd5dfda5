//go:build !unix

package audit

import (
	"io"
	"os"
)

// mapFile returns the content of f: here it is read as a whole.
func mapFile(f *os.File, size int64) (data []byte, unmap func() error, err error) {
	data = make([]byte, size)
	_, err = f.ReadAt(data, 0)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return data, func() error { return nil }, err
}
