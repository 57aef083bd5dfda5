package coalesce

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
	"pgregory.net/rapid"
)

// t0 is when the clock of the tables below says 0.
var t0 = time.Unix(1700000000, 0)

// waits is a queue with a lane for callers and one for writes behind, which wait for so
// many milliseconds.
type waits struct {
	*queue
	rules        rules
	lane, behind *lane
	now          time.Time
	t            require.TestingT
}

func newWaits(t require.TestingT, mode Mode, linger, flush int, l limits) *waits {
	q := newQueue(l, 100, newMemory(1<<20))
	w := &waits{queue: q, rules: newRules([]Rule{{Mode: mode}}), now: t0, t: t}
	w.lane = q.newLane(time.Duration(linger)*time.Millisecond, false)
	w.behind = q.newLane(time.Duration(flush)*time.Millisecond, true)
	return w
}

var roomy = limits{maxOps: 1000, entryBytes: 64 << 10, txnOps: 128}

// at sets the clock to so many milliseconds.
func (w *waits) at(ms int) *waits {
	w.now = t0.Add(time.Duration(ms) * time.Millisecond)
	return w
}

func (w *waits) put(key, value string) *unit {
	return w.add(newPut(context.Background(), w.rules, &pb.PutRequest{Key: []byte(key), Value: []byte(value)}), false)
}

func (w *waits) putBehind(key, value string) *unit {
	return w.add(newPut(context.Background(), w.rules, &pb.PutRequest{Key: []byte(key), Value: []byte(value)}), true)
}

func (w *waits) add(u *unit, behind bool) *unit {
	l := w.lane
	if u.callers = 1; behind {
		l, u.callers, u.async, u.sequenced, u.retry = w.behind, 0, 1, true, true
	}
	return w.queue.add(u, l, w.now)
}

func put(key, value string) *pb.RequestOp {
	return wire.Put(&pb.PutRequest{Key: []byte(key), Value: []byte(value)})
}

func del(key, end string) *pb.RequestOp {
	return wire.DeleteRange(&pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)})
}

func (w *waits) txn(ops ...*pb.RequestOp) *unit {
	return w.add(newUnit(context.Background(), w.rules, ops), false)
}

// sealed returns what the next batch writes, as key=value.
func (w *waits) sealed() []string { return written(w.seal(w.now, false, false)) }

func (w *waits) sealedBehind() []string { return written(w.seal(w.now, true, false)) }

func written(b *batch) (all []string) {
	if b == nil {
		return nil
	}
	for _, u := range b.write {
		for _, op := range u.plan.ops {
			if p := op.GetRequestPut(); p != nil {
				all = append(all, fmt.Sprintf("%s=%s", p.Key, p.Value))
			} else {
				all = append(all, fmt.Sprintf("-%s", op.GetRequestDeleteRange().Key))
			}
		}
	}
	return all
}

var someCondition = clientv3.Compare(clientv3.Version("owner"), "=", 1)

// due returns when the next lane will be, in milliseconds.
func (w *waits) due() int {
	at, ok := w.next(w.now)
	if !ok {
		return -1
	}
	return int(at.Sub(t0).Milliseconds())
}

func TestWithoutLingerABatchIsWhatWaits(t *testing.T) {
	w := newWaits(t, GroupCommit, 0, 0, roomy)
	require.Nil(t, w.sealed())
	w.put("a", "1")
	w.put("b", "2")
	require.Equal(t, []string{"a=1", "b=2"}, w.sealed())
	require.Nil(t, w.sealed(), "it is taken once")
	w.put("c", "3")
	require.Equal(t, []string{"c=3"}, w.sealed())
}

func TestALaneIsDueWithItsOldest(t *testing.T) {
	w := newWaits(t, LastWriteWins, 5, 50, roomy)
	w.at(0).put("a", "1")
	w.at(3).put("b", "2")
	w.at(4).putBehind("c", "3")
	require.Equal(t, 5, w.due())
	require.Nil(t, w.at(4).sealed())
	require.Equal(t, []string{"a=1", "b=2"}, w.at(5).sealed(), "all of the lane, and of no other")
	w.at(20).putBehind("d", "4")
	w.at(53).putBehind("c", "5")
	require.Equal(t, 54, w.due(), "a newer value does not begin anew")
	require.Nil(t, w.at(53).sealedBehind())
	require.Equal(t, []string{"c=5", "d=4"}, w.at(54).sealedBehind())
	require.Equal(t, -1, w.due())
}

func TestAFullLaneIsDue(t *testing.T) {
	w := newWaits(t, GroupCommit, 1000, 0, limits{maxOps: 3, entryBytes: 64 << 10, txnOps: 128})
	w.put("a", "")
	w.put("b", "")
	require.Nil(t, w.sealed())
	w.put("c", "")
	w.put("d", "")
	require.Equal(t, []string{"a=", "b=", "c="}, w.sealed())
	require.Nil(t, w.sealed(), "what is left waits on")
	require.Equal(t, 1000, w.due())
}

func TestMerging(t *testing.T) {
	ctx := context.Background()
	lww := func(t *testing.T) *waits { return newWaits(t, LastWriteWins, 0, 10, roomy) }
	t.Run("the last one wins, for all callers", func(t *testing.T) {
		w := lww(t)
		first := w.put("a", "1")
		require.Same(t, first, w.put("a", "2"))
		require.Equal(t, 2, first.callers)
		require.Equal(t, []string{"a=2"}, w.sealed())
	})
	t.Run("not what is under way", func(t *testing.T) {
		w := lww(t)
		first := w.put("a", "1")
		require.Equal(t, []string{"a=1"}, w.sealed())
		second := w.put("a", "2")
		require.NotSame(t, first, second)
		require.Same(t, second, w.put("a", "3"))
		require.Nil(t, w.sealed(), "a key is under way once")
		w.remove(first)
		require.Equal(t, []string{"a=3"}, w.sealed())
	})
	t.Run("the largest one stays", func(t *testing.T) {
		w := newWaits(t, Max, 0, 0, roomy)
		w.memory.set([]byte("a"), memo{number: true, value: []byte("7")})
		w.put("a", "9")
		w.put("a", "10")
		w.put("a", "8")
		require.Equal(t, []string{"a=10"}, w.sealed())
	})
	t.Run("not what does not compare", func(t *testing.T) {
		w := newWaits(t, Max, 0, 0, roomy)
		w.memory.set([]byte("a"), memo{number: true, value: []byte("8")})
		nine := w.put("a", "9")
		ten := w.put("a", "ten")
		require.NotSame(t, nine, ten)
		require.Equal(t, []string{"a=9"}, w.sealed())
	})
	t.Run("not what asks for more", func(t *testing.T) {
		for name, other := range map[string]*unit{
			"prevKV":       newPut(ctx, lww(t).rules, &pb.PutRequest{Key: []byte("a"), PrevKv: true}),
			"ignore value": newPut(ctx, lww(t).rules, &pb.PutRequest{Key: []byte("a"), IgnoreValue: true}),
			"ignore lease": newPut(ctx, lww(t).rules, &pb.PutRequest{Key: []byte("a"), IgnoreLease: true}),
			"lease":        newPut(ctx, lww(t).rules, &pb.PutRequest{Key: []byte("a"), Lease: 7}),
			"metadata":     newPut(metadata.AppendToOutgoingContext(ctx, "hasleader", "true"), lww(t).rules, &pb.PutRequest{Key: []byte("a")}),
			"fence":        newPut(WithFence(ctx, someCondition), lww(t).rules, &pb.PutRequest{Key: []byte("a")}),
			"transaction":  newUnit(ctx, lww(t).rules, []*pb.RequestOp{put("a", "1")}),
		} {
			w := lww(t)
			before := w.put("a", "0")
			require.Same(t, other, w.add(other, false), name)
			require.Equal(t, []string{"a=0"}, w.sealed(), name)
			w.remove(before)
			require.NotNil(t, w.seal(w.now, false, false), "%s comes next", name)
		}
	})
	t.Run("not across a delete of a range", func(t *testing.T) {
		w := lww(t)
		first := w.put("a", "1")
		gone := w.txn(del("a", "c"))
		last := w.put("a", "2")
		require.Equal(t, []string{"a=1"}, w.sealed())
		w.remove(first)
		require.Equal(t, []string{"-a"}, w.sealed())
		w.remove(gone)
		require.Equal(t, []string{"a=2"}, w.sealed())
		w.remove(last)
		require.Zero(t, w.units.Load())
	})
}

// TestAHurryReachesWhatHasMoved has a put that was written behind wait with those of
// callers, which came after it, and then be asked for.
func TestAHurryReachesWhatHasMoved(t *testing.T) {
	w := newWaits(t, LastWriteWins, 100, 1000, roomy)
	w.lane.sequenced = true
	callers := func(key string) *unit {
		u := newPut(context.Background(), w.rules, &pb.PutRequest{Key: []byte(key)})
		u.callers, u.sequenced, u.retry = 1, true, true
		return w.queue.add(u, w.lane, w.now)
	}
	moved := w.putBehind("a", "1")
	w.at(1)
	callers("b")
	require.Same(t, moved, callers("a"))
	require.Nil(t, w.sealedBehind())
	w.hurry(moved)
	require.Equal(t, []string{"a=", "b="}, w.sealedBehind())
}

// TestWhatHasMovedDoesNotWaitForItsOldLane has a put that was written behind be answered
// with that of a caller, and one before it that cannot be merged with either.
func TestWhatHasMovedDoesNotWaitForItsOldLane(t *testing.T) {
	cfg := rule(Rule{Mode: LastWriteWins, Retry: true, FlushEvery: time.Hour})
	bubble(t, cfg, func(t *testing.T, e *fake, kv *KV) {
		fenced := WithFence(t.Context(), clientv3.Compare(clientv3.Version("owner"), "=", 0))
		kv.PutAsync(fenced, "a", "1", nil)
		kv.PutAsync(t.Context(), "a", "2", nil)
		mustPut(t, kv, "a", "3")
		require.Zero(t, e.clock(), "milliseconds")
	})
}

// TestWhatComesBeforeIsDue has a put of a caller come after one that is written behind
// and that it cannot be merged with.
func TestWhatComesBeforeIsDue(t *testing.T) {
	w := newWaits(t, LastWriteWins, 0, 1000, roomy)
	behind := w.putBehind("a", "1")
	w.putBehind("b", "1")
	w.put("a", "2")
	require.Nil(t, w.sealed())
	require.Equal(t, []string{"a=1", "b=1"}, w.sealedBehind())
	require.Nil(t, w.sealed(), "it waits until that is written")
	w.remove(behind)
	require.Equal(t, []string{"a=2"}, w.sealed())
}

func TestTransactionsStayWhole(t *testing.T) {
	w := newWaits(t, GroupCommit, 0, 0, limits{maxOps: 5, entryBytes: 64 << 10, txnOps: 128})
	a := w.txn(put("a", "1"), put("b", "1"), put("c", "1"))
	w.txn(put("d", "2"), put("e", "2"), put("f", "2"))
	w.txn(put("g", "3"), del("h", ""))
	w.txn(put("c", "4"))
	require.Equal(t, []string{"a=1", "b=1", "c=1", "g=3", "-h"}, w.sealed(), "what does not fit is left out, what comes after it is not")
	require.Equal(t, []string{"d=2", "e=2", "f=2"}, w.sealed(), "a key is under way once")
	w.remove(a)
	require.Equal(t, []string{"c=4"}, w.sealed())
}

// TestTransactionsShareEntries packs transactions of 20 to 40 KB, two of which fit if
// they are chosen well.
func TestTransactionsShareEntries(t *testing.T) {
	w := newWaits(t, GroupCommit, 0, 0, roomy)
	for i, kb := range []int{40, 40, 30, 20, 20, 30} {
		w.txn(put(fmt.Sprint(i), string(make([]byte, kb<<10))))
	}
	var batches []int
	for {
		b := w.seal(w.now, false, false)
		if b == nil {
			break
		}
		require.LessOrEqual(t, b.shape.proposalBytes(0, 0), 64<<10)
		batches = append(batches, len(b.write))
	}
	require.Equal(t, []int{2, 2, 2}, batches)
}

func TestAWriteThatFitsNowhereGoesAlone(t *testing.T) {
	w := newWaits(t, GroupCommit, 0, 0, limits{maxOps: 10, entryBytes: 4 << 10, txnOps: 128})
	w.put("a", "1")
	w.put("b", string(make([]byte, 5<<10)))
	w.put("c", "1")
	require.Equal(t, []string{"a=1", "c=1"}, w.sealed())
	require.Len(t, w.sealed(), 1)
}

// TestRequeue has a batch fail of which newer values have come in the meantime.
func TestRequeue(t *testing.T) {
	w := newWaits(t, LastWriteWins, 0, 10, roomy)
	a, b := w.putBehind("a", "1"), w.putBehind("b", "1")
	require.Equal(t, []string{"a=1", "b=1"}, w.at(10).sealedBehind())
	newer := w.putBehind("a", "2")
	require.NotSame(t, a, newer)
	a.since, b.since = 5, 5
	w.requeue([]*unit{b, a})
	require.Equal(t, absorbed, a.state)
	require.Equal(t, []*unit{a}, newer.joined)
	batch := w.seal(w.now, true, false)
	require.Equal(t, []string{"a=2"}, written(batch), "at once, and what is new without more ado")
	require.Empty(t, newer.plan.guards)
	require.Equal(t, []*unit{b}, batch.look, "what is tried again has to be the newest still")
	require.NoError(t, b.learn(w.memory, []*mvccpb.KeyValue{{ModRevision: 4}}, make([]*mvccpb.KeyValue, 1)))
	w.requeue([]*unit{b})
	require.Equal(t, []string{"b=1"}, w.sealedBehind())
	require.Len(t, b.plan.guards, 1)
	require.EqualValues(t, 4, b.plan.guards[0].GetModRevision())
}

// TestRequeueBeforeADelete has a delete come between the two values, which is to delete
// the first.
func TestRequeueBeforeADelete(t *testing.T) {
	w := newWaits(t, LastWriteWins, 0, 0, roomy)
	first := w.put("a", "1")
	require.Equal(t, []string{"a=1"}, w.sealed())
	gone := w.txn(del("a", "c"))
	w.put("a", "2")
	w.requeue([]*unit{first})
	require.Equal(t, []string{"a=1"}, w.sealed())
	w.remove(first)
	require.Equal(t, []string{"-a"}, w.sealed())
	w.remove(gone)
	require.Equal(t, []string{"a=2"}, w.sealed())
}

// TestWhatIsTriedAgainIsTheNewest holds what a unit whose first attempt had no answer
// learns from what is at its key now, and was when it was sent.
func TestWhatIsTriedAgainIsTheNewest(t *testing.T) {
	at := func(revision int64) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{ModRevision: revision, Value: []byte("5")}
	}
	for name, c := range map[string]struct {
		mode      Mode
		lost      bool
		now, then *mvccpb.KeyValue
		want      error // matched
		guarded   bool
	}{
		"as it was":                              {now: at(7), guarded: true},
		"written since":                          {now: at(8), want: ErrOvertaken},
		"not there, as before":                   {guarded: true},
		"deleted since":                          {then: at(3), want: ErrOvertaken},
		"lost, as it was":                        {lost: true, now: at(7), guarded: true},
		"lost, written since":                    {lost: true, now: at(8), want: ErrOvertaken},
		"lost, not there, perhaps deleted since": {lost: true, want: rpctypes.ErrTimeout},
		"max, smaller":                           {mode: Max, now: at(8)},
		"max, deleted since":                     {mode: Max, then: at(3)},
		"max, lost, as it was":                   {mode: Max, lost: true, now: at(7), guarded: true},
		"max, lost, smaller since":               {mode: Max, lost: true, now: at(8), want: ErrOvertaken},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWaits(t, max(c.mode, GroupCommit), 0, 0, roomy)
			u := w.putBehind("k", "6")
			u.since, u.lost, u.doubt = 7, c.lost, rpctypes.ErrTimeout
			err := u.learn(w.memory, []*mvccpb.KeyValue{c.now}, []*mvccpb.KeyValue{c.then})
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
				return
			}
			require.NoError(t, err)
			require.Equal(t, []string{"k=6"}, w.sealedBehind())
			pinned := false
			for _, g := range u.plan.guards {
				pinned = pinned || g.Target == pb.Compare_MOD && g.GetModRevision() == c.now.GetModRevision()
			}
			require.Equal(t, c.guarded, pinned)
		})
	}
	// Under Max, what is there may be as good.
	w := newWaits(t, Max, 0, 0, roomy)
	u := w.putBehind("k", "4")
	u.since, u.lost = 7, true
	require.NoError(t, u.learn(w.memory, []*mvccpb.KeyValue{at(8)}, make([]*mvccpb.KeyValue, 1)))
	require.Len(t, w.seal(w.now, true, false).verify, 1)
}

func TestRequeueUnderMax(t *testing.T) {
	w := newWaits(t, Max, 0, 10, roomy)
	w.memory.set([]byte("a"), memo{number: true, absent: true})
	old := w.putBehind("a", "9")
	require.Equal(t, []string{"a=9"}, w.at(10).sealedBehind())
	newer := w.putBehind("a", "8")
	old.since = 5
	w.requeue([]*unit{old})
	require.Equal(t, []string{"a=9"}, w.sealedBehind(), "the larger one")
	require.EqualValues(t, 5, newer.since, "and as that is tried again, it has to be the newest still")
}

// overlap reports whether a and b change a key that is the same.
func overlap(a, b *unit) bool { return slices.ContainsFunc(b.ranges(), a.changes) }

// TestTheQueueKeepsOrder does at random what may be done with a queue, and holds it to
// what has to be so: writes of one key are under way one at a time and in the order in
// which they came, and nothing is lost.
func TestTheQueueKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mode := rapid.SampledFrom([]Mode{GroupCommit, LastWriteWins}).Draw(t, "mode")
		l := limits{maxOps: rapid.IntRange(1, 6).Draw(t, "maxOps"), entryBytes: rapid.IntRange(100, 400).Draw(t, "entryBytes"), txnOps: 12}
		w := newWaits(t, mode, rapid.IntRange(0, 3).Draw(t, "linger"), rapid.IntRange(0, 3).Draw(t, "flush"), l)
		var (
			n        int
			flying   []*batch
			answered = map[*unit]int{} // puts and transactions that a unit answers for
			asked    int
			done     int
			last     = map[string]int{} // the newest that was written of a key
		)
		number := func(u *unit) (n int) {
			for _, op := range u.ops {
				if p := op.GetRequestPut(); p != nil {
					fmt.Sscan(string(p.Value), &n)
				}
			}
			return n
		}
		var count func(u *unit)
		count = func(u *unit) {
			done += answered[u]
			for _, j := range u.joined {
				count(j)
			}
		}
		end := func(u *unit) {
			w.remove(u)
			count(u)
		}
		drawOps := func(t *rapid.T) (ops []*pb.RequestOp) {
			n++
			used := map[string]bool{}
			for range rapid.IntRange(1, 3).Draw(t, "ops") {
				key := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "key")
				if used[key] {
					continue
				}
				used[key] = true
				ops = append(ops, put(key, fmt.Sprint(n)))
			}
			return ops
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				n++
				asked++
				key := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "key")
				if rapid.Bool().Draw(t, "behind") {
					answered[w.putBehind(key, fmt.Sprint(n))]++
				} else {
					answered[w.put(key, fmt.Sprint(n))]++
				}
			},
			"txn": func(t *rapid.T) {
				asked++
				answered[w.txn(drawOps(t)...)]++
			},
			"delete a range": func(t *rapid.T) {
				asked++
				answered[w.txn(del("b", "d"))]++
			},
			"wait": func(t *rapid.T) { w.now = w.now.Add(time.Millisecond) },
			"seal": func(t *rapid.T) {
				b := w.seal(w.now, rapid.Bool().Draw(t, "sequenced"), false)
				if b == nil {
					return
				}
				for _, f := range flying {
					for _, u := range f.write {
						for _, o := range b.write {
							require.False(t, overlap(u, o), "a key is under way twice")
						}
					}
				}
				if len(b.write) > 1 {
					require.True(t, b.shape.fits(l, 100))
				}
				for i, u := range b.write {
					for _, o := range b.write[:i] {
						require.False(t, overlap(u, o), "a batch has a key twice")
					}
				}
				flying = append(flying, b)
			},
			"fail": func(t *rapid.T) {
				if len(flying) == 0 {
					return
				}
				i := rapid.IntRange(0, len(flying)-1).Draw(t, "which")
				w.requeue(flying[i].write)
				flying = append(flying[:i], flying[i+1:]...)
			},
			"land": func(t *rapid.T) {
				if len(flying) == 0 {
					return
				}
				i := rapid.IntRange(0, len(flying)-1).Draw(t, "which")
				for _, u := range flying[i].write {
					for _, op := range u.ops {
						if p := op.GetRequestPut(); p != nil {
							require.Less(t, last[string(p.Key)], number(u), "key %q goes back", p.Key)
							last[string(p.Key)] = number(u)
						}
					}
					end(u)
				}
				flying = append(flying[:i], flying[i+1:]...)
			},
		})
		// In the end all of it can be written.
		for _, f := range flying {
			w.requeue(f.write)
		}
		w.now = w.now.Add(time.Second)
		for w.units.Load() > 0 {
			before := w.units.Load()
			for _, kind := range []bool{false, true} {
				if b := w.seal(w.now, kind, false); b != nil {
					for _, u := range b.write {
						end(u)
					}
				}
			}
			require.Less(t, w.units.Load(), before, "the queue does not move")
		}
		require.Equal(t, asked, done)
		require.Empty(t, w.byKey)
		require.Empty(t, w.ranged)
		for _, l := range w.lanes {
			require.Zero(t, len(l.units)+l.ops+l.bytes)
		}
	})
}
