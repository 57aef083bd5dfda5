package chunker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Config configures a chunker. The zero value of a field means its default; a
// Config is copied and never changed. Lease is the one field without a default.
type Config struct {
	// Threshold is the length in bytes from which on a value is chunked.
	// Default: what no longer fits in one proposal of MaxEntryBytes, about
	// 64 KiB. From 1 to that.
	Threshold int

	// MaxEntryBytes is the size of the largest raft entry, marshalled, that a
	// write becomes. etcd keeps its newest 5,000 entries and more in memory, so
	// this times 5,000 bounds what they take. Default 64 KiB, which fills eight
	// pages of 8 KiB exactly; from 16 KiB to 1 MiB. Choose a multiple of 8 KiB.
	// On a server with a smaller --max-request-bytes it lowers itself.
	MaxEntryBytes int

	// MaxValueBytes is the length of the largest value that is written, and of the
	// largest chunked one that is read.
	// A value is held in memory whole, twice while it is read or written.
	// Default 16 MiB, at most 256 MiB.
	MaxValueBytes int

	// ChunkBytes is the average length of a chunk before compression. Smaller
	// chunks propose less where little changes, larger ones are read faster.
	// Default: 4 KiB for values up to 4 MiB, then twice as much for four times
	// the length, 32 KiB at the most (docs/decisions/0002-chunk-size.md). From
	// 256 bytes to a fourth of MaxEntryBytes. A key keeps the length it was
	// first written with while that is within a factor of two.
	ChunkBytes int

	// ReservedPrefix begins the keys that chunks are stored under; the
	// application cannot use such keys. It is state of the cluster: all clients
	// must agree. Default "\x00kvw/".
	ReservedPrefix string

	// ReadOnly reads chunked values but stores every value whole, as a client
	// without kvwrap does. It is the first step of a roll-out: when all clients
	// can read chunked values, let them write them. A large value then is one
	// request, for which the server's --max-request-bytes and the client's
	// MaxCallSendMsgSize have to leave room.
	ReadOnly bool

	// CacheBytes bounds the memory for what is known of recently used keys: where
	// their chunks are, about 40 bytes a chunk, so that a key is read in one round
	// trip and written without reading it first; and the values, up to a fourth
	// of it each, of keys that are read again and again, so that only what has
	// changed is read. Each watch holds values besides, up to a fourth of it or one
	// value, whichever is more. Default 16 MiB.
	CacheBytes int

	// Lease grants and keeps the lease that marks unfinished writes as those of
	// this process. The lease is granted at the first value that takes more than
	// one proposal and revoked by Close. Required, unless ReadOnly is set.
	Lease clientv3.Lease

	// SessionTTL is the time to live of that lease, and so the time after which
	// a sweep may take what a crashed process left behind. Default one minute,
	// at least a second.
	SessionTTL time.Duration

	// SweepInterval is the time between two sweeps in the background, about. The
	// clients of a cluster share the work: where many have an interval, one of
	// them sweeps at a time, and not before half of it has passed since the last
	// one. Default 0, no sweeps but those of Sweep; at least two seconds.
	SweepInterval time.Duration

	// SweepRate bounds the requests a second that sweeps of this process send, one
	// or two for each key with chunks. Default 100.
	SweepRate int

	// OnSweep is told how each background sweep of this process has ended, if it
	// is not nil. The next one waits for it to return, and so does Close, for a
	// few seconds.
	OnSweep func(SweepResult, error)

	// Admit, if it is not nil, is asked before a write of key that takes several
	// proposals: so many revisions, and bytes as etcd's quota counts them, 256, the key and
	// the value of each put. What paces proposals makes it wait once, and refuses it before
	// anything was sent, not half way. The proposals are made with the context that it
	// returns, and done is called when that is over.
	Admit func(ctx context.Context, key []byte, revisions, bytes int) (admitted context.Context, done func(), err error)

	// Span, if it is not nil, is told of each step of a write that takes several: "kvwrap
	// write", and in it "kvwrap stage", "kvwrap commit", and "kvwrap give up", which may end
	// after the write. The step's requests are made with the context that it returns, and end is
	// called when that is over, with its error or nil. The package kvotel makes spans of them.
	Span func(ctx context.Context, step string, about ...slog.Attr) (spanned context.Context, end func(error))
}

const (
	defaultReservedPrefix = "\x00kvw/"
	defaultMaxEntryBytes  = 64 << 10
	defaultMaxValueBytes  = 16 << 20
	defaultCacheBytes     = 16 << 20
	defaultSessionTTL     = time.Minute
	defaultSweepRate      = 100

	minMaxEntryBytes = 16 << 10
	maxMaxEntryBytes = 1 << 20
	maxMaxValueBytes = 256 << 20
	minChunkBytes    = 256
)

// Validate returns the error that [New] would, which joins all that is wrong.
func (c Config) Validate() error {
	_, _, err := c.filled()
	return err
}

// filled returns c with its defaults, or an error that joins all that is wrong.
func (c Config) filled() (Config, format.Keyspace, error) {
	var errs []error
	within := func(name string, v *int, standard, least, most int) {
		if *v == 0 {
			*v = standard
		}
		if *v < least || *v > most {
			errs = append(errs, fmt.Errorf("%w: %s is %d: choose %d to %d bytes, or 0 for the default", ErrConfig, name, *v, least, most))
		}
	}
	within("MaxEntryBytes", &c.MaxEntryBytes, defaultMaxEntryBytes, minMaxEntryBytes, maxMaxEntryBytes)
	within("MaxValueBytes", &c.MaxValueBytes, defaultMaxValueBytes, 1, maxMaxValueBytes)
	within("CacheBytes", &c.CacheBytes, defaultCacheBytes, 1, math.MaxInt)
	if c.Threshold != 0 {
		within("Threshold", &c.Threshold, 0, 1, c.MaxEntryBytes)
	}
	if c.ChunkBytes != 0 {
		within("ChunkBytes", &c.ChunkBytes, 0, minChunkBytes, c.MaxEntryBytes/4)
	}
	if c.SessionTTL == 0 {
		c.SessionTTL = defaultSessionTTL
	}
	if c.SessionTTL < time.Second {
		errs = append(errs, fmt.Errorf("%w: SessionTTL is %v: choose a second or more, or 0 for the default", ErrConfig, c.SessionTTL))
	}
	if c.SweepInterval != 0 && c.SweepInterval < 2*time.Second {
		errs = append(errs, fmt.Errorf("%w: SweepInterval is %v: choose two seconds or more, or 0 for no sweeps in the background", ErrConfig, c.SweepInterval))
	}
	if c.SweepInterval != 0 && c.Lease == nil {
		errs = append(errs, fmt.Errorf("%w: SweepInterval is %v and Lease is nil: set it to the client's, since a sweep takes a lock with it", ErrConfig, c.SweepInterval))
	}
	if c.SweepRate == 0 {
		c.SweepRate = defaultSweepRate
	}
	if c.SweepRate < 0 {
		errs = append(errs, fmt.Errorf("%w: SweepRate is %d: choose 1 request a second or more, or 0 for the default", ErrConfig, c.SweepRate))
	}
	if c.Lease == nil && !c.ReadOnly {
		errs = append(errs, fmt.Errorf("%w: Lease is nil: set it to the client's, or set ReadOnly", ErrConfig))
	}
	c.ReservedPrefix = cmp.Or(c.ReservedPrefix, defaultReservedPrefix)
	space, err := c.space()
	return c, space, errors.Join(append(errs, err)...)
}

// OwnPrefix returns the prefix of keys below the reserved one that another stage may use,
// under a name of its own. No key of the application's maps to them, and none is shown to
// it. The configuration has to be valid.
func (c Config) OwnPrefix(name string) string {
	space, _ := c.space()
	return string(space.Own(name)) + "/"
}

// space returns the part of the key space that is reserved for chunks.
func (c Config) space() (format.Keyspace, error) {
	space, err := format.NewKeyspace(cmp.Or(c.ReservedPrefix, defaultReservedPrefix))
	if err != nil {
		return space, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return space, nil
}

// cut returns the cutting parameters for a value of the given length, no chunk
// longer than limit. They are those of the value that is stored there now, base,
// as long as these suit the new one too.
func (c Config) cut(length, limit int, base *format.Layout) format.CutParams {
	avg := c.ChunkBytes
	if avg == 0 {
		avg = 4 << 10
		for size := 4 << 20; length > size && avg < 32<<10; size *= 4 {
			avg *= 2
		}
	}
	want := format.NewCutParams(avg, limit)
	if base != nil && base.Cut.Max <= limit && base.Cut.Avg <= 2*want.Avg && 2*base.Cut.Avg >= want.Avg {
		return base.Cut
	}
	return want
}
