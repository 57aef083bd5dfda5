package shaper

import (
	"fmt"
	"math"
	"time"
)

// backend is what the model knows of the database file.
type backend struct {
	server Server
	load   Load
	rate   float64 // records in a second
	bytes  span    // of a record, on average
	commit float64 // records between two commits, when they come evenly
	large  float64 // the mean size of an element, for what large ones leave unused
}

const (
	// commitSeconds is the time between two commits, and commitRecords how many come
	// before one that is not waited for (storage/backend/backend.go).
	commitSeconds = 0.1
	commitRecords = 10_000
	// For a load without an end the lengths of numbers are those after a day, and at the
	// most those after a hundred.
	dayForLengths = 24 * time.Hour
)

// emptyBackend is what a database has before the first put: its buckets, and pages that
// are free only after the next commits.
var emptyBackend = span{12 << 10, 24 << 10, 64 << 10}

func newBackend(s Server, l Load) backend {
	b := backend{server: s, load: l, rate: l.recordsPerSecond()}
	if b.rate == 0 {
		return b
	}
	low, expected, high := b.elements(0, 0), b.elements(0.5, 1), b.elements(1, 100)
	entries := l.entriesPerSecond()
	for _, e := range expected {
		b.large += e.perEntry * entries / b.rate * float64(e.bytes)
	}
	// A transaction's records are in one commit.
	b.commit = min(max(b.rate*commitSeconds, b.rate/entries, 1), commitRecords)
	evenly := packed(expected, int(math.Round(b.commit)))
	together := packed(low, commitRecords)
	rarely := packed(high, int(max(b.commit/2, b.rate/entries)))
	sorted, apart := sortedly(low), apart(high)
	b.bytes = span{
		min(evenly, together, rarely, sorted, apart), evenly, max(evenly, together, rarely, sorted, apart),
	}
	return b
}

// elements returns the sizes of the load's records in a leaf, where so much of its time has
// passed, or so many days if it has no end.
func (b *backend) elements(part, days float64) []element {
	seconds := days * dayForLengths.Seconds()
	if b.load.For > 0 {
		seconds = part * b.load.For.Seconds()
	}
	revision := float64(b.load.Live.Revision) + b.load.entriesPerSecond()*seconds
	var all []element
	for _, r := range b.load.Records {
		if r.PerSecond == 0 {
			continue
		}
		perEntry := r.PerSecond / b.load.entriesPerSecond()
		if r.Delete {
			all = append(all, element{perEntry, leafElement + revisionKey + 1 + field(r.KeyBytes)})
			continue
		}
		keys := float64(max(r.Keys, 1))
		n := leafElement + revisionKey + field(r.KeyBytes) + field(r.ValueBytes)
		for _, number := range []float64{
			b.created(r, part),           // CreateRevision
			revision,                     // ModRevision
			r.PerSecond / keys * seconds, // Version
		} {
			n += 1 + varint(uint64(min(max(number, 1), math.MaxInt64)))
		}
		if r.Leased {
			n += 1 + leaseBytes
		}
		all = append(all, element{perEntry, n})
	}
	return all
}

// created is the revision at which so large a part of a rate's keys is there.
func (b *backend) created(r RecordRate, part float64) float64 {
	perRevision := r.PerSecond / b.load.entriesPerSecond()
	return float64(b.load.Live.Revision) + part*float64(max(r.Keys, 1))/perRevision
}

// liveKeys is how many keys the load writes.
func (b *backend) liveKeys() (n float64) {
	for _, r := range b.load.Records {
		if r.PerSecond > 0 && !r.Delete {
			n += float64(max(r.Keys, 1))
		}
	}
	return n
}

// records is how many records there are, after a compaction and before the next: each live
// key has one that a compaction leaves, and all that came since the revision that it was
// made at are there.
func (b *backend) records() span {
	if b.rate == 0 {
		return exactly(0)
	}
	total := math.Inf(1)
	if b.load.For > 0 {
		total = b.rate * b.load.For.Seconds()
	}
	c := b.server.Compaction
	if c.Mode == CompactNone {
		return exactly(total)
	}
	kept := c.kept(b.load.entriesPerSecond())
	before := kept + c.interval().Seconds()
	return span{
		b.liveKeys() + b.rate*kept,
		b.liveKeys() + b.rate*(kept+before)/2,
		b.scanned(b.liveKeys() + b.rate*(before+lateSeconds)),
	}.atMost(total)
}

// scanned is how many records there are when a compaction has gone through n.
func (b *backend) scanned(n float64) float64 { return n + b.rate*n*scanSeconds }

// peak is how many records there are before a compaction that is not late.
func (b *backend) peak() float64 {
	c := b.server.Compaction
	n := b.liveKeys() + b.rate*(c.kept(b.load.entriesPerSecond())+c.interval().Seconds())
	if b.load.For > 0 {
		n = min(n, b.rate*b.load.For.Seconds())
	}
	return n
}

// lateSeconds is how late a compaction may be: the compactor starts its timer anew each time
// that it has looked, and when it has compacted, so that delays of 21 timers add up.
const lateSeconds = 0.5

// scanSeconds is how long a compaction takes for a record: a pause of 10 ms after every 1000
// (storage/mvcc/kvstore.go), and the deletes.
const scanSeconds = 20e-6

// inUse is DbSizeInUse.
func (b *backend) inUse() span {
	had := emptyBackend
	if b.load.Live.InUse > 0 {
		had = exactly(float64(b.load.Live.InUse))
	}
	if b.rate > 0 {
		// What the last commits have replaced counts as used: the last leaf, of up to four records.
		had = had.plus(span{0, b.bytes.expected, 6*b.bytes.high + 64<<10})
	}
	return had.plus(b.records().times(b.bytes))
}

// fileSize is DbSize: the most that was in use, and what lies unused between.
func (b *backend) fileSize() span {
	n, in := b.records(), b.inUse()
	peak := in
	if b.server.Compaction.Mode != CompactNone && b.rate > 0 {
		// Before a compaction, whether there is more or less of it in use now.
		peak.low += max(0, b.peak()-n.low) * b.bytes.low
		peak.expected += max(0, min(b.scanned(b.peak()), n.high)-n.expected) * b.bytes.expected
	}
	if b.rate > 0 {
		unused := 0.0
		switch {
		case b.large >= pageBytes:
			unused = 0.14
		case b.large >= pageBytes/2:
			unused = 0.05
		}
		if unused > 0 {
			peak.expected *= 1 + unused/b.commit
		}
		peak.expected += 10 * b.bytes.expected
		peak.high += peak.high*0.25 + 20*b.bytes.high + 256<<10
	}
	return peak.atLeast(float64(b.load.Live.DbSize))
}

// timeToQuota is how long the load goes on until the file reaches the quota.
func (b *backend) timeToQuota() (t span, note string) {
	never := exactly(math.Inf(1))
	switch {
	case b.server.Quota < 0:
		return never, "there is no quota"
	case b.rate == 0:
		return never, ""
	}
	largest := 0
	for _, r := range b.load.Records {
		largest = max(largest, r.KeyBytes+r.ValueBytes)
	}
	forever := *b
	forever.load.For = 0
	size := forever.fileSize()
	room := float64(b.server.Quota) - float64(256+largest)
	had := emptyBackend
	if b.load.Live.InUse > 0 {
		had = exactly(float64(b.load.Live.InUse))
	}
	free := span{room - had.high, room - had.expected, room - had.low}.atLeast(0)
	growth := span{b.bytes.low, b.bytes.expected, b.bytes.high}.times(exactly(b.rate))
	t = free.over(growth)
	// What may lie unused comes off the least time.
	t.low /= 1.25
	if size.low < room {
		t.high = math.Inf(1)
	}
	if size.expected < room {
		t.expected = math.Inf(1)
	}
	if size.high < room {
		return never, "the file stays below the quota"
	}
	if math.IsInf(t.high, 1) {
		note = "whether the file reaches the quota is within the range of its size"
	}
	return t, note
}

func (b *backend) figures() []Figure {
	bytes := Figure{
		Name: BytesPerRecord, Unit: Bytes, Low: b.bytes.low, Expected: b.bytes.expected, High: b.bytes.high,
		Formula: "el = 33 + marshalled KeyValue; pages of 4096 that hold leaves of as many el as fill one to nine tenths, two at the least; and 37 for each leaf",
		Source:  "node.split and splitIndex in bbolt's node.go; FillPercent in storage/backend/batch_tx.go",
	}
	if b.bytes.high > 1.05*b.bytes.low {
		bytes.Note = fmt.Sprintf("low where records come together, high where they come evenly, %.0f in a commit, or small ones lie between large ones: leaves have fewer then", max(1, b.commit))
	}
	growth := Figure{
		Name: BackendGrowth, Unit: BytesPerSecond,
		Low: b.rate * b.bytes.low, Expected: b.rate * b.bytes.expected, High: b.rate * b.bytes.high,
		Formula: "records a second x backend per record", Source: bytes.Source,
	}
	in, file := b.inUse(), b.fileSize()
	inUse := Figure{Name: InUse, Unit: Bytes, Low: in.low, Expected: in.expected, High: in.high, Source: "storage/mvcc/kvstore_compaction.go"}
	switch b.server.Compaction.Mode {
	case CompactPeriodic:
		inUse.Formula = "(live keys + records a second x (retention + a tenth of the interval .. and the interval, and half a second)) x backend per record; the interval is the retention, an hour at most"
		inUse.Source = "etcdserver/api/v3compactor/periodic.go; " + inUse.Source
	case CompactRevision:
		inUse.Formula = "(live keys + records of the kept revisions .. and of 5 minutes) x backend per record"
		inUse.Source = "etcdserver/api/v3compactor/revision.go; " + inUse.Source
	case CompactNone:
		inUse.Formula = "all records that are written x backend per record"
		inUse.Note = "without compaction nothing is discarded, and there is no bound"
		if b.load.For > 0 || b.rate == 0 {
			inUse.Note = ""
		}
	}
	size := Figure{
		Name: FileSize, Unit: Bytes, Low: file.low, Expected: file.expected, High: file.high,
		Formula: "the most that is in use, what large records leave unused between them (14 % where each is a commit), and 10 records; up to 25 % and 20 records more",
		Source:  "bbolt's freelist; fitted to measurements, see docs/benchmarks.md",
		Note:    inUse.Note,
	}
	t, note := b.timeToQuota()
	quota := Figure{
		Name: TimeToQuota, Unit: Seconds, Low: t.low, Expected: t.expected, High: t.high, Note: note,
		Formula: "(quota - 256 - largest key and value - in use) / backend growth, where the file does not stay below it",
		Source:  "BackendQuota in storage/quota.go",
	}
	return []Figure{bytes, growth, inUse, size, quota}
}
