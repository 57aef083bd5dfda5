package faults

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"sync"

	"github.com/kvwrap/kvwrap/internal/workload"
)

// value is what one operation writes, and no other. Its first line names it, the
// rest follows from that: text that all values share, with an edit somewhere in it
// that is its own. So chunks are found again from one value to the next, and any
// mixture of two is found out, byte for byte.
type value struct {
	ID   string // of the operation
	Size int    // bytes
	Edit int    // bytes of it that do not compress and are in no other value
}

const maxValueBytes = 1 << 20

// shared is the text.
var shared = sync.OnceValue(func() string { return workload.Text(maxValueBytes, "shared") })

func (v value) bytes() []byte {
	b := make([]byte, 0, v.Size)
	b = fmt.Appendf(b, "%s %d %d\n", v.ID, v.Size, v.Edit)
	h := fnv.New32a()
	h.Write([]byte(v.ID))
	at := int(h.Sum32()) % (v.Size - v.Edit - len(b) + 1)
	b = append(b, shared()[:at]...)
	b = append(b, workload.Incompressible(v.Edit, v.ID)...)
	return append(b, shared()[at:at+v.Size-len(b)]...)
}

// identify returns the id of the operation that wrote b; or an error where no
// operation has written just that.
func identify(b []byte) (string, error) {
	line, _, _ := bytes.Cut(b[:min(len(b), 100)], []byte("\n"))
	var v value
	if _, err := fmt.Sscanf(string(line), "%s %d %d", &v.ID, &v.Size, &v.Edit); err != nil || !v.valid() {
		return "", fmt.Errorf("a value of %d bytes that begins with %q, which nobody wrote", len(b), line)
	}
	want := v.bytes()
	if bytes.Equal(b, want) {
		return v.ID, nil
	}
	same := 0
	for same < min(len(b), len(want)) && b[same] == want[same] {
		same++
	}
	return "", fmt.Errorf("a torn value: %d bytes that begin as %s of %d bytes does, and differ at byte %d", len(b), v.ID, v.Size, same)
}

// valid reports whether there is such a value.
func (v value) valid() bool {
	return v.Size <= maxValueBytes && v.Edit >= 0 && v.Edit+100 <= v.Size
}
