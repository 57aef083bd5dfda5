package audit

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// ErrNotDB is matched by the error about a file that is no database of etcd, or is damaged.
var ErrNotDB = errors.New("not a database of etcd")

// DB is a database file of etcd that is open for reading: a snapshot, or member/snap/db in
// the data directory of a member that does not run. It is never written to.
type DB struct {
	path string
	db   *bolt.DB
	size int64
}

// lockTimeout is how long OpenDB waits for the lock that a running member holds.
const lockTimeout = time.Second

// OpenDB opens the file at path.
func OpenDB(path string) (d *DB, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w: give a snapshot (etcdctl snapshot save FILE), or member/snap/db of a member that is stopped", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: it is a directory or a device: give the file member/snap/db in a member's data directory, or a snapshot", path, ErrNotDB)
	}
	// bbolt makes a database of an empty file.
	if info.Size() < 4*512 {
		return nil, fmt.Errorf("%s: %w: it has %d bytes: give a snapshot, or member/snap/db of a member", path, ErrNotDB, info.Size())
	}
	err = guarded(path, func() error {
		db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: lockTimeout, NoStatistics: true})
		if err == nil {
			d = &DB{path: path, db: db, size: info.Size()}
		}
		return err
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%s is in use, by a member that runs: take a snapshot of it (etcdctl snapshot save FILE) and audit that, or audit the cluster (--endpoints)", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: run this as the user of etcd, or copy the file", err)
	case err != nil && !errors.Is(err, ErrNotDB):
		return nil, fmt.Errorf("%s: %w: %v: give a snapshot, or member/snap/db of a member", path, ErrNotDB, err)
	case err != nil:
		return nil, err
	}
	err = guarded(path, func() error {
		return d.db.View(func(tx *bolt.Tx) error {
			if tx.Size() > d.size {
				return fmt.Errorf("%s: %w: it is cut off: it should have %d bytes, and has %d: copy it again", path, ErrNotDB, tx.Size(), d.size)
			}
			if tx.Bucket([]byte("key")) == nil || tx.Bucket([]byte("meta")) == nil {
				return fmt.Errorf("%s: %w: it is a bbolt database without the buckets \"key\" and \"meta\": give a snapshot, or member/snap/db of a member", path, ErrNotDB)
			}
			return nil
		})
	})
	if err != nil {
		d.db.Close()
		return nil, err
	}
	return d, nil
}

// Close closes the file.
func (d *DB) Close() error { return d.db.Close() }

// guarded runs f, and makes an error of a page that is damaged, or that is not in the file
// any more: bbolt panics about the first, and the memory faults for the second.
func guarded(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %w: a page is damaged or missing (%v): check it with etcdutl snapshot status, and copy or take it again", path, ErrNotDB, p)
		}
	}()
	return f()
}

// Progress is told how far an audit has come: records that were read, of about how many, in
// this pass of how many. It is called some times a second.
type Progress func(done, all uint64, pass, passes int)

// checkEvery is how many records are read between two looks at the time and the context.
const checkEvery = 1 << 14

// Audit reads everything in the file. Where ctx ends, the report is of what was read until
// then, and Partial; that is no error.
func (d *DB) Audit(ctx context.Context, cfg Config, progress Progress) (*Report, error) {
	t := newTally(cfg, false)
	return d.audit(ctx, t, progress)
}

func (d *DB) audit(ctx context.Context, t *tally, progress Progress) (*Report, error) {
	start := time.Now()
	var r *Report
	inUse := d.inUse()
	err := guarded(d.path, func() error {
		return d.db.View(func(tx *bolt.Tx) error {
			var newest int64
			for again := true; again; again = t.next() {
				var err error
				if newest, err = d.scan(ctx, tx, t, progress); err != nil {
					return err
				}
				if ctx.Err() != nil {
					break
				}
			}
			r = t.report()
			r.At, r.Source.Kind, r.Source.File, r.Source.Revision = start, "db", d.path, newest
			if ctx.Err() != nil {
				r.Partial = true
				r.Notes = append(r.Notes, fmt.Sprintf("interrupted: only the newest %d records were read, so the older keys are missing", r.Source.Records))
				if t.passes > 1 || t.estimate != nil {
					r.Notes = append(r.Notes, fmt.Sprintf("of %d parts of the keys, %d were read", t.passes, t.pass))
				}
			}
			d.describe(tx, r)
			return nil
		})
	})
	use := <-inUse // whatever has become of the rest, the file may be closed then
	if err = cmp.Or(err, use.err); err != nil {
		return nil, err
	}
	r.Backend.InUse = use.bytes
	r.Backend.Bloat = ratio(float64(r.Backend.Size), float64(r.Backend.InUse))
	r.Source.Seconds = time.Since(start).Seconds()
	return r, nil
}

// scan gives all records to t, the newest first, and returns the newest revision.
func (d *DB) scan(ctx context.Context, tx *bolt.Tx, t *tally, progress Progress) (newest int64, err error) {
	c := tx.Bucket([]byte("key")).Cursor()
	var r record
	var done uint64
	var oldest int64
	if k, _ := c.First(); len(k) >= 8 {
		oldest = int64(binary.BigEndian.Uint64(k))
	}
	for k, v := c.Last(); k != nil; k, v = c.Prev() {
		if err := parseRecord(&r, k, v); err != nil {
			return 0, fmt.Errorf("%s: %w: %v: check it with etcdutl snapshot status", d.path, ErrNotDB, err)
		}
		newest = max(newest, r.revision)
		t.add(&r)
		if done++; done%checkEvery == 0 {
			if ctx.Err() != nil {
				return newest, nil
			}
			if progress != nil {
				// As if revisions had equally many records everywhere.
				part := float64(newest-r.revision+1) / float64(newest-oldest+1)
				progress(done, uint64(float64(done)/part), t.pass+1, t.passes)
			}
		}
	}
	return newest, nil
}

// use is how much of a file is in use.
type use struct {
	bytes int64
	err   error
}

// inUse counts the pages that are in use, while the records are read. The file does not say
// which pages are free, since etcd does not write bbolt's list of them, and bbolt would make
// that list in a goroutine of its own, where a damaged page ends the process.
func (d *DB) inUse() <-chan use {
	done := make(chan use, 1)
	go func() {
		var u use
		u.err = guarded(d.path, func() error {
			return d.db.View(func(tx *bolt.Tx) error {
				s := tx.Cursor().Bucket().Stats()
				pages := 2 + s.BranchPageN + s.BranchOverflowN + s.LeafPageN + s.LeafOverflowN // 2 for bbolt itself
				u.bytes = int64(pages) * int64(d.db.Info().PageSize)
				return nil
			})
		})
		done <- u
	}()
	return done
}

// describe fills in what else the file says.
func (d *DB) describe(tx *bolt.Tx, r *Report) {
	r.Backend.Size = tx.Size()
	get := func(bucket, key string) []byte {
		if b := tx.Bucket([]byte(bucket)); b != nil {
			return b.Get([]byte(key))
		}
		return nil
	}
	if v := get("meta", "finishedCompactRev"); len(v) >= 8 {
		r.Source.Compacted = int64(binary.BigEndian.Uint64(v))
	}
	r.Source.Version = string(get("cluster", "clusterVersion"))
	if v := get("meta", "storageVersion"); v != nil {
		r.Source.Version = string(v)
	}
	each := func(bucket string, f func(k, v []byte)) {
		if b := tx.Bucket([]byte(bucket)); b != nil {
			c := b.Cursor()
			for k, v := c.First(); k != nil; k, v = c.Next() {
				f(k, v)
			}
		}
	}
	each("members", func(k, v []byte) {
		m := Member{ID: string(k)}
		var attributes struct {
			Name    string `json:"name"`
			Learner bool   `json:"isLearner"`
		}
		if err := json.Unmarshal(v, &attributes); err != nil {
			m.Error = fmt.Sprintf("what the file says of it is no JSON: %v", err)
		}
		if m.Name = attributes.Name; attributes.Learner {
			m.Role = "learner"
		}
		r.Members = append(r.Members, m)
	})
	each("alarm", func(k, _ []byte) {
		var a etcdserverpb.AlarmMember
		if proto.Unmarshal(k, &a) != nil {
			return
		}
		id := fmt.Sprintf("%x", a.MemberID)
		at := slices.IndexFunc(r.Members, func(m Member) bool { return m.ID == id })
		if at < 0 {
			at = len(r.Members)
			r.Members = append(r.Members, Member{ID: id})
		}
		r.Members[at].Alarms = append(r.Members[at].Alarms, a.Alarm.String())
	})
	each("lease", func(_, _ []byte) { r.Leases.Granted++ })
}
