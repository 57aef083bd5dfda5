package shaper

import (
	"encoding/json"
	"math"
)

// FigureName says what a [Figure] is of.
type FigureName string

// The figures of a [Projection], in its order.
const (
	// RaftEntries is how many entries each member has in memory, followers as well.
	RaftEntries FigureName = "raft entries retained"
	// RaftLog is what these take of the heap.
	RaftLog FigureName = "raft log"
	// RaftLogAtRestart is what the entries take that a member reads when it starts: all since
	// the last snapshot on disk. On 3.5 it keeps them until the next snapshot, on 3.6 and 3.7
	// until it has applied them, which is when it is ready.
	RaftLogAtRestart FigureName = "raft log at a restart"
	// TreeIndex is the index of keys and their revisions, which is all in memory.
	TreeIndex FigureName = "index of keys"
	// WriteBuffers is what was written to the backend and is not on disk yet.
	WriteBuffers FigureName = "write buffers"
	// WatchBuffers is what waits for watchers. It is there where Load has streams.
	WatchBuffers FigureName = "watch buffers"
	// LiveHeap is all of these, and the server itself.
	LiveHeap FigureName = "live heap"
	// PeakAnonymous is the most resident memory of a member, without files that are mapped.
	PeakAnonymous FigureName = "peak memory, anonymous"
	// PeakAtRestart is the same while a member starts, which may be more than it takes later.
	PeakAtRestart FigureName = "peak memory at a restart"
	// PeakRSS is PeakAnonymous and the pages of the database, which the system takes back when it
	// needs them.
	PeakRSS FigureName = "peak memory, with file"

	// BytesPerRecord is what a record takes in the backend, on average.
	BytesPerRecord FigureName = "backend per record"
	// BackendGrowth is what the backend grows by in a second while nothing is reused.
	BackendGrowth FigureName = "backend growth"
	// InUse is DbSizeInUse, once it does not grow any more, or after Load.For: lowest after
	// a compaction, highest before the next.
	InUse FigureName = "backend in use"
	// FileSize is DbSize then.
	FileSize FigureName = "backend file"

	// TimeToQuota is when the file reaches the quota and writes are refused.
	TimeToQuota FigureName = "time to the quota"
	// TimeToFullLog is after how long a member has as many entries as RaftEntries says.
	TimeToFullLog FigureName = "time to the full raft log"
	// TimeBetweenSnapshots is that between two snapshots on disk: after so long a restart
	// finds the most entries.
	TimeBetweenSnapshots FigureName = "time between disk snapshots"
)

// Unit is the unit of a [Figure].
type Unit string

const (
	Entries        Unit = "entries"
	Bytes          Unit = "B"
	BytesPerSecond Unit = "B/s"
	Seconds        Unit = "s"
)

// Figure is one projected quantity, between Low and High; Expected is what a server has on
// average. Where there is no bound a value is +Inf, and absent in JSON: a backend that grows
// for ever, a quota that is never reached.
type Figure struct {
	Name                FigureName
	Unit                Unit
	Low, Expected, High float64
	Formula             string // in words and symbols
	Source              string // of the formula: a file of etcd, Go or bbolt, or measurements
	Note                string // why the range is as wide as it is, or something is absent
}

// Contains reports whether a measured value is within the range.
func (f Figure) Contains(v float64) bool { return f.Low <= v && v <= f.High }

// figureJSON is a Figure in JSON, which has no infinity.
type figureJSON struct {
	Name     FigureName `json:"name"`
	Unit     Unit       `json:"unit"`
	Low      *float64   `json:"low,omitempty"`
	Expected *float64   `json:"expected,omitempty"`
	High     *float64   `json:"high,omitempty"`
	Formula  string     `json:"formula"`
	Source   string     `json:"source"`
	Note     string     `json:"note,omitempty"`
}

// MarshalJSON leaves out what has no bound.
func (f Figure) MarshalJSON() ([]byte, error) {
	finite := func(v float64) *float64 {
		if math.IsInf(v, 0) {
			return nil
		}
		return &v
	}
	return json.Marshal(figureJSON{f.Name, f.Unit, finite(f.Low), finite(f.Expected), finite(f.High), f.Formula, f.Source, f.Note})
}

// UnmarshalJSON reads what MarshalJSON has written.
func (f *Figure) UnmarshalJSON(b []byte) error {
	var j figureJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	value := func(v *float64) float64 {
		if v == nil {
			return math.Inf(1)
		}
		return *v
	}
	*f = Figure{j.Name, j.Unit, value(j.Low), value(j.Expected), value(j.High), j.Formula, j.Source, j.Note}
	return nil
}

// span is the three values of a figure while they are computed.
type span struct{ low, expected, high float64 }

func exactly(v float64) span { return span{v, v, v} }

func (s span) plus(o span) span {
	return span{s.low + o.low, s.expected + o.expected, s.high + o.high}
}

func (s span) times(o span) span {
	return span{s.low * o.low, s.expected * o.expected, s.high * o.high}
}

// over divides; nothing in no time is for ever.
func (s span) over(o span) span {
	divide := func(a, b float64) float64 {
		if b == 0 {
			return math.Inf(1)
		}
		return a / b
	}
	return span{divide(s.low, o.high), divide(s.expected, o.expected), divide(s.high, o.low)}
}

// atMost bounds all three.
func (s span) atMost(v float64) span {
	return span{min(s.low, v), min(s.expected, v), min(s.high, v)}
}

func (s span) atLeast(v float64) span {
	return span{max(s.low, v), max(s.expected, v), max(s.high, v)}
}
