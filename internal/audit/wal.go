package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/kvwrap/kvwrap/internal/keys"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// RaftLog is what is in the write-ahead log of a member: what its raft log has been filled
// with since the oldest file that is there. An entry that a later leader has replaced counts,
// too.
type RaftLog struct {
	Dir        string `json:"dir"`
	Files      int    `json:"files"`
	FirstIndex uint64 `json:"firstIndex"`
	LastIndex  uint64 `json:"lastIndex"`
	Snapshot   uint64 `json:"snapshot"` // index of the last snapshot on disk
	// Entries are the sizes of the entries' data: marshalled requests.
	Entries Distribution `json:"entries"`
	// Retained is how many of the newest entries are taken to be in memory, and what they
	// have: 5,000, which is the default of --snapshot-catchup-entries.
	Retained      int         `json:"retained"`
	RetainedBytes uint64      `json:"retainedBytes"`
	Types         []EntryKind `json:"types"`    // the heaviest first
	Prefixes      []EntryKind `json:"prefixes"` // of what was put; the bytes of a transaction are shared out to its puts
	// Torn is set where the last record is not whole: the member is writing it, or was killed
	// while it did.
	Torn bool `json:"torn,omitempty"`
	// Incomplete says why not everything was read.
	Incomplete string `json:"incomplete,omitempty"`

	reading int // which file
}

// EntryKind is a kind of raft entries: a type of request, or a prefix.
type EntryKind struct {
	Name    Key     `json:"name"`
	Entries uint64  `json:"entries"`
	Bytes   uint64  `json:"bytes"`
	Share   float64 `json:"share"`
	Max     uint64  `json:"max"` // in one entry

	last  uint64 // entry that was counted, by number
	there uint64 // bytes in that
}

const retainedEntries = 5000

type walTally struct {
	cfg             Config
	sizes           sizes
	types, prefixes map[string]*EntryKind
	records         uint64
	entries         uint64
	last            []uint64 // sizes of the newest entries, a ring
}

// ReadWAL reads a member's write-ahead log, member/wal in its data directory, while the member
// runs or not. It opens the files for reading only, and takes no lock. Of what it cannot read
// it says why in Incomplete; its error is about a directory that has no such log.
func ReadWAL(ctx context.Context, dir string, cfg Config) (*RaftLog, error) {
	all, err := os.ReadDir(dir)
	var names []string // in order, by number
	for _, e := range all {
		if filepath.Ext(e.Name()) == ".wal" {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("%s: there is no file *.wal", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: give the --data-dir of a member, which has member/wal in it", err)
	}
	l := &RaftLog{Dir: dir, Files: len(names)}
	t := &walTally{cfg: cfg.filled(), types: make(map[string]*EntryKind), prefixes: make(map[string]*EntryKind)}
	var files []fileutil.FileReader
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("%w: run this as the user of etcd, or copy the directory", err)
		}
		defer f.Close()
		files = append(files, &walFile{FileReader: fileutil.NewFileReader(f), at: len(files), reading: &l.reading})
	}
	switch err := l.read(ctx, wal.NewDecoder(files...), t); {
	case ctx.Err() != nil:
		l.Incomplete = fmt.Sprintf("interrupted after index %d", l.LastIndex)
	case err != nil:
		l.Incomplete = fmt.Sprintf("it is damaged after index %d: %v: check it with etcd-dump-logs", l.LastIndex, err)
	case l.reading < len(files)-1:
		l.Incomplete = fmt.Sprintf("%s ends in the middle of a record, after index %d, and the files behind it were not read: check it with etcd-dump-logs", filepath.Base(names[l.reading]), l.LastIndex)
	case t.records == 0:
		l.Incomplete = "there is no record in it"
	}
	l.Entries = t.sizes.distribution()
	l.Retained = len(t.last)
	for _, n := range t.last {
		l.RetainedBytes += n
	}
	l.Types, l.Prefixes = t.sorted(t.types), t.sorted(t.prefixes)
	return l, nil
}

// walFile is a file of a log that says that it is being read.
type walFile struct {
	fileutil.FileReader
	at      int
	reading *int
}

func (f *walFile) Read(b []byte) (int, error) {
	*f.reading = max(*f.reading, f.at)
	return f.FileReader.Read(b)
}

func (l *RaftLog) read(ctx context.Context, decoder wal.Decoder, t *walTally) error {
	for rec := new(walpb.Record); ; {
		if err := decoder.Decode(rec); err != nil {
			if l.Torn = errors.Is(err, io.ErrUnexpectedEOF); l.Torn || errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		t.records++
		switch rec.GetType() {
		case wal.EntryType:
			var e raftpb.Entry
			if err := proto.Unmarshal(rec.Data, &e); err != nil {
				return err
			}
			if l.FirstIndex == 0 {
				l.FirstIndex = e.GetIndex()
			}
			l.LastIndex = e.GetIndex()
			t.add(&e)
		case wal.SnapshotType:
			var s walpb.Snapshot
			if err := proto.Unmarshal(rec.Data, &s); err != nil {
				return err
			}
			l.Snapshot = s.GetIndex()
		case wal.CrcType:
			if crc := decoder.LastCRC(); crc != 0 && rec.Validate(crc) != nil {
				return wal.ErrCRCMismatch
			}
			decoder.UpdateCRC(rec.GetCrc())
		}
	}
}

func (t *walTally) add(e *raftpb.Entry) {
	size := uint64(len(e.Data))
	t.sizes.add(size)
	t.entries++
	if len(t.last) == retainedEntries {
		t.last[int(t.sizes.n-1)%retainedEntries] = size
	} else {
		t.last = append(t.last, size)
	}
	if e.GetType() != raftpb.EntryNormal {
		t.count(t.types, "ConfChange", size)
		return
	}
	if size == 0 {
		t.count(t.types, "(empty, of a new leader)", 0)
		return
	}
	var r etcdserverpb.InternalRaftRequest
	if err := proto.Unmarshal(e.Data, &r); err != nil {
		t.count(t.types, "(unknown)", size)
		return
	}
	t.count(t.types, requestType(&r), size)
	var puts []*etcdserverpb.PutRequest
	switch {
	case r.Put != nil:
		puts = append(puts, r.Put)
	case r.Txn != nil:
		puts = putsOf(r.Txn, nil)
	}
	all := 0
	for _, p := range puts {
		all += len(p.Key) + len(p.Value)
	}
	for _, p := range puts {
		logical := p.Key
		if key, _, err := t.cfg.Space.ParseChunkKey(p.Key); err == nil {
			logical = key
		}
		share := uint64(float64(size) * ratio(float64(len(p.Key)+len(p.Value)), float64(all)))
		name := keys.Prefix(logical, t.cfg.Separator, t.cfg.Depth)
		t.count(t.prefixes, string(name[:min(len(name), maxName)]), share)
	}
}

// putsOf returns the puts of a transaction, of both branches: an entry holds them all.
func putsOf(txn *etcdserverpb.TxnRequest, puts []*etcdserverpb.PutRequest) []*etcdserverpb.PutRequest {
	for _, op := range slices.Concat(txn.Success, txn.Failure) {
		if p := op.GetRequestPut(); p != nil {
			puts = append(puts, p)
		}
		if inner := op.GetRequestTxn(); inner != nil {
			puts = putsOf(inner, puts)
		}
	}
	return puts
}

// requestType is the name of the field that is set.
func requestType(r *etcdserverpb.InternalRaftRequest) (name string) {
	name = "(unknown)"
	r.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if f.Kind() != protoreflect.MessageKind || f.Name() == "header" {
			return true
		}
		name = string(f.Message().Name())
		return false
	})
	return name
}

func (t *walTally) count(kinds map[string]*EntryKind, name string, bytes uint64) {
	k := kinds[name]
	if k == nil {
		if len(kinds) == maxPrefixes {
			name = "(all others)"
		}
		if k = kinds[name]; k == nil {
			k = &EntryKind{Name: Key(name)}
			kinds[name] = k
		}
	}
	if k.last != t.entries {
		k.Entries++
		k.last, k.there = t.entries, 0
	}
	k.Bytes += bytes
	k.there += bytes
	k.Max = max(k.Max, k.there)
}

func (t *walTally) sorted(kinds map[string]*EntryKind) (list []EntryKind) {
	for _, k := range kinds {
		k.Share = ratio(float64(k.Bytes), float64(t.sizes.sum))
		list = append(list, *k)
	}
	slices.SortFunc(list, func(a, b EntryKind) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// SetRaftLog adds what was read of a write-ahead log.
func (r *Report) SetRaftLog(l *RaftLog) {
	r.RaftLog = l
	r.Estimates = append(r.Estimates, fmt.Sprintf("the raft log in memory is the newest %d entries, as with etcd's default --snapshot-catchup-entries; etcd 3.5 keeps up to 105,000", retainedEntries))
	switch {
	case l.Incomplete != "":
		r.Partial = true
		r.Notes = append(r.Notes, "the write-ahead log was not read to its end: "+l.Incomplete)
	case l.Torn:
		r.Notes = append(r.Notes, "the last record of the write-ahead log is not whole: the member is writing it, or was killed while it did")
	}
}
