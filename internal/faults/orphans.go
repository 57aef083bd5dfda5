package faults

import (
	"fmt"

	"github.com/kvwrap/kvwrap/internal/format"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// reservedPrefix is where chunks are stored.
const reservedPrefix = "\x00kvw/"

// orphans returns the keys below the reserved prefix that no manifest names; and an
// error where a manifest names what is not there, or damaged. All are all keys as
// they are stored.
func orphans(all []*mvccpb.KeyValue) (orphans []string, err error) {
	space, err := format.NewKeyspace(reservedPrefix)
	if err != nil {
		return nil, err
	}
	source := format.Source{Stored: make(map[format.ID][]byte)}
	for _, kv := range all {
		if id, ok := format.ChunkID(kv.Key); ok {
			source.Stored[id] = kv.Value
		}
	}
	named := make(map[string]bool)
	for _, kv := range all {
		if space.Reserved(kv.Key) || format.Plain(kv.Value) {
			continue
		}
		_, m, err := format.Parse(kv.Value, maxValueBytes)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", kv.Key, err)
		}
		l := format.NewLayout(m)
		if _, err := l.Value(source); err != nil {
			return nil, fmt.Errorf("%q: %w", kv.Key, err)
		}
		for _, r := range l.All() {
			named[string(space.ChunkKey(kv.Key, r.ID))] = true
		}
	}
	for _, kv := range all {
		if space.Reserved(kv.Key) && !named[string(kv.Key)] {
			orphans = append(orphans, string(kv.Key))
		}
	}
	return orphans, nil
}
