package coalesce

import (
	"errors"
	"fmt"
	"time"
)

// The sentinels that errors of this package match with errors.Is. The errors
// themselves carry the values; etcd's own errors pass through unchanged.
var (
	// ErrConfig is matched by every error of [New] and [NewKV], and by that of
	// PutAsync where Config.Lease is nil.
	ErrConfig = errors.New("coalesce: invalid config")
	// ErrClosed is the error of PutAsync after Close, and of what Close gave up.
	ErrClosed = errors.New("coalesce: closed")
	// ErrFull is matched by [*FullError].
	ErrFull = errors.New("coalesce: full")
	// ErrFenced is matched by [*FencedError].
	ErrFenced = errors.New("coalesce: fenced off")
	// ErrOvertaken is matched by [*OvertakenError].
	ErrOvertaken = errors.New("coalesce: overtaken")
	// ErrNotNumber is matched by [*NumberError].
	ErrNotNumber = errors.New("coalesce: not a number")
	// ErrBarrier is matched by [*BarrierError].
	ErrBarrier = errors.New("coalesce: barrier")
	// ErrContention is matched by [*ContentionError].
	ErrContention = errors.New("coalesce: contention")
)

var (
	errNoConditions = fmt.Errorf("%w: WithFence was called without conditions: nothing is written under it: name the owner's key, or write under another context", ErrFenced)
	errNoKey        = fmt.Errorf("%w: a condition of WithFence has no key: nothing is written under it: name the owner's key, as in clientv3.Compare(clientv3.CreateRevision(owner), \"=\", revision)", ErrFenced)
)

// FullError refuses a put by PutAsync for which there is no room. It was not taken.
type FullError struct {
	Key                  []byte
	Bytes, Pending, Most int
}

func (e *FullError) Error() string {
	remedy := "wait for what is pending, with Flush, or raise MaxPendingBytes"
	if e.Bytes > e.Most {
		remedy = "raise MaxPendingBytes, or use Put"
	}
	return fmt.Sprintf("%v: key %q takes %d bytes, %d are pending, Config.MaxPendingBytes is %d: %s", ErrFull, e.Key, e.Bytes, e.Pending, e.Most, remedy)
}

func (e *FullError) Unwrap() error { return ErrFull }

// FencedError says that a write was not made because the conditions of its
// context, see [WithFence], did not hold. Nothing was written.
type FencedError struct {
	Key        []byte // the first that was to be written
	Conditions string
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("%v: key %q: nothing was written, since this does not hold any more: %s: whoever made that so writes now; stop writing, or take the ownership again", ErrFenced, e.Key, e.Conditions)
}

func (e *FencedError) Unwrap() error { return ErrFenced }

// OvertakenError says that a write was not made because, while it was not known
// whether its first attempt had been applied, somebody else wrote the key: writing it
// now would bring back what is older. Err is the error of that attempt.
type OvertakenError struct {
	Key      []byte
	Revision int64 // of the other write; 0 where the key was deleted
	Err      error
}

func (e *OvertakenError) Error() string {
	by := fmt.Sprintf("written by somebody else at revision %d", e.Revision)
	if e.Revision == 0 {
		by = "deleted by somebody else"
	}
	return fmt.Sprintf("%v: key %q was %s, after an attempt that failed (%v): nothing was written, read it and decide again", ErrOvertaken, e.Key, by, e.Err)
}

func (e *OvertakenError) Unwrap() []error { return []error{ErrOvertaken, e.Err} }

// NumberError says that a value of a key under a rule with Max is no number, or does not
// compare with the one Before, that waits or is stored. Nothing was written.
type NumberError struct {
	Key           []byte
	Value, Before []byte
}

func (e *NumberError) Error() string {
	if e.Before == nil {
		return fmt.Sprintf("%v: key %q: %.40q: under Max write unsigned decimals, or numbers of one length, big endian; or use LastWriteWins", ErrNotNumber, e.Key, e.Value)
	}
	return fmt.Sprintf("%v: key %q: %.40q and %.40q do not compare: under Max all values of a key are decimals, or of one length; delete the key, or use LastWriteWins", ErrNotNumber, e.Key, e.Value, e.Before)
}

func (e *NumberError) Unwrap() error { return ErrNotNumber }

// BarrierError says that a request was not sent because a write before it, that waits
// for the same keys, could not be sent and is being tried again. Err is why. Nothing was
// read or written.
type BarrierError struct {
	Key []byte // of the write that waits
	Err error
}

func (e *BarrierError) Error() string {
	return fmt.Sprintf("%v: a write of key %q that came before is tried again and again: %v: try again when that is over, or set StaleReads to read without it", ErrBarrier, e.Key, e.Err)
}

func (e *BarrierError) Unwrap() []error { return []error{ErrBarrier, e.Err} }

// SequenceError says that the key that stands for this process could not be put, so that
// nothing that is sent again, or depends on what this process knows, can be written.
type SequenceError struct {
	Prefix string
	Err    error
}

func (e *SequenceError) Error() string {
	return fmt.Sprintf("coalesce: putting this process's key below %q: %v: grant readwrite permission on that prefix, as \"shapecheck roles --sequences --apply\" does", e.Prefix, e.Err)
}

func (e *SequenceError) Unwrap() error { return e.Err }

// ContentionError says that a write was given up because, at each of many attempts,
// others had written what it depends on. Nothing was written.
type ContentionError struct {
	Key      []byte
	Attempts int
}

func (e *ContentionError) Error() string {
	return fmt.Sprintf("%v: key %q: others came first %d times: try again later", ErrContention, e.Key, e.Attempts)
}

func (e *ContentionError) Unwrap() error { return ErrContention }

// FlushError says that Flush or Close could not write all that PutAsync had taken. Of
// the puts that Failed the promises were told, or Config.OnError; Key is the first one's.
// The others wait still, after Flush, and were given up, after Close, and their promises
// were told as well.
type FlushError struct {
	Failed, Waiting int // puts
	Key             []byte
	Err             error // the first error, or that of the context
	After           time.Duration
}

func (e *FlushError) Error() string {
	return fmt.Sprintf("coalesce: after %v, of what PutAsync has taken %d failed, %d not yet written; key %q: %v: put again what must not be lost, as promises or OnError tell", e.After, e.Failed, e.Waiting, e.Key, e.Err)
}

func (e *FlushError) Unwrap() error { return e.Err }
