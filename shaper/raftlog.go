package shaper

import "math"

const (
	// memorySnapshotCount is how many entries 3.6 and 3.7 apply, and one more, before they
	// compact the log in memory again (memorySnapshotCount in etcdserver/server.go).
	memorySnapshotCount = 100
	// maxSizePerMsg bounds the entries that are applied at once (etcdserver/raft.go).
	maxSizePerMsg = 1 << 20
	// applySeconds is how long what is proposed may take until it is applied, for the bound
	// on the entries that are on their way.
	applySeconds = 0.1
	// ownEntries are what a server proposes itself when it is new.
	ownEntries = 4
)

// raftLog is what the model knows of the entries that a server has in memory.
type raftLog struct {
	minor    int
	server   Server
	load     Load
	total    float64 // entries that are proposed in all; +Inf where the load has no end
	perEntry float64 // mean size of a proposal
}

func newRaftLog(minor int, s Server, l Load) raftLog {
	r := raftLog{minor: minor, server: s, load: l, total: math.Inf(1)}
	if rate := l.entriesPerSecond(); rate > 0 {
		for _, e := range l.Entries {
			r.perEntry += e.PerSecond / rate * float64(e.Bytes)
		}
		if l.For > 0 {
			r.total = rate * l.For.Seconds()
		}
	} else {
		r.total = 0
	}
	return r
}

// batch is how many entries may be there beyond those that have been applied when the log
// was compacted last.
func (r raftLog) batch() float64 {
	inMessage := math.Ceil(maxSizePerMsg / max(r.perEntry, 1))
	return max(1, min(inMessage, math.Ceil(r.load.entriesPerSecond()*applySeconds)))
}

// retained is how many entries there are: those that are kept for slow followers, and those
// since the last compaction.
func (r raftLog) retained() span {
	catchUp, until := float64(r.server.CatchUpEntries), float64(memorySnapshotCount)
	if r.minor == 5 {
		until = float64(r.server.SnapshotCount)
	}
	n := span{catchUp, catchUp + until/2, catchUp + until + 1 + r.batch()}
	if r.total <= until { // no compaction yet
		n = span{r.total, r.total, r.total}
	} else {
		n = n.atMost(r.total)
	}
	n.high += ownEntries
	return n
}

// atRestart is how many entries a server finds in its WAL: those since the last snapshot
// on disk.
func (r raftLog) atRestart() span {
	count := float64(r.server.SnapshotCount)
	n := span{0, count / 2, count + 1 + r.batch()}
	if r.total <= count { // no snapshot yet
		n = exactly(r.total)
	}
	n.high += ownEntries
	return n
}

// payload is what the proposal of an entry takes of the heap, on average. In half of the
// clusters proposals are a byte shorter, see [PutProposal]. Where they are of several sizes,
// the mean of those that are there is not that of all: it is within two standard deviations
// of a mean of so many.
func (r raftLog) payload(entries float64) (p span) {
	rate := r.load.entriesPerSecond()
	if rate == 0 {
		return p
	}
	for _, e := range r.load.Entries {
		share := e.PerSecond / rate
		p = p.plus(span{
			share * float64(allocated(e.Bytes-1)), share * float64(allocated(e.Bytes)), share * float64(allocated(e.Bytes)),
		})
	}
	variance := 0.0
	for _, e := range r.load.Entries {
		d := float64(allocated(e.Bytes)) - p.expected
		variance += e.PerSecond / rate * d * d
	}
	differs := 2 * math.Sqrt(variance/max(1, entries))
	return span{max(0, p.low-differs), p.expected, p.high + differs}
}

// Sizes of raftpb.Entry. In 3.5 and 3.6 entries are elements of the log's array. In 3.7 the
// array has pointers, to an Entry each of 88 bytes, which points to its term and its index:
// these share a block of the allocator with each other, or each with another number.
const (
	entryElement   = 48
	entryPointer   = 8
	entryMessage   = 96
	entryNumbers   = 16 // to 32
	entryNumbersUp = 32
)

// bytes returns what so many entries take. The array that they are in has exactly the room
// for them when it was compacted, and a quarter more from the first entry that comes then.
// In a log that was just read from the WAL it is exact.
func (r raftLog) bytes(entries span, exact bool) span {
	element := entryPointer
	perEntry := r.payload(entries.low)
	if r.minor < 7 {
		element = entryElement
	} else {
		perEntry = perEntry.plus(span{entryMessage + entryNumbers, entryMessage + (entryNumbers+entryNumbersUp)/2, entryMessage + entryNumbersUp})
	}
	full := func(n float64) float64 {
		if n == 0 {
			return 0
		}
		return float64(allocatedPointers(int(n+1) * element)) // and one that stands for those before
	}
	grown := full(entries.expected)
	switch start := int(r.server.CatchUpEntries) + 1; {
	case exact:
	case r.total > entries.expected: // it has been compacted
		grown = float64(appended(start, int(entries.expected)+1, element, true))
	default:
		grown = float64(appended(1, int(entries.expected)+1, element, true))
	}
	most := full(entries.high*1.25 + 192)
	return entries.times(perEntry).plus(span{full(entries.low), grown, most})
}

func (r raftLog) figures() []Figure {
	n := r.retained()
	retained := Figure{
		Name: RaftEntries, Unit: Entries,
		Formula: "catch-up entries .. catch-up + 101, and what is applied at once: at most 1 MiB, or what comes in 100 ms",
		Source:  "shouldSnapshotToMemory and compactRaftLog in etcdserver/server.go; maxSizePerMsg in etcdserver/raft.go",
	}
	slot := "a place in an array of 48-byte elements that has up to a quarter and 192 of them more"
	source := "MemoryStorage in raft/storage.go; raftpb.Entry; growslice and sizeclasses.go in Go's runtime"
	if r.minor == 5 {
		retained.Formula = "catch-up entries .. catch-up + snapshot-count + 1, and what is applied at once; the mean is in the middle"
		retained.Source = "triggerSnapshot and snapshot in etcdserver/server.go"
		retained.Note = "the log is compacted once in snapshot-count entries: --snapshot-count makes the range narrower"
	}
	if r.minor == 7 {
		slot = "96 + 16 to 32 for an Entry, and a pointer in an array that has up to a quarter and 192 of them more"
	}
	logBytes := Figure{
		Name: RaftLog, Unit: Bytes,
		Formula: "entries x (A(proposal) + S), A = what Go allocates for so many bytes, S = " + slot + "; where proposals differ, two standard deviations of the mean of so many more or less",
		Source:  source,
	}
	restart := Figure{
		Name: RaftLogAtRestart, Unit: Bytes,
		Formula: "as the raft log, with the entries in the WAL since the last snapshot on disk: 0 .. snapshot-count + 1",
		Source:  "bootstrap of the raft storage in etcdserver; wal.ReadAll",
		Note:    "all of the WAL since the last snapshot is read into memory, and compacted when it has been applied",
	}
	if r.minor == 5 {
		restart.Note = ""
	}
	set := func(f *Figure, s span) Figure {
		f.Low, f.Expected, f.High = s.low, s.expected, s.high
		return *f
	}
	return []Figure{
		set(&retained, n),
		set(&logBytes, r.bytes(n, false)),
		set(&restart, r.bytes(r.atRestart(), true)),
	}
}
