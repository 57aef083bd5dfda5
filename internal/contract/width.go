package contract

import (
	"fmt"

	"github.com/kvwrap/kvwrap/internal/workload"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// wide is the number of operations that a server allows by default.
const wide = 128

var widthCases = []testCase{
	{"many gets of everything", func(f *fixture) {
		f.put("a", "v")
		gets := make(ops, 100)
		for i := range gets {
			gets[i] = clientv3.OpGet("", clientv3.WithPrefix())
		}
		for _, r := range f.txn(nil, gets, nil).Responses {
			f.values(r.GetResponseRange().Kvs, "a", "v")
		}
	}},
	{"a transaction as wide as the server allows, of gets", func(f *fixture) {
		gets, want := make(ops, wide), make([]string, wide)
		for i := range gets {
			key := fmt.Sprintf("k%03d", i)
			want[i] = workload.Text(len(f.v("x"))/8, key)
			f.put(key, want[i])
			gets[i] = clientv3.OpGet(key)
		}
		for range 2 { // the second time the keys are known
			resp := f.txn(nil, gets, nil)
			for i, r := range resp.Responses {
				f.values(r.GetResponseRange().Kvs, fmt.Sprintf("k%03d", i), want[i])
			}
			f.Equal(resp.Header.Revision, f.get("x").Header.Revision) // it wrote nothing
		}
	}},
	{"a transaction as wide as the server allows, of puts and deletes", func(f *fixture) {
		puts, prevs, dels, elses := make(ops, wide), make(ops, wide), make(ops, wide), make(ops, wide)
		for i := range puts {
			key := fmt.Sprintf("k%03d", i)
			puts[i] = clientv3.OpPut(key, workload.Text(4000, key))
			prevs[i] = clientv3.OpPut(key, workload.Text(10, key), clientv3.WithPrevKV())
			dels[i] = clientv3.OpDelete(key, clientv3.WithPrevKV())
			elses[i] = clientv3.OpGet(key)
		}
		f.Len(f.txn(nil, puts, nil).Responses, wide)
		for i, r := range f.txn(cmps{yes()}, prevs, elses).Responses {
			f.equal(workload.Text(4000, fmt.Sprintf("k%03d", i)), r.GetResponsePut().PrevKv.Value)
		}
		for i, r := range f.txn(cmps{no()}, puts, elses).Responses {
			f.values(r.GetResponseRange().Kvs, fmt.Sprintf("k%03d", i), workload.Text(10, fmt.Sprintf("k%03d", i)))
		}
		f.txn(cmps{yes()}, puts, elses)
		for i, r := range f.txn(nil, dels, nil).Responses {
			f.values(r.GetResponseDeleteRange().PrevKvs, fmt.Sprintf("k%03d", i), workload.Text(4000, fmt.Sprintf("k%03d", i)))
		}
		f.EqualValues(0, f.get("", clientv3.WithPrefix()).Count)
	}},
	{"a transaction as wide as the server allows, of comparisons", func(f *fixture) {
		all := make(cmps, wide)
		for i := range all {
			key := fmt.Sprintf("k%03d", i)
			f.put(key, workload.Text(500, key))
			all[i] = clientv3.Compare(clientv3.Value(key), "=", workload.Text(500, key))
			if i%2 == 1 {
				all[i] = clientv3.Compare(clientv3.Version(key), "=", 1)
			}
		}
		f.True(f.txn(all, ops{clientv3.OpPut("a", workload.Text(500, "a"))}, nil).Succeeded)
		f.value("a", workload.Text(500, "a"))
		f.put("k127", f.v("2"))
		f.False(f.txn(all, ops{clientv3.OpPut("a", workload.Text(500, "b"))}, ops{clientv3.OpGet("k127")}).Succeeded)
		f.value("a", workload.Text(500, "a"))
	}},
	{"a wider one is refused", func(f *fixture) {
		puts, gets, all := make(ops, wide+1), make(ops, wide+1), make(cmps, wide+1)
		for i := range puts {
			key := fmt.Sprintf("k%03d", i)
			puts[i], gets[i] = clientv3.OpPut(key, f.v("1")[:1]), clientv3.OpGet(key)
			all[i] = clientv3.Compare(clientv3.Version(key), "=", 0)
		}
		for _, txn := range []clientv3.Txn{
			f.Txn(f.ctx).Then(puts...),
			f.Txn(f.ctx).Then(gets...),
			f.Txn(f.ctx).If(yes()).Else(gets...),
			f.Txn(f.ctx).If(all...).Then(clientv3.OpPut("a", f.v("1"))),
		} {
			_, err := txn.Commit()
			f.Equal(rpctypes.ErrTooManyOps, err)
		}
		f.EqualValues(0, f.get("", clientv3.WithPrefix()).Count)
	}},
	{"a nested transaction gets what its parent left", func(f *fixture) {
		nested := func(outer, inner int) error {
			in := make(ops, inner)
			for i := range in {
				in[i] = clientv3.OpPut(fmt.Sprintf("in%03d", i), "1")
			}
			out := ops{clientv3.OpTxn(nil, in, nil), clientv3.OpPut("large", f.v("1"))}
			for i := range outer - 2 {
				out = append(out, clientv3.OpDelete(fmt.Sprintf("out%03d", i)))
			}
			_, err := f.Txn(f.ctx).Then(out...).Commit()
			return err
		}
		f.NoError(nested(2, wide-2))
		f.NoError(nested(wide/2, wide/2))
		f.Equal(rpctypes.ErrTooManyOps, nested(2, wide-1))
		f.Equal(rpctypes.ErrTooManyOps, nested(wide/2, wide/2+1))
		f.EqualValues(wide-1, f.get("", clientv3.WithPrefix()).Count)
	}},
}
