package main

import (
	"math"
	"reflect"

	"go.etcd.io/etcd/server/v3/embed"
)

// Entries is what raft's storage holds.
type Entries struct {
	First, Last  uint64 // indexes
	Number       int
	PayloadBytes int64
}

// entries returns what holds the raft log of e. The server does not show its storage; that is
// set once, before the server is ready, and has a mutex of its own. It is a raft.MemoryStorage,
// of a package that 3.5 has elsewhere than 3.6 and 3.7.
func entries(e *embed.Etcd) (r Entries) {
	field := reflect.ValueOf(e.Server).Elem().FieldByName("r").FieldByName("raftStorage")
	storage := reflect.NewAt(field.Type().Elem(), field.UnsafePointer())
	indexes := storage.Interface().(interface {
		FirstIndex() (uint64, error)
		LastIndex() (uint64, error)
	})
	r.First, _ = indexes.FirstIndex()
	r.Last, _ = indexes.LastIndex()
	all := storage.MethodByName("Entries").Call([]reflect.Value{
		reflect.ValueOf(r.First), reflect.ValueOf(r.Last + 1), reflect.ValueOf(uint64(math.MaxUint64)),
	})
	if !all[1].IsNil() {
		return r // it has none, or was compacted in between
	}
	r.Number = all[0].Len()
	for i := range r.Number {
		r.PayloadBytes += int64(reflect.Indirect(all[0].Index(i)).FieldByName("Data").Len())
	}
	return r
}
