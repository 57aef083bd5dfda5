package contract

import (
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var getCases = []testCase{
	{"a key that is not there is no error", func(f *fixture) {
		resp := f.get("a")
		f.Empty(resp.Kvs)
		f.Zero(resp.Count)
		f.False(resp.More)
	}},
	{"a single key counts one", func(f *fixture) {
		f.put("a", f.v("1"))
		f.put("aa", f.v("2"))
		resp := f.get("a")
		f.values(resp.Kvs, "a", f.v("1"))
		f.EqualValues(1, resp.Count)
		f.False(resp.More)
	}},
	{"range, prefix and from-key", func(f *fixture) {
		f.abcd()
		f.values(f.get("b", clientv3.WithRange("d")).Kvs, "b", f.v("2"), "bb", f.v("3"), "c", f.v("4"))
		f.values(f.get("b", clientv3.WithPrefix()).Kvs, "b", f.v("2"), "bb", f.v("3"))
		f.values(f.get("c", clientv3.WithFromKey()).Kvs, "c", f.v("4"), "d", f.v("5"))
		f.values(f.get("", clientv3.WithPrefix()).Kvs, "a", f.v("1"), "b", f.v("2"), "bb", f.v("3"), "c", f.v("4"), "d", f.v("5"))
		f.values(f.get("", clientv3.WithFromKey()).Kvs, "a", f.v("1"), "b", f.v("2"), "bb", f.v("3"), "c", f.v("4"), "d", f.v("5"))
		f.values(f.get("\x00", clientv3.WithRange("b")).Kvs, "a", f.v("1"))
		f.Empty(f.get("d", clientv3.WithRange("b")).Kvs)
		f.Empty(f.get("x", clientv3.WithPrefix()).Kvs)
		f.EqualValues(5, f.get("", clientv3.WithPrefix()).Count)
	}},
	{"a limit counts all and says that there is more", func(f *fixture) {
		f.abcd()
		for _, prefix := range []string{"", "b"} {
			all := f.get(prefix, clientv3.WithPrefix())
			for limit := 0; limit <= len(all.Kvs)+1; limit++ {
				resp := f.get(prefix, clientv3.WithPrefix(), clientv3.WithLimit(int64(limit)))
				want := all.Kvs
				if limit > 0 {
					want = want[:min(limit, len(want))]
				}
				f.Equal(keys(want), keys(resp.Kvs))
				f.Equal(len(want) < len(all.Kvs), resp.More)
				f.Equal(all.Count, resp.Count)
			}
		}
	}},
	{"pages join to the whole", func(f *fixture) {
		f.abcd()
		var got []string
		for next, more := "\x00", true; more; {
			page := f.get(next, clientv3.WithFromKey(), clientv3.WithLimit(2))
			got = append(got, keys(page.Kvs)...)
			next, more = got[len(got)-1]+"\x00", page.More
		}
		f.Equal([]string{"a", "b", "bb", "c", "d"}, got)
	}},
	{"every sort, with and without a limit", func(f *fixture) {
		// Each target has an order of its own.
		f.put("d", f.v("1"))
		f.put("b", f.v("9"))
		f.put("a", f.v("3"))
		f.put("c", f.v("5"))
		f.put("b", f.v("4")) // versions: a 1, b 3, c 2, d 1
		f.put("b", f.v("2"))
		f.put("c", f.v("6"))
		orders := map[clientv3.SortTarget]string{
			clientv3.SortByKey:            "abcd",
			clientv3.SortByCreateRevision: "dbac",
			clientv3.SortByModRevision:    "dabc",
			clientv3.SortByValue:          "dbac",
		}
		for target, order := range orders {
			for limit := range 6 {
				f.sorted(order, target, clientv3.SortAscend, limit)
				f.sorted(reverse(order), target, clientv3.SortDescend, limit)
			}
		}
		versions := f.get("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByVersion, clientv3.SortDescend), clientv3.WithLimit(2))
		f.Equal([]string{"b", "c"}, keys(versions.Kvs))
		f.True(versions.More)
		// Without an order, a limit chooses before the target sorts.
		unordered := f.get("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortNone), clientv3.WithLimit(2))
		f.Equal([]string{"b", "a"}, keys(unordered.Kvs))
		f.True(unordered.More)
		f.EqualValues(4, unordered.Count)
		f.values(f.get("", clientv3.WithFirstCreate()...).Kvs, "d", f.v("1"))
		f.values(f.get("", clientv3.WithLastCreate()...).Kvs, "c", f.v("6"))
		f.values(f.get("", clientv3.WithFirstRev()...).Kvs, "d", f.v("1"))
		f.values(f.get("", clientv3.WithLastRev()...).Kvs, "c", f.v("6"))
		f.values(f.get("", clientv3.WithFirstKey()...).Kvs, "a", f.v("3"))
		f.values(f.get("", clientv3.WithLastKey()...).Kvs, "d", f.v("1"))
	}},
	{"a sort by value looks at whole values", func(f *fixture) {
		// Long common beginnings, and lengths that decide.
		for i, key := range []string{"c", "a", "d", "b"} {
			f.put(key, f.v("same")[:len(f.v("same"))-i])
		}
		resp := f.get("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend))
		f.Equal([]string{"c", "a", "d", "b"}, keys(resp.Kvs))
		resp = f.get("", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend), clientv3.WithKeysOnly(), clientv3.WithLimit(3))
		f.Equal([]string{"b", "d", "a"}, keys(resp.Kvs))
		f.Empty(resp.Kvs[0].Value)
		f.True(resp.More)
	}},
	{"a sort that does not exist is refused", func(f *fixture) {
		f.put("a", f.v("1"))
		_, err := f.Get(f.ctx, "a", clientv3.WithPrefix(), clientv3.WithSort(99, clientv3.SortAscend))
		f.Equal(rpctypes.ErrInvalidSortOption, err)
		_, err = f.Get(f.ctx, "a", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, 99))
		f.Equal(rpctypes.ErrInvalidSortOption, err)
	}},
	{"revision filters", func(f *fixture) {
		f.abcd()
		b := f.put("b", f.v("6"))
		all := f.get("", clientv3.WithPrefix()).Kvs
		bb, c := all[2], all[3]
		f.values(f.get("", clientv3.WithPrefix(), clientv3.WithMinModRev(b.Header.Revision)).Kvs, "b", f.v("6"))
		f.values(f.get("", clientv3.WithPrefix(), clientv3.WithMaxModRev(bb.ModRevision)).Kvs, "a", f.v("1"), "bb", f.v("3"))
		f.values(f.get("", clientv3.WithPrefix(), clientv3.WithMinCreateRev(c.CreateRevision)).Kvs, "c", f.v("4"), "d", f.v("5"))
		limited := f.get("", clientv3.WithPrefix(), clientv3.WithMaxCreateRev(bb.CreateRevision), clientv3.WithLimit(2))
		f.values(limited.Kvs, "a", f.v("1"), "b", f.v("6"))
		f.True(limited.More)
		f.Equal([]string{"bb", "a"}, keys(f.get("", clientv3.WithPrefix(), clientv3.WithMaxModRev(bb.ModRevision), clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend)).Kvs))
		f.Empty(f.get("b", clientv3.WithMaxModRev(bb.ModRevision)).Kvs)
	}},
	{"keys only", func(f *fixture) {
		f.abcd()
		for _, kv := range f.get("", clientv3.WithPrefix(), clientv3.WithKeysOnly()).Kvs {
			f.Empty(kv.Value)
			f.NotZero(kv.ModRevision)
			f.EqualValues(1, kv.Version)
		}
		f.Empty(f.get("a", clientv3.WithKeysOnly()).Kvs[0].Value)
		f.value("a", f.v("1"))
		f.Empty(f.get("a", clientv3.WithKeysOnly()).Kvs[0].Value)
	}},
	{"count only", func(f *fixture) {
		f.abcd()
		for prefix, count := range map[string]int{"": 5, "a": 1, "b": 2, "x": 0} {
			resp := f.get(prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
			f.EqualValues(count, resp.Count)
			f.Empty(resp.Kvs)
		}
		f.value("a", f.v("1"))
		f.EqualValues(1, f.get("a", clientv3.WithCountOnly()).Count)
	}},
	{"serializable", func(f *fixture) {
		f.abcd()
		f.values(f.get("b", clientv3.WithPrefix(), clientv3.WithSerializable()).Kvs, "b", f.v("2"), "bb", f.v("3"))
		f.values(f.get("b", clientv3.WithSerializable()).Kvs, "b", f.v("2"))
	}},
	{"old revisions stay as they were", func(f *fixture) {
		history := map[int64]string{}
		for i := range 10 {
			v := f.v(fmt.Sprint(i))
			if i%3 == 2 {
				v = fmt.Sprint(i)
			}
			if i == 6 {
				history[f.del("a").Header.Revision] = ""
				continue
			}
			history[f.put("a", v).Header.Revision] = v
			f.put("b", v)
		}
		for rev, v := range history {
			resp := f.get("a", clientv3.WithRev(rev))
			f.Greater(resp.Header.Revision, rev-1)
			if v == "" {
				f.Empty(resp.Kvs)
				continue
			}
			f.values(resp.Kvs, "a", v)
			f.Equal(rev, resp.Kvs[0].ModRevision)
			f.values(f.get("a", clientv3.WithRange("b"), clientv3.WithRev(rev)).Kvs, "a", v)
		}
	}},
	{"revisions that are not there are refused", func(f *fixture) {
		f.put("a", f.v("1"))
		old := f.put("a", f.v("2")).Header.Revision
		f.put("a", f.v("3"))
		last := f.put("b", f.v("4")).Header.Revision
		_, err := f.Get(f.ctx, "a", clientv3.WithRev(last+1000))
		f.Equal(rpctypes.ErrFutureRev, err)
		resp, err := f.Compact(f.ctx, last, clientv3.WithCompactPhysical())
		f.NoError(err)
		f.header(resp.Header)
		_, err = f.Get(f.ctx, "a", clientv3.WithRev(old))
		f.Equal(rpctypes.ErrCompacted, err)
		f.values(f.get("a", clientv3.WithRev(last)).Kvs, "a", f.v("3"))
		f.value("a", f.v("3"))
		_, err = f.Compact(f.ctx, old)
		f.Equal(rpctypes.ErrCompacted, err)
		_, err = f.Compact(f.ctx, last+1000)
		f.Equal(rpctypes.ErrFutureRev, err)
	}},
	{"Do is Get, Put, Delete and Txn", func(f *fixture) {
		put, err := f.Do(f.ctx, clientv3.OpPut("a", f.v("1")))
		f.NoError(err)
		f.header(put.Put().Header)
		get, err := f.Do(f.ctx, clientv3.OpGet("a"))
		f.NoError(err)
		f.values(get.Get().Kvs, "a", f.v("1"))
		txn, err := f.Do(f.ctx, clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("b", f.v("2")), clientv3.OpGet("a")}, nil))
		f.NoError(err)
		f.True(txn.Txn().Succeeded)
		f.values(txn.Txn().Responses[1].GetResponseRange().Kvs, "a", f.v("1"))
		del, err := f.Do(f.ctx, clientv3.OpDelete("a", clientv3.WithPrevKV()))
		f.NoError(err)
		f.values(del.Del().PrevKvs, "a", f.v("1"))
		f.value("b", f.v("2"))
	}},
}

// abcd puts five keys, one of which is a prefix of another.
func (f *fixture) abcd() {
	f.Helper()
	for i, key := range []string{"a", "b", "bb", "c", "d"} {
		f.put(key, f.v(fmt.Sprint(i+1)))
	}
}

func (f *fixture) sorted(order string, target clientv3.SortTarget, by clientv3.SortOrder, limit int) {
	f.Helper()
	resp := f.get("a", clientv3.WithFromKey(), clientv3.WithSort(target, by), clientv3.WithLimit(int64(limit)))
	n := len(order)
	if limit > 0 {
		n = min(n, limit)
	}
	got := ""
	for _, kv := range resp.Kvs {
		got += string(kv.Key)
	}
	f.Equal(order[:n], got, "target %v, order %v, limit %d", target, by, limit)
	f.Equal(n < len(order), resp.More)
	f.EqualValues(len(order), resp.Count)
}

func reverse(s string) string {
	b := []byte(s)
	for i := range b {
		b[i] = s[len(s)-1-i]
	}
	return string(b)
}
