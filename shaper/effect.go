package shaper

import (
	"math"
	"time"
)

// Settings are what Tune chooses of a kvwrap configuration, for one workload. The fields
// are those of the stages' configurations.
type Settings struct {
	MaxEntryBytes int  `json:"maxEntryBytes"` // of the chunker and the coalescer
	Chunked       bool `json:"chunked"`

	Mode          string        `json:"mode"` // Off, GroupCommit, LastWriteWins or Max
	StaleReads    bool          `json:"staleReads"`
	SkipUnchanged bool          `json:"skipUnchanged"`
	FlushEvery    time.Duration `json:"flushEvery"` // nanoseconds

	Revisions float64 `json:"revisions"` // a second, of the budget; 0 for no limit
	Shared    bool    `json:"shared"`    // by all writers
}

const (
	batchOps      = 1024 // coalesce.Config.MaxOps
	chunkIDBytes  = 24   // that a chunk's key has besides the logical one: prefix, terminator, id
	manifestBytes = 100  // of a manifest without chunks
	manifestChunk = 40   // and of it for each chunk
	anchorBytes   = 96   // of the value of an anchor
	manyOpsFrame  = 10   // of an operation in a transaction
)

// proposal returns the size of the entry of a put without a lease.
func proposal(key, value int) int { return PutProposal(key, value, false) }

// plain returns the load of w through a plain client.
func (w Workload) plain() Load {
	rate := w.writes() * float64(w.Writers)
	return Load{
		Entries: []EntryRate{{PerSecond: rate, Bytes: proposal(w.KeyBytes, w.ValueBytes)}},
		Records: []RecordRate{{PerSecond: rate, KeyBytes: w.KeyBytes, ValueBytes: w.ValueBytes, Keys: w.Keys * w.Writers}},
	}
}

// shaped returns the load of w through kvwrap, with settings.
func (w Workload) shaped(s Settings) Load {
	if s.Chunked {
		return w.chunked(s)
	}
	return w.coalesced(s)
}

// ChunkBytes returns the average length of a chunk of a value, as the chunker chooses it.
func chunkBytes(value int) int {
	avg := 4 << 10
	for size := 4 << 20; value > size && avg < 32<<10; size *= 4 {
		avg *= 2
	}
	return avg
}

// chunked is shaped for large values. Of a value of n chunks, those are written again in
// which something has changed: where a part p of objects of R bytes has, a chunk of B bytes
// stays with the probability (1-p)^(B/R+2), since it meets B/R+1 of them, and a cut may move.
func (w Workload) chunked(s Settings) Load {
	avg := chunkBytes(w.ValueBytes)
	n := max(1, float64(w.ValueBytes)/float64(avg))
	touched := n
	if w.Changed < 1 {
		touched = n * (1 - math.Pow(1-w.Changed, float64(avg)/float64(w.ObjectBytes)+2))
	}
	touched = max(1, touched)
	chunk := int(float64(min(avg, w.ValueBytes)) / w.Compression)
	chunkKey := w.KeyBytes + chunkIDBytes
	manifest := manifestBytes + int(n*manifestChunk)
	data := int(touched * float64(proposal(chunkKey, chunk)))
	cleanup := int(touched) * (chunkKey + manyOpsFrame)

	rate := w.writes() * float64(w.Writers) * (1 - w.unchanged(s))
	keys := w.Keys * w.Writers
	l := Load{Records: []RecordRate{
		{PerSecond: rate, KeyBytes: w.KeyBytes, ValueBytes: manifest, Keys: keys},
		{PerSecond: rate * touched, KeyBytes: chunkKey, ValueBytes: chunk, Keys: int(min(n*float64(keys), maxKeys/2))},
		{PerSecond: rate * touched, KeyBytes: chunkKey, Delete: true}, // what it replaces
	}}
	if one := manifest + data + cleanup + proposal(w.KeyBytes, 0); one <= s.MaxEntryBytes {
		l.Entries = []EntryRate{{PerSecond: rate, Bytes: one}}
		return l
	}
	// The anchor goes with the first chunks, and is put again with the others.
	full := math.Ceil(float64(data) / float64(s.MaxEntryBytes-2*chunkKey-anchorBytes))
	l.Entries = []EntryRate{
		{PerSecond: rate * full, Bytes: data/int(full) + 2*chunkKey + anchorBytes},
		{PerSecond: rate, Bytes: min(s.MaxEntryBytes, manifest+cleanup+proposal(w.KeyBytes, 0))},
	}
	l.Records = append(l.Records,
		RecordRate{PerSecond: rate * full, KeyBytes: chunkKey, ValueBytes: anchorBytes},
		RecordRate{PerSecond: rate, KeyBytes: chunkKey, Delete: true})
	return l
}

// coalesced is shaped for small values. Written behind, each writer's puts of a time T are
// a batch: of n keys that are put in no order, each once in an interval, n (1 - e^(-T/interval))
// are in it where only the newest counts.
func (w Workload) coalesced(s Settings) Load {
	writes := w.writes() * (1 - w.unchanged(s))
	keys := w.Keys * w.Writers
	if s.FlushEvery == 0 || s.Mode == "Off" {
		rate := writes * float64(w.Writers)
		return Load{
			Entries: []EntryRate{{PerSecond: rate, Bytes: proposal(w.KeyBytes, w.ValueBytes)}},
			Records: []RecordRate{{PerSecond: rate, KeyBytes: w.KeyBytes, ValueBytes: w.ValueBytes, Keys: keys}},
		}
	}
	t := s.FlushEvery.Seconds()
	records := writes * t // in a batch
	if s.Mode != "GroupCommit" {
		records = float64(w.Keys) * (1 - w.unchanged(s)) * (1 - math.Exp(-t/w.Interval.Seconds()))
	}
	// A batch is sent when something has waited for t: a writer that puts less often than
	// that has one for each put.
	flushes := 1 / (t + 1/writes)
	if s.Mode == "GroupCommit" {
		records = max(1, writes/flushes)
	}
	records = max(1, records)
	each := message(message(putRequest(w.KeyBytes, w.ValueBytes, false)))
	if s.Mode == "Max" { // a comparison with what is stored, and a read of it where that fails
		each += 2 * (w.KeyBytes + manyOpsFrame)
	}
	body := records * float64(each)
	batches := max(1, math.Ceil(body/float64(s.MaxEntryBytes)), math.Ceil(records/batchOps))
	sequence := RecordRate{PerSecond: flushes * batches * float64(w.Writers), KeyBytes: 50, ValueBytes: 16, Keys: w.Writers}
	return Load{
		Entries: []EntryRate{{PerSecond: flushes * batches * float64(w.Writers), Bytes: sequenceBytes + int(body/batches)}},
		Records: []RecordRate{
			{PerSecond: flushes * records * float64(w.Writers), KeyBytes: w.KeyBytes, ValueBytes: w.ValueBytes, Keys: keys},
			sequence,
		},
	}
}

// sequenceBytes is what the sequence of a process takes of a batch.
const sequenceBytes = 250

// unchanged returns what part of writes is not proposed, since it changes nothing.
func (w Workload) unchanged(s Settings) float64 {
	if s.SkipUnchanged {
		return w.Unchanged
	}
	return 0
}
