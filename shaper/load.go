package shaper

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Load is what is written to a cluster, by everybody. Raft sees it as entries, the backend
// as records: one transaction of twenty puts is one entry, one revision, and twenty
// records.
type Load struct {
	Entries []EntryRate  `json:"entries"`
	Records []RecordRate `json:"records"`
	// Live is what was written before.
	Live Live `json:"live"`
	// For is how long the load goes on. Zero is for ever: then what has no bound is absent
	// from the projection.
	For time.Duration `json:"for,omitempty"` // nanoseconds
	// WatchStreams is the number of streams on which watchers of these records wait for
	// events; one client has one, unless it watches with metadata of its own.
	WatchStreams int `json:"watchStreams,omitempty"`
}

// EntryRate is raft entries of one size.
type EntryRate struct {
	PerSecond float64 `json:"perSecond"`
	Bytes     int     `json:"bytes"` // of the marshalled proposal, see [PutProposal] and [TxnProposal]
}

// RecordRate is records of one size: the puts of some keys. Those that one transaction
// writes are taken to be in the order of Load.Records.
type RecordRate struct {
	PerSecond  float64 `json:"perSecond"`
	KeyBytes   int     `json:"keyBytes"`
	ValueBytes int     `json:"valueBytes"`
	Leased     bool    `json:"leased,omitempty"`
	// Delete makes them deletes, of keys that other rates put: a record without a value.
	Delete bool `json:"delete,omitempty"`
	// Keys is how many live keys the puts go round over, which are not those of another
	// RecordRate. Zero is one.
	Keys int `json:"keys"`
}

// Live is what a cluster has already. The zero value is a new cluster.
type Live struct {
	// Revision is the cluster's current one. It decides about the lengths of numbers.
	Revision int64 `json:"revision,omitempty"`
	// InUse is what keys take that the load does not write, DbSizeInUse of a Status, and
	// Keys is how many they are.
	InUse int64 `json:"inUse,omitempty"`
	Keys  int   `json:"keys,omitempty"`
	// DbSize is the size of the file, DbSize of a Status: it does not become smaller.
	DbSize int64 `json:"dbSize,omitempty"`
}

// PutLoad is puts of one size, so many in a second, that go round over so many keys.
func PutLoad(perSecond float64, keys, keyBytes, valueBytes int) Load {
	return Load{
		Entries: []EntryRate{{PerSecond: perSecond, Bytes: PutProposal(keyBytes, valueBytes, false)}},
		Records: []RecordRate{{PerSecond: perSecond, Keys: keys, KeyBytes: keyBytes, ValueBytes: valueBytes}},
	}
}

// TxnLoad is transactions without comparisons, so many in a second, each of so many puts.
func TxnLoad(perSecond float64, puts, keys, keyBytes, valueBytes int) Load {
	return Load{
		Entries: []EntryRate{{PerSecond: perSecond, Bytes: TxnProposal(puts, keyBytes, valueBytes, false)}},
		Records: []RecordRate{{PerSecond: perSecond * float64(puts), Keys: keys, KeyBytes: keyBytes, ValueBytes: valueBytes}},
	}
}

// Plus returns both loads at once, on what the first one has as Live.
func (l Load) Plus(other Load) Load {
	l.Entries = slices.Concat(l.Entries, other.Entries)
	l.Records = slices.Concat(l.Records, other.Records)
	l.WatchStreams += other.WatchStreams
	l.For = max(l.For, other.For)
	return l
}

// leaseBytes is the varint of a lease's id, which is a random number of 63 bits: nine
// bytes, in one case of 128 less.
const leaseBytes = 9

// varint returns the bytes of a number in protobuf.
func varint(n uint64) int {
	bytes := 1
	for ; n >= 0x80; n >>= 7 {
		bytes++
	}
	return bytes
}

// field returns the bytes of a field that has n: a tag, the length, and those. Nothing is
// written for an empty one.
func field(n int) int {
	if n <= 0 {
		return 0
	}
	return 1 + varint(uint64(n)) + n
}

// message is a field that is written also when it is empty.
func message(n int) int { return 1 + varint(uint64(n)) + n }

func putRequest(key, value int, leased bool) int {
	n := field(key) + field(value)
	if leased {
		n += 1 + leaseBytes
	}
	return n
}

// headerBytes is the RequestHeader of a proposal: a tag of two bytes, a length, and the
// request's id, a number whose first bits are the member's: ten bytes in half of the
// clusters, in the others nine.
const headerBytes = 2 + 1 + 1 + 10

// PutProposal returns the size of the raft entry that a put becomes, in bytes: an
// InternalRaftRequest, as etcdserver marshals it. In half of the clusters it is a byte
// less. With authentication the entry also has the user's name and a revision.
func PutProposal(keyBytes, valueBytes int, leased bool) int {
	return headerBytes + message(putRequest(keyBytes, valueBytes, leased))
}

// TxnProposal is [PutProposal] for a transaction without comparisons, of so many puts.
func TxnProposal(puts, keyBytes, valueBytes int, leased bool) int {
	op := message(putRequest(keyBytes, valueBytes, leased)) // in a RequestOp
	return headerBytes + message(puts*message(op))
}

// leastPerSecond is once in thirty years: what is less counts as never.
const leastPerSecond = 1e-9

// withoutRare returns l with rates of zero in place of those that count as never.
func (l Load) withoutRare() Load {
	l.Entries, l.Records = slices.Clone(l.Entries), slices.Clone(l.Records)
	for i := range l.Entries {
		if l.Entries[i].PerSecond < leastPerSecond {
			l.Entries[i].PerSecond = 0
		}
	}
	for i := range l.Records {
		if l.Records[i].PerSecond < leastPerSecond || l.entriesPerSecond() == 0 {
			l.Records[i].PerSecond = 0
		}
	}
	return l
}

// Validate returns what is wrong with l, joined; each an [*InputError].
func (l Load) Validate() error {
	var errs []error
	wrong := func(value any, remedy, format string, args ...any) {
		errs = append(errs, &InputError{Field: "Load." + fmt.Sprintf(format, args...), Value: value, Remedy: remedy})
	}
	rate := func(r float64, format string, i int) {
		if !(r >= 0 && r <= maxPerSecond) { // not a number is neither
			wrong(r, "choose 0 to 10,000,000 a second", format, i)
		}
	}
	within := func(n, most int, format string, args ...any) {
		if n < 0 || n > most {
			wrong(n, fmt.Sprintf("choose 0 to %d", most), format, args...)
		}
	}
	for i, e := range l.Entries {
		rate(e.PerSecond, "Entries[%d].PerSecond", i)
		within(e.Bytes, maxBytes, "Entries[%d].Bytes", i)
	}
	for i, r := range l.Records {
		rate(r.PerSecond, "Records[%d].PerSecond", i)
		within(r.KeyBytes, maxBytes, "Records[%d].KeyBytes", i)
		within(r.ValueBytes, maxBytes, "Records[%d].ValueBytes", i)
		within(r.Keys, maxKeys, "Records[%d].Keys", i)
	}
	if l.recordsPerSecond() > 0 && l.entriesPerSecond() == 0 {
		wrong(0, "records are written by entries: give the rate of these as well", "Entries")
	}
	within(l.Live.Keys, maxKeys, "Live.Keys")
	within(l.WatchStreams, maxEntries, "WatchStreams")
	for _, n := range []struct {
		name string
		n    int64
	}{{"Revision", l.Live.Revision}, {"InUse", l.Live.InUse}, {"DbSize", l.Live.DbSize}} {
		if n.n < 0 || n.n > math.MaxInt64/1000 {
			wrong(n.n, "give what a member's Status has", "Live.%s", n.name)
		}
	}
	if l.Live.DbSize > 0 && l.Live.InUse > l.Live.DbSize {
		wrong(l.Live.InUse, fmt.Sprintf("it is part of Live.DbSize, which is %d", l.Live.DbSize), "Live.InUse")
	}
	if l.For < 0 || l.For > maxDuration {
		wrong(l.For, "choose up to 100 years, or 0 for a load without an end", "For")
	}
	return errors.Join(errs...)
}

func (l Load) entriesPerSecond() (n float64) {
	for _, e := range l.Entries {
		n += e.PerSecond
	}
	return n
}

func (l Load) recordsPerSecond() (n float64) {
	for _, r := range l.Records {
		n += r.PerSecond
	}
	return n
}
