package contract

import (
	"fmt"
	"strings"

	"github.com/kvwrap/kvwrap/internal/workload"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

var putCases = []testCase{
	{"a put is one version of its key", func(f *fixture) {
		first := f.put("a", f.v("1"))
		kv := f.value("a", f.v("1"))
		f.EqualValues(1, kv.Version)
		f.Equal(first.Header.Revision, kv.ModRevision)
		f.Equal(kv.ModRevision, kv.CreateRevision)
		f.Zero(kv.Lease)

		second := f.put("a", f.v("2"))
		kv = f.value("a", f.v("2"))
		f.EqualValues(2, kv.Version)
		f.Equal(second.Header.Revision, kv.ModRevision)
		f.Equal(first.Header.Revision, kv.CreateRevision)
	}},
	{"a key that is put again after a delete begins anew", func(f *fixture) {
		f.put("a", f.v("1"))
		f.put("a", f.v("2"))
		f.del("a")
		again := f.put("a", f.v("3"))
		kv := f.value("a", f.v("3"))
		f.EqualValues(1, kv.Version)
		f.Equal(again.Header.Revision, kv.CreateRevision)
	}},
	{"values of all lengths come back", func(f *fixture) {
		for n := range 70 {
			v := workload.Text(n, "short")
			f.put("a", v)
			f.value("a", v)
		}
		for _, around := range []int{128, 256, 512, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 128 << 10, 1 << 20} {
			for n := around - 1; n <= around+1; n++ {
				v := workload.Text(n, "around")
				f.put("a", v)
				f.value("a", v)
			}
		}
	}},
	{"values of any bytes come back", func(f *fixture) {
		for i, v := range []string{
			"", "\x00", "\xff", "\xff\xff\xff\xff", "\xffk", "\xffkv", "\xffkvw", "\xffkvw\x01", "\xffkvw\x01\x00", "\xffkvw\x01\x01",
			"\xffkvw" + strings.Repeat("\x00", 200), "\xffkvw" + f.v("x"), strings.Repeat("\x00", 200<<10), strings.Repeat("\xff", 200<<10),
		} {
			key := fmt.Sprint("k", i)
			f.put(key, v)
			f.value(key, v)
		}
	}},
	{"a value changes its length up and down", func(f *fixture) {
		for _, n := range []int{10, 300 << 10, 10, 0, 100 << 10, 101 << 10, 1, 500 << 10, 200 << 10} {
			v := workload.Text(n, "length")
			f.put("a", v)
			f.value("a", v)
		}
		f.EqualValues(9, f.get("a").Kvs[0].Version)
	}},
	{"prevKV returns what was there", func(f *fixture) {
		lease := f.lease()
		f.Nil(f.put("a", f.v("1"), clientv3.WithPrevKV(), clientv3.WithLease(lease)).PrevKv)
		was := f.value("a", f.v("1"))
		prev := f.put("a", f.v("2"), clientv3.WithPrevKV()).PrevKv
		f.equal(f.v("1"), prev.Value)
		f.True(proto.Equal(was, prev))
		f.equal(f.v("2"), f.put("a", "3", clientv3.WithPrevKV()).PrevKv.Value)
		f.Equal("3", string(f.put("a", f.v("4"), clientv3.WithPrevKV()).PrevKv.Value))
		f.Nil(f.put("a", f.v("5")).PrevKv)
	}},
	{"a lease is attached, changed and taken off", func(f *fixture) {
		one, two := f.lease(), f.lease()
		for _, l := range []clientv3.LeaseID{0, one, two, one, 0} {
			f.put("a", f.v("1"), clientv3.WithLease(l))
			f.EqualValues(l, f.value("a", f.v("1")).Lease)
		}
	}},
	{"a key goes with its lease, in one revision", func(f *fixture) {
		lease := f.lease()
		f.put("a", f.v("1"), clientv3.WithLease(lease))
		last := f.put("b", f.v("2"), clientv3.WithLease(lease))
		f.put("c", f.v("3"))
		_, err := f.Revoke(f.ctx, lease)
		f.NoError(err)
		after := f.get("", clientv3.WithPrefix())
		f.values(after.Kvs, "c", f.v("3"))
		f.values(f.get("a", clientv3.WithPrefix(), clientv3.WithRev(last.Header.Revision)).Kvs, "a", f.v("1"))
		f.values(f.get("", clientv3.WithPrefix(), clientv3.WithRev(after.Header.Revision-1)).Kvs, "a", f.v("1"), "b", f.v("2"), "c", f.v("3"))
	}},
	{"ignoreValue keeps the value and takes the lease", func(f *fixture) {
		one, two := f.lease(), f.lease()
		f.put("a", f.v("1"), clientv3.WithLease(one))
		for i, l := range []clientv3.LeaseID{two, two, 0, one} {
			prev := f.put("a", "", clientv3.WithIgnoreValue(), clientv3.WithLease(l), clientv3.WithPrevKV()).PrevKv
			f.equal(f.v("1"), prev.Value)
			kv := f.value("a", f.v("1"))
			f.EqualValues(l, kv.Lease)
			f.EqualValues(i+2, kv.Version)
		}
		_, err := f.Revoke(f.ctx, two)
		f.NoError(err)
		f.value("a", f.v("1"))
		_, err = f.Revoke(f.ctx, one)
		f.NoError(err)
		f.missing("a")
	}},
	{"ignoreLease keeps the lease and takes the value", func(f *fixture) {
		lease := f.lease()
		f.put("a", f.v("1"), clientv3.WithLease(lease))
		f.put("a", f.v("2"), clientv3.WithIgnoreLease())
		f.EqualValues(lease, f.value("a", f.v("2")).Lease)
		f.equal(f.v("2"), f.put("a", f.v("3"), clientv3.WithIgnoreLease(), clientv3.WithPrevKV()).PrevKv.Value)
		f.EqualValues(lease, f.value("a", f.v("3")).Lease)
		f.put("a", "", clientv3.WithIgnoreLease(), clientv3.WithIgnoreValue())
		kv := f.value("a", f.v("3"))
		f.EqualValues(lease, kv.Lease)
		f.EqualValues(4, kv.Version)
		_, err := f.Revoke(f.ctx, lease)
		f.NoError(err)
		f.missing("a")
	}},
	{"ignoreValue and ignoreLease want a key", func(f *fixture) {
		_, err := f.Put(f.ctx, "a", "", clientv3.WithIgnoreValue())
		f.Equal(rpctypes.ErrKeyNotFound, err)
		_, err = f.Put(f.ctx, "a", f.v("1"), clientv3.WithIgnoreLease())
		f.Equal(rpctypes.ErrKeyNotFound, err)
		_, err = f.Put(f.ctx, "a", f.v("1"), clientv3.WithIgnoreValue())
		f.Equal(rpctypes.ErrValueProvided, err)
		_, err = f.Put(f.ctx, "a", f.v("1"), clientv3.WithIgnoreLease(), clientv3.WithLease(f.lease()))
		f.Equal(rpctypes.ErrLeaseProvided, err)
		f.missing("a")
	}},
	{"a lease that is not there is refused", func(f *fixture) {
		f.put("a", f.v("1"))
		_, err := f.Put(f.ctx, "a", f.v("2"), clientv3.WithLease(12345))
		f.Equal(rpctypes.ErrLeaseNotFound, err)
		f.EqualValues(1, f.value("a", f.v("1")).Version)
	}},
}
