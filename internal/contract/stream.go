package contract

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvwrap/kvwrap/internal/workload"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var streamCases = []testCase{
	{"a stream is a get in pieces", func(f *fixture) {
		f.abcd()
		f.put("b", f.v("6"))
		for _, opts := range [][]clientv3.OpOption{
			nil,
			{clientv3.WithPrefix()},
			{clientv3.WithRange("d")},
			{clientv3.WithFromKey()},
			{clientv3.WithFromKey(), clientv3.WithLimit(2)},
			{clientv3.WithFromKey(), clientv3.WithLimit(4)},
			{clientv3.WithFromKey(), clientv3.WithKeysOnly()},
			{clientv3.WithFromKey(), clientv3.WithCountOnly()},
			{clientv3.WithFromKey(), clientv3.WithCountOnly(), clientv3.WithLimit(2)},
			{clientv3.WithFromKey(), clientv3.WithKeysOnly(), clientv3.WithLimit(2)},
			{clientv3.WithFromKey(), clientv3.WithSerializable()},
			{clientv3.WithRange("a")},
		} {
			for _, key := range []string{"b", "\x00"} {
				want, got := f.get(key, opts...), f.stream(key, opts...)
				f.same(want, got)
			}
		}
	}},
	{"a stream of many messages, and an old one", func(f *fixture) {
		want := []string{}
		for i := range 60 {
			key, v := fmt.Sprintf("k%02d", i), workload.Text(1000, fmt.Sprint(i))
			if i%5 == 0 {
				v = f.v(fmt.Sprint(i))
			}
			f.put(key, v)
			want = append(want, key, v)
		}
		rev := f.get("k").Header.Revision
		ch, err := f.GetStream(f.ctx, "k", clientv3.WithPrefix())
		f.NoError(err)
		messages := 0
		for m := range ch {
			f.NoError(m.Err())
			messages++
		}
		f.Greater(messages, 1)
		f.del("k", clientv3.WithPrefix())
		f.put("k00", "new")
		f.values(f.stream("k", clientv3.WithPrefix(), clientv3.WithRev(rev)).Kvs, want...)
		f.values(f.stream("k", clientv3.WithPrefix()).Kvs, "k00", "new")
	}},
	{"a stream refuses what it cannot do", func(f *fixture) {
		f.abcd()
		for _, opt := range []clientv3.OpOption{
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend),
			clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend),
			clientv3.WithMinModRev(3),
		} {
			f.Equal(codes.Unimplemented, status.Code(f.streamError("a", clientv3.WithFromKey(), opt)))
		}
		f.Equal(rpctypes.ErrFutureRev, f.streamError("a", clientv3.WithFromKey(), clientv3.WithRev(1<<40)))
		f.Equal(rpctypes.ErrEmptyKey, f.streamError(""))
	}},
	{"a stream ends with its context", func(f *fixture) {
		for i := range 30 {
			f.put(fmt.Sprintf("k%02d", i), strings.Repeat(f.v("x"), 2))
		}
		ctx, cancel := context.WithCancel(f.ctx)
		ch, err := f.GetStream(ctx, "k", clientv3.WithPrefix())
		f.NoError(err)
		m := <-ch
		f.NoError(m.Err())
		cancel()
		var last error
		for m := range ch {
			last = m.Err()
		}
		if last != nil { // all may have been under way before
			f.ErrorIs(last, context.Canceled)
		}
	}},
}

// streamError returns the error that a stream is refused or ends with.
func (f *fixture) streamError(key string, opts ...clientv3.OpOption) error {
	f.Helper()
	ch, err := f.GetStream(f.ctx, key, opts...)
	if err != nil {
		return err
	}
	_, err = clientv3.GetStreamToGetResponse(ch)
	f.Error(err)
	return err
}
