package contract

import (
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// anyBytes are keys of any bytes, in order; some are prefixes of others.
var anyBytes = []string{
	"\x00", "\x00\x00", "\x00\x00\x01", "\x00\x01", "\x00\x02", "\x00a", "\x00z", "\x00\xff", "\x01", "\x01\x00",
	"a", "a\x00", "a\x00\x00", "a\x00\x01", "a\x00\x01b", "a\x00\xff", "a\x01", "aa", "a\xff", "a\xff\x00", "b",
	"\xff", "\xff\x00", "\xff\xff", "\xff\xff\xff",
}

var keyCases = []testCase{
	{"keys of any bytes", func(f *fixture) {
		for i, key := range anyBytes {
			f.put(key, f.v(key))
			f.EqualValues(i+1, f.get("\x00", clientv3.WithFromKey(), clientv3.WithCountOnly()).Count)
		}
		for _, key := range anyBytes {
			f.value(key, f.v(key))
		}
		f.Equal(anyBytes, keys(f.get("\x00", clientv3.WithFromKey()).Kvs))
		for i, from := range anyBytes {
			f.Equal(anyBytes[i:], keys(f.get(from, clientv3.WithFromKey()).Kvs), "from %q", from)
			for j, to := range anyBytes {
				if i >= j || to == "\x00" {
					continue
				}
				f.Equal(anyBytes[i:j], keys(f.get(from, clientv3.WithRange(to), clientv3.WithKeysOnly()).Kvs), "%q to %q", from, to)
			}
			prefixed := slices.DeleteFunc(slices.Clone(anyBytes), func(key string) bool { return !strings.HasPrefix(key, from) })
			f.Equal(prefixed, keys(f.get(from, clientv3.WithPrefix()).Kvs), "prefix %q", from)
		}
	}},
	{"deletes touch no key but their own", func(f *fixture) {
		gone := anyBytes
		for _, from := range []string{"a", "a\x00", "\x00", "a\xff", "\xff"} {
			for _, opts := range [][]clientv3.OpOption{nil, {clientv3.WithPrefix()}, {clientv3.WithRange(from + "\x01")}} {
				for _, key := range gone {
					f.put(key, f.v(key))
				}
				want := f.get(from, append([]clientv3.OpOption{clientv3.WithKeysOnly()}, opts...)...)
				resp := f.del(from, append([]clientv3.OpOption{clientv3.WithPrevKV()}, opts...)...)
				f.Equal(keys(want.Kvs), keys(resp.PrevKvs))
				f.EqualValues(len(want.Kvs), resp.Deleted)
				gone = keys(resp.PrevKvs)
				for _, key := range anyBytes {
					if slices.Contains(gone, key) {
						f.missing(key)
					} else {
						f.value(key, f.v(key))
					}
				}
			}
		}
	}},
	{"limits and sorts over keys of any bytes", func(f *fixture) {
		for i, key := range anyBytes {
			f.put(key, f.v(fmt.Sprintf("%02d", i)))
		}
		for limit := 1; limit < len(anyBytes); limit += 3 {
			resp := f.get("\x00", clientv3.WithFromKey(), clientv3.WithLimit(int64(limit)))
			f.Equal(anyBytes[:limit], keys(resp.Kvs))
			f.True(resp.More)
			f.EqualValues(len(anyBytes), resp.Count)
			stream := f.stream("\x00", clientv3.WithFromKey(), clientv3.WithLimit(int64(limit)))
			f.same(resp, stream)
			for _, target := range []clientv3.SortTarget{clientv3.SortByKey, clientv3.SortByModRevision, clientv3.SortByValue} {
				resp = f.get("\x00", clientv3.WithFromKey(), clientv3.WithSort(target, clientv3.SortDescend), clientv3.WithLimit(int64(limit)))
				backward := slices.Clone(anyBytes)
				slices.Reverse(backward)
				f.Equal(backward[:limit], keys(resp.Kvs))
				f.True(resp.More)
			}
		}
		// What stands beside a key without its value does not depend on the order.
		f.put("\x00", f.v("leased"), clientv3.WithLease(f.lease()))
		alone := f.get("\x00", clientv3.WithKeysOnly()).Kvs[0]
		for target := clientv3.SortByKey; target < clientv3.SortByValue; target++ {
			for _, order := range []clientv3.SortOrder{clientv3.SortNone, clientv3.SortAscend, clientv3.SortDescend} {
				resp := f.get("\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly(), clientv3.WithSort(target, order), clientv3.WithLimit(int64(len(anyBytes))))
				i := slices.Index(keys(resp.Kvs), "\x00")
				f.True(proto.Equal(alone, resp.Kvs[i]), "sorted by %d, order %d: %v, %v", target, order, alone, resp.Kvs[i])
			}
		}
		txn := f.txn(cmps{clientv3.Compare(clientv3.CreateRevision("\x00"), ">", 0).WithRange("\x00")}, ops{
			clientv3.OpGet("\x00", clientv3.WithFromKey(), clientv3.WithLimit(3)),
			clientv3.OpDelete("\x00", clientv3.WithFromKey(), clientv3.WithPrevKV()),
			clientv3.OpGet("\x00", clientv3.WithFromKey(), clientv3.WithCountOnly()),
		}, nil)
		f.True(txn.Succeeded)
		f.Equal(anyBytes[:3], keys(txn.Responses[0].GetResponseRange().Kvs))
		f.Equal(anyBytes, keys(txn.Responses[1].GetResponseDeleteRange().PrevKvs))
		f.EqualValues(len(anyBytes), txn.Responses[1].GetResponseDeleteRange().Deleted)
		f.Zero(txn.Responses[2].GetResponseRange().Count)
	}},
}
