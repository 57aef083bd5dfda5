package contract

import (
	"fmt"

	"github.com/kvwrap/kvwrap/internal/workload"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

type (
	ops  = []clientv3.Op
	cmps = []clientv3.Cmp
)

// no and yes never hold and always do.
func no() clientv3.Cmp  { return clientv3.Compare(clientv3.Version("nothing"), ">", 0) }
func yes() clientv3.Cmp { return clientv3.Compare(clientv3.Version("nothing"), "=", 0) }

var txnCases = []testCase{
	{"an empty transaction succeeds, and its else branch does not", func(f *fixture) {
		f.put("a", f.v("1"))
		resp := f.txn(nil, nil, nil)
		f.True(resp.Succeeded)
		f.Empty(resp.Responses)
		resp = f.txn(cmps{no()}, nil, nil)
		f.False(resp.Succeeded)
		f.Empty(resp.Responses)
		resp = f.txn(cmps{yes()}, nil, ops{clientv3.OpPut("b", f.v("2"))})
		f.True(resp.Succeeded)
		f.Empty(resp.Responses)
		f.missing("b")
	}},
	{"then or else", func(f *fixture) {
		resp := f.txn(cmps{yes()}, ops{clientv3.OpPut("a", f.v("1"))}, ops{clientv3.OpPut("b", f.v("2"))})
		f.True(resp.Succeeded)
		f.Len(resp.Responses, 1)
		f.NotNil(resp.Responses[0].GetResponsePut())
		f.value("a", f.v("1"))
		f.missing("b")
		resp = f.txn(cmps{no()}, ops{clientv3.OpPut("a", f.v("3"))}, ops{clientv3.OpPut("b", f.v("4")), clientv3.OpGet("a")})
		f.False(resp.Succeeded)
		f.Len(resp.Responses, 2)
		f.value("a", f.v("1"))
		f.value("b", f.v("4"))
		f.values(resp.Responses[1].GetResponseRange().Kvs, "a", f.v("1"))
	}},
	{"what a transaction writes has one revision", func(f *fixture) {
		f.put("z", f.v("0"))
		resp := f.txn(nil, ops{
			clientv3.OpPut("a", f.v("1")), clientv3.OpPut("b", "2"), clientv3.OpPut("c", f.v("3")), clientv3.OpDelete("z"),
		}, nil)
		for _, kv := range f.get("", clientv3.WithPrefix()).Kvs {
			f.Equal(resp.Header.Revision, kv.ModRevision)
			f.EqualValues(1, kv.Version)
		}
		f.missing("z")
	}},
	{"headers stand where etcd puts them", func(f *fixture) {
		f.put("a", f.v("1"))
		resp := f.txn(nil, ops{
			clientv3.OpGet("a"),
			clientv3.OpPut("a", f.v("2")),
			clientv3.OpGet("a"),
			clientv3.OpDelete("b"),
			clientv3.OpTxn(nil, ops{clientv3.OpGet("a")}, nil),
		}, nil)
		onlyRevision := func(h *pb.ResponseHeader) int64 {
			f.NotNil(h)
			f.Zero(h.ClusterId)
			f.Zero(h.MemberId)
			f.Zero(h.RaftTerm)
			return h.Revision
		}
		f.Less(onlyRevision(resp.Responses[0].GetResponseRange().Header), resp.Header.Revision)
		f.Equal(resp.Header.Revision, onlyRevision(resp.Responses[1].GetResponsePut().Header))
		f.Equal(resp.Header.Revision, onlyRevision(resp.Responses[2].GetResponseRange().Header))
		f.Equal(resp.Header.Revision, onlyRevision(resp.Responses[3].GetResponseDeleteRange().Header))
		f.Zero(onlyRevision(resp.Responses[4].GetResponseTxn().Header))
		f.Equal(resp.Header.Revision, onlyRevision(resp.Responses[4].GetResponseTxn().Responses[0].GetResponseRange().Header))
	}},
	{"reads see the writes before them and not those after", func(f *fixture) {
		f.abcd()
		f.put("b", f.v("old"))
		resp := f.txn(nil, ops{
			clientv3.OpGet("b"),
			clientv3.OpGet("", clientv3.WithPrefix()),
			clientv3.OpPut("b", f.v("new")),
			clientv3.OpGet("b"),
			clientv3.OpDelete("c"),
			clientv3.OpGet("", clientv3.WithPrefix(), clientv3.WithLimit(3)),
			clientv3.OpGet("c"),
			clientv3.OpGet("b", clientv3.WithPrefix(), clientv3.WithKeysOnly()),
			clientv3.OpGet("", clientv3.WithPrefix(), clientv3.WithCountOnly()),
		}, nil)
		r := func(i int) *pb.RangeResponse { return resp.Responses[i].GetResponseRange() }
		f.values(r(0).Kvs, "b", f.v("old"))
		f.values(r(1).Kvs, "a", f.v("1"), "b", f.v("old"), "bb", f.v("3"), "c", f.v("4"), "d", f.v("5"))
		f.values(r(3).Kvs, "b", f.v("new"))
		f.values(r(5).Kvs, "a", f.v("1"), "b", f.v("new"), "bb", f.v("3"))
		f.True(r(5).More)
		f.EqualValues(4, r(5).Count)
		f.Empty(r(6).Kvs)
		f.Len(r(7).Kvs, 2)
		f.Empty(r(7).Kvs[0].Value)
		f.EqualValues(4, r(8).Count)
	}},
	{"every option of a get, in a transaction", func(f *fixture) {
		f.abcd()
		old := f.put("b", f.v("6")).Header.Revision
		f.put("b", f.v("7"))
		gets := ops{
			clientv3.OpGet("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend), clientv3.WithLimit(2)),
			clientv3.OpGet("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortAscend)),
			clientv3.OpGet("b", clientv3.WithRev(old)),
			clientv3.OpGet("b", clientv3.WithPrefix(), clientv3.WithRev(old)),
			clientv3.OpGet("b", clientv3.WithSerializable()),
			clientv3.OpGet("a", clientv3.WithFromKey(), clientv3.WithMaxModRev(old-1)),
			clientv3.OpGet("a", clientv3.WithFromKey(), clientv3.WithKeysOnly(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)),
			clientv3.OpGet("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortNone), clientv3.WithLimit(3)),
		}
		check := func(rs []*pb.ResponseOp) {
			f.values(rs[0].GetResponseRange().Kvs, "b", f.v("7"), "d", f.v("5"))
			f.True(rs[0].GetResponseRange().More)
			f.EqualValues(5, rs[0].GetResponseRange().Count)
			f.Equal([]string{"a", "bb", "c", "d", "b"}, keys(rs[1].GetResponseRange().Kvs))
			f.values(rs[2].GetResponseRange().Kvs, "b", f.v("6"))
			f.values(rs[3].GetResponseRange().Kvs, "b", f.v("6"), "bb", f.v("3"))
			f.values(rs[4].GetResponseRange().Kvs, "b", f.v("7"))
			f.values(rs[5].GetResponseRange().Kvs, "a", f.v("1"), "bb", f.v("3"), "c", f.v("4"), "d", f.v("5"))
			f.Equal([]string{"a", "bb", "c", "d", "b"}, keys(rs[6].GetResponseRange().Kvs))
			f.Empty(rs[6].GetResponseRange().Kvs[0].Value)
			f.Equal([]string{"a", "bb", "c"}, keys(rs[7].GetResponseRange().Kvs))
		}
		check(f.txn(nil, gets, nil).Responses)
		check(f.txn(cmps{no()}, nil, gets).Responses)
		check(f.txn(nil, append(gets[:len(gets):len(gets)], clientv3.OpPut("x", f.v("8"))), nil).Responses)
	}},
	{"prevKV in a transaction", func(f *fixture) {
		f.abcd()
		resp := f.txn(nil, ops{
			clientv3.OpPut("a", f.v("new"), clientv3.WithPrevKV()),
			clientv3.OpPut("x", f.v("new"), clientv3.WithPrevKV()),
			clientv3.OpDelete("b", clientv3.WithPrefix(), clientv3.WithPrevKV()),
			clientv3.OpDelete("c"),
			clientv3.OpPut("d", "small", clientv3.WithPrevKV()),
		}, nil)
		f.equal(f.v("1"), resp.Responses[0].GetResponsePut().PrevKv.Value)
		f.Nil(resp.Responses[1].GetResponsePut().PrevKv)
		f.EqualValues(2, resp.Responses[2].GetResponseDeleteRange().Deleted)
		f.values(resp.Responses[2].GetResponseDeleteRange().PrevKvs, "b", f.v("2"), "bb", f.v("3"))
		f.Empty(resp.Responses[3].GetResponseDeleteRange().PrevKvs)
		f.equal(f.v("5"), resp.Responses[4].GetResponsePut().PrevKv.Value)
		f.values(f.get("", clientv3.WithPrefix()).Kvs, "a", f.v("new"), "d", "small", "x", f.v("new"))
	}},
	{"leases, ignoreValue and ignoreLease in a transaction", func(f *fixture) {
		one, two := f.lease(), f.lease()
		f.put("a", f.v("1"), clientv3.WithLease(one))
		f.put("b", f.v("2"), clientv3.WithLease(one))
		f.txn(nil, ops{
			clientv3.OpPut("a", "", clientv3.WithIgnoreValue(), clientv3.WithLease(two)),
			clientv3.OpPut("b", f.v("3"), clientv3.WithIgnoreLease()),
			clientv3.OpPut("c", f.v("4"), clientv3.WithLease(two)),
		}, nil)
		f.EqualValues(two, f.value("a", f.v("1")).Lease)
		f.EqualValues(one, f.value("b", f.v("3")).Lease)
		f.EqualValues(two, f.value("c", f.v("4")).Lease)
		_, err := f.Revoke(f.ctx, two)
		f.NoError(err)
		f.values(f.get("", clientv3.WithPrefix()).Kvs, "b", f.v("3"))
	}},
	{"the branch that does not run may be wrong", func(f *fixture) {
		bad := ops{
			clientv3.OpPut("a", f.v("1"), clientv3.WithLease(12345)),
			clientv3.OpPut("b", f.v("2"), clientv3.WithIgnoreLease()),
			clientv3.OpPut("c", "", clientv3.WithIgnoreValue()),
			clientv3.OpGet("a", clientv3.WithRev(1<<40)),
		}
		f.True(f.txn(cmps{yes()}, ops{clientv3.OpPut("x", f.v("3"))}, bad).Succeeded)
		f.False(f.txn(cmps{no()}, bad, ops{clientv3.OpPut("y", f.v("4"))}).Succeeded)
		f.values(f.get("", clientv3.WithPrefix()).Kvs, "x", f.v("3"), "y", f.v("4"))
	}},
	{"a transaction that fails leaves nothing", func(f *fixture) {
		f.put("z", f.v("0"))
		for _, bad := range []struct {
			op  clientv3.Op
			err error
		}{
			{clientv3.OpPut("b", f.v("2"), clientv3.WithLease(12345)), rpctypes.ErrLeaseNotFound},
			{clientv3.OpPut("b", f.v("2"), clientv3.WithIgnoreLease()), rpctypes.ErrKeyNotFound},
			{clientv3.OpPut("b", "", clientv3.WithIgnoreValue()), rpctypes.ErrKeyNotFound},
			{clientv3.OpGet("b", clientv3.WithRev(1<<40)), rpctypes.ErrFutureRev},
			{clientv3.OpPut("", f.v("2")), rpctypes.ErrEmptyKey},
			{clientv3.OpPut("a", f.v("2")), rpctypes.ErrDuplicateKey},
			{clientv3.OpDelete("a"), rpctypes.ErrDuplicateKey},
			{clientv3.OpDelete("a", clientv3.WithRange("b")), rpctypes.ErrDuplicateKey},
			{clientv3.OpTxn(nil, ops{clientv3.OpPut("a", f.v("2"))}, nil), rpctypes.ErrDuplicateKey},
			{clientv3.OpTxn(nil, nil, ops{clientv3.OpDelete("a")}), rpctypes.ErrDuplicateKey},
		} {
			_, err := f.Txn(f.ctx).Then(clientv3.OpPut("a", f.v("1")), clientv3.OpDelete("z"), bad.op).Commit()
			f.Equal(bad.err, err)
			f.values(f.get("", clientv3.WithPrefix()).Kvs, "z", f.v("0"))
		}
	}},
	{"a delete from a key on may stand before a put", func(f *fixture) {
		f.abcd()
		f.put("b", f.v("old"))
		resp := f.txn(nil, ops{
			clientv3.OpDelete("b", clientv3.WithFromKey(), clientv3.WithPrevKV()),
			clientv3.OpPut("b", f.v("new")),
			clientv3.OpGet("b"),
		}, nil)
		f.values(resp.Responses[0].GetResponseDeleteRange().PrevKvs, "b", f.v("old"), "bb", f.v("3"), "c", f.v("4"), "d", f.v("5"))
		f.values(resp.Responses[2].GetResponseRange().Kvs, "b", f.v("new"))
		f.values(f.get("", clientv3.WithPrefix()).Kvs, "a", f.v("1"), "b", f.v("new"))
		f.EqualValues(1, f.get("b").Kvs[0].Version)
	}},
	{"both branches may put a key", func(f *fixture) {
		both := clientv3.OpTxn(cmps{no()}, ops{clientv3.OpPut("a", f.v("1"))}, ops{clientv3.OpPut("a", f.v("2"))})
		resp := f.txn(nil, ops{both}, nil)
		f.False(resp.Responses[0].GetResponseTxn().Succeeded)
		f.value("a", f.v("2"))
		f.txn(cmps{yes()}, ops{clientv3.OpPut("a", f.v("3"))}, ops{clientv3.OpDelete("a")})
		f.value("a", f.v("3"))
	}},
	{"nested transactions", func(f *fixture) {
		f.abcd()
		deep := clientv3.OpTxn(
			cmps{clientv3.Compare(clientv3.Value("a"), "=", f.v("1"))},
			ops{
				clientv3.OpPut("n1", f.v("6")),
				clientv3.OpTxn(cmps{clientv3.Compare(clientv3.Value("b"), "!=", f.v("2"))},
					ops{clientv3.OpPut("n2", f.v("7"))},
					ops{clientv3.OpPut("n3", f.v("8")), clientv3.OpGet("n1"), clientv3.OpDelete("bb", clientv3.WithPrevKV())}),
				clientv3.OpTxn(nil, nil, nil),
			},
			ops{clientv3.OpPut("n4", f.v("9"))})
		resp := f.txn(cmps{yes()}, ops{clientv3.OpGet("a"), deep, clientv3.OpGet("n", clientv3.WithPrefix())}, nil)
		f.values(resp.Responses[0].GetResponseRange().Kvs, "a", f.v("1"))
		first := resp.Responses[1].GetResponseTxn()
		f.True(first.Succeeded)
		f.Len(first.Responses, 3)
		second := first.Responses[1].GetResponseTxn()
		f.False(second.Succeeded)
		f.Len(second.Responses, 3)
		f.values(second.Responses[1].GetResponseRange().Kvs, "n1", f.v("6"))
		f.values(second.Responses[2].GetResponseDeleteRange().PrevKvs, "bb", f.v("3"))
		f.True(first.Responses[2].GetResponseTxn().Succeeded)
		f.values(resp.Responses[2].GetResponseRange().Kvs, "n1", f.v("6"), "n3", f.v("8"))
		f.values(f.get("", clientv3.WithPrefix()).Kvs, "a", f.v("1"), "b", f.v("2"), "c", f.v("4"), "d", f.v("5"), "n1", f.v("6"), "n3", f.v("8"))
	}},
	{"comparisons look at what was before the transaction", func(f *fixture) {
		f.put("a", f.v("1"))
		resp := f.txn(nil, ops{
			clientv3.OpPut("a", f.v("2")),
			clientv3.OpTxn(cmps{clientv3.Compare(clientv3.Value("a"), "=", f.v("1"))}, ops{clientv3.OpGet("a")}, nil),
		}, nil)
		inner := resp.Responses[1].GetResponseTxn()
		f.True(inner.Succeeded)
		f.values(inner.Responses[0].GetResponseRange().Kvs, "a", f.v("2"))
	}},
	{"a transaction that only reads reads one revision", func(f *fixture) {
		f.abcd()
		resp := f.txn(cmps{clientv3.Compare(clientv3.ModRevision("a"), ">", 0)},
			ops{clientv3.OpGet("a"), clientv3.OpGet("b", clientv3.WithPrefix()), clientv3.OpGet("x")},
			ops{clientv3.OpGet("d")})
		f.True(resp.Succeeded)
		f.values(resp.Responses[0].GetResponseRange().Kvs, "a", f.v("1"))
		f.values(resp.Responses[1].GetResponseRange().Kvs, "b", f.v("2"), "bb", f.v("3"))
		f.Empty(resp.Responses[2].GetResponseRange().Kvs)
		f.Equal(resp.Header.Revision, f.get("a").Header.Revision)
	}},
	{"many large puts beside small ones", func(f *fixture) {
		var then ops
		want := []string{}
		for i := range 20 {
			key, v := fmt.Sprintf("k%02d", i), workload.Text(60<<10, fmt.Sprint(i))
			then, want = append(then, clientv3.OpPut(key, v)), append(want, key, v)
		}
		for i := range 20 {
			key, v := fmt.Sprintf("s%02d", i), fmt.Sprint(i)
			then, want = append(then, clientv3.OpPut(key, v)), append(want, key, v)
		}
		resp := f.txn(nil, then, nil)
		f.Len(resp.Responses, 40)
		kvs := f.get("", clientv3.WithPrefix()).Kvs
		f.values(kvs, want...)
		for _, kv := range kvs {
			f.Equal(resp.Header.Revision, kv.ModRevision)
		}
		f.EqualValues(40, f.del("", clientv3.WithPrefix()).Deleted)
	}},
}
