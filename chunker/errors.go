package chunker

import (
	"errors"
	"fmt"

	"github.com/kvwrap/kvwrap/internal/format"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// The sentinels that errors of this package match with errors.Is. The errors
// themselves carry the values; etcd's own errors pass through unchanged.
var (
	// ErrConfig is matched by every error of [NewKV] and [New].
	ErrConfig = errors.New("chunker: invalid config")
	// ErrReservedKey is matched by [*ReservedKeyError].
	ErrReservedKey = errors.New("chunker: reserved key")
	// ErrValueTooLarge is matched by [*ValueTooLargeError].
	ErrValueTooLarge = errors.New("chunker: value too large")
	// ErrPrefixMismatch is matched by [*PrefixMismatchError].
	ErrPrefixMismatch = errors.New("chunker: reserved prefix mismatch")
	// ErrUnknownFormat is matched by [*UnknownFormatError].
	ErrUnknownFormat = errors.New("chunker: unknown format")
	// ErrDamaged is matched by [*DamagedError].
	ErrDamaged = errors.New("chunker: damaged value")
	// ErrContention is matched by [*ContentionError].
	ErrContention = errors.New("chunker: contention")
	// ErrApplied is matched by [*AppliedError].
	ErrApplied = errors.New("chunker: applied")
	// ErrSweepLost is returned by a sweep that was stopped because it had lost its
	// lock, as after a long partition. What it has deleted was garbage.
	ErrSweepLost = errors.New("chunker: the sweep has lost its lock: call Sweep again")
	// ErrClosed is returned by writes after Close that would have to stage chunks.
	ErrClosed = errors.New("chunker: closed")
)

// ReservedKeyError refuses a key that begins with the reserved prefix. Nothing
// was sent.
type ReservedKeyError struct {
	Key    []byte
	Prefix string
}

func (e *ReservedKeyError) Error() string {
	return fmt.Sprintf("%v: key %q begins with %q, where the chunks of large values are stored: use another key, or another Config.ReservedPrefix in every client of the cluster", ErrReservedKey, e.Key, e.Prefix)
}

func (e *ReservedKeyError) Unwrap() error { return ErrReservedKey }

// ValueTooLargeError refuses a value longer than Config.MaxValueBytes: one that
// was to be put, and then nothing was written, or one that was read.
type ValueTooLargeError struct {
	Key         []byte
	Bytes, Most int
}

func (e *ValueTooLargeError) Error() string {
	return fmt.Sprintf("%v: key %q: %d bytes, Config.MaxValueBytes is %d: raise it, to %d at the most, or split the value over several keys", ErrValueTooLarge, e.Key, e.Bytes, e.Most, maxMaxValueBytes)
}

func (e *ValueTooLargeError) Unwrap() error { return ErrValueTooLarge }

// PrefixMismatchError says that a value was written by a client with another
// reserved prefix, so that its chunks cannot be found. Nothing was written.
type PrefixMismatchError struct {
	Key              []byte
	Revision         int64 // the key's ModRevision
	Stored, Expected string
}

func (e *PrefixMismatchError) Error() string {
	return fmt.Sprintf("%v: key %q at revision %d has its chunks under %q, this client under %q: set Config.ReservedPrefix to the same prefix in every client of the cluster", ErrPrefixMismatch, e.Key, e.Revision, e.Stored, e.Expected)
}

func (e *PrefixMismatchError) Unwrap() error { return ErrPrefixMismatch }

// UnknownFormatError says that a value was written by a client of a version that
// this one cannot read. Nothing was written.
type UnknownFormatError struct {
	Key      []byte
	Revision int64 // the key's ModRevision
	Reason   string
}

func (e *UnknownFormatError) Error() string {
	return fmt.Sprintf("%v: key %q at revision %d: %s: upgrade this client, or, where no client of kvwrap's has put the value, delete it", ErrUnknownFormat, e.Key, e.Revision, e.Reason)
}

func (e *UnknownFormatError) Unwrap() error { return ErrUnknownFormat }

// DamagedError says that what is stored at a key is not what a client of this
// package wrote: a manifest that does not parse, or a chunk that is missing,
// altered or swapped. No part of such a value is ever returned.
type DamagedError struct {
	Key      []byte
	Revision int64  // the key's ModRevision
	Chunk    string // which chunk, as token/index; empty where it is the manifest
	Reason   string

	missing bool // the chunk is, so that reading again may help
}

func (e *DamagedError) Error() string {
	chunk := ""
	if e.Chunk != "" {
		chunk = " chunk " + e.Chunk
	}
	return fmt.Sprintf("%v: key %q at revision %d:%s %s: delete the key and write the value again, or restore it from a backup", ErrDamaged, e.Key, e.Revision, chunk, e.Reason)
}

func (e *DamagedError) Unwrap() error { return ErrDamaged }

// TxnTooWideError says that a transaction of the application's is within the
// server's --max-txn-ops, but not with what had to be added to it for chunked
// values. Nothing was written. It matches rpctypes.ErrTooManyOps.
type TxnTooWideError struct {
	Ops, Most int // operations on the widest path, the server's limit
}

func (e *TxnTooWideError) Error() string {
	return fmt.Sprintf("chunker: transaction too wide: with what chunked values need it has %d operations, the server allows %d: split it, or raise the server's --max-txn-ops", e.Ops, e.Most)
}

func (e *TxnTooWideError) Unwrap() error { return rpctypes.ErrTooManyOps }

// PermissionError says that etcd refused to a user a request that it would have
// allowed a client without chunks: the role lacks a permission on the range of the
// chunks, or the one to read a key that it may write. Nothing was written, unless it
// is in an AppliedError. It matches rpctypes.ErrPermissionDenied. Where etcd would have
// refused the request in any case its own error is returned.
type PermissionError struct {
	Key, RangeEnd []byte // that the request is for, as in etcd's requests
	Need          string // "read", "write" or "readwrite", as etcdctl names it
	From, To      string // the keys that the permission is needed on: [From, To), or From alone
}

func (e *PermissionError) Error() string {
	on := fmt.Sprintf("the keys from %q to %q, where their chunks are stored", e.From, e.To)
	remedy := `run "shapecheck roles --apply" as root, or grant the range of Config.ChunkRange`
	if e.To == "" {
		on, remedy = "the key, since a large value is put under a comparison with what is there", "grant readwrite in place of write"
	}
	what := fmt.Sprintf("key %q", e.Key)
	if len(e.RangeEnd) > 0 {
		what = fmt.Sprintf("keys from %q to %q", e.Key, e.RangeEnd)
	}
	return fmt.Sprintf("chunker: permission denied: %s: the user needs %s permission on %s: %s", what, e.Need, on, remedy)
}

func (e *PermissionError) Unwrap() error { return rpctypes.ErrPermissionDenied }

// ContentionError says that a transaction was given up because, at each of many
// attempts, others wrote what it depends on. Nothing was written.
type ContentionError struct{ Attempts int }

func (e *ContentionError) Error() string {
	return fmt.Sprintf("%v: other writers came first %d times: try again later, or compare something that changes less often", ErrContention, e.Attempts)
}

func (e *ContentionError) Unwrap() error { return ErrContention }

// AppliedError says that a write was applied, at Revision, and that something it
// was to return, such as the value before, cannot be read: it is damaged, or was
// overwritten and compacted in the meantime. Err says which.
type AppliedError struct {
	Revision int64
	Err      error
}

func (e *AppliedError) Error() string {
	return fmt.Sprintf("%v: the write was applied at revision %d, but what it was to return cannot be read: %v", ErrApplied, e.Revision, e.Err)
}

func (e *AppliedError) Unwrap() []error { return []error{ErrApplied, e.Err} }

// unreadable returns the error for what format found at a key.
func unreadable(key []byte, revision int64, err error) error {
	var version *format.VersionError
	if errors.As(err, &version) {
		return &UnknownFormatError{Key: key, Revision: revision, Reason: err.Error()}
	}
	e := &DamagedError{Key: key, Revision: revision, Reason: err.Error()}
	var chunk *format.ChunkError
	if errors.As(err, &chunk) {
		e.Chunk, e.Reason, e.missing = chunk.ID.String(), chunk.Reason, chunk.Missing
	}
	return e
}
