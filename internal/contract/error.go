package contract

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var errorCases = []testCase{
	{"an empty key is refused", func(f *fixture) {
		_, err := f.Put(f.ctx, "", f.v("1"))
		f.Equal(rpctypes.ErrEmptyKey, err)
		_, err = f.Get(f.ctx, "")
		f.Equal(rpctypes.ErrEmptyKey, err)
		_, err = f.Delete(f.ctx, "")
		f.Equal(rpctypes.ErrEmptyKey, err)
		_, err = f.Txn(f.ctx).If(clientv3.Compare(clientv3.Version(""), "=", 0)).Commit()
		f.Equal(rpctypes.ErrEmptyKey, err)
		_, err = f.Txn(f.ctx).Then(clientv3.OpGet("")).Commit()
		f.Equal(rpctypes.ErrEmptyKey, err)
	}},
	{"a context that has ended is the error", func(f *fixture) {
		f.put("a", f.v("1"))
		canceled, cancel := context.WithCancel(f.ctx)
		cancel()
		late, cancel := context.WithTimeout(f.ctx, -time.Second)
		defer cancel()
		for _, ctx := range []context.Context{canceled, late} {
			_, err := f.Put(ctx, "a", f.v("2"))
			f.Equal(ctx.Err(), err)
			_, err = f.Get(ctx, "a")
			f.Equal(ctx.Err(), err)
			_, err = f.Delete(ctx, "a")
			f.Equal(ctx.Err(), err)
			_, err = f.Txn(ctx).Then(clientv3.OpPut("a", f.v("2"))).Commit()
			f.Equal(ctx.Err(), err)
			_, err = f.Txn(ctx).If(clientv3.Compare(clientv3.Value("a"), ">", "")).Then(clientv3.OpGet("a")).Commit()
			f.Equal(ctx.Err(), err)
			_, err = f.Compact(ctx, 1)
			f.Equal(ctx.Err(), err)
		}
		f.value("a", f.v("1"))
	}},
	{"what a call was given is not changed", func(f *fixture) {
		f.put("a", f.v("1"))
		op := clientv3.OpPut("a", f.v("2"))
		for range 2 {
			_, err := f.Do(f.ctx, op)
			f.NoError(err)
			f.Equal("a", string(op.KeyBytes()))
			f.equal(f.v("2"), op.ValueBytes())
		}
		// What comes back belongs to the caller.
		kv := f.value("a", f.v("2"))
		for i := range kv.Value {
			kv.Value[i] = 'x'
		}
		f.value("a", f.v("2"))
	}},
}
