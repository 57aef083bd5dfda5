package contract

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

var watchCases = []testCase{
	{"a watch tells what is written once it is there", func(f *fixture) {
		lease := f.lease()
		f.put("a", f.v("before"))
		f.del("a")
		w := f.watch("a")
		create := f.put("a", f.v("1")).Header.Revision
		modify := f.put("a", f.v("2"), clientv3.WithLease(lease)).Header.Revision
		f.put("b", f.v("3"))
		deleted := f.del("a").Header.Revision
		f.del("a") // nothing to delete is no event
		again := f.put("a", f.v("4")).Header.Revision
		es := w.sees(put("a", f.v("1")), put("a", f.v("2")), del("a"), put("a", f.v("4")))
		for i, want := range []struct {
			mod, created, version int64
			lease                 clientv3.LeaseID
		}{{create, create, 1, 0}, {modify, create, 2, lease}, {deleted, 0, 0, 0}, {again, again, 1, 0}} {
			kv := es[i].Kv
			f.Equal(want.mod, kv.ModRevision)
			f.Equal(want.created, kv.CreateRevision)
			f.Equal(want.version, kv.Version)
			f.EqualValues(want.lease, kv.Lease)
			f.Equal(i == 0 || i == 3, es[i].IsCreate())
			f.Equal(i == 1, es[i].IsModify())
		}
	}},
	{"an event is what a get at its revision returns", func(f *fixture) {
		lease := f.lease()
		w := f.watch("", clientv3.WithPrefix(), clientv3.WithPrevKV())
		f.put("a", f.v("1"), clientv3.WithLease(lease))
		f.put("a", f.v("2"), clientv3.WithIgnoreLease())
		f.put("b", "small")
		f.txn(nil, ops{clientv3.OpPut("a", "small"), clientv3.OpPut("b", f.v("3")), clientv3.OpPut("c", f.v("4"))}, nil)
		f.put("c", "")
		f.del("a", clientv3.WithRange("c"))
		for _, e := range w.events(9) {
			at := f.get(string(e.Kv.Key), clientv3.WithRev(e.Kv.ModRevision)).Kvs
			if e.Type == mvccpb.Event_DELETE {
				f.Empty(at)
				f.True(proto.Equal(&mvccpb.KeyValue{Key: e.Kv.Key, ModRevision: e.Kv.ModRevision}, e.Kv))
			} else {
				f.True(proto.Equal(at[0], e.Kv), "%q at %d", e.Kv.Key, e.Kv.ModRevision)
			}
			if before := f.get(string(e.Kv.Key), clientv3.WithRev(e.Kv.ModRevision-1)).Kvs; len(before) > 0 {
				f.True(proto.Equal(before[0], e.PrevKv), "%q before %d", e.Kv.Key, e.Kv.ModRevision)
			} else {
				f.Nil(e.PrevKv)
			}
		}
	}},
	{"prevKV tells what was there", func(f *fixture) {
		f.put("a", f.v("0"))
		with, without := f.watch("a", clientv3.WithPrevKV()), f.watch("a")
		f.put("a", f.v("1"))
		f.put("a", f.v("2"))
		f.put("a", "small")
		f.put("a", f.v("3"))
		f.del("a")
		f.put("a", f.v("4"))
		f.put("a", "")
		f.put("a", f.v("5"))
		with.sees(
			put("a", f.v("1")).over(f.v("0")), put("a", f.v("2")).over(f.v("1")),
			put("a", "small").over(f.v("2")), put("a", f.v("3")).over("small"),
			del("a").over(f.v("3")), put("a", f.v("4")),
			put("a", "").over(f.v("4")), put("a", f.v("5")).over(""),
		)
		without.sees(
			put("a", f.v("1")), put("a", f.v("2")), put("a", "small"), put("a", f.v("3")),
			del("a"), put("a", f.v("4")), put("a", ""), put("a", f.v("5")),
		)
	}},
	{"the events of a transaction come together, in its order", func(f *fixture) {
		f.abcd()
		w := f.watch("", clientv3.WithPrefix(), clientv3.WithPrevKV())
		resp := f.txn(cmps{yes()}, ops{
			clientv3.OpPut("z", f.v("6")),
			clientv3.OpGet("a"),
			clientv3.OpPut("c", "small"),
			clientv3.OpTxn(cmps{clientv3.Compare(clientv3.Value("a"), "=", f.v("1"))}, ops{
				clientv3.OpDelete("b", clientv3.WithPrefix()),
				clientv3.OpPut("a", f.v("7")),
			}, ops{clientv3.OpPut("no", f.v("8"))}),
			clientv3.OpPut("y", f.v("9")),
			clientv3.OpDelete("x"),
		}, ops{clientv3.OpPut("no", f.v("8"))})
		es := w.seesAtOnce(
			put("z", f.v("6")), put("c", "small").over(f.v("4")),
			del("b").over(f.v("2")), del("bb").over(f.v("3")),
			put("a", f.v("7")).over(f.v("1")), put("y", f.v("9")),
		)
		f.Equal(resp.Header.Revision, es[0].Kv.ModRevision)
	}},
	{"the events of a delete come together", func(f *fixture) {
		f.abcd()
		w, c := f.watch("", clientv3.WithPrefix(), clientv3.WithPrevKV()), f.watch("c")
		f.del("b", clientv3.WithFromKey())
		w.seesAtOnce(del("b").over(f.v("2")), del("bb").over(f.v("3")), del("c").over(f.v("4")), del("d").over(f.v("5")))
		c.seesAtOnce(del("c"))
		f.del("", clientv3.WithPrefix())
		w.seesAtOnce(del("a").over(f.v("1")))
	}},
	{"a key that is deleted and put in one transaction", func(f *fixture) {
		f.abcd()
		w := f.watch("", clientv3.WithPrefix(), clientv3.WithPrevKV())
		f.txn(nil, ops{clientv3.OpDelete("c", clientv3.WithFromKey()), clientv3.OpPut("c", f.v("6"))}, nil)
		es := w.seesAtOnce(del("c").over(f.v("4")), del("d").over(f.v("5")), put("c", f.v("6")))
		f.EqualValues(1, es[2].Kv.Version)
		f.True(es[2].IsCreate())
	}},
	{"a watch of a range tells of its keys", func(f *fixture) {
		all := []string{"\x00", "\x00a", "\x00z", "a", "a\x00", "a\xff", "b", "\xff"}
		watches := make(map[*watching][]string)
		watch := func(keys []string, key string, opts ...clientv3.OpOption) { watches[f.watch(key, opts...)] = keys }
		watch(all, "\x00", clientv3.WithFromKey())
		watch(all, "", clientv3.WithFromKey())
		watch(all, "", clientv3.WithPrefix())
		watch(all[:1], "") // the least key
		watch(all[:3], "\x00", clientv3.WithPrefix())
		watch(all[:3], "\x00", clientv3.WithRange("a"))
		watch(all[3:], "a", clientv3.WithFromKey())
		watch(all[3:6], "a", clientv3.WithPrefix())
		watch(all[3:4], "a")
		watch(all[4:6], "a\x00", clientv3.WithRange("b"))
		watch(all[7:], "\xff", clientv3.WithPrefix())
		values := make(map[string]string)
		for i, key := range all {
			if values[key] = key; i%3 == 0 {
				values[key] = f.v(key)
			}
			f.put(key, values[key])
		}
		f.del("\x00", clientv3.WithFromKey())
		for w, keys := range watches {
			var puts, dels []change
			for _, key := range keys {
				puts, dels = append(puts, put(key, values[key])), append(dels, del(key))
			}
			w.sees(puts...)
			w.seesAtOnce(dels...)
		}
	}},
	{"a watch from the past tells all since, and goes on", func(f *fixture) {
		var history []change
		wrote := func(revision int64, changes ...change) {
			for _, c := range changes {
				c.revision = revision
				history = append(history, c)
			}
		}
		type view struct {
			*watching
			tells func(change) bool
			prev  bool
		}
		var views []view
		watch := func(key string, tells func(change) bool, prev bool, opts ...clientv3.OpOption) {
			if prev {
				opts = append(opts, clientv3.WithPrevKV())
			}
			views = append(views, view{f.watch(key, opts...), tells, prev})
		}
		check := func(written []change) {
			for _, v := range views {
				var want []change
				for _, c := range written {
					if !v.prev {
						c.prev = nil
					}
					if v.tells(c) {
						want = append(want, c)
					}
				}
				v.sees(want...)
			}
		}

		one, two, three := f.v("one"), f.v("two"), f.v("three")
		wrote(f.put("a", one).Header.Revision, put("a", one))
		wrote(f.put("b", "small").Header.Revision, put("b", "small"))
		wrote(f.put("a", two).Header.Revision, put("a", two).over(one))
		resp := f.txn(nil, ops{clientv3.OpPut("b", three), clientv3.OpPut("a", "small")}, nil)
		wrote(resp.Header.Revision, put("b", three).over("small"), put("a", "small").over(two))
		wrote(f.put("a", one).Header.Revision, put("a", one).over("small"))
		wrote(f.del("", clientv3.WithPrefix()).Header.Revision, del("a").over(one), del("b").over(three))
		for i := 0; i < len(history); i += 3 {
			start := history[i]
			watch("", func(c change) bool { return c.revision >= start.revision }, true, clientv3.WithPrefix(), clientv3.WithRev(start.revision))
		}
		first := clientv3.WithRev(history[0].revision)
		watch("", func(change) bool { return true }, false, clientv3.WithPrefix(), first)
		watch("a", func(c change) bool { return c.key == "a" }, true, first)
		watch("", func(c change) bool { return !c.deleted }, true, clientv3.WithPrefix(), clientv3.WithFilterDelete(), first)
		watch("b", func(c change) bool { return c.deleted && c.key == "b" }, false, clientv3.WithFilterPut(), first)
		check(history)
		written := len(history)
		wrote(f.put("a", f.v("new")).Header.Revision, put("a", f.v("new")))
		wrote(f.put("b", "small").Header.Revision, put("b", "small"))
		wrote(f.del("b").Header.Revision, del("b").over("small"))
		check(history[written:])
	}},
	{"a watch from the future waits for it", func(f *fixture) {
		start := f.put("a", f.v("0")).Header.Revision + 5
		w := f.watch("a", clientv3.WithRev(start), clientv3.WithPrevKV())
		for i := 1; ; i++ {
			if f.put("a", f.v(fmt.Sprint(i))).Header.Revision >= start {
				w.sees(put("a", f.v(fmt.Sprint(i))).over(f.v(fmt.Sprint(i - 1))))
				return
			}
		}
	}},
	{"filters", func(f *fixture) {
		puts := f.watch("", clientv3.WithPrefix(), clientv3.WithFilterDelete(), clientv3.WithPrevKV())
		dels := f.watch("", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithPrevKV())
		none := f.watch("", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithFilterDelete())
		f.put("a", f.v("1"))
		f.put("a", f.v("2"))
		f.put("b", f.v("3"))
		f.txn(nil, ops{clientv3.OpDelete("a"), clientv3.OpPut("b", f.v("4")), clientv3.OpPut("c", f.v("5"))}, nil)
		last := f.del("b").Header.Revision
		puts.sees(put("a", f.v("1")), put("a", f.v("2")).over(f.v("1")), put("b", f.v("3")), put("b", f.v("4")).over(f.v("3")), put("c", f.v("5")))
		dels.sees(del("a").over(f.v("2")), del("b").over(f.v("4")))
		f.Empty(none.eventsUpTo(last))
	}},
	{"the first response may say that the watch is there", func(f *fixture) {
		first := f.put("a", f.v("1")).Header.Revision
		past := f.watch("a", clientv3.WithCreatedNotify(), clientv3.WithRev(first))
		now := f.watch("a", clientv3.WithCreatedNotify())
		for _, w := range []*watching{past, now} {
			resp := w.receive()
			f.True(resp.Created)
			f.False(resp.Canceled)
			f.False(resp.IsProgressNotify())
			f.NoError(resp.Err())
			f.Empty(resp.Events)
			f.header(resp.Header)
			f.GreaterOrEqual(resp.Header.Revision, first)
		}
		f.put("a", f.v("2"))
		past.sees(put("a", f.v("1")), put("a", f.v("2")))
		now.sees(put("a", f.v("2")))
	}},
	{"progress that is asked for comes after what it is about, to all watches", func(f *fixture) {
		all, a := f.watch("", clientv3.WithPrefix()), f.watch("a")
		for i := range 5 {
			f.put("a", f.v(fmt.Sprint(i)))
			last := f.put("b", f.v(fmt.Sprint(i))).Header.Revision
			f.Len(all.eventsUpTo(last), 2)
			f.Len(a.eventsUpTo(last), 1)
		}
	}},
	{"progress comes by itself where that was asked for", func(f *fixture) {
		w := f.watch("a", clientv3.WithProgressNotify())
		f.put("a", f.v("1"))
		last := f.put("b", f.v("2")).Header.Revision
		w.sees(put("a", f.v("1")))
		for resp := w.next(); resp.Header.Revision < last; resp = w.next() {
			f.True(resp.IsProgressNotify())
		}
		f.put("a", f.v("3"))
		for resp := w.next(); ; resp = w.next() {
			if len(resp.Events) > 0 {
				f.told(resp.Events[0], put("a", f.v("3")))
				return
			}
		}
	}},
	{"more than fits in a response, with and without fragments", func(f *fixture) {
		const keys = 25 // of 90 KiB where values are large: more than 2 MiB
		var puts, dels []change
		for i := range keys {
			key := fmt.Sprintf("k%02d", i)
			v := f.v(key)
			c := put(key, v)
			c.revision = f.put(key, v).Header.Revision
			puts, dels = append(puts, c), append(dels, del(key).over(v))
		}
		past := f.watch("k", clientv3.WithPrefix(), clientv3.WithRev(puts[0].revision))
		now := f.watch("k", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithFragment())
		past.sees(puts...)
		f.del("k", clientv3.WithPrefix())
		now.seesAtOnce(dels...)
		for i := range dels {
			dels[i].prev = nil
		}
		past.seesAtOnce(dels...)
	}},
	{"what was compacted is not told", func(f *fixture) {
		first := f.put("a", f.v("1")).Header.Revision
		second := f.put("a", f.v("2")).Header.Revision
		third := f.put("a", f.v("3")).Header.Revision
		f.put("b", f.v("4"))
		_, err := f.Compact(f.ctx, third)
		f.NoError(err)
		created := f.watch("a", clientv3.WithRev(first), clientv3.WithCreatedNotify())
		gone := []*watching{f.watch("a", clientv3.WithRev(first)), f.watch("", clientv3.WithPrefix(), clientv3.WithRev(second), clientv3.WithPrevKV()), created}
		w := f.watch("", clientv3.WithPrefix(), clientv3.WithRev(third), clientv3.WithPrevKV())
		f.True(created.receive().Created)
		for _, w := range gone {
			w.compacted(third)
		}
		w.sees(put("a", f.v("3")), put("b", f.v("4"))) // what a was before is gone
		f.put("a", f.v("5"))
		f.put("b", f.v("6"))
		w.sees(put("a", f.v("5")).over(f.v("3")), put("b", f.v("6")).over(f.v("4")))
	}},
	{"a compaction overtakes a watch, or does not", func(f *fixture) {
		var history []change
		for i := range 12 {
			v := f.v(fmt.Sprint(i))
			if i%3 == 2 {
				v = "small"
			}
			c := put("a", v)
			c.revision = f.put("a", v).Header.Revision
			history = append(history, c)
		}
		w := f.watch("a", clientv3.WithRev(history[0].revision))
		at := history[len(history)-1].revision
		_, err := f.Compact(f.ctx, at)
		f.NoError(err)
		for len(history) > 0 {
			resp := w.receive()
			if resp.Canceled {
				f.Equal(at, resp.CompactRevision)
				f.Equal(rpctypes.ErrCompacted, resp.Err())
				w.ends()
				return
			}
			for _, e := range w.check(resp).Events {
				f.Equal(history[0].revision, e.Kv.ModRevision)
				f.told(e, history[0])
				history = history[1:]
			}
		}
	}},
	{"a watch ends with its context", func(f *fixture) {
		ctx, cancel := context.WithCancel(f.ctx)
		ending, other := f.watchIn(ctx, "a"), f.watch("a")
		f.put("a", f.v("1"))
		ending.sees(put("a", f.v("1")))
		f.put("a", f.v("2")) // and nobody takes it
		cancel()
		ending.ends()
		f.watchIn(ctx, "a").ends()
		late, cancel := context.WithTimeout(f.ctx, -time.Second)
		defer cancel()
		f.watchIn(late, "a").ends()
		f.put("a", f.v("3"))
		other.sees(put("a", f.v("1")), put("a", f.v("2")), put("a", f.v("3")))
	}},
	{"Close ends all watches", func(f *fixture) {
		first := f.put("a", f.v("1")).Header.Revision
		watches := []*watching{f.watch("a"), f.watch("", clientv3.WithPrefix(), clientv3.WithPrevKV()), f.watch("a", clientv3.WithRev(first))}
		f.put("a", f.v("2"))
		watches[0].sees(put("a", f.v("2")))
		f.NoError(f.Watcher.Close())
		for _, w := range append(watches, f.watch("a"), f.watch("a", clientv3.WithRev(first), clientv3.WithCreatedNotify())) {
			w.ends()
		}
		f.Error(f.RequestProgress(f.ctx))
		f.NoError(f.Watcher.Close())
		f.put("a", f.v("3"))
		f.value("a", f.v("3"))
	}},
	{"who reads late misses nothing, and holds up nobody", func(f *fixture) {
		late, other := f.watch("a", clientv3.WithPrevKV()), f.watch("a")
		var want []change
		prev := ""
		for i := range 300 {
			v := fmt.Sprint(i)
			if i%60 == 0 {
				v = f.v(v)
			}
			f.put("a", v)
			c := put("a", v)
			other.sees(c)
			if i > 0 {
				c = c.over(prev)
			}
			want, prev = append(want, c), v
		}
		late.sees(want...)
	}},
	{"ignoreValue and ignoreLease are events with value and lease", func(f *fixture) {
		one, two := f.lease(), f.lease()
		w := f.watch("a", clientv3.WithPrevKV())
		f.put("a", f.v("1"), clientv3.WithLease(one))
		f.put("a", "", clientv3.WithIgnoreValue(), clientv3.WithLease(two))
		f.put("a", f.v("2"), clientv3.WithIgnoreLease())
		f.put("a", "", clientv3.WithIgnoreValue(), clientv3.WithIgnoreLease())
		f.put("a", "", clientv3.WithIgnoreValue())
		es := w.sees(put("a", f.v("1")), put("a", f.v("1")).over(f.v("1")), put("a", f.v("2")).over(f.v("1")),
			put("a", f.v("2")).over(f.v("2")), put("a", f.v("2")).over(f.v("2")))
		for i, lease := range []clientv3.LeaseID{one, two, two, two, 0} {
			f.EqualValues(lease, es[i].Kv.Lease)
			f.EqualValues(i+1, es[i].Kv.Version)
		}
	}},
	{"a lease that is revoked deletes its keys at once", func(f *fixture) {
		lease := f.lease()
		f.put("c", f.v("1"), clientv3.WithLease(lease))
		f.put("a", f.v("2"), clientv3.WithLease(lease))
		f.put("b", "small", clientv3.WithLease(lease))
		f.put("d", f.v("3"))
		w := f.watch("", clientv3.WithPrefix(), clientv3.WithPrevKV())
		_, err := f.Revoke(f.ctx, lease)
		f.NoError(err)
		for _, e := range w.seesAtOnce(del("a").over(f.v("2")), del("b").over("small"), del("c").over(f.v("1"))) {
			f.EqualValues(lease, e.PrevKv.Lease)
		}
	}},
	{"values of any bytes are told", func(f *fixture) {
		w := f.watch("a", clientv3.WithPrevKV())
		values := []string{"", "\x00", "\xff", "\xffkvw", "\xffkvw\x01\x00", "\xffkvw\x01\x01", "\xffkvw" + f.v("x"), "\xffkvw" + strings.Repeat("\x00", 200)}
		var want []change
		for i, v := range values {
			f.put("a", v)
			c := put("a", v)
			if i > 0 {
				c = c.over(values[i-1])
			}
			want = append(want, c)
		}
		f.del("a")
		w.sees(append(want, del("a").over(values[len(values)-1]))...)
	}},
	{"what is told belongs to whom it is told", func(f *fixture) {
		f.put("a", f.v("0"))
		one, two := f.watch("a", clientv3.WithPrevKV()), f.watch("a", clientv3.WithPrevKV())
		for i := range 4 {
			f.put("a", f.v(fmt.Sprint(i+1)))
			want := put("a", f.v(fmt.Sprint(i+1))).over(f.v(fmt.Sprint(i)))
			for _, w := range []*watching{one, two} {
				e := w.sees(want)[0]
				clear(e.Kv.Value)
				clear(e.PrevKv.Value)
				clear(e.Kv.Key)
			}
			f.value("a", f.v(fmt.Sprint(i+1)))
		}
	}},
	{"a watch that cannot be is refused, and others go on", func(f *fixture) {
		other := f.watch("a")
		for _, refused := range []struct {
			err error
			*watching
		}{
			{errors.New("mvcc: watcher range is empty"), f.watch("b", clientv3.WithRange("a"))},
			{errors.New("mvcc: watcher range is empty"), f.watch("a", clientv3.WithRange("a"), clientv3.WithCreatedNotify())},
			{rpctypes.ErrCompacted, f.watch("a", clientv3.WithRev(-1))},
		} {
			resp := refused.receive()
			f.True(resp.Canceled)
			f.EqualError(resp.Err(), refused.err.Error())
			f.Empty(resp.Events)
			refused.ends()
		}
		f.put("a", f.v("1"))
		other.sees(put("a", f.v("1")))
	}},
}

// A change is what an event tells.
type change struct {
	deleted    bool
	key, value string
	prev       *string
	revision   int64 // not compared
}

func put(key, value string) change { return change{key: key, value: value} }
func del(key string) change        { return change{key: key, deleted: true} }

// over returns c with a previous value.
func (c change) over(prev string) change {
	c.prev = &prev
	return c
}

// told checks an event.
func (f *fixture) told(e *clientv3.Event, want change) {
	f.Helper()
	f.Equal(want.key, string(e.Kv.Key))
	f.Equal(want.deleted, e.Type == mvccpb.Event_DELETE, "whether %q was deleted", want.key)
	f.equal(want.value, e.Kv.Value)
	if want.prev == nil {
		f.Nil(e.PrevKv)
		return
	}
	f.NotNil(e.PrevKv, "what %q was before", want.key)
	f.Equal(want.key, string(e.PrevKv.Key))
	f.equal(*want.prev, e.PrevKv.Value)
	f.Less(e.PrevKv.ModRevision, e.Kv.ModRevision)
}

// watching is a watch of a case.
type watching struct {
	f      *fixture
	ch     clientv3.WatchChan
	order  order
	unread []*clientv3.Event // received, and not asked for yet
}

// watch begins a watch that ends with the case.
func (f *fixture) watch(key string, opts ...clientv3.OpOption) *watching {
	f.Helper()
	return f.watchIn(f.ctx, key, opts...)
}

func (f *fixture) watchIn(ctx context.Context, key string, opts ...clientv3.OpOption) *watching {
	f.Helper()
	if f.Watcher == nil {
		f.Skip("there is no Watcher")
	}
	w := &watching{f: f, ch: f.Watch(ctx, key, opts...)}
	f.Cleanup(func() { f.Empty(w.unread, "events that nothing has made") })
	return w
}

// receive returns the next response, whatever it is.
func (w *watching) receive() clientv3.WatchResponse {
	w.f.Helper()
	resp, ok := receive(w.f.T, w.ch)
	w.f.True(ok, "the watch has ended")
	return resp
}

// receive returns the next response of a watch, or false at its end.
func receive(t require.TestingT, ch clientv3.WatchChan) (clientv3.WatchResponse, bool) {
	select {
	case resp, ok := <-ch:
		return resp, ok
	case <-time.After(time.Minute):
		t.Errorf("a watch has told nothing for a minute")
		t.FailNow()
		panic("unreachable")
	}
}

// next returns the next response, which is of events or of progress.
func (w *watching) next() clientv3.WatchResponse {
	w.f.Helper()
	return w.check(w.receive())
}

func (w *watching) check(resp clientv3.WatchResponse) clientv3.WatchResponse {
	w.f.Helper()
	w.f.header(resp.Header)
	w.order.check(w.f.T, resp)
	return resp
}

// order holds the responses of a watch to what etcd guarantees of them: events
// are in the order of their revisions, none comes twice, those of one revision
// come together, and none comes after progress at its revision.
type order struct{ told int64 } // all up to this revision, this included

func (o *order) check(t require.TestingT, resp clientv3.WatchResponse) {
	require.NoError(t, resp.Err())
	require.False(t, resp.Created)
	if resp.IsProgressNotify() {
		require.GreaterOrEqual(t, resp.Header.Revision, o.told)
		o.told = resp.Header.Revision
		return
	}
	require.NotEmpty(t, resp.Events)
	before := o.told
	for _, e := range resp.Events {
		require.Greater(t, e.Kv.ModRevision, before, "%q was told of before", e.Kv.Key)
		require.GreaterOrEqual(t, e.Kv.ModRevision, o.told, "out of order: %q", e.Kv.Key)
		o.told = e.Kv.ModRevision
	}
	require.GreaterOrEqual(t, resp.Header.Revision, o.told)
}

// events returns the next n events.
func (w *watching) events(n int) (es []*clientv3.Event) {
	w.f.Helper()
	for len(w.unread) < n {
		w.unread = append(w.unread, w.next().Events...)
	}
	es, w.unread = w.unread[:n:n], w.unread[n:]
	return es
}

// eventsUpTo returns all events up to revision, by asking for progress until it
// gets there: etcd does not answer while a watch of the client is behind.
func (w *watching) eventsUpTo(revision int64) (es []*clientv3.Event) {
	w.f.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	es, w.unread = w.unread, nil
	for w.order.told < revision {
		w.f.NoError(w.f.RequestProgress(w.f.ctx))
		select {
		case resp, ok := <-w.ch:
			w.f.True(ok, "the watch has ended")
			es = append(es, w.check(resp).Events...)
		case <-again.C:
		}
	}
	return es
}

// sees checks the next events.
func (w *watching) sees(changes ...change) []*clientv3.Event {
	w.f.Helper()
	es := w.events(len(changes))
	for i, c := range changes {
		w.f.told(es[i], c)
	}
	return es
}

// seesAtOnce checks that the next events are these, of one revision and so in one
// response.
func (w *watching) seesAtOnce(changes ...change) []*clientv3.Event {
	w.f.Helper()
	es := w.sees(changes...)
	for _, e := range es {
		w.f.Equal(es[0].Kv.ModRevision, e.Kv.ModRevision)
	}
	return es
}

// compacted checks that the watch ends because of a compaction.
func (w *watching) compacted(at int64) {
	w.f.Helper()
	resp := w.receive()
	w.f.True(resp.Canceled)
	w.f.Equal(at, resp.CompactRevision)
	w.f.Equal(rpctypes.ErrCompacted, resp.Err())
	w.f.Empty(resp.Events)
	w.ends()
}

// ends checks that the watch has nothing more to tell but what was under way.
func (w *watching) ends() {
	w.f.Helper()
	for {
		resp, ok := receive(w.f.T, w.ch)
		if !ok {
			return
		}
		w.f.NoError(resp.Err())
		w.check(resp)
	}
}
