package faults

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/cespare/xxhash/v2"
)

// record is one operation on one key, as its client saw it.
//
// Call is before the operation began and Return after it ended, by the clock of
// the process that checks: where another process carries it out, Call is taken
// before it is told to, and Return when its answer has come. So the interval is
// never shorter than the operation, which is what the checks rely on; and no two
// clocks are compared. A write of unknown outcome returns never.
type record struct {
	Client  int
	Group   int // of the records of one request
	Kind    kind
	Key     string
	Writes  bool   // it is a write, whatever has become of it
	ID      string // of the value that it puts; empty where it deletes
	Lease   int64  // of the put, or that is revoked
	Call    time.Duration
	Return  time.Duration
	Outcome outcome
	Error   string

	Wrote    bool  // it has changed the key, at Revision
	Revision int64 // else it has read the key there, or nothing
	Observed bool  // Found is what was there, before it where it has changed the key
	Found    found
	Merged   bool // a newer value of a client that shares its KV was written in its place
}

const never = time.Duration(math.MaxInt64)

func (r *record) String() string {
	s := fmt.Sprintf("client %d: %s %q", r.Client, r.Kind, r.Key)
	if r.ID != "" {
		s += " value " + r.ID
	}
	if s += fmt.Sprintf(": %s at %d", r.Outcome, r.Revision); r.Wrote {
		s += ", applied"
	}
	if r.Observed {
		s += fmt.Sprintf(", found %+v", r.Found)
	}
	if r.Error != "" {
		s += ", " + r.Error
	}
	if r.Return == never {
		return s + fmt.Sprintf(" [%v, ...]", r.Call)
	}
	return s + fmt.Sprintf(" [%v, %v]", r.Call, r.Return)
}

// history is what all clients did. It is safe for concurrent use.
type history struct {
	began   time.Time
	started atomic.Int64 // requests
	acked   atomic.Int64 // requests that went well
	epoch   int64        // requests that it has
	share   map[int]int  // which KV a client uses, where others do as well

	mu      sync.Mutex
	records []*record
	values  map[string]value  // by id
	ids     map[digest]string // of values
	counts  map[kind]map[outcome]int
	wrong   []string // answers that are wrong in themselves
}

// digest tells values apart, as a manifest does.
type digest struct {
	length int
	sum    uint64
}

func newHistory() *history {
	return &history{
		began: time.Now(), epoch: epochRequests, share: make(map[int]int), values: make(map[string]value), ids: make(map[digest]string), counts: make(map[kind]map[outcome]int),
	}
}

func (h *history) now() time.Duration { return time.Since(h.began) }

// announce notes the values of a request before it is made.
func (h *history) announce(r request) {
	for _, v := range r.Values {
		b := v.bytes()
		d := digest{len(b), xxhash.Sum64(b)}
		h.mu.Lock()
		h.values[v.ID], h.ids[d] = v, v.ID
		h.mu.Unlock()
	}
}

// do has a request carried out, and records it.
func (h *history) do(client int, r request, perform func(request) result) result {
	group := int(h.started.Add(1))
	h.announce(r)
	call := h.now()
	res := perform(r)
	end := h.now()
	if r.reads() && res.Outcome != ok {
		res.Outcome = failed
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts[r.Kind] == nil {
		h.counts[r.Kind] = make(map[outcome]int)
	}
	h.counts[r.Kind][res.Outcome]++
	if res.Outcome == ok {
		h.acked.Add(1)
	}
	first := len(h.records)
	h.records = append(h.records, records(client, group, r, res, call, end)...)
	if res.Wrong != "" {
		h.wrong = append(h.wrong, fmt.Sprintf("%s: %v", res.Wrong, h.records[first]))
	}
	return res
}

// records returns what a request and its result say of each key.
func records(client, group int, r request, res result, call, end time.Duration) []*record {
	var all []*record
	for i, key := range r.Keys {
		rec := &record{
			Client: client, Group: group, Kind: r.Kind, Key: key, Writes: !r.reads(), Lease: max(res.Lease, r.Lease),
			Call: call, Return: end, Outcome: res.Outcome, Error: res.Error, Wrote: res.Wrote, Revision: res.Revision,
		}
		if len(r.Values) > 0 {
			rec.ID = r.Values[i].ID
		}
		switch swaps := r.Kind == swapByRevision || r.Kind == swapByValue; {
		case res.Outcome == unknown:
			rec.Return = never
			rec.Observed, rec.Found = swaps, r.Expected // if it is applied at all
		case len(res.Found) > 0:
			rec.Observed, rec.Found = true, res.Found[i]
		case swaps && res.Wrote:
			rec.Observed, rec.Found = true, r.Expected
		}
		all = append(all, rec)
	}
	return all
}

// value returns the value with an id.
func (h *history) value(id string) value {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.values[id]
}

// appliedUnknown returns how many of the writes of unknown outcome were applied, as
// check has found out.
func (h *history) appliedUnknown() (n int) {
	for _, r := range h.records {
		if r.Outcome == unknown && r.Wrote {
			n++
		}
	}
	return n
}

// longestPause returns the longest time in which no request ended well.
func (h *history) longestPause() time.Duration {
	ends := []time.Duration{0}
	for _, r := range h.records {
		if r.Outcome == ok {
			ends = append(ends, r.Return)
		}
	}
	slices.Sort(ends)
	longest := time.Duration(0)
	for i := range ends[1:] {
		longest = max(longest, ends[i+1]-ends[i])
	}
	return longest
}

// table writes how many operations of each kind ended in which way.
func (h *history) table(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	fmt.Fprintf(w, "operation\t%s\t%s\t%s\t\n", ok, unknown, failed)
	sum := make(map[outcome]int)
	row := func(name string, n map[outcome]int) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t\n", name, n[ok], n[unknown], n[failed])
	}
	var kinds []kind
	for k, n := range h.counts {
		kinds = append(kinds, k)
		for o, n := range n {
			sum[o] += n
		}
	}
	slices.SortFunc(kinds, func(a, b kind) int { return strings.Compare(string(a), string(b)) })
	for _, k := range kinds {
		row(string(k), h.counts[k])
	}
	row("all", sum)
}
