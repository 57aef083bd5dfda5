package audit

import (
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
	path    string
	lock    *bolt.DB // which holds the lock that members respect, and is not read by
	unmap   func() error
	pages   *pages
	buckets map[string]tree
	used    int // pages of the buckets other than "key", of bbolt itself and of the list of buckets
}

// lockTimeout is how long OpenDB waits for the lock that a running member holds.
const lockTimeout = time.Second

// OpenDB opens the file at path.
func OpenDB(path string) (*DB, error) {
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
	d := &DB{path: path, buckets: make(map[string]tree), unmap: func() error { return nil }}
	var file *os.File
	err = guarded(path, func() (err error) {
		opened := func(name string, flag int, mode os.FileMode) (*os.File, error) {
			file, err = os.OpenFile(name, flag, mode)
			return file, err
		}
		d.lock, err = bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: lockTimeout, NoStatistics: true, OpenFile: opened})
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
	if err := d.open(file); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// open maps the file and looks at its buckets.
func (d *DB) open(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	data, unmap, err := mapFile(file, info.Size())
	if err != nil {
		return fmt.Errorf("%s: reading it as memory: %w", d.path, err)
	}
	d.unmap = unmap
	return guarded(d.path, func() error {
		if d.pages, err = newPages(data, d.lock.Info().PageSize); err != nil {
			return d.notDB(err)
		}
		used, err := d.pages.walk(context.Background(), tree{root: d.pages.root}, false, func(key, value []byte, bucket bool) error {
			if !bucket {
				return fmt.Errorf("%q is no bucket", key)
			}
			t, err := treeOf(value)
			d.buckets[string(key)] = t
			return err
		})
		if err != nil {
			return d.notDB(err)
		}
		for _, name := range []string{"key", "meta"} {
			if _, ok := d.buckets[name]; !ok {
				return fmt.Errorf("%s: %w: it is a bbolt database without the buckets \"key\" and \"meta\": give a snapshot, or member/snap/db of a member", d.path, ErrNotDB)
			}
		}
		d.used = 2 + used
		for name, t := range d.buckets {
			if name == "key" {
				continue
			}
			used, err := d.pages.walk(context.Background(), t, false, func([]byte, []byte, bool) error { return nil })
			if err != nil {
				return d.notDB(err)
			}
			d.used += used
		}
		return nil
	})
}

// notDB is the error about what is wrong with the file.
func (d *DB) notDB(err error) error {
	return fmt.Errorf("%s: %w: %w: check it with etcdutl snapshot status, and copy or take it again", d.path, ErrNotDB, err)
}

// Close closes the file.
func (d *DB) Close() error { return errors.Join(d.unmap(), d.lock.Close()) }

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

// checkEvery is how many records are read between two reports of progress.
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
	err := guarded(d.path, func() error {
		var newest int64
		var used int
		for again := true; again; again = t.next() {
			var err error
			if newest, used, err = d.scan(ctx, t, progress); err != nil {
				return err
			}
			if ctx.Err() != nil {
				break
			}
		}
		r = t.report()
		r.At, r.Source.Kind, r.Source.File, r.Source.Revision = start, "db", d.path, newest
		if r.Backend.Size = int64(d.pages.high * d.pages.size); ctx.Err() == nil {
			r.Backend.InUse = int64(uint64(d.used+used) * d.pages.size)
			r.Backend.Bloat = ratio(float64(r.Backend.Size), float64(r.Backend.InUse))
		} else {
			r.Partial = true
			r.Notes = append(r.Notes, t.interrupted())
		}
		return d.describe(r)
	})
	if err != nil {
		return nil, err
	}
	r.Source.Seconds = time.Since(start).Seconds()
	return r, nil
}

// interrupted says what was read when nothing more was.
func (t *tally) interrupted() string {
	switch {
	case t.estimate != nil:
		return "interrupted: the keys were being counted, to read them in parts; nothing is in this report"
	case t.passes > 1:
		return fmt.Sprintf("interrupted in part %d of %d of the keys: those of later parts are missing, and the older ones of this part", t.pass+1, t.passes)
	}
	return fmt.Sprintf("interrupted: only the newest %d records were read, so the older keys are missing", t.records)
}

// scan gives all records to t, the newest first, and returns the newest revision, and how many
// pages the records take. It ends with ctx, without an error.
func (d *DB) scan(ctx context.Context, t *tally, progress Progress) (newest int64, used int, err error) {
	oldest := int64(0)
	first, err := d.pages.first(d.buckets["key"])
	if err != nil {
		return 0, 0, d.notDB(err)
	}
	if len(first) >= 8 {
		oldest = int64(binary.BigEndian.Uint64(first))
	}
	var r record
	var done uint64
	used, err = d.pages.walk(ctx, d.buckets["key"], true, func(k, v []byte, _ bool) error {
		if err := parseRecord(&r, k, v); err != nil {
			return err
		}
		newest = max(newest, r.revision)
		t.add(&r)
		if done++; done%checkEvery == 0 && progress != nil {
			// As if revisions had equally many records everywhere.
			part := float64(newest-r.revision+1) / float64(max(newest-oldest, 0)+1)
			progress(done, uint64(float64(done)/part), t.pass+1, t.passes)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		return 0, 0, d.notDB(err)
	}
	return newest, used, nil
}

// describe fills in what else the file says.
func (d *DB) describe(r *Report) (err error) {
	each := func(bucket string, f func(k, v []byte)) {
		if t, ok := d.buckets[bucket]; ok && err == nil {
			_, err = d.pages.walk(context.Background(), t, false, func(k, v []byte, _ bool) error {
				f(k, v)
				return nil
			})
		}
	}
	each("meta", func(k, v []byte) {
		switch {
		case string(k) == "finishedCompactRev" && len(v) >= 8:
			r.Source.Compacted = int64(binary.BigEndian.Uint64(v))
			r.Source.Revision = max(r.Source.Revision, r.Source.Compacted)
		case string(k) == "storageVersion":
			r.Source.Version = string(v)
		}
	})
	each("cluster", func(k, v []byte) {
		if string(k) == "clusterVersion" && r.Source.Version == "" {
			r.Source.Version = string(v)
		}
	})
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
	return err
}
