package audit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/keys"
)

// Config says how an audit is made. The zero value has the defaults.
type Config struct {
	Separator byte            // of the components of keys; '/'
	Depth     int             // components of a prefix; 2
	Top       int             // how many keys and prefixes are listed; 20
	Space     format.Keyspace // where chunks are
}

func (c Config) filled() Config {
	c.Separator = cmp.Or(c.Separator, '/')
	c.Depth = cmp.Or(c.Depth, 2)
	c.Top = cmp.Or(c.Top, 20)
	return c
}

// What a tally keeps at the most, whatever is counted.
const (
	maxKeys     = 2_600_000 // in the table at a time: 65 MB
	maxPrefixes = 4096
	maxLeases   = 1 << 18
	maxChunked  = 1 << 17 // chunked keys whose chunks are counted
	maxStaging  = 100
)

// maxValueBytes is the length of the largest value that a manifest may be of.
const maxValueBytes = 1 << 40

// tally counts records, newest first: the first one of a key is what is live of it, or a
// delete, and all others are history. So the state of a key is known when its first record
// comes, and nothing is taken back later.
//
// Where there are more keys than the table holds, it does not count any more but estimates
// how many there are. Then next begins anew, with a part of the keys: the caller gives it
// all records again, as often as there are parts.
type tally struct {
	cfg          Config
	maxKeys      int
	pass, passes int
	estimate     *distinct // nil while it counts

	table    keyTable
	totals   Totals
	values   sizes
	prefixes map[string]*prefixTally
	rest     *prefixTally
	last     *prefixTally // the one of the record before
	lastName []byte

	bySize, byChurn, byHistory top
	chunked                    Chunked
	chunks                     map[uint64]chunkSum // of a logical key, by its hash
	leases                     map[int64]uint32
	leased, unleased           uint64
	staging                    []Staging
	records                    uint64
	live                       bool // there is no history: each key comes once
}

type prefixTally struct {
	keys, liveBytes, revisions, historyBytes, tombstones, leased uint64
	sizes                                                        sizes
}

type chunkSum struct {
	chunks uint32
	bytes  uint64
}

func newTally(cfg Config, live bool) *tally {
	t := &tally{cfg: cfg.filled(), maxKeys: maxKeys, passes: 1, live: live}
	t.clear()
	return t
}

func (t *tally) clear() {
	t.totals, t.values, t.chunked = Totals{}, sizes{}, Chunked{}
	t.prefixes, t.rest, t.last = make(map[string]*prefixTally), nil, nil
	t.bySize, t.byChurn, t.byHistory = top{room: t.cfg.Top}, top{room: t.cfg.Top}, top{room: t.cfg.Top}
	t.chunks, t.leases = make(map[uint64]chunkSum), make(map[int64]uint32)
	t.leased, t.unleased, t.staging, t.records = 0, 0, nil, 0
}

// next reports whether the records have to be given once more.
func (t *tally) next() bool {
	if t.estimate != nil {
		t.passes = max(2, int(math.Ceil(t.estimate.count()*1.03/float64(t.maxKeys))))
		t.estimate = nil
		t.clear()
		return true
	}
	if t.pass++; t.pass == t.passes {
		return false
	}
	t.table.reset()
	return true
}

// mine reports whether the logical key with the hash has its turn. The bits are others than
// those by which the table orders.
func (t *tally) mine(hash uint64) bool {
	return t.passes == 1 || int(hash>>20&0xffff)*t.passes>>16 == t.pass
}

// add counts a record.
func (t *tally) add(r *record) {
	logical, id, isChunk := r.key, format.ID{}, false
	if t.cfg.Space.Reserved(r.key) {
		if key, i, err := t.cfg.Space.ParseChunkKey(r.key); err == nil {
			logical, id, isChunk = key, i, true
		}
	}
	owner := xxhash.Sum64(logical)
	if !t.mine(owner) {
		return
	}
	hash := owner
	if isChunk {
		hash = xxhash.Sum64(r.key)
	}
	if t.estimate != nil {
		t.estimate.add(hash)
		return
	}
	t.records++
	newest, s := true, (*slot)(nil)
	if !t.live {
		s = t.table.find(hash)
		newest = !s.seen()
		s.see()
		if t.passes == 1 && t.table.keys > t.maxKeys {
			t.giveUp()
			return
		}
	}
	p := t.prefix(logical)
	if newest && !r.tombstone {
		if isChunk {
			t.addChunk(p, owner, logical, id, r)
		} else {
			t.addLive(p, owner, r)
		}
		return
	}
	size := uint64(r.bytes)
	t.totals.HistoryRecords++
	t.totals.HistoryBytes += size
	p.historyBytes += size
	if r.tombstone {
		t.totals.Tombstones++
		p.tombstones++
	}
	if isChunk {
		// It is history of the logical key, but none of its revisions.
		s = t.table.find(owner)
		s.add(0, size)
	} else {
		if newest {
			t.totals.Deleted++
		}
		p.revisions++
		s.add(1, size)
		if t.byChurn.wants(s.revisions()) {
			t.byChurn.set(owner, s.revisions(), logical, KeyReport{HistoryBytes: s.bytes()})
		}
	}
	if t.byHistory.wants(s.bytes()) {
		t.byHistory.set(owner, s.bytes(), logical, KeyReport{Revisions: s.revisions()})
	}
}

func (t *tally) addLive(p *prefixTally, owner uint64, r *record) {
	size, length := uint64(r.bytes), uint64(len(r.value))
	about := KeyReport{}
	if !format.Plain(r.value) {
		switch literal, m, err := format.Parse(r.value, maxValueBytes); {
		case err != nil:
			t.chunked.Unreadable++
		case m == nil:
			length = uint64(len(literal))
		default:
			length = uint64(m.Length)
			about.StoredBytes = size
			t.chunked.Keys++
			t.chunked.ValueBytes += length
			t.chunked.StoredBytes += size
		}
	}
	t.totals.Keys++
	t.totals.KeyBytes += uint64(len(r.key))
	t.totals.ValueBytes += length
	t.totals.LiveRecords++
	t.totals.LiveBytes += size
	t.values.add(length)
	p.keys++
	p.liveBytes += size
	p.sizes.add(length)
	p.revisions++
	if t.live {
		p.revisions += uint64(max(r.version-1, 0))
		if t.byChurn.wants(uint64(r.version)) {
			t.byChurn.set(owner, uint64(r.version), r.key, KeyReport{})
		}
	}
	if t.bySize.wants(length) {
		t.bySize.set(owner, length, r.key, about)
	}
	if r.lease != 0 {
		p.leased++
		t.leased++
		if _, ok := t.leases[r.lease]; ok || len(t.leases) < maxLeases {
			t.leases[r.lease]++
		} else {
			t.unleased++
		}
	}
}

func (t *tally) addChunk(p *prefixTally, owner uint64, logical []byte, id format.ID, r *record) {
	size := uint64(r.bytes)
	t.totals.LiveRecords++
	t.totals.LiveBytes += size
	p.liveBytes += size
	if id.Index == 0 {
		if len(t.staging) < maxStaging {
			s := Staging{Key: Key(logical), Lease: leaseID(r.lease)}
			var anchor struct {
				Host    string `json:"host"`
				PID     int    `json:"pid"`
				Version string `json:"version"`
			}
			if json.Unmarshal(r.value, &anchor) == nil { // one of another version is a writer all the same
				s.Host, s.PID, s.Version = anchor.Host, anchor.PID, anchor.Version
			}
			t.staging = append(t.staging, s)
		}
		return
	}
	t.chunked.Chunks++
	t.chunked.StoredBytes += size
	if sum, ok := t.chunks[owner]; ok || len(t.chunks) < maxChunked {
		t.chunks[owner] = chunkSum{sum.chunks + 1, sum.bytes + size}
	}
}

// prefix returns the count of the prefix of a key.
func (t *tally) prefix(key []byte) *prefixTally {
	name := keys.Prefix(key, t.cfg.Separator, t.cfg.Depth)
	if t.last != nil && bytes.Equal(name, t.lastName) {
		return t.last
	}
	p := t.prefixes[string(name)]
	switch {
	case p != nil:
	case len(t.prefixes) < maxPrefixes:
		p = new(prefixTally)
		t.prefixes[string(name)] = p
	default:
		if t.rest == nil {
			t.rest = new(prefixTally)
		}
		p = t.rest
	}
	t.last, t.lastName = p, append(t.lastName[:0], name...)
	return p
}

// giveUp goes over to estimating how many keys there are.
func (t *tally) giveUp() {
	t.estimate = new(distinct)
	for i := range t.table.segments {
		for _, s := range t.table.segments[i].slots {
			if s.hash != 0 {
				t.estimate.add(s.hash)
			}
		}
	}
	t.table.reset()
}

// report returns what was counted.
func (t *tally) report() *Report {
	r := &Report{
		Schema: Schema, Totals: t.totals, Values: t.values.distribution(), Chunked: t.chunked, Staging: t.staging,
		Estimates: []string{fmt.Sprintf("quantiles of sizes (p50 to p99.9) are too large by at most %.1f %% of them; the maximum is exact", 100*SizeError)},
	}
	r.Source.Records, r.Source.Passes = t.records, t.passes
	all := float64(t.totals.LiveBytes + t.totals.HistoryBytes)
	add := func(name string, rest bool, p *prefixTally) {
		r.Prefixes = append(r.Prefixes, Prefix{
			Prefix: Key(name), Rest: rest, Keys: p.keys, LiveBytes: p.liveBytes, Share: ratio(float64(p.liveBytes+p.historyBytes), all),
			Revisions: p.revisions, PerKey: ratio(float64(p.revisions), float64(p.keys)), HistoryBytes: p.historyBytes,
			Tombstones: p.tombstones, Max: p.sizes.most, P99: p.sizes.quantile(.99), Mean: uint64(ratio(float64(p.sizes.sum), float64(p.sizes.n))), Leased: p.leased,
		})
	}
	for name, p := range t.prefixes {
		add(name, false, p)
	}
	if t.rest != nil {
		add("", true, t.rest)
		r.Notes = append(r.Notes, fmt.Sprintf("there are more than %d prefixes; those that were found later are counted together: choose a smaller --depth", maxPrefixes))
	}
	slices.SortFunc(r.Prefixes, func(a, b Prefix) int {
		return cmp.Or(cmp.Compare(b.LiveBytes+b.HistoryBytes, a.LiveBytes+a.HistoryBytes), cmp.Compare(a.Prefix, b.Prefix))
	})
	for _, e := range t.bySize.sorted() {
		k := e.about
		k.Key, k.ValueBytes = Key(e.key), e.weight
		if sum, ok := t.chunks[e.hash]; ok {
			k.Chunks = uint64(sum.chunks)
			k.StoredBytes += sum.bytes
		}
		r.BySize = append(r.BySize, k)
	}
	for _, e := range t.byChurn.sorted() {
		k := e.about
		k.Key, k.Revisions = Key(e.key), e.weight
		r.ByChurn = append(r.ByChurn, k)
	}
	for _, e := range t.byHistory.sorted() {
		k := e.about
		k.Key, k.HistoryBytes = Key(e.key), e.weight
		r.ByHistory = append(r.ByHistory, k)
	}
	if t.passes > 1 || t.table.keys > 0 {
		r.Estimates = append(r.Estimates, "keys are told apart by 64-bit hashes: of n keys, two count as one with a probability of n*n/2^65")
	}
	if t.live {
		r.Estimates = append(r.Estimates, "revisions are versions, which is how often a key was put since it was created: what is kept of old revisions cannot be read from a live cluster")
	}
	r.Leases = t.leaseReport()
	return r
}

func (t *tally) leaseReport() Leases {
	l := Leases{WithKeys: len(t.leases), Keys: t.leased, Uncounted: t.unleased}
	l.PerLease = ratio(float64(t.leased-t.unleased), float64(len(t.leases)))
	largest := make([]LeaseUse, 0, 8)
	for id, n := range t.leases {
		l.Max = max(l.Max, uint64(n))
		largest = append(largest, LeaseUse{leaseID(id), uint64(n)})
		if len(largest) == cap(largest) {
			largest = largestLeases(largest)
		}
	}
	l.Largest = largestLeases(largest)
	return l
}

func largestLeases(l []LeaseUse) []LeaseUse {
	slices.SortFunc(l, func(a, b LeaseUse) int { return cmp.Or(cmp.Compare(b.Keys, a.Keys), cmp.Compare(a.ID, b.ID)) })
	return l[:min(len(l), 5)]
}

func leaseID(id int64) string { return fmt.Sprintf("%x", uint64(id)) }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// distinct estimates how many different hashes there are, to 1.6 %: a HyperLogLog.
type distinct struct{ ranks [1 << distinctBits]uint8 }

const distinctBits = 12

func (d *distinct) add(hash uint64) {
	rank := uint8(bits.LeadingZeros64(hash<<distinctBits|1<<(distinctBits-1)) + 1)
	if at := &d.ranks[hash>>(64-distinctBits)]; rank > *at {
		*at = rank
	}
}

func (d *distinct) count() float64 {
	const m = 1 << distinctBits
	sum, zeros := 0.0, 0
	for _, r := range d.ranks {
		sum += math.Ldexp(1, -int(r))
		if r == 0 {
			zeros++
		}
	}
	n := 0.7213 / (1 + 1.079/m) * m * m / sum
	if n < 2.5*m && zeros > 0 {
		n = m * math.Log(float64(m)/float64(zeros))
	}
	return n
}
