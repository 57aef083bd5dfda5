package coalesce

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

var simRuns = flag.Int("coalesce.runs", 300, "how many histories TestSimulation plays, and TestNothingIsLeftPending a fifth of it")

// TestSimulation plays histories of several processes on one cluster, with a clock that
// is not real: puts of all modes, written behind or waited for, joined transactions,
// fences, deletes, other clients; and a network that loses requests, loses answers, and
// delivers requests long after their senders have given up; leases that expire; processes
// that are cut off for good. What the cluster has seen afterwards has to agree with what
// everybody was told:
//
//   - what was acknowledged was written, at the revision of the answer; what failed for
//     certain was not;
//   - nothing is written twice;
//   - what is sent again never comes after a write of somebody else that its first
//     attempt came before;
//   - writes of one process to one key that are all written keep their order;
//   - a number under Max never becomes smaller;
//   - what is written under a fence was written while that held.
func TestSimulation(t *testing.T) {
	seen := &seenInAll{}
	for range *simRuns {
		synctest.Test(t, func(t *testing.T) { simulate(t, seen) })
	}
	t.Logf("%+v", *seen)
	if *simRuns >= 100 { // the histories are not all too quiet to show anything
		require.NotZero(t, seen.acknowledged)
		require.NotZero(t, seen.unknown)
		require.NotZero(t, seen.retried)
		require.NotZero(t, seen.overtaken)
		require.NotZero(t, seen.fenced)
		require.NotZero(t, seen.late)
	}
}

type seenInAll struct{ acknowledged, unknown, retried, overtaken, fenced, late, applied int }

// made is one put, or the puts of one transaction, as its maker knows it.
type made struct {
	client, key, value string
	n                  int
	mode               Mode
	async              bool
	fence              int64 // the owner's revision that it was made under, 0 for none
	mu                 *sync.Mutex
	told               int
	revision           int64
	err                error
}

func (w *made) String() string {
	return fmt.Sprintf("client %s, %s=%s under %v, async %v, fence %d: revision %d, error %v", w.client, w.key, w.value, w.mode, w.async, w.fence, w.revision, w.err)
}

func (w *made) end(h *pb.ResponseHeader, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told++
	if w.err = err; err == nil {
		w.revision = h.Revision
	}
}

const simOwner = "owner"

type sim struct {
	*testing.T
	e      *fake
	mu     sync.Mutex
	writes []*made
}

func simulate(t *testing.T, seen *seenInAll) {
	s := &sim{T: t, e: newFake()}
	e := s.e
	defer s.dump()
	trouble := true
	e.fault = func(r proto.Message) fault { // under e.mu
		if !trouble || s.chance(70) {
			return fault{}
		}
		switch d := time.Duration(rand.IntN(4000)) * ms; rand.IntN(5) {
		case 0:
			return fault{err: rpctypes.ErrTimeout, lost: true}
		case 1:
			return fault{err: rpctypes.ErrLeaderChanged} // applied, and not answered
		case 2:
			return fault{err: rpctypes.ErrTimeout, late: d}
		case 3:
			return fault{hanging: true, late: d}
		default:
			return fault{hanging: true, lost: true}
		}
	}
	e.delay = 2 * ms
	cfg := Config{
		Rules: []Rule{
			{Prefix: "group", Mode: GroupCommit, Transactions: true, Retry: true, FlushEvery: 20 * ms},
			{Prefix: "plain", Mode: GroupCommit, Transactions: true, Linger: 3 * ms},
			{Prefix: "last", Mode: LastWriteWins, Retry: true, FlushEvery: 20 * ms},
			{Prefix: "max", Mode: Max, FlushEvery: 20 * ms, Retry: s.chance(50)},
			{Prefix: "skip", Mode: GroupCommit, SkipUnchanged: true},
		},
		RequestTimeout: 500 * ms, CloseTimeout: time.Minute, MaxOps: 1 + rand.IntN(6), InFlight: 1 + rand.IntN(2),
	}
	var kvs []*KV
	for range 3 {
		kv := e.open(t, cfg)
		defer kv.Close()
		kvs = append(kvs, kv)
	}
	var all sync.WaitGroup
	for i, kv := range kvs {
		for j := range 3 {
			all.Go(func() { s.process(i, j, kv) })
		}
	}
	all.Go(s.stranger)
	all.Go(func() {
		for range 4 {
			time.Sleep(time.Duration(s.intn(1500)) * ms)
			if s.chance(50) { // a session ends
				e.mu.Lock()
				e.expire(int64(1 + rand.IntN(len(e.leases)+1)))
				e.mu.Unlock()
			}
		}
	})
	all.Wait()
	e.mu.Lock()
	trouble = false
	e.mu.Unlock()
	for _, kv := range kvs {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := kv.Flush(ctx); err != nil {
			var failed *FlushError
			require.ErrorAs(t, err, &failed)
			if failed.Waiting > 0 {
				q := kv.stage.queue
				for u := range q.all {
					t.Logf("%q: state %d, blocked %v, lane %+v, attempts %d, reason %v", u.ops, u.state, q.blocked(u), *u.lane, u.attempts, u.reason)
				}
				t.Logf("flights %v, wakes at %v of %v", kv.stage.flights, kv.stage.wake, time.Now())
			}
			require.Zero(t, failed.Waiting, "%v", err)
		}
		cancel()
		require.Zero(t, kv.Pending())
		require.NoError(t, kv.Close())
	}
	time.Sleep(10 * time.Second) // until the last request has come
	synctest.Wait()
	s.judge(seen)
}

func (s *sim) chance(percent int) bool { return rand.IntN(100) < percent }

func (s *sim) intn(n int) int { return rand.IntN(n) }

// dump writes what has happened to a file that stays, if that should not have.
func (s *sim) dump() {
	if !s.Failed() {
		return
	}
	f, err := os.CreateTemp("", "coalesce-simulation-")
	require.NoError(s, err)
	defer f.Close()
	for i, r := range s.e.sent {
		fmt.Fprintln(f, i, r.at, "unanswered:", r.unanswered, r.req)
	}
	for _, ev := range s.e.events {
		fmt.Fprintln(f, "event", ev.at, "by", ev.by, ev.KeyValue)
	}
	for _, w := range s.writes {
		fmt.Fprintln(f, w)
	}
	s.Logf("the history is in %s", f.Name())
}

// process does what an application may do.
func (s *sim) process(i, j int, kv *KV) {
	for n := range 12 {
		time.Sleep(time.Duration(s.intn(120)) * ms)
		prefix := []string{"group", "plain", "last", "max", "skip"}[s.intn(5)]
		mode := map[string]Mode{"group": GroupCommit, "plain": GroupCommit, "last": LastWriteWins, "max": Max, "skip": GroupCommit}[prefix]
		name := fmt.Sprintf("%d.%d.%d", i, j, n)
		newWrite := func(key, value string) *made {
			s.mu.Lock()
			defer s.mu.Unlock()
			w := &made{client: fmt.Sprintf("%d.%d", i, j), key: key, value: value, n: n, mode: mode, mu: &s.mu}
			s.writes = append(s.writes, w)
			return w
		}
		key := fmt.Sprint(prefix, s.intn(2))
		value := name
		switch prefix {
		case "max":
			value = strconv.Itoa(s.intn(1000)) + fmt.Sprintf("%02d%02d%02d", i, j, n) // no two alike
		case "skip":
			key = fmt.Sprint(prefix, i, j) // of this process alone, but for strangers
			value = fmt.Sprint("v", s.intn(2))
		}
		ctx, cancel := context.WithTimeout(s.Context(), time.Duration(100+s.intn(5000))*ms)
		var fence int64
		if s.intn(5) == 0 {
			s.e.mu.Lock()
			fence = s.e.kvs[simOwner].GetModRevision()
			s.e.mu.Unlock()
			ctx = WithFence(ctx, clientv3.Compare(clientv3.ModRevision(simOwner), "=", fence))
		}
		switch {
		case s.intn(3) == 0 && (prefix == "group" || prefix == "plain"):
			other := newWrite(prefix+"txn", value+"t")
			w := newWrite(key, value)
			w.fence, other.fence = fence, fence
			resp, err := kv.Txn(ctx).Then(clientv3.OpPut(key, value), clientv3.OpPut(prefix+"txn", value+"t")).Commit()
			var h *pb.ResponseHeader
			if err == nil {
				h = resp.Header
			}
			w.end(h, err)
			other.end(h, err)
		case s.intn(2) == 0:
			w := newWrite(key, value)
			w.async, w.fence = true, fence
			kv.PutAsync(ctx, key, value, func(resp *clientv3.PutResponse, err error) {
				var h *pb.ResponseHeader
				if err == nil {
					h = resp.Header
				}
				w.end(h, err)
			})
		default:
			w := newWrite(key, value)
			w.fence = fence
			resp, err := kv.Put(ctx, key, value)
			var h *pb.ResponseHeader
			if err == nil {
				h = resp.Header
			}
			w.end(h, err)
		}
		cancel()
	}
}

// stranger writes past the coalescers, and takes the ownership.
func (s *sim) stranger() {
	kv := clientv3.NewKVFromKVClient(s.e, nil)
	for n := range 25 {
		time.Sleep(time.Duration(s.intn(150)) * ms)
		ctx, cancel := context.WithTimeout(s.Context(), time.Second)
		value := fmt.Sprintf("stranger.%d", n)
		switch s.intn(4) {
		case 0:
			kv.Put(ctx, simOwner, value)
		case 1:
			kv.Put(ctx, fmt.Sprint("skip", s.intn(3), s.intn(3)), value)
		case 2:
			kv.Delete(ctx, fmt.Sprint([]string{"group", "plain", "last"}[s.intn(3)], s.intn(2)))
		default:
			kv.Put(ctx, fmt.Sprint([]string{"group", "plain", "last"}[s.intn(3)], s.intn(2)), value)
		}
		cancel()
	}
}

// judge compares what has happened with what was told.
func (s *sim) judge(seen *seenInAll) {
	e := s.e
	e.mu.Lock()
	defer e.mu.Unlock()
	attempts := map[string][]int{} // requests that were to write a value, of which the last one had an answer or has not
	for i, r := range e.sent {
		for _, value := range values(r.req) {
			attempts[value] = append(attempts[value], i)
		}
	}
	type at struct {
		key      string
		revision int64
	}
	events, applied := map[at]string{}, map[string][]int{}
	for i, kv := range e.events {
		if kv.Version == 0 || strings.HasPrefix(string(kv.Key), defaultSequencePrefix) {
			continue
		}
		id := string(kv.Key) + "=" + string(kv.Value)
		events[at{string(kv.Key), kv.ModRevision}] = string(kv.Value)
		applied[id] = append(applied[id], i)
	}
	highest := map[string]string{}
	for _, kv := range e.events {
		if key := string(kv.Key); strings.HasPrefix(key, "max") && kv.Version > 0 {
			if was := highest[key]; was != "" {
				c, ok := order(kv.Value, []byte(was))
				require.True(s, ok && c > 0, "%s went from %s to %s", key, was, kv.Value)
			}
			highest[key] = string(kv.Value)
		}
	}
	order := map[string]int{} // of writes by one client to one key, in the order of its events
	for _, w := range s.writes {
		id := w.key + "=" + w.value
		skip := strings.HasPrefix(w.key, "skip")
		require.Equal(s, 1, w.told, "%v", w)
		require.NotErrorIs(s, w.err, ErrContention)
		where := applied[id]
		if !skip {
			require.LessOrEqual(s, len(where), 1, "written twice: %v", w)
		}
		var overtaken *OvertakenError
		switch {
		case w.err == nil && w.mode == GroupCommit && !skip:
			require.Len(s, where, 1, "lost: %v", w)
			require.Equal(s, w.revision, e.events[where[0]].ModRevision, "%v", w)
			seen.acknowledged++
		case w.err == nil && w.mode == LastWriteWins:
			require.NotEmpty(s, events[at{w.key, w.revision}], "nothing was written at that revision: %v", w)
			seen.acknowledged++
		case w.err == nil && w.mode == Max:
			require.NotEmpty(s, e.at(w.key, w.revision), "%v", w)
			c, _ := orderOf(w.value, e.at(w.key, w.revision))
			require.LessOrEqual(s, c, 0, "%s is smaller: %+v", e.at(w.key, w.revision), w)
			seen.acknowledged++
		case w.err == nil: // skip
			require.Equal(s, w.value, e.at(w.key, w.revision), "%v", w)
			seen.acknowledged++
		case errors.Is(w.err, ErrFenced):
			require.True(s, skip || len(where) == 0, "%v", w)
			seen.fenced++
		case errors.As(w.err, &overtaken):
			require.True(s, skip || len(where) == 0, "%v", w)
			seen.overtaken++
		default:
			seen.unknown++
		}
		for _, i := range where {
			kv := e.events[i]
			seen.applied++
			if w.fence != 0 && !skip {
				require.Equal(s, w.fence, e.revisionAt(simOwner, kv.ModRevision-1), "fenced off, and written: %v", w)
			}
			if w.async && w.mode == GroupCommit && !skip {
				key := w.client + " " + w.key
				require.GreaterOrEqual(s, i, order[key], "out of order: %v", w)
				order[key] = i
			}
		}
	}
	for id, tried := range attempts {
		where := applied[id]
		if strings.HasPrefix(id, "skip") || len(where) == 0 {
			continue
		}
		i := where[0]
		if e.sent[e.events[i].by].unanswered {
			seen.late++
		}
		// Where it was sent before without an answer, nobody has written the key since.
		for _, n := range tried {
			if n == e.events[i].by {
				break
			}
			if !e.sent[n].unanswered {
				continue
			}
			seen.retried++
			if e.at(key(e.events[i]), e.events[i].ModRevision-1) == "" && e.foundMissing(key(e.events[i]), n, e.events[i].by) {
				break // it was not there, and is not there: what came in between does not show
			}
			for _, other := range e.events[:i] {
				if !strings.HasPrefix(id, "max") && string(other.Key) == string(e.events[i].Key) && other.at > e.sent[n].at {
					require.Fail(s, "an old value came back", "%s, first sent at %v, written at %v, after %s at %v", id, e.sent[n].at, e.events[i].at, other.Value, other.at)
				}
			}
			break
		}
	}
}

func orderOf(a, b string) (int, bool) { return order([]byte(a), []byte(b)) }

// at returns the value of a key at a revision.
func (e *fake) at(key string, revision int64) (value string) {
	for _, kv := range e.events {
		if string(kv.Key) == key && kv.ModRevision <= revision {
			if value = string(kv.Value); kv.Version == 0 {
				value = ""
			}
		}
	}
	return value
}

// foundMissing reports whether somebody has looked back at a key, between two requests, and
// found that it was not there.
func (e *fake) foundMissing(name string, after, before int) bool {
	for _, s := range e.sent[after:before] {
		if r, ok := s.req.(*pb.RangeRequest); ok && string(r.Key) == name && r.Revision > 0 && e.at(name, r.Revision) == "" {
			return true
		}
	}
	return false
}

func key(e event) string { return string(e.Key) }

// revisionAt returns the ModRevision of a key at a revision.
func (e *fake) revisionAt(key string, revision int64) (mod int64) {
	for _, kv := range e.events {
		if string(kv.Key) == key && kv.ModRevision <= revision {
			mod = kv.ModRevision
		}
	}
	return mod
}
