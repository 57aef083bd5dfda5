package shaper

import "math"

const (
	// keyIndexBytes is a keyIndex, 64 bytes, and its one generation, 48
	// (storage/mvcc/key_index.go).
	keyIndexBytes = 64 + 48
	// revisionBytes is a revision in it.
	revisionBytes = 16
	// watchBuffered is how many responses wait for a stream (chanBufLen in
	// storage/mvcc/watchable_store.go), eventBytes what an event takes beside key and value.
	watchBuffered = 128
	eventBytes    = 160
)

// emptyServer is the live heap of a server without data, and with the connections of a few
// clients.
var emptyServer = span{3.3e6, 4.5e6, 10e6}

// treeIndex is the index of keys.
func treeIndex(minor int, s Server, l Load, b backend) span {
	inTree := 14.0 // its place in a node of the B-tree, which is filled to six tenths
	if minor == 5 {
		inTree = 28 // an interface, not a pointer
	}
	n := b.records()
	if s.Quota > 0 && b.rate > 0 { // nothing is written any more when that is reached
		n = n.atMost(float64(s.Quota) / b.bytes.low)
	}
	perKey := func(records, keys, start float64) float64 {
		revisions := max(1, records/keys)
		if math.IsInf(revisions, 1) {
			return revisions
		}
		whole := int(revisions)
		// Keys have one more or less: between the two sizes.
		lower := float64(appended(int(start), whole, revisionBytes, false))
		upper := float64(appended(int(start), whole+1, revisionBytes, false))
		return lower + (upper-lower)*(revisions-float64(whole))
	}
	total := span{}
	for _, r := range l.Records {
		if r.PerSecond == 0 {
			continue
		}
		share := r.PerSecond / b.rate
		if r.Delete { // a revision, and a generation that comes after
			total = total.plus(exactly((48 + revisionBytes) * share).times(n))
			continue
		}
		keys := float64(max(r.Keys, 1))
		if l.For > 0 { // it may not have come round yet
			keys = min(keys, max(1, r.PerSecond*l.For.Seconds()))
		}
		each := exactly(keyIndexBytes + inTree + float64(allocated(r.KeyBytes)))
		low := revisionBytes * max(1, n.low*share/keys)
		expected := perKey(n.expected*share, keys, 0)
		if s.Compaction.Mode != CompactNone {
			// The array grows until a compaction cuts its beginning off, and has that room still.
			expected = perKey(n.high*share, keys, 0)
		}
		high := max(expected, 2*revisionBytes*max(1, n.high*share/keys))
		if l.Live.Revision == 0 && s.Compaction.Mode == CompactNone {
			low = min(expected, low)
		}
		total = total.plus(exactly(keys).times(each.plus(span{low, expected, high})))
	}
	other := float64(l.Live.Keys) * (keyIndexBytes + inTree + revisionBytes)
	return total.plus(span{other, other + 48*float64(l.Live.Keys), other + 160*float64(l.Live.Keys)})
}

// memoryFigures puts the heap together.
func memoryFigures(minor int, s Server, l Load, log, restart span, b backend) []Figure {
	file, inUse := b.fileSize(), b.inUse()
	index, note := treeIndex(minor, s, l, b), ""
	switch {
	case math.IsInf(index.expected, 1):
		note = "without compaction and without a quota the revisions of a key have no bound"
	case math.IsInf(inUse.expected, 1):
		note = "without compaction it grows until the quota is reached, which is the state projected"
	}
	if s.Quota > 0 {
		file = file.atMost(float64(s.Quota))
	}
	written, revision := 0.0, 0.0 // bytes of records in a second, and of a revision in memory
	for _, r := range l.Records {
		written += r.PerSecond * float64(allocated(r.KeyBytes+r.ValueBytes+16)+allocated(revisionKey+1))
		revision += r.PerSecond * float64(allocated(r.KeyBytes)+allocated(r.ValueBytes)+eventBytes)
	}
	buffers := span{0, 0.1 * written, 0.35 * written}
	live := emptyServer.plus(log).plus(index).plus(buffers)
	out := []Figure{
		{Name: TreeIndex, Unit: Bytes, Low: index.low, Expected: index.expected, High: index.high,
			Formula: "keys x (112 + 16 x revisions, in an array that doubles, + A(key) + 14; 28 in place of 14 on 3.5)",
			Source:  "storage/mvcc/key_index.go and index.go",
			Note:    note},
		{Name: WriteBuffers, Unit: Bytes, Low: buffers.low, Expected: buffers.expected, High: buffers.high,
			Formula: "0 .. 0.35 s of what is written: until the commit, and the next collection",
			Source:  "storage/backend/tx_buffer.go; fitted to measurements, see docs/benchmarks.md"},
	}
	if l.WatchStreams > 0 {
		if entries := l.entriesPerSecond(); entries > 0 {
			revision /= entries
		}
		waiting := span{0, 0, float64(l.WatchStreams) * watchBuffered * revision}
		live = live.plus(waiting)
		out = append(out, Figure{Name: WatchBuffers, Unit: Bytes, High: waiting.high,
			Formula: "0 .. streams x 128 x (A(key) + A(value) + 160) of a revision's records: as much as waits for clients that do not read",
			Source:  "chanBufLen in storage/mvcc/watchable_store.go",
			Note:    "watchers that keep up have nothing waiting; an upper bound from the sources, not measured"})
	}
	if free := file.high - inUse.low; free > 0 && !math.IsNaN(free) && !math.IsInf(free, 0) {
		live.high += 64 * free / pageBytes // the list of free pages
	}
	grow := 1 + float64(s.GOGC)/100
	resident := func(live span) span {
		return span{
			live.low + 4e6,
			1.05*grow*live.expected + 12e6,
			1.3*grow*live.high + 32e6,
		}
	}
	peak, starting := resident(live), resident(emptyServer.plus(restart).plus(index))
	unbounded := noBound(live, "the index of keys has no bound")
	mapped := peak.plus(span{0, file.expected, file.high})
	return append(out,
		Figure{Name: LiveHeap, Unit: Bytes, Low: live.low, Expected: live.expected, High: live.high, Note: unbounded,
			Formula: "raft log + index of keys + buffers + 3 to 10 MB of the server's own, connections included",
			Source:  "sum; fitted to measurements, see docs/benchmarks.md"},
		Figure{Name: PeakAnonymous, Unit: Bytes, Low: peak.low, Expected: peak.expected, High: peak.high, Note: unbounded,
			Formula: "1.05 x (1 + GOGC/100) x live heap + 12 MB; at least the live heap and 4 MB, at most 1.3 x (1 + GOGC/100) x it and 32 MB",
			Source:  "fitted to measurements, see docs/benchmarks.md"},
		Figure{Name: PeakAtRestart, Unit: Bytes, Low: starting.low, Expected: starting.expected, High: starting.high, Note: noBound(starting, "the index of keys has no bound"),
			Formula: "the same of raft log at a restart + index of keys + 3 to 10 MB",
			Source:  "fitted to measurements, see docs/benchmarks.md"},
		Figure{Name: PeakRSS, Unit: Bytes, Low: mapped.low, Expected: mapped.expected, High: mapped.high,
			Formula: "peak anonymous memory .. and the backend file, all of whose pages a compaction or a restart reads",
			Source:  "bbolt maps its file",
			Note:    noBound(mapped, "the backend has no bound")},
	)
}

// noBound returns why, if a span has no bound.
func noBound(s span, why string) string {
	if math.IsInf(s.expected, 1) {
		return why
	}
	return ""
}
