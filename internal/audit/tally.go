package audit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"slices"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/keys"
)

// Config says how an audit is made. The zero value has the defaults.
type Config struct {
	Separator byte            // of the components of keys; '/'
	Depth     int             // components of a prefix; 2
	Top       int             // how many keys are listed; 10
	Space     format.Keyspace // where chunks are
}

func (c Config) filled() Config {
	c.Separator = cmp.Or(c.Separator, '/')
	c.Depth = cmp.Or(c.Depth, 2)
	c.Top = cmp.Or(c.Top, 10)
	return c
}

// What a tally keeps at the most, whatever is counted.
const (
	maxKeys     = 2_600_000 // in the table at a time: 65 MB
	maxPrefixes = 4096
	maxLeases   = 1 << 18
	maxChunked  = 1 << 17 // chunked keys whose chunks are counted
	maxStaging  = 100
	maxName     = 1 << 10 // of a prefix, bytes; longer ones are counted together
	maxShown    = 4 << 10 // of a key in a list
)

// maxValueBytes is the length of the largest value that a client may be configured to write.
const maxValueBytes = 256 << 20

// tally counts records, newest first: the first one of a key is what is live of it, or a
// delete, and all others are history. So the state of a key is known when its first record
// comes, and nothing is taken back later.
//
// Where there are more keys than the table holds, it does not count any more but estimates
// how many there are. Then next begins anew, with a part of the keys: the caller gives it
// all records again, as often as there are parts.
type tally struct {
	cfg          Config
	seed         maphash.Seed // keys that were chosen to collide would make it slow, and wrong
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
	uncounted                  uint64              // chunks of keys for which there was no room
	leases                     map[int64]uint32
	leased, unleased           uint64
	staging                    []Staging
	stagingMore                int // for which there was no room
	records                    uint64
	live                       bool // there is no history: each key comes once
}

type prefixTally struct {
	keys, liveBytes, revisions, historyBytes, tombstones, deleted, leased uint64
	sizes                                                                 sizes
}

type chunkSum struct {
	chunks uint32
	bytes  uint64
}

func newTally(cfg Config, live bool) *tally {
	t := &tally{cfg: cfg.filled(), seed: maphash.MakeSeed(), maxKeys: maxKeys, passes: 1, live: live}
	t.clear()
	return t
}

func (t *tally) clear() {
	t.totals, t.values, t.chunked = Totals{}, sizes{}, Chunked{}
	t.prefixes, t.rest, t.last = make(map[string]*prefixTally), nil, nil
	t.bySize, t.byChurn, t.byHistory = top{room: t.cfg.Top}, top{room: t.cfg.Top}, top{room: t.cfg.Top}
	t.chunks, t.leases = make(map[uint64]chunkSum), make(map[int64]uint32)
	t.leased, t.unleased, t.uncounted, t.staging, t.stagingMore, t.records = 0, 0, 0, nil, 0, 0
}

// next reports whether the records have to be given once more.
func (t *tally) next() bool {
	if t.estimate != nil {
		t.passes = max(2, int(math.Ceil(t.estimate.count()*1.03/float64(t.maxKeys))))
		t.estimate = nil
		t.clear()
		return true
	}
	t.settle()
	if t.pass++; t.pass == t.passes {
		return false
	}
	t.table.reset()
	return true
}

// settle tells the largest values of this part of the keys how many revisions they have, and
// the keys with most revisions what these take: that came later than they did.
func (t *tally) settle() {
	if t.live || t.estimate != nil {
		return
	}
	for i, e := range t.bySize.entries {
		if t.mine(e.hash) {
			t.bySize.entries[i].about.Revisions = t.table.find(e.hash).kept()
		}
	}
	for i, e := range t.byChurn.entries {
		if t.mine(e.hash) {
			t.byChurn.entries[i].about.HistoryBytes = t.table.find(e.hash).bytes()
		}
	}
}

// mine reports whether the logical key with the hash has its turn. The bits are others than
// those by which the table orders.
func (t *tally) mine(hash uint64) bool {
	return t.passes == 1 || int(hash>>20&0xffff)*t.passes>>16 == t.pass
}

// add counts a record.
func (t *tally) add(r *record) {
	logical, id, isChunk := t.cfg.Space.FindChunk(r.key)
	if !isChunk {
		logical = r.key
	}
	owner := maphash.Bytes(t.seed, logical)
	if !t.mine(owner) {
		return
	}
	hash := owner
	if isChunk {
		hash = maphash.Bytes(t.seed, r.key)
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
		s.see(newest && !r.tombstone)
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
			p.deleted++
		}
		p.revisions++
		s.add(1, size)
		if t.byChurn.wants(s.kept()) {
			t.byChurn.set(owner, s.kept(), logical, KeyReport{})
		}
	}
	if t.byHistory.wants(s.bytes()) {
		t.byHistory.set(owner, s.bytes(), logical, KeyReport{Revisions: s.kept()})
	}
}

func (t *tally) addLive(p *prefixTally, owner uint64, r *record) {
	size, length := uint64(r.bytes), uint64(len(r.value))
	about := KeyReport{Revisions: uint64(r.version)} // which settle corrects where there is history
	if !format.Plain(r.value) {
		switch literal, m, err := format.Head(r.value, maxValueBytes); {
		case err != nil || m != nil && !owns(r.key, m):
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

// owns reports whether m is the manifest of key, or of the end of it: a client in a namespace
// does not know the beginning.
func owns(key []byte, m *format.Manifest) bool {
	for i := range min(len(key), maxName) {
		if m.KeyDigest == format.KeyDigest(key[i:]) {
			return true
		}
	}
	return false
}

func (t *tally) addChunk(p *prefixTally, owner uint64, logical []byte, id format.ID, r *record) {
	size := uint64(r.bytes)
	t.totals.LiveRecords++
	t.totals.LiveBytes += size
	p.liveBytes += size
	if id.Index == 0 {
		if len(t.staging) == maxStaging {
			t.stagingMore++
		} else {
			s := Staging{Key: Key(logical), Lease: leaseID(r.lease)}
			var anchor struct {
				Host    string `json:"host"`
				PID     int    `json:"pid"`
				Version string `json:"version"`
			}
			if json.Unmarshal(r.value, &anchor) == nil { // one of another version is a writer all the same
				s.Host, s.PID, s.Version = brief(anchor.Host), anchor.PID, brief(anchor.Version)
			}
			t.staging = append(t.staging, s)
		}
		return
	}
	t.chunked.Chunks++
	t.chunked.StoredBytes += size
	if sum, ok := t.chunks[owner]; ok || len(t.chunks) < maxChunked {
		t.chunks[owner] = chunkSum{sum.chunks + 1, sum.bytes + size}
	} else {
		t.uncounted++
	}
}

// prefix returns the count of the prefix of a key.
func (t *tally) prefix(key []byte) *prefixTally {
	name := keys.Prefix(key, t.cfg.Separator, t.cfg.Depth)
	name = name[:min(len(name), maxName)]
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
	t.settle()
	r := &Report{
		Schema: Schema, Findings: []Finding{}, Members: []Member{}, Prefixes: []Prefix{}, BySize: []KeyReport{}, ByChurn: []KeyReport{},
		Totals: t.totals, Values: t.values.distribution(), Chunked: t.chunked, Staging: t.staging,
		Estimates: []string{fmt.Sprintf("quantiles of sizes (p50 to p99.9) are too large by at most %.1f %% of them; the maximum is exact", 100*SizeError)},
	}
	r.Source.Records, r.Source.Passes = t.records, t.passes
	all := float64(t.totals.LiveBytes + t.totals.HistoryBytes)
	add := func(name string, rest bool, p *prefixTally) {
		r.Prefixes = append(r.Prefixes, Prefix{
			Prefix: Key(name), Rest: rest, Keys: p.keys, LiveBytes: p.liveBytes, Share: ratio(float64(p.liveBytes+p.historyBytes), all),
			Revisions: p.revisions, PerKey: ratio(float64(p.revisions), float64(p.keys+p.deleted)), HistoryBytes: p.historyBytes,
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
		k := e.report()
		k.ValueBytes = e.weight
		if sum, ok := t.chunks[e.hash]; ok {
			k.Chunks = uint64(sum.chunks)
			k.StoredBytes += sum.bytes
		}
		r.BySize = append(r.BySize, k)
	}
	for _, e := range t.byChurn.sorted() {
		k := e.report()
		k.Revisions = e.weight
		r.ByChurn = append(r.ByChurn, k)
	}
	for _, e := range t.byHistory.sorted() {
		k := e.report()
		k.HistoryBytes = e.weight
		r.ByHistory = append(r.ByHistory, k)
	}
	if t.passes > 1 || t.table.keys > 0 {
		r.Estimates = append(r.Estimates, "keys are told apart by 64-bit hashes: of n keys, two count as one with a probability of n*n/2^65")
	}
	if t.live {
		r.Estimates = append(r.Estimates, "revisions are versions, which is how often a key was put since it was created: what is kept of old revisions cannot be read from a live cluster")
	}
	r.StagingMore = t.stagingMore
	if t.uncounted > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("there are chunks of more than %d keys; %d chunks are in no key's sum", maxChunked, t.uncounted))
	}
	if r.Leases = t.leaseReport(); t.unleased > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("there are more than %d leases with keys; %d keys of others are not in the figures about leases", maxLeases, t.unleased))
	}
	r.Source.Separator, r.Source.Depth = string(t.cfg.Separator), t.cfg.Depth
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

// brief is what a writer says of itself, which may be anything.
func brief(s string) string { return s[:min(len(s), 256)] }

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
