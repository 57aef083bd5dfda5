package chunker

import (
	"bytes"

	"github.com/kvwrap/kvwrap/internal/format"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// ChunkRange returns the range of keys, from included and to not, that holds the
// chunks of the keys in a range, and no others: a role that has a permission on the
// one needs the same on the other. The range is given as roles have it: rangeEnd ""
// is the one key, "\x00" all from key on, else the first key after it. Of c it looks
// at ReservedPrefix alone. It sends nothing.
//
// Its errors are those that etcd has for such a range, one that matches
// [ErrReservedKey] for a range that begins among the chunks, and one that matches
// [ErrConfig].
func (c Config) ChunkRange(key, rangeEnd string) (from, to string, err error) {
	space, err := c.space()
	if err != nil {
		return "", "", err
	}
	r := format.Range{Key: []byte(key), End: []byte(rangeEnd)}
	switch {
	case key == "":
		return "", "", rpctypes.ErrEmptyKey
	case r.Empty():
		return "", "", rpctypes.ErrInvalidAuthMgmt
	case space.Reserved(r.Key):
		return "", "", &ReservedKeyError{Key: r.Key, Prefix: space.Prefix()}
	}
	chunks := granted(space, r)
	return string(chunks.Key), string(chunks.End), nil
}

// granted returns the range of chunks that is to be granted beside r. One key is
// taken as the range that holds it alone, so that what is next to each other stays
// so: etcd allows a request whose range several permissions cover together.
func granted(space format.Keyspace, r format.Range) format.Range {
	if r.Single() {
		r.End = append(bytes.Clone(r.Key), 0)
	}
	return space.Chunks(r)
}
