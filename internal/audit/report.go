package audit

import (
	"encoding/json"
	"strconv"
	"time"
)

// Schema is the version of the JSON of a [Report]. It changes when a field is taken away or
// gets another meaning, and not when one is added.
const Schema = 1

// Report is what an audit has found. Its JSON is documented by the comments here: sizes are
// in bytes, times in RFC 3339, and what is an estimate says so, in Estimates.
type Report struct {
	Schema int       `json:"schema"`
	At     time.Time `json:"at"`
	Source Source    `json:"source"`

	// Partial is set where not everything was read, and Notes say why. Then counts and sizes
	// are lower bounds.
	Partial bool     `json:"partial"`
	Notes   []string `json:"notes,omitempty"`
	// Estimates say which figures are estimates, and how good.
	Estimates []string `json:"estimates,omitempty"`

	Verdict  Level     `json:"verdict"`
	Findings []Finding `json:"findings"` // the most serious first

	Members []Member `json:"members"`
	// AlarmsUnknown is set where nobody has answered which alarms there are.
	AlarmsUnknown bool    `json:"alarmsUnknown,omitempty"`
	Backend       Backend `json:"backend"`
	Growth        *Growth `json:"growth,omitempty"`
	Totals        Totals  `json:"totals"`
	// Values are the lengths of the live values, as the application knows them: a chunked
	// value counts once, with its own length.
	Values   Distribution `json:"values"`
	Prefixes []Prefix     `json:"prefixes"` // the largest first
	// BySize are the largest live values, ByChurn the keys with the most revisions, ByHistory
	// those whose revisions that are not live take the most room.
	BySize    []KeyReport `json:"bySize"`
	ByChurn   []KeyReport `json:"byChurn"`
	ByHistory []KeyReport `json:"byHistory,omitempty"`
	Chunked   Chunked     `json:"chunked"`
	Leases    Leases      `json:"leases"`
	// Staging are who is writing large values, the first hundred; StagingMore how many more.
	Staging     []Staging `json:"staging,omitempty"`
	StagingMore int       `json:"stagingMore,omitempty"`
	// RaftLog is what is in a member's write-ahead log, where that was read.
	RaftLog *RaftLog `json:"raftLog,omitempty"`
	// Changes are since an earlier report, where there is one.
	Changes *Changes `json:"changes,omitempty"`
}

// Source is what was read.
type Source struct {
	Kind string `json:"kind"` // "db" or "live"
	// Separator and Depth are how prefixes were made.
	Separator string   `json:"separator"`
	Depth     int      `json:"depth"`
	File      string   `json:"file,omitempty"`
	Endpoints []string `json:"endpoints,omitempty"`
	Cluster   string   `json:"cluster,omitempty"` // the cluster's id, hexadecimal
	Version   string   `json:"version,omitempty"` // of the cluster, or of the storage of a file
	Revision  int64    `json:"revision"`          // what was read
	// RevisionAtEnd is a later one, where a compaction has come between: keys were read as
	// they were at Revision first, and as they were at this one later.
	RevisionAtEnd int64   `json:"revisionAtEnd,omitempty"`
	Compacted     int64   `json:"compacted,omitempty"` // the revision of the last compaction
	Records       uint64  `json:"records"`             // revisions of keys that were read
	Passes        int     `json:"passes,omitempty"`    // how often the file was read
	Seconds       float64 `json:"seconds"`
}

// Member is a member of the cluster. Of a file only what it says of the members is known.
type Member struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Role     string   `json:"role,omitempty"`
	Version  string   `json:"version,omitempty"`
	DbSize   int64    `json:"dbSize,omitempty"`
	InUse    int64    `json:"inUse,omitempty"`
	Bloat    float64  `json:"bloat,omitempty"` // DbSize over InUse
	Quota    int64    `json:"quota,omitempty"`
	QuotaUse float64  `json:"quotaUse,omitempty"`
	Lag      uint64   `json:"lag,omitempty"` // entries that are committed and not applied
	Alarms   []string `json:"alarms,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// Backend is a database: the file that was read, or the largest of the members'.
type Backend struct {
	Size     int64   `json:"size"`
	InUse    int64   `json:"inUse"`
	Bloat    float64 `json:"bloat"`
	Quota    int64   `json:"quota"` // 0 for none
	QuotaUse float64 `json:"quotaUse"`
	// QuotaAssumed is set where nobody has said what the quota is.
	QuotaAssumed bool `json:"quotaAssumed,omitempty"`
}

// Growth is a projection of what is written.
type Growth struct {
	RevisionsPerSecond float64 `json:"revisionsPerSecond"`
	// Measured is over how many seconds the rate was measured, 0 where it was given.
	Measured       float64 `json:"measuredSeconds,omitempty"`
	BytesPerSecond float64 `json:"bytesPerSecond"`
	// SecondsToQuota is absent where it is never reached, as when nothing is written, there is
	// no quota, or compaction keeps the database below it.
	SecondsToQuota *float64 `json:"secondsToQuota,omitempty"`
	Compaction     Kept     `json:"compaction"`

	remedy string
}

// Kept is what of old revisions is taken to be kept.
type Kept struct {
	Mode      string  `json:"mode"` // "none", "periodic" or "revision"
	Seconds   float64 `json:"seconds,omitempty"`
	Revisions int64   `json:"revisions,omitempty"`
	// Seen is set where it is not given, but follows from the last compaction and the rate.
	Seen bool `json:"seen,omitempty"`
}

// Totals are sums over everything.
type Totals struct {
	Keys       uint64 `json:"keys"` // of the application
	KeyBytes   uint64 `json:"keyBytes"`
	ValueBytes uint64 `json:"valueBytes"` // as the application knows them
	// LiveRecords and LiveBytes are what the newest revisions take in the backend, chunks
	// included. History is all others: old revisions and deletes, which compaction removes.
	LiveRecords    uint64 `json:"liveRecords"`
	LiveBytes      uint64 `json:"liveBytes"`
	HistoryRecords uint64 `json:"historyRecords"`
	HistoryBytes   uint64 `json:"historyBytes"`
	Tombstones     uint64 `json:"tombstones"` // of HistoryRecords
	Deleted        uint64 `json:"deleted"`    // keys that are gone and still have revisions
}

// Distribution is of sizes. Quantiles are too large by at most [SizeError] of them.
type Distribution struct {
	Count     uint64 `json:"count"`
	Bytes     uint64 `json:"bytes"`
	Mean      uint64 `json:"mean"`
	P50       uint64 `json:"p50"`
	P90       uint64 `json:"p90"`
	P99       uint64 `json:"p99"`
	P999      uint64 `json:"p999"`
	Max       uint64 `json:"max"`
	Histogram []Bar  `json:"histogram,omitempty"`
}

// Bar is a part of a histogram, from Min to Max.
type Bar struct {
	Min   uint64 `json:"min"`
	Max   uint64 `json:"max"`
	Count uint64 `json:"count"`
}

// Prefix is all keys below a prefix.
type Prefix struct {
	Prefix    Key     `json:"prefix"`
	Rest      bool    `json:"rest,omitempty"` // it is what did not fit into the table of prefixes
	Keys      uint64  `json:"keys"`
	LiveBytes uint64  `json:"liveBytes"` // in the backend, chunks included
	Share     float64 `json:"share"`     // of the live bytes and of history
	// Revisions are those that are kept, live ones included; of a live cluster the versions of
	// its keys, which is how often they were put since they were created.
	Revisions    uint64  `json:"revisions"`
	PerKey       float64 `json:"revisionsPerKey"` // of keys that are live and of those that are gone
	HistoryBytes uint64  `json:"historyBytes"`
	Tombstones   uint64  `json:"tombstones"`
	Max          uint64  `json:"max"`
	P99          uint64  `json:"p99"`
	Mean         uint64  `json:"mean"`
	Leased       uint64  `json:"leased"`
}

// KeyReport is one key. What its list does not have is 0.
type KeyReport struct {
	Key          Key    `json:"key"`
	ValueBytes   uint64 `json:"valueBytes,omitempty"`
	KeyBytes     uint64 `json:"keyBytes,omitempty"`  // of a key that is too long to be shown whole
	Revisions    uint64 `json:"revisions,omitempty"` // that are kept, or its version in a live cluster
	HistoryBytes uint64 `json:"historyBytes,omitempty"`
	Chunks       uint64 `json:"chunks,omitempty"`
	StoredBytes  uint64 `json:"storedBytes,omitempty"` // of a chunked value, with its chunks
}

// Chunked is what is stored in chunks.
type Chunked struct {
	Keys        uint64 `json:"keys"`
	ValueBytes  uint64 `json:"valueBytes"` // as the application knows them
	Chunks      uint64 `json:"chunks"`
	StoredBytes uint64 `json:"storedBytes"` // manifests and chunks in the backend
	Unreadable  uint64 `json:"unreadable,omitempty"`
}

// Leases are the leases that keys are attached to. A lease that chunks have is counted by
// its keys, not by these.
type Leases struct {
	Granted  int        `json:"granted"` // 0 where it is not known
	WithKeys int        `json:"withKeys"`
	Keys     uint64     `json:"keys"`
	PerLease float64    `json:"keysPerLease"`
	Max      uint64     `json:"max"`
	Largest  []LeaseUse `json:"largest,omitempty"`
	// Uncounted are keys of leases that did not fit into the table of leases.
	Uncounted uint64 `json:"uncounted,omitempty"`
}

// LeaseUse is a lease and how many keys it has.
type LeaseUse struct {
	ID   string `json:"id"` // hexadecimal, as etcdctl takes it
	Keys uint64 `json:"keys"`
}

// Staging is a writer that is storing a large value, or has crashed while it did.
type Staging struct {
	Key     Key    `json:"key"`
	Host    string `json:"host"`
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Lease   string `json:"lease"`
}

// Key is a key or a prefix. In JSON it is as between the quotes of a Go string, since keys are
// bytes, and JSON has none.
type Key string

func (k Key) String() string {
	q := strconv.Quote(string(k))
	return q[1 : len(q)-1]
}

// MarshalJSON writes the key as String has it.
func (k Key) MarshalJSON() ([]byte, error) { return json.Marshal(k.String()) }

// UnmarshalJSON reads what MarshalJSON has written.
func (k *Key) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	raw, err := strconv.Unquote(`"` + s + `"`)
	*k = Key(raw)
	return err
}

// Level is how serious something is.
type Level string

// The levels.
const (
	OK       Level = "ok"
	Info     Level = "info"
	Warning  Level = "warning"
	Critical Level = "critical"
)

func (l Level) rank() int {
	switch l {
	case Info:
		return 1
	case Warning:
		return 2
	case Critical:
		return 3
	}
	return 0
}

// Finding is something to do.
type Finding struct {
	Level  Level  `json:"level"`
	About  Key    `json:"about,omitempty"` // the key or prefix; empty for the cluster
	Reason string `json:"reason"`
	// Saves is what doing it saves, in bytes, as far as that can be projected, and SavesOf of
	// what: "the database", "the raft log" of each member, or "writes a day" to its database.
	Saves   uint64 `json:"saves,omitempty"`
	SavesOf string `json:"savesOf,omitempty"`
	Do      string `json:"do"` // the setting or the command
}
