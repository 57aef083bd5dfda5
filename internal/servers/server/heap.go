package main

import (
	"runtime"
	"strings"
)

// profile has the heap profile record every allocation, so that its sums are exact. It
// is to be called first of all in main: what was allocated before is not in the profile.
func profile() { runtime.MemProfileRate = 1 }

// attribute returns the live bytes that were allocated for the raft log and for the
// index of keys, by the functions that allocated them. It is nothing without profile.
//
// It knows nothing of what an entry takes: an entry, its parts and the array that they
// are in are allocated inside package raft, the payload of an entry where the server
// marshals a request before it proposes it. After a restart all of it comes from the WAL.
// The index has the keys, which are part of what was unmarshalled to be applied; the rest of
// that is garbage.
func attribute() (raftLog, treeIndex uint64) {
	if runtime.MemProfileRate != 1 {
		return 0, 0
	}
	var records []runtime.MemProfileRecord
	for n := 1 << 12; ; n += n / 2 {
		records = make([]runtime.MemProfileRecord, n)
		have, ok := runtime.MemProfile(records, false)
		if ok {
			records = records[:have]
			break
		}
		n = max(n, have)
	}
	for i := range records {
		live := uint64(records[i].InUseBytes())
		switch owner(records[i].Stack()) {
		case ownerRaft:
			raftLog += live
		case ownerIndex:
			treeIndex += live
		}
	}
	return raftLog, treeIndex
}

const (
	ownerOther = iota
	ownerRaft
	ownerIndex
)

func owner(stack []uintptr) int {
	frames := runtime.CallersFrames(stack)
	for more := true; more; {
		var f runtime.Frame
		f, more = frames.Next()
		switch name := f.Function; {
		case once(name):
			return ownerOther
		case strings.HasPrefix(name, "go.etcd.io/raft/v3."), strings.HasPrefix(name, "go.etcd.io/etcd/raft/v3."),
			strings.HasSuffix(name, "EtcdServer).processInternalRaftRequestOnce") && marshals(stack),
			strings.HasSuffix(name, "wal.(*WAL).ReadAll"):
			return ownerRaft
		case strings.Contains(name, "mvcc.(*treeIndex)"),
			strings.HasSuffix(name, "EtcdServer).applyEntryNormal") && unmarshals(stack):
			return ownerIndex
		}
	}
	return ownerOther
}

// once reports whether a function prepares what is kept for all messages of a type, for all
// that wait for a channel, or for writing to the WAL; whoever comes first does so.
func once(name string) bool {
	return strings.Contains(name, "/filedesc.") || strings.HasSuffix(name, "MessageInfo).init") ||
		strings.HasSuffix(name, ".needsInitCheck") || strings.HasSuffix(name, "wal.newEncoder") || name == "runtime.acquireSudog"
}

// marshals reports whether the innermost functions make the bytes of a message.
func marshals(stack []uintptr) bool { return within(stack, ".Marshal", "MarshalOptions.marshal") }

// unmarshals reports whether they make a message of bytes.
func unmarshals(stack []uintptr) bool {
	return within(stack, ".Unmarshal", "UnmarshalOptions.unmarshal")
}

// within reports whether a function in the stack has a name that ends so.
func within(stack []uintptr, suffixes ...string) bool {
	frames := runtime.CallersFrames(stack)
	for more := true; more; {
		var f runtime.Frame
		f, more = frames.Next()
		for _, s := range suffixes {
			if strings.HasSuffix(f.Function, s) {
				return true
			}
		}
	}
	return false
}
