package contract

import (
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var compareCases = []testCase{
	{"every comparison of a key", func(f *fixture) {
		lease := f.lease()
		f.put("a", f.v("m"))
		f.put("a", f.v("m"), clientv3.WithLease(lease))
		kv := f.value("a", f.v("m"))
		for _, c := range []struct {
			is                  clientv3.Cmp
			below, equal, above any
		}{
			{clientv3.Value("a"), f.v("l"), f.v("m"), f.v("n")},
			{clientv3.Version("a"), 1, 2, 3},
			{clientv3.CreateRevision("a"), kv.CreateRevision - 1, kv.CreateRevision, kv.CreateRevision + 1},
			{clientv3.ModRevision("a"), kv.ModRevision - 1, kv.ModRevision, kv.ModRevision + 1},
			{clientv3.LeaseValue("a"), int64(lease) - 1, lease, int64(lease) + 1},
		} {
			for result, want := range map[string][3]bool{
				"=": {false, true, false}, "!=": {true, false, true}, ">": {true, false, false}, "<": {false, false, true},
			} {
				for i, with := range []any{c.below, c.equal, c.above} {
					f.compare(want[i], clientv3.Compare(c.is, result, with))
				}
			}
		}
	}},
	{"a key that is not there has no value, and revisions of 0", func(f *fixture) {
		for _, result := range []string{"=", "!=", "<", ">"} {
			f.compare(false, clientv3.Compare(clientv3.Value("a"), result, ""))
			f.compare(false, clientv3.Compare(clientv3.Value("a"), result, f.v("1")))
			f.compare(false, clientv3.Compare(clientv3.Value("a"), result, f.v("1")).WithPrefix())
		}
		for _, is := range []clientv3.Cmp{clientv3.Version("a"), clientv3.CreateRevision("a"), clientv3.ModRevision("a"), clientv3.LeaseValue("a")} {
			f.compare(true, clientv3.Compare(is, "=", 0))
			f.compare(false, clientv3.Compare(is, "!=", 0))
			f.compare(true, clientv3.Compare(is, "<", 1))
			f.compare(true, clientv3.Compare(is, "=", 0).WithPrefix())
		}
	}},
	{"a comparison of a range holds for all of it", func(f *fixture) {
		f.abcd()
		b := f.put("b", f.v("2")).Header.Revision
		f.compare(true, clientv3.Compare(clientv3.Value("b"), ">", f.v("1")).WithPrefix())
		f.compare(false, clientv3.Compare(clientv3.Value("b"), ">", f.v("2")).WithPrefix())
		f.compare(true, clientv3.Compare(clientv3.Value("b"), "<", f.v("4")).WithPrefix())
		f.compare(true, clientv3.Compare(clientv3.Value("b"), "!=", f.v("4")).WithPrefix())
		f.compare(false, clientv3.Compare(clientv3.Value("b"), "=", f.v("2")).WithPrefix())
		f.compare(true, clientv3.Compare(clientv3.Value("a"), "<", f.v("9")).WithRange("\x00"))
		f.compare(true, clientv3.Compare(clientv3.Value("\x00"), "<", f.v("9")).WithRange("\x00"))
		f.compare(false, clientv3.Compare(clientv3.Value("\x00"), "<", f.v("5")).WithRange("\x00"))
		f.compare(true, clientv3.Compare(clientv3.CreateRevision("\x00"), ">", 0).WithRange("\x00"))
		f.compare(false, clientv3.Compare(clientv3.ModRevision("\x00"), "<", b).WithRange("\x00"))
		f.compare(true, clientv3.Compare(clientv3.ModRevision("\x00"), "<", b+1).WithRange("\x00"))
		f.compare(true, clientv3.Compare(clientv3.Version("c"), "=", 1).WithRange("e"))
		f.compare(false, clientv3.Compare(clientv3.Version("b"), "=", 1).WithPrefix())
	}},
	{"all comparisons must hold", func(f *fixture) {
		f.put("a", f.v("1"))
		f.put("b", f.v("2"))
		a := clientv3.Compare(clientv3.Value("a"), "=", f.v("1"))
		notA := clientv3.Compare(clientv3.Value("a"), "!=", f.v("1"))
		b := clientv3.Compare(clientv3.Value("b"), ">", f.v("1"))
		f.compare(true, a, b, yes())
		f.compare(false, notA, b)
		f.compare(false, a, b, no())
		f.compare(false, no(), a, b)
	}},
	{"compare and swap", func(f *fixture) {
		f.put("a", f.v("0"))
		for i := range 5 {
			was, is := f.v(fmt.Sprint(i)), f.v(fmt.Sprint(i+1))
			swap := func() bool {
				resp := f.txn(cmps{clientv3.Compare(clientv3.Value("a"), "=", was)}, ops{clientv3.OpPut("a", is)}, ops{clientv3.OpGet("a")})
				if !resp.Succeeded {
					f.values(resp.Responses[0].GetResponseRange().Kvs, "a", is)
				}
				return resp.Succeeded
			}
			f.True(swap())
			f.False(swap())
		}
		mod := f.value("a", f.v("5")).ModRevision
		swap := func() bool {
			return f.txn(cmps{clientv3.Compare(clientv3.ModRevision("a"), "=", mod)}, ops{clientv3.OpPut("a", f.v("6"))}, nil).Succeeded
		}
		f.True(swap())
		f.False(swap())
		create := func() bool {
			return f.txn(cmps{clientv3.Compare(clientv3.CreateRevision("b"), "=", 0)}, ops{clientv3.OpPut("b", f.v("7"))}, nil).Succeeded
		}
		f.True(create())
		f.False(create())
		f.EqualValues(7, f.value("a", f.v("6")).Version)
		f.EqualValues(1, f.value("b", f.v("7")).Version)
	}},
	{"comparisons with values that look like kvwrap's own", func(f *fixture) {
		f.put("a", "\xffkvw")
		f.put("b", f.v("1"))
		f.compare(true, clientv3.Compare(clientv3.Value("a"), "=", "\xffkvw"))
		f.compare(false, clientv3.Compare(clientv3.Value("a"), "<", "\xffkvw"))
		f.compare(true, clientv3.Compare(clientv3.Value("a"), "<", "\xffkvx"))
		f.compare(false, clientv3.Compare(clientv3.Value("b"), ">", "\xffkvw"))
		f.compare(true, clientv3.Compare(clientv3.Value("b"), "<", "\xff"))
		f.compare(true, clientv3.Compare(clientv3.Value("b"), "!=", "\xffkvw"))
	}},
}

// compare checks whether the comparisons hold, each time in a transaction that
// only reads and in one that writes in both branches, and what these do.
func (f *fixture) compare(want bool, cs ...clientv3.Cmp) {
	f.Helper()
	f.Equal(want, f.txn(cs, nil, nil).Succeeded, "%v", cs)
	resp := f.txn(cs, ops{clientv3.OpGet("then")}, ops{clientv3.OpGet("else")})
	f.Equal(want, resp.Succeeded, "%v", cs)
	f.Len(resp.Responses, 1)
	resp = f.txn(cs, ops{clientv3.OpTxn(cs, nil, nil)}, ops{clientv3.OpTxn(cs, nil, nil)})
	f.Equal(want, resp.Succeeded, "%v", cs)
	f.Equal(want, resp.Responses[0].GetResponseTxn().Succeeded, "%v", cs)
}
