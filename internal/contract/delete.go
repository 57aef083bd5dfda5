package contract

import (
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

var deleteCases = []testCase{
	{"a delete counts what it deleted", func(f *fixture) {
		f.abcd()
		f.EqualValues(0, f.del("x").Deleted)
		f.EqualValues(1, f.del("a").Deleted)
		f.EqualValues(0, f.del("a").Deleted)
		f.missing("a")
		f.EqualValues(2, f.del("b", clientv3.WithPrefix()).Deleted)
		f.values(f.get("", clientv3.WithPrefix()).Kvs, "c", f.v("4"), "d", f.v("5"))
		f.EqualValues(1, f.del("a", clientv3.WithRange("d")).Deleted)
		f.EqualValues(0, f.del("z", clientv3.WithRange("a")).Deleted)
		f.EqualValues(1, f.del("", clientv3.WithPrefix()).Deleted)
		f.EqualValues(0, f.get("", clientv3.WithPrefix()).Count)
	}},
	{"from-key deletes the rest", func(f *fixture) {
		f.abcd()
		f.EqualValues(3, f.del("bb", clientv3.WithFromKey()).Deleted)
		f.values(f.get("", clientv3.WithPrefix()).Kvs, "a", f.v("1"), "b", f.v("2"))
		f.EqualValues(2, f.del("", clientv3.WithFromKey()).Deleted)
	}},
	{"a key is not a prefix", func(f *fixture) {
		f.abcd()
		f.del("b")
		f.value("bb", f.v("3"))
		f.missing("b")
	}},
	{"prevKV returns what was deleted, whole", func(f *fixture) {
		lease := f.lease()
		f.abcd()
		f.put("b", f.v("6"), clientv3.WithLease(lease))
		was := f.get("b", clientv3.WithPrefix())
		resp := f.del("b", clientv3.WithPrefix(), clientv3.WithPrevKV())
		f.EqualValues(2, resp.Deleted)
		f.Len(resp.PrevKvs, 2)
		for i, kv := range resp.PrevKvs {
			f.True(proto.Equal(was.Kvs[i], kv))
		}
		f.values(f.del("", clientv3.WithPrefix(), clientv3.WithPrevKV()).PrevKvs, "a", f.v("1"), "c", f.v("4"), "d", f.v("5"))
		f.Empty(f.del("a", clientv3.WithPrevKV()).PrevKvs)
		f.Nil(f.del("a").PrevKvs)
	}},
	{"a delete that deletes nothing makes no revision of a key", func(f *fixture) {
		rev := f.put("a", f.v("1")).Header.Revision
		f.LessOrEqual(rev, f.del("b").Header.Revision) // more, where the KV uses one itself
		now := f.value("a", f.v("1"))
		f.Equal([]int64{rev, 1}, []int64{now.ModRevision, now.Version})
	}},
}
