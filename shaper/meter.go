package shaper

import (
	"cmp"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Meter counts what passes its stages. Put over the others a stage counts what an application
// asks for, below them what is proposed to etcd. It sends nothing, has no goroutines and need
// not be closed. Its methods are safe for concurrent use.
//
// What it counts is what etcd said about its requests: a request counts when it has ended. It
// does not see what leases that expire delete.
//
// # How it works
//
// The goal is that a small put takes 2 % longer at most, and that nobody waits for anybody:
// neither writers for each other, nor for who reads the counts. All that a request changes
// is in one shard, under its mutex, which is held for some hundred nanoseconds. Shards are
// chosen at random, and one whose mutex is taken is passed over, so that a request waits only
// when all are taken. Invariants:
//
//  1. A request is in one shard, whole or not at all: in each sum of shards there are as many
//     entries in the histogram as there are entries, and as many records.
//  2. Nothing in a shard gets smaller. So the sum of shards now minus an earlier one is
//     what came between them, though the shards of either were added one after the other.
//  3. Nothing is allocated for a request.
//
// A simpler design is an atomic counter for each number. A put changes fourteen, which takes
// 30 ns as long as no other core does; under a mutex that nobody else wants they take 7. It
// has not the first invariant, and the sketch of prefixes has no atomic form at all. One mutex
// without shards is enough for what etcd can take, which is tens of thousands of puts a second;
// but puts that are merged before they are proposed come a hundred times as fast, and whoever
// reads the counts would have all of them wait.
//
// The window is a sum minus an earlier one. The first request that ends in a new slot of
// time puts the sum as it is aside: nothing was counted since the slot began. So there is no
// timer, and what a request costs does not depend on the window, but for one in each slot.
type Meter struct {
	cfg    MeterConfig
	start  time.Time
	slot   time.Duration
	names  []string    // of the rules, "" among them
	rules  []meterRule // the longest prefix first; the last one is for every key
	shards []*shard    // their number is a power of two

	next    atomic.Int64 // when the next slot begins, since start
	mu      sync.Mutex   // guards history; taken before the mutexes of shards
	history []moment     // a ring, made at the start
	newest  int          // in history
}

// meterRule is a prefix of MeterConfig.Rules, and where it is counted.
type meterRule struct {
	prefix string
	index  int
}

// moment is the sum of all shards as it was when a slot began.
type moment struct {
	slot int64 // -1 where there is none yet
	tally
}

// shard is a part of what was counted.
type shard struct {
	mu sync.Mutex
	tally
	largest  int
	keys     keySketch
	prefixes prefixSketch
}

// tally is what can be subtracted: the counts of a time are those at its end minus those at
// its beginning.
type tally struct {
	counts  Counts
	entries [numBuckets]entryCell
	records [numBuckets]recordCell
	rules   []RuleCounts
}

// maxShards are enough that one is free. Each takes 100 KB.
const maxShards = 8

// NewMeter returns a meter that begins now.
func NewMeter(cfg MeterConfig) (*Meter, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	m := &Meter{cfg: cfg, start: time.Now(), slot: cfg.Window / time.Duration(cfg.Slots)}
	m.names = cfg.Rules
	if !slices.Contains(cfg.Rules, "") {
		m.names = append(slices.Clone(cfg.Rules), "")
	}
	for i, prefix := range m.names {
		m.rules = append(m.rules, meterRule{prefix, i})
		if cfg.ChunkPrefix != nil && prefix != "" {
			m.rules = append(m.rules, meterRule{cfg.ChunkPrefix(prefix), i})
		}
	}
	slices.SortStableFunc(m.rules, func(a, b meterRule) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	shards := 1
	for shards < min(runtime.GOMAXPROCS(0), maxShards) {
		shards *= 2
	}
	for range shards {
		m.shards = append(m.shards, &shard{tally: m.newTally(), prefixes: newPrefixSketch(16 * cfg.Heaviest)})
	}
	for range cfg.Slots + 1 {
		m.history = append(m.history, moment{slot: -1, tally: m.newTally()})
	}
	m.history[0].slot = 0
	m.next.Store(int64(m.slot))
	return m, nil
}

func (m *Meter) newTally() tally { return tally{rules: make([]RuleCounts, len(m.names))} }

// Observe counts a put as one that has succeeded. It is for puts that are to be written
// later, whose ends no stage sees: as asked, a put by itself, whatever it is merged with.
func (m *Meter) Observe(r *pb.PutRequest) { m.put(m.now(), r, nil) }

func (m *Meter) now() time.Duration { return time.Since(m.start) }

// enter returns a shard whose mutex it has taken, for something that has ended at now.
func (m *Meter) enter(now time.Duration) *shard {
	if int64(now) >= m.next.Load() {
		m.turn(now)
	}
	first := int(rand.Uint32())
	for i := range m.shards {
		if s := m.shards[(first+i)&(len(m.shards)-1)]; s.mu.TryLock() {
			return s
		}
	}
	s := m.shards[first&(len(m.shards)-1)]
	s.mu.Lock()
	return s
}

// turn puts the sum of the shards aside where a slot has begun. Who finds that another one
// does so, or that the counts are read, goes on.
func (m *Meter) turn(now time.Duration) {
	if !m.mu.TryLock() {
		return
	}
	defer m.mu.Unlock()
	slot := int64(now / m.slot)
	if slot <= m.history[m.newest].slot {
		return
	}
	m.newest = (m.newest + 1) % len(m.history)
	aside := &m.history[m.newest]
	aside.slot = slot
	aside.reset()
	for _, s := range m.shards {
		s.mu.Lock()
		aside.add(&s.tally)
		s.mu.Unlock()
	}
	m.next.Store((slot + 1) * int64(m.slot))
}

// before returns the sum as it was when a slot began: nothing has changed from then to the
// next one that was put aside. It returns nil where nothing has changed until now.
func (m *Meter) before(slot int64) (found *tally) {
	for i := range m.history {
		at := &m.history[(m.newest-i+len(m.history))%len(m.history)]
		if at.slot < slot {
			break
		}
		found = &at.tally
	}
	return found
}

// put counts a put that has ended with err.
func (m *Meter) put(now time.Duration, r *pb.PutRequest, err error) {
	entry, how := wire.ProposalBytes(r), outcomeOf(err)
	s := m.enter(now)
	s.counts.Puts++
	s.wrote(how, entry)
	if how == succeeded {
		s.counts.Revisions++
		s.putKey(m, r)
	}
	s.mu.Unlock()
}

// deleteRange counts a delete that has ended with err.
func (m *Meter) deleteRange(now time.Duration, r *pb.DeleteRangeRequest, resp *pb.DeleteRangeResponse, err error) {
	entry, how := wire.ProposalBytes(r), outcomeOf(err)
	s := m.enter(now)
	s.counts.Deletes++
	s.wrote(how, entry)
	if how == succeeded && s.deleteKeys(m, r, resp) {
		s.counts.Revisions++
	}
	s.mu.Unlock()
}

// txn counts a transaction that has ended with err.
func (m *Meter) txn(now time.Duration, r *pb.TxnRequest, resp *pb.TxnResponse, err error) {
	if !wire.Writes(r) {
		s := m.enter(now)
		s.branch(m, r, resp) // of an error there is no answer
		s.mu.Unlock()
		return
	}
	entry, how := wire.ProposalBytes(r), outcomeOf(err)
	s := m.enter(now)
	s.counts.Txns++
	s.wrote(how, entry)
	if how == succeeded && s.branch(m, r, resp) {
		s.counts.Revisions++
	}
	s.mu.Unlock()
}

// read counts a range, or a part of one.
func (m *Meter) read(now time.Duration, ranges uint64, resp *pb.RangeResponse) {
	s := m.enter(now)
	s.ranged(ranges, resp)
	s.mu.Unlock()
}

func (m *Meter) compacted(now time.Duration) {
	s := m.enter(now)
	s.counts.Compactions++
	s.mu.Unlock()
}

// ruleOf returns where a key is counted.
func (m *Meter) ruleOf(key []byte) int {
	for _, r := range m.rules[:len(m.rules)-1] {
		if n := len(r.prefix); len(key) >= n && string(key[:n]) == r.prefix { // strings.HasPrefix would copy the key
			return r.index
		}
	}
	return m.rules[len(m.rules)-1].index
}

// wrote counts a request that writes, of which entry is the proposal.
func (s *shard) wrote(how outcome, entry int) {
	switch how {
	case refused:
		s.counts.Refused++
		return
	case failed:
		s.counts.Failed++
	case unknown:
		s.counts.Unknown++
	}
	s.counts.Entries++
	s.counts.EntryBytes += uint64(entry)
	s.largest = max(s.largest, entry)
	b := &s.entries[bucketOf(entry)]
	b.count++
	b.bytes += uint64(entry)
}

// branch counts the operations of a transaction that were carried out, and reports whether
// they have changed anything.
func (s *shard) branch(m *Meter, r *pb.TxnRequest, resp *pb.TxnResponse) (changed bool) {
	ops := r.Failure
	if resp.GetSucceeded() {
		ops = r.Success
	}
	answers := resp.GetResponses()
	for i, op := range ops[:min(len(ops), len(answers))] {
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			s.putKey(m, op.RequestPut)
			changed = true
		case *pb.RequestOp_RequestDeleteRange:
			changed = s.deleteKeys(m, op.RequestDeleteRange, answers[i].GetResponseDeleteRange()) || changed
		case *pb.RequestOp_RequestTxn:
			changed = s.branch(m, op.RequestTxn, answers[i].GetResponseTxn()) || changed
		case *pb.RequestOp_RequestRange:
			s.ranged(1, answers[i].GetResponseRange())
		}
	}
	return changed
}

func (s *shard) putKey(m *Meter, r *pb.PutRequest) {
	s.keys.add(xxhash.Sum64(r.Key))
	if r.Lease != 0 {
		s.counts.Leased++
	}
	s.record(m, r.Key, len(r.Value), 1)
}

// deleteKeys counts the keys that were deleted, and reports whether there were any. Of a
// range that has not asked for them the keys are not known: they are at least as long as
// its prefix, where it is one.
func (s *shard) deleteKeys(m *Meter, r *pb.DeleteRangeRequest, resp *pb.DeleteRangeResponse) bool {
	n := uint64(max(0, resp.GetDeleted()))
	if n == 0 {
		return false
	}
	s.counts.Tombstones += n
	if known := resp.GetPrevKvs(); uint64(len(known)) == n {
		for _, kv := range known {
			s.record(m, kv.Key, 0, 1).Tombstones++
		}
		return true
	}
	s.record(m, r.Key, 0, n).Tombstones += n
	return true
}

// record counts n records in the backend, each of a key as long as key and of so many bytes
// of value. It returns the counts of the key's rule.
func (s *shard) record(m *Meter, key []byte, valueBytes int, n uint64) *RuleCounts {
	keys, values := n*uint64(len(key)), n*uint64(valueBytes)
	s.counts.Records += n
	s.counts.KeyBytes += keys
	s.counts.ValueBytes += values
	b := &s.records[bucketOf(len(key)+valueBytes)]
	b.count += n
	b.keys += keys
	b.values += values
	prefix := prefixOf(key, m.cfg.Separator, m.cfg.Depth)
	s.prefixes.add(xxhash.Sum64(prefix), prefix, n, keys+values)
	rule := &s.rules[m.ruleOf(key)]
	rule.Records += n
	rule.KeyBytes += keys
	rule.ValueBytes += values
	return rule
}

func (s *shard) ranged(ranges uint64, resp *pb.RangeResponse) {
	s.counts.Ranges += ranges
	for _, kv := range resp.GetKvs() {
		s.counts.RangeBytes += uint64(len(kv.Key) + len(kv.Value))
	}
}

func (t *tally) reset() {
	clear(t.rules)
	*t = tally{rules: t.rules}
}

func (t *tally) add(u *tally) { t.addTimes(u, 1) }

// sub takes away what was there before.
func (t *tally) sub(u *tally) { t.addTimes(u, ^uint64(0)) } // which is -1

func (t *tally) addTimes(u *tally, times uint64) {
	to, from := t.counts.all(), u.counts.all()
	for i, n := range to {
		*n += times * *from[i]
	}
	for i := range t.entries {
		a, b := &t.entries[i], &u.entries[i]
		a.count += times * b.count
		a.bytes += times * b.bytes
	}
	for i := range t.records {
		a, b := &t.records[i], &u.records[i]
		a.count += times * b.count
		a.keys += times * b.keys
		a.values += times * b.values
	}
	for i := range t.rules {
		a, b := &t.rules[i], &u.rules[i]
		a.Records += times * b.Records
		a.Tombstones += times * b.Tombstones
		a.KeyBytes += times * b.KeyBytes
		a.ValueBytes += times * b.ValueBytes
	}
}
