package contract

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"
)

// Differential runs random sequences of calls on etcd's own client and, on
// another cluster, on stacks under test, and compares the answers, and what
// watches tell. They must be equal up to a renaming of revisions that keeps their
// order. Several stacks take turns, each over a client of its own, so that what
// one of them knows of a key is often out of date; and so does a plain client that
// knows of none of them.
func Differential(t *testing.T, open ...Open) {
	plain, other := etcdtest.Start(t, 1, nil), etcdtest.Start(t, 1, nil)
	d := &differential{plain: Plain(plain.Client(t)), stranger: Plain(other.Client(t))}
	for _, o := range open {
		d.others = append(d.others, o(t, other.Client(t)))
	}
	rapid.Check(t, func(rt *rapid.T) {
		plain.Wipe(t)
		other.Wipe(t)
		d.reset(t, rt)
		defer d.cancel()
		rt.Repeat(map[string]func(*rapid.T){
			"put":      d.put,
			"get":      d.get,
			"delete":   d.delete,
			"txn":      d.txn,
			"watch":    d.watch,
			"grant":    d.grant,
			"revoke":   d.revoke,
			"attached": d.attached,
			"compact":  d.compact,
			"stranger": d.writeAsStranger,
			"disturb":  d.disturb,
			"":         d.check,
		})
		d.readWatches(rt)
	})
}

type differential struct {
	plain    Stack
	others   []Stack
	stranger Stack // a plain client of the cluster of the others

	ctx       context.Context
	cancel    context.CancelFunc
	leases    map[clientv3.LeaseID]clientv3.LeaseID // of plain, to those of the others
	leaseIDs  []clientv3.LeaseID
	revisions renaming
	compacted pair
	watches   []*pairOfWatches
}

// pair is what is the same on both sides under different names.
type pair struct{ plain, other int64 }

func (d *differential) reset(t *testing.T, rt *rapid.T) {
	d.ctx, d.cancel = context.WithCancel(t.Context())
	d.leases = map[clientv3.LeaseID]clientv3.LeaseID{0: 0}
	d.leaseIDs = []clientv3.LeaseID{0}
	d.revisions = renaming{to: map[int64]int64{}, loose: map[int64]bool{}}
	d.compacted, d.watches = pair{}, nil
	// Where both begin, which neither has compacted.
	p, err := d.plain.Put(d.ctx, "a", "")
	require.NoError(rt, err)
	o, err := d.stranger.Put(d.ctx, "a", "")
	require.NoError(rt, err)
	d.revisions.add(rt, p.Header.Revision, o.Header.Revision)
	d.watchAll(rt)
}

// renaming maps the revisions of the plain cluster to those of the other one.
type renaming struct {
	to    map[int64]int64
	loose map[int64]bool // of those in to, see addHeader
	from  []int64        // in order
}

// add notes that a is named b, which must fit in with what is known.
func (r *renaming) add(t rapid.TB, a, b int64) {
	i, found := slices.BinarySearch(r.from, a)
	if !found {
		r.from = slices.Insert(r.from, i, a)
	} else if b != r.to[a] && !(r.loose[a] && b < r.to[a]) {
		t.Fatalf("revision %d is named %d and %d", a, r.to[a], b)
	}
	if i > 0 && r.to[r.from[i-1]] >= b || i+1 < len(r.from) && r.to[r.from[i+1]] <= b {
		t.Fatalf("revision %d is named %d, which is out of order", a, b)
	}
	r.to[a] = b
	delete(r.loose, a)
}

// addHeader notes that nothing was written on either side since a and b. A stack
// may use revisions for itself, so that this is one of several names of a, and b
// may be above what was written at a.
func (r *renaming) addHeader(a, b int64) {
	if _, ok := r.to[a]; !ok {
		r.to[a], r.loose[a] = b, true
		r.from = append(r.from, a) // the newest
	}
}

// A call is made on both sides with the revisions and leases of that side.
type side struct {
	Stack
	revision func(int64) int64
	lease    func(clientv3.LeaseID) clientv3.LeaseID
}

func (d *differential) sides(t *rapid.T) (plain, other side) {
	return d.onPlain(), d.on(d.others[rapid.IntRange(0, len(d.others)-1).Draw(t, "client")])
}

func (d *differential) onPlain() side {
	return side{d.plain, func(r int64) int64 { return r }, func(l clientv3.LeaseID) clientv3.LeaseID { return l }}
}

func (d *differential) on(s Stack) side {
	return side{s, func(r int64) int64 { return d.revisions.to[r] }, func(l clientv3.LeaseID) clientv3.LeaseID { return d.leases[l] }}
}

// both makes a call on both sides and compares the errors. It reports whether
// there was none.
func both[R any](t *rapid.T, d *differential, call func(side) (R, error)) (a, b R, ok bool) {
	plain, other := d.sides(t)
	return between(t, plain, other, call)
}

func between[R any](t *rapid.T, plain, other side, call func(side) (R, error)) (a, b R, ok bool) {
	a, errA := call(plain)
	b, errB := call(other)
	if errA == nil && errB == nil {
		return a, b, true
	}
	if errA == nil || errB == nil || errA.Error() != errB.Error() && !(oneOfMany(errA) && oneOfMany(errB)) {
		t.Fatalf("errors differ: %v, %v", errA, errB)
	}
	return a, b, false
}

// oneOfMany reports whether err may be that of one operation of a transaction
// among several that are wrong. Which of these is reported is left open: a KV
// may find out about one before it sends the others.
func oneOfMany(err error) bool {
	for _, e := range []error{rpctypes.ErrKeyNotFound, rpctypes.ErrLeaseNotFound, rpctypes.ErrFutureRev, rpctypes.ErrCompacted} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

var (
	someKeys = []string{"a", "a\x00", "a\x00b", "ab", "b", "b\xff", "c", "\x00", "\x00kz", "\xff"}
	someEnds = []string{"", "b", "c", "a\x00", "b\xff", "\xff\xff", fromKey}
)

// fromKey is the range end of all keys from one on.
const fromKey = "\x00"

func drawKey(t *rapid.T) string { return rapid.SampledFrom(someKeys).Draw(t, "key") }

// drawRange draws no range end half of the time.
func drawRange(t *rapid.T, ends []string) []clientv3.OpOption {
	if end := rapid.SampledFrom(append(make([]string, len(ends)), ends...)).Draw(t, "end"); end != "" {
		return []clientv3.OpOption{clientv3.WithRange(end)}
	}
	return nil
}

// drawValue draws values of all sizes, and few of each, so that they meet again.
func drawValue(t *rapid.T) string {
	v := rapid.SampledFrom([]string{"", "m", "z", "\xff", "\xffkvw", "\xffkvw\x01\x01", "\xffz"}).Draw(t, "value")
	if n := rapid.SampledFrom([]int{0, 0, 0, 1, 300, 5000, 70 << 10, 150 << 10}).Draw(t, "bytes"); n > 0 {
		v += workload.Text(n, v)[:n]
	}
	return v
}

func (d *differential) drawRevision(t *rapid.T) int64 {
	return rapid.SampledFrom(d.revisions.from).Draw(t, "revision")
}

func (d *differential) drawLease(t *rapid.T) clientv3.LeaseID {
	return rapid.SampledFrom(d.leaseIDs).Draw(t, "lease")
}

func oneIn(t *rapid.T, n int, label string) bool { return rapid.IntRange(1, n).Draw(t, label) == n }

// drawPut returns a put as either side makes it.
func (d *differential) drawPut(t *rapid.T) func(side) clientv3.Op {
	key, value, lease := drawKey(t), drawValue(t), d.drawLease(t)
	ignoreValue, ignoreLease, prev := oneIn(t, 6, "ignoreValue"), oneIn(t, 6, "ignoreLease"), oneIn(t, 3, "prevKV")
	return func(s side) clientv3.Op {
		var opts []clientv3.OpOption
		if ignoreLease {
			opts = append(opts, clientv3.WithIgnoreLease())
		} else if lease != 0 {
			opts = append(opts, clientv3.WithLease(s.lease(lease)))
		}
		if prev {
			opts = append(opts, clientv3.WithPrevKV())
		}
		if ignoreValue {
			return clientv3.OpPut(key, "", append(opts, clientv3.WithIgnoreValue())...)
		}
		return clientv3.OpPut(key, value, opts...)
	}
}

// drawRead returns the arguments of a get, or of a stream, as either side makes it.
//
// A stream with a sort target but no order is one that etcd does not refuse and
// sorts message by message, however much happens to be in one.
func (d *differential) drawRead(t *rapid.T, stream bool) func(side) (string, []clientv3.OpOption) {
	key, opts := drawKey(t), drawRange(t, someEnds)
	if oneIn(t, 3, "limited") {
		opts = append(opts, clientv3.WithLimit(rapid.Int64Range(1, 4).Draw(t, "limit")))
	}
	if oneIn(t, 3, "sorted") {
		target, order := rapid.IntRange(0, 4).Draw(t, "target"), rapid.IntRange(0, 2).Draw(t, "order")
		if stream {
			order = max(order, int(clientv3.SortAscend))
		}
		opts = append(opts, clientv3.WithSort(clientv3.SortTarget(target), clientv3.SortOrder(order)))
	}
	if oneIn(t, 6, "keysOnly") {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	if oneIn(t, 6, "countOnly") {
		opts = append(opts, clientv3.WithCountOnly())
	}
	if oneIn(t, 4, "serializable") {
		opts = append(opts, clientv3.WithSerializable())
	}
	with := func(s side) []clientv3.OpOption { return nil }
	if oneIn(t, 3, "at a revision") {
		revision := d.drawRevision(t)
		option := rapid.SampledFrom([]func(int64) clientv3.OpOption{
			clientv3.WithRev, clientv3.WithMinModRev, clientv3.WithMaxModRev, clientv3.WithMinCreateRev, clientv3.WithMaxCreateRev,
		}).Draw(t, "option")
		with = func(s side) []clientv3.OpOption { return []clientv3.OpOption{option(s.revision(revision))} }
	}
	return func(s side) (string, []clientv3.OpOption) { return key, slices.Concat(opts, with(s)) }
}

func (d *differential) drawGet(t *rapid.T) func(side) clientv3.Op {
	read := d.drawRead(t, false)
	return func(s side) clientv3.Op {
		key, opts := read(s)
		return clientv3.OpGet(key, opts...)
	}
}

func (d *differential) drawDelete(t *rapid.T, ends []string) func(side) clientv3.Op {
	key, opts := drawKey(t), drawRange(t, ends)
	if oneIn(t, 2, "prevKV") {
		opts = append(opts, clientv3.WithPrevKV())
	}
	return func(side) clientv3.Op { return clientv3.OpDelete(key, opts...) }
}

func (d *differential) drawCompare(t *rapid.T) func(side) clientv3.Cmp {
	key, result := drawKey(t), rapid.SampledFrom([]string{"=", "!=", "<", ">"}).Draw(t, "result")
	target := rapid.SampledFrom([]string{"value", "value", "value", "mod", "create", "version", "lease"}).Draw(t, "compared")
	value, version, revision, lease := drawValue(t), rapid.IntRange(0, 3).Draw(t, "version"), d.drawRevision(t), d.drawLease(t)
	if oneIn(t, 3, "zero") {
		revision = 0
	}
	end := rapid.SampledFrom(append(make([]string, 2*len(someEnds)), someEnds...)).Draw(t, "end")
	return func(s side) clientv3.Cmp {
		var c clientv3.Cmp
		switch target {
		case "value":
			c = clientv3.Compare(clientv3.Value(key), result, value)
		case "mod":
			c = clientv3.Compare(clientv3.ModRevision(key), result, s.revision(revision))
		case "create":
			c = clientv3.Compare(clientv3.CreateRevision(key), result, s.revision(revision))
		case "version":
			c = clientv3.Compare(clientv3.Version(key), result, version)
		case "lease":
			if result == "<" || result == ">" {
				result = "=" // ids have no order
			}
			c = clientv3.Compare(clientv3.LeaseValue(key), result, s.lease(lease))
		}
		if end != "" {
			c = c.WithRange(end)
		}
		return c
	}
}

// drawTxn draws a transaction with others in it, depth deep.
func (d *differential) drawTxn(t *rapid.T, depth int) func(side) clientv3.Op {
	var compares []func(side) clientv3.Cmp
	for range rapid.IntRange(0, 2).Draw(t, "compares") {
		compares = append(compares, d.drawCompare(t))
	}
	branch := func() (ops []func(side) clientv3.Op) {
		for range rapid.IntRange(0, 4).Draw(t, "ops") {
			switch kind := rapid.SampledFrom([]string{"put", "put", "get", "get", "delete", "txn"}).Draw(t, "op"); {
			case kind == "put":
				ops = append(ops, d.drawPut(t))
			case kind == "get":
				ops = append(ops, d.drawGet(t))
			case kind == "delete":
				// A delete from a key on may stand beside a put of such a key, and
				// if that has IgnoreValue or IgnoreLease etcd 3.7 panics.
				bounded := slices.DeleteFunc(slices.Clone(someEnds), func(end string) bool { return end == fromKey })
				ops = append(ops, d.drawDelete(t, bounded))
			case depth > 0:
				ops = append(ops, d.drawTxn(t, depth-1))
			}
		}
		return ops
	}
	then, otherwise := branch(), branch()
	return func(s side) clientv3.Op {
		var cs []clientv3.Cmp
		for _, c := range compares {
			cs = append(cs, c(s))
		}
		at := func(ops []func(side) clientv3.Op) (made []clientv3.Op) {
			for _, op := range ops {
				made = append(made, op(s))
			}
			return made
		}
		return clientv3.OpTxn(cs, at(then), at(otherwise))
	}
}

func (d *differential) do(t *rapid.T, op func(side) clientv3.Op) (a, b clientv3.OpResponse, ok bool) {
	return both(t, d, func(s side) (clientv3.OpResponse, error) { return s.Do(d.ctx, op(s)) })
}

func (d *differential) put(t *rapid.T) {
	if a, b, ok := d.do(t, d.drawPut(t)); ok {
		d.samePut(t, (*pb.PutResponse)(a.Put()), (*pb.PutResponse)(b.Put()))
	}
}

func (d *differential) delete(t *rapid.T) {
	if a, b, ok := d.do(t, d.drawDelete(t, someEnds)); ok {
		d.sameDelete(t, (*pb.DeleteRangeResponse)(a.Del()), (*pb.DeleteRangeResponse)(b.Del()))
	}
}

func (d *differential) txn(t *rapid.T) {
	if a, b, ok := d.do(t, d.drawTxn(t, 2)); ok {
		d.sameTxn(t, (*pb.TxnResponse)(a.Txn()), (*pb.TxnResponse)(b.Txn()))
	}
}

func (d *differential) get(t *rapid.T) {
	stream := oneIn(t, 3, "stream")
	read := d.drawRead(t, stream)
	a, b, ok := both(t, d, func(s side) (*clientv3.GetResponse, error) {
		key, opts := read(s)
		if !stream {
			return s.Get(d.ctx, key, opts...)
		}
		ch, err := s.GetStream(d.ctx, key, opts...)
		if err != nil {
			return nil, err
		}
		return clientv3.GetStreamToGetResponse(ch)
	})
	if ok {
		d.sameRange(t, (*pb.RangeResponse)(a), (*pb.RangeResponse)(b))
	}
}

// writeAsStranger has a plain client put a small value, or delete a key, on both
// sides.
func (d *differential) writeAsStranger(t *rapid.T) {
	key, value, lease := drawKey(t), rapid.SampledFrom([]string{"", "m", "z"}).Draw(t, "value"), d.drawLease(t)
	deletes := oneIn(t, 3, "delete")
	between(t, d.onPlain(), d.on(d.stranger), func(s side) (clientv3.OpResponse, error) {
		if deletes {
			return s.Do(d.ctx, clientv3.OpDelete(key))
		}
		return s.Do(d.ctx, clientv3.OpPut(key, value, clientv3.WithLease(s.lease(lease))))
	})
}

func (d *differential) disturb(t *rapid.T) {
	if _, other := d.sides(t); other.Disturb != nil {
		require.NoError(t, other.Disturb(d.ctx))
	}
}

func (d *differential) grant(t *rapid.T) {
	a, b, _ := both(t, d, func(s side) (*clientv3.LeaseGrantResponse, error) { return s.Grant(d.ctx, 6000) })
	d.leases[a.ID] = b.ID
	d.leaseIDs = append(d.leaseIDs, a.ID)
}

func (d *differential) revoke(t *rapid.T) {
	l := d.drawLease(t)
	if l == 0 || !oneIn(t, 2, "revoke") {
		return
	}
	both(t, d, func(s side) (*clientv3.LeaseRevokeResponse, error) { return s.Revoke(d.ctx, s.lease(l)) })
}

// attached compares the keys that are attached to a lease, which may be revoked.
func (d *differential) attached(t *rapid.T) {
	l := d.drawLease(t)
	a, b, ok := both(t, d, func(s side) (*clientv3.LeaseTimeToLiveResponse, error) {
		return s.TimeToLive(d.ctx, s.lease(l), clientv3.WithAttachedKeys())
	})
	if ok {
		require.Equal(t, a.GrantedTTL, b.GrantedTTL)
		require.Equal(t, a.TTL < 0, b.TTL < 0)
		require.ElementsMatch(t, a.Keys, b.Keys)
	}
}

func (d *differential) compact(t *rapid.T) {
	if !oneIn(t, 4, "compact") {
		return
	}
	revision := d.drawRevision(t)
	d.readWatches(t)
	at := pair{revision, d.revisions.to[revision]}
	if _, _, ok := both(t, d, func(s side) (*clientv3.CompactResponse, error) { return s.Compact(d.ctx, s.revision(revision)) }); ok {
		d.compacted = at
	}
}

// check compares all that is stored.
func (d *differential) check(t *rapid.T) {
	all := func(side) clientv3.Op { return clientv3.OpGet("\x00", clientv3.WithFromKey()) }
	a, b, _ := d.do(t, all)
	d.sameRange(t, (*pb.RangeResponse)(a.Get()), (*pb.RangeResponse)(b.Get()))
	d.revisions.addHeader(a.Get().Header.Revision, b.Get().Header.Revision)
}

func (d *differential) samePut(t *rapid.T, a, b *pb.PutResponse) {
	d.sameKV(t, a.PrevKv, b.PrevKv)
}

func (d *differential) sameDelete(t *rapid.T, a, b *pb.DeleteRangeResponse) {
	require.Equal(t, a.Deleted, b.Deleted, "deleted")
	d.sameKVs(t, a.PrevKvs, b.PrevKvs)
}

func (d *differential) sameRange(t *rapid.T, a, b *pb.RangeResponse) {
	d.sameKVs(t, a.Kvs, b.Kvs)
	require.Equal(t, a.Count, b.Count, "count")
	require.Equal(t, a.More, b.More, "more")
}

func (d *differential) sameKVs(t *rapid.T, a, b []*mvccpb.KeyValue) {
	require.Equal(t, keys(a), keys(b))
	for i := range a {
		d.sameKV(t, a[i], b[i])
	}
}

func (d *differential) sameKV(t *rapid.T, a, b *mvccpb.KeyValue) {
	if a == nil || b == nil {
		require.True(t, a == nil && b == nil, "%v, %v", a, b)
		return
	}
	require.Equal(t, string(a.Key), string(b.Key))
	require.Equal(t, a.Version, b.Version, "version of %q", a.Key)
	require.Equal(t, d.leases[clientv3.LeaseID(a.Lease)], clientv3.LeaseID(b.Lease), "lease of %q", a.Key)
	if string(a.Value) != string(b.Value) {
		t.Fatalf("values of %q differ: %d bytes %.40q, %d bytes %.40q", a.Key, len(a.Value), a.Value, len(b.Value), b.Value)
	}
	d.revisions.add(t, a.ModRevision, b.ModRevision)
	d.revisions.add(t, a.CreateRevision, b.CreateRevision)
}

func (d *differential) sameTxn(t *rapid.T, a, b *pb.TxnResponse) {
	require.Equal(t, a.Succeeded, b.Succeeded, "succeeded")
	require.Len(t, b.Responses, len(a.Responses))
	for i := range a.Responses {
		a, b := a.Responses[i], b.Responses[i]
		switch {
		case a.GetResponsePut() != nil:
			d.samePut(t, a.GetResponsePut(), b.GetResponsePut())
		case a.GetResponseDeleteRange() != nil:
			d.sameDelete(t, a.GetResponseDeleteRange(), b.GetResponseDeleteRange())
		case a.GetResponseRange() != nil:
			d.sameRange(t, a.GetResponseRange(), b.GetResponseRange())
		default:
			d.sameTxn(t, a.GetResponseTxn(), b.GetResponseTxn())
		}
	}
}
