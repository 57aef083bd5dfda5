package faults

import "time"

// kind is a kind of operation.
type kind string

const (
	put             kind = "put"
	putLeased       kind = "put, leased"
	putBehind       kind = "put behind"   // by PutAsync, with a promise
	putPair         kind = "put two keys" // in one transaction
	swapByRevision  kind = "swap by revision"
	swapByValue     kind = "swap by value"
	get             kind = "get"
	getSerializable kind = "get, serializable"
	getAll          kind = "get by prefix"
	del             kind = "delete"
	revoke          kind = "revoke" // the lease of a key
)

// request is an operation as a client asks for it. It can be sent to another
// process.
type request struct {
	Kind     kind
	Keys     []string // one, but for putPair and getAll
	Prefix   string   // of all keys, for getAll
	Values   []value  // for each key, where there is one to put
	Expected found    // at the key, by swaps
	Old      value    // the value with the id that is expected
	Lease    int64    // to be revoked
	PrevKV   bool
	Timeout  time.Duration
}

// reads reports whether r changes nothing.
func (r request) reads() bool {
	return r.Kind == get || r.Kind == getSerializable || r.Kind == getAll
}

// found is what was at a key, its zero value that there was none.
type found struct {
	ID                          string // of the operation that wrote the value
	Create, Mod, Version, Lease int64
}

// outcome is what a client knows of an operation that it has asked for.
type outcome string

const (
	ok      outcome = "ok"
	unknown outcome = "unknown" // a write that may have been applied, now or later
	failed  outcome = "failed"  // a write that was not and will not be applied, or a read
)

// result is the answer to a request.
type result struct {
	Outcome  outcome
	Error    string
	Wrong    string // what kvwrap must never return: a torn value, or that one is damaged
	Revision int64  // of the response
	Wrote    bool   // whether a swap was made, or something deleted
	Found    []found
	Lease    int64 // that was granted for the put
}
