package contract

import (
	"slices"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"
)

// pairOfWatches is the same watch on both sides. It goes on while other calls are
// made.
type pairOfWatches struct {
	key          string
	withoutPuts  bool
	plain, other view
}

// view is what a watch has told.
type view struct {
	ch     clientv3.WatchChan
	order  order
	unread []*clientv3.Event
	end    *clientv3.WatchResponse // where etcd has ended it
}

// watchAll begins a watch of everything.
func (d *differential) watchAll(t *rapid.T) {
	d.begin(t, &pairOfWatches{key: "\x00"}, 0, clientv3.WithFromKey(), clientv3.WithPrevKV())
}

// watch begins a watch of what is written from now on, or after a known revision.
//
// What it tells is compared event by event, previous values included. There is one
// thing that depends on how many revisions a side uses: where the revision that
// follows the start is the first that is not compacted, the other side may have
// compacted revisions of its own between the two. Such a watch begins after that
// one. So the revision before each event is there on both sides as well, and a
// previous value is missing on both or on none.
func (d *differential) watch(t *rapid.T) {
	if !oneIn(t, 2, "watch") { // for the server takes up to 100 ms for what is past
		return
	}
	w := &pairOfWatches{key: drawKey(t)}
	// Not of a range without keys: after one that was refused etcd's client ends
	// others twice.
	opts := drawRange(t, slices.DeleteFunc(slices.Clone(someEnds), func(end string) bool { return end != fromKey && end <= w.key }))
	if oneIn(t, 2, "prevKV") {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if w.withoutPuts = oneIn(t, 5, "without puts"); w.withoutPuts {
		opts = append(opts, clientv3.WithFilterPut())
	} else if oneIn(t, 5, "without deletes") {
		opts = append(opts, clientv3.WithFilterDelete())
	}
	after := int64(0)
	if oneIn(t, 2, "from the past") {
		if after = d.drawRevision(t); after+1 == d.compacted.plain {
			after = d.compacted.plain
		}
	}
	d.begin(t, w, after, opts...)
}

// begin begins a watch on both sides, after a revision or, where that is 0, now.
func (d *differential) begin(t *rapid.T, w *pairOfWatches, after int64, opts ...clientv3.OpOption) {
	plain, other := d.sides(t)
	if other.Watcher == nil {
		return
	}
	on := func(s side) view {
		opts := slices.Clone(opts)
		if after > 0 {
			opts = append(opts, clientv3.WithRev(s.revision(after)+1))
		}
		return view{ch: s.Watch(d.ctx, w.key, opts...)}
	}
	w.plain, w.other = on(plain), on(other)
	d.watches = append(d.watches, w)
}

// readWatches reads all watches up to now and compares what they have told. It
// writes each one's key, to see where that is.
func (d *differential) readWatches(t *rapid.T) {
	marks := make([]pair, len(d.watches))
	for i, w := range d.watches {
		p, o, _ := both(t, d, func(s side) (*clientv3.PutResponse, error) { return s.Put(d.ctx, w.key, "mark") })
		marks[i] = pair{p.Header.Revision, o.Header.Revision}
		if w.withoutPuts {
			p, o, _ := both(t, d, func(s side) (*clientv3.DeleteResponse, error) { return s.Delete(d.ctx, w.key) })
			marks[i] = pair{p.Header.Revision, o.Header.Revision}
		}
	}
	for i, w := range d.watches {
		a, b := w.plain.upTo(t, marks[i].plain), w.other.upTo(t, marks[i].other)
		for i := range min(len(a), len(b)) {
			d.sameEvent(t, a[i], b[i])
		}
		require.Len(t, b, len(a), "events of %q", w.key)
		d.sameEnd(t, w.plain.end, w.other.end)
	}
	d.watches = slices.DeleteFunc(d.watches, func(w *pairOfWatches) bool { return w.plain.end != nil })
}

// upTo returns the next events, up to a revision that one of them has.
func (v *view) upTo(t *rapid.T, revision int64) []*clientv3.Event {
	for v.order.told < revision && v.end == nil {
		resp, ok := receive(t, v.ch)
		require.True(t, ok, "a watch is closed and does not say why")
		if resp.Canceled {
			v.end = &resp
			_, ok := receive(t, v.ch)
			require.False(t, ok, "a watch goes on after its end")
			break
		}
		v.order.check(t, resp)
		v.unread = append(v.unread, resp.Events...)
	}
	n := 0
	for n < len(v.unread) && v.unread[n].Kv.ModRevision <= revision {
		n++
	}
	events := v.unread[:n]
	v.unread = v.unread[n:]
	return events
}

func (d *differential) sameEvent(t *rapid.T, a, b *clientv3.Event) {
	require.Equal(t, a.Type, b.Type, "type of an event on %q", a.Kv.Key)
	d.sameKV(t, a.PrevKv, b.PrevKv)
	if a.Type == mvccpb.Event_PUT {
		d.sameKV(t, a.Kv, b.Kv)
		return
	}
	require.Equal(t, string(a.Kv.Key), string(b.Kv.Key))
	d.revisions.add(t, a.Kv.ModRevision, b.Kv.ModRevision)
	for _, kv := range []*mvccpb.KeyValue{a.Kv, b.Kv} {
		require.Zero(t, kv.CreateRevision+kv.Version+kv.Lease)
		require.Empty(t, kv.Value)
	}
}

func (d *differential) sameEnd(t *rapid.T, a, b *clientv3.WatchResponse) {
	if a == nil || b == nil {
		require.True(t, a == nil && b == nil, "one watch has ended: %v, %v", a, b)
		return
	}
	require.Equal(t, a.Err(), b.Err())
	if a.CompactRevision != 0 || b.CompactRevision != 0 {
		require.Equal(t, d.compacted, pair{a.CompactRevision, b.CompactRevision})
	}
}
