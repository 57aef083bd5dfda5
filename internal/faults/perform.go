package faults

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/coalesce"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// leaseTTL is the time to live of an application's lease, in seconds: none ends by
// itself.
const leaseTTL = 1 << 20

// performer carries out requests through a KV.
type performer struct {
	kv    clientv3.KV
	lease clientv3.Lease
}

// errNotSent is the error of a write that ended before it began.
var errNotSent = errors.New("the write was not sent")

func (p performer) do(r request) result {
	ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
	defer cancel()
	res := result{Outcome: ok}
	err := p.perform(ctx, r, &res)
	if err == nil {
		return res
	}
	res.Error = err.Error()
	var applied *chunker.AppliedError
	switch {
	case errors.As(err, &applied):
		res.Revision, res.Wrote = applied.Revision, true
	case r.Kind == revoke: // etcd's client sends it again, and may find that it has revoked the lease
		res.Outcome = unknown
	case r.reads(), isAny(err, errNotSent, chunker.ErrContention, chunker.ErrClosed, coalesce.ErrOvertaken, coalesce.ErrBarrier, rpctypes.ErrLeaseNotFound, rpctypes.ErrTooManyRequests):
		res.Outcome = failed
	default:
		res.Outcome = unknown
	}
	if isAny(err, chunker.ErrDamaged, chunker.ErrUnknownFormat, chunker.ErrPrefixMismatch) {
		res.Wrong = err.Error()
	}
	return res
}

func isAny(err error, any ...error) bool {
	for _, e := range any {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (p performer) perform(ctx context.Context, r request, res *result) error {
	switch r.Kind {
	case put, putLeased, putBehind:
		return p.put(ctx, r, res)
	case putPair:
		return p.putPair(ctx, r, res)
	case swapByRevision, swapByValue:
		return p.swap(ctx, r, res)
	case get, getSerializable:
		return p.get(ctx, r, res)
	case getAll:
		return p.getAll(ctx, r, res)
	case del:
		return p.delete(ctx, r, res)
	case revoke:
		return p.revoke(ctx, r, res)
	}
	return fmt.Errorf("%w: unknown kind %q", errNotSent, r.Kind)
}

func (p performer) put(ctx context.Context, r request, res *result) error {
	var opts []clientv3.OpOption
	if r.PrevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if r.Kind == putLeased {
		granted, err := p.lease.Grant(ctx, leaseTTL)
		if err != nil {
			return fmt.Errorf("%w: %w", errNotSent, err)
		}
		res.Lease = int64(granted.ID)
		opts = append(opts, clientv3.WithLease(granted.ID))
	}
	put := p.kv.Put
	if r.Kind == putBehind {
		put = p.putBehind
	}
	resp, err := put(ctx, r.Keys[0], string(r.Values[0].bytes()), opts...)
	if err != nil {
		return err
	}
	res.Revision, res.Wrote = resp.Header.Revision, true
	if r.PrevKV {
		res.observe(r.Keys[0], resp.PrevKv)
	}
	return nil
}

// putBehind waits for the promise of a put, however long that takes.
func (p performer) putBehind(ctx context.Context, key, val string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	kv, ok := p.kv.(interface {
		PutAsync(context.Context, string, string, func(*clientv3.PutResponse, error), ...clientv3.OpOption)
	})
	if !ok {
		return p.kv.Put(ctx, key, val, opts...)
	}
	var resp *clientv3.PutResponse
	var err error
	told := make(chan struct{})
	kv.PutAsync(ctx, key, val, func(r *clientv3.PutResponse, e error) {
		resp, err = r, e
		close(told)
	}, opts...)
	<-told
	return resp, err
}

func (p performer) putPair(ctx context.Context, r request, res *result) error {
	var ops []clientv3.Op
	for i, key := range r.Keys {
		ops = append(ops, clientv3.OpPut(key, string(r.Values[i].bytes()), clientv3.WithPrevKV()))
	}
	resp, err := p.kv.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return err
	}
	res.Revision, res.Wrote = resp.Header.Revision, true
	for i, key := range r.Keys {
		res.observe(key, resp.Responses[i].GetResponsePut().PrevKv)
	}
	return nil
}

func (p performer) swap(ctx context.Context, r request, res *result) error {
	key := r.Keys[0]
	same := clientv3.Compare(clientv3.ModRevision(key), "=", r.Expected.Mod)
	if r.Kind == swapByValue {
		same = clientv3.Compare(clientv3.Value(key), "=", string(r.Old.bytes()))
	}
	resp, err := p.kv.Txn(ctx).If(same).
		Then(clientv3.OpPut(key, string(r.Values[0].bytes()))).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return err
	}
	res.Revision, res.Wrote = resp.Header.Revision, resp.Succeeded
	if res.Wrote {
		return nil
	}
	if res.observe(key, resp.Responses[0].GetResponseRange().Kvs...); res.Found[0] == r.Expected {
		res.Wrong = "a comparison with what is stored has failed"
	}
	return nil
}

func (p performer) get(ctx context.Context, r request, res *result) error {
	var opts []clientv3.OpOption
	if r.Kind == getSerializable {
		opts = append(opts, clientv3.WithSerializable())
	}
	resp, err := p.kv.Get(ctx, r.Keys[0], opts...)
	if err != nil {
		return err
	}
	res.Revision = resp.Header.Revision
	res.observe(r.Keys[0], resp.Kvs...)
	return nil
}

func (p performer) getAll(ctx context.Context, r request, res *result) error {
	resp, err := p.kv.Get(ctx, r.Prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	res.Revision = resp.Header.Revision
	at := make(map[string]*mvccpb.KeyValue)
	for _, kv := range resp.Kvs {
		at[string(kv.Key)] = kv
	}
	for _, key := range r.Keys {
		res.observe(key, at[key])
		delete(at, key)
	}
	for key := range at {
		res.Wrong = fmt.Sprintf("there is a key that nobody wrote: %q", key)
	}
	return nil
}

func (p performer) delete(ctx context.Context, r request, res *result) error {
	var opts []clientv3.OpOption
	if r.PrevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	resp, err := p.kv.Delete(ctx, r.Keys[0], opts...)
	if err != nil {
		return err
	}
	res.Revision, res.Wrote = resp.Header.Revision, resp.Deleted > 0
	if r.PrevKV || !res.Wrote {
		res.observe(r.Keys[0], resp.PrevKvs...)
	}
	return nil
}

func (p performer) revoke(ctx context.Context, r request, res *result) error {
	resp, err := p.lease.Revoke(ctx, clientv3.LeaseID(r.Lease))
	if err != nil {
		return err
	}
	res.Revision = resp.Header.Revision
	return nil
}

// observe notes what an answer says was at a key; nothing, or nil, where there was
// no such key.
func (res *result) observe(key string, kvs ...*mvccpb.KeyValue) {
	var f found
	if len(kvs) > 0 && kvs[0] != nil {
		kv := kvs[0]
		id, err := identify(kv.Value)
		switch {
		case err != nil:
			res.Wrong = err.Error()
		case string(kv.Key) != key || len(kvs) > 1:
			res.Wrong = fmt.Sprintf("%d keys, the first one %q, in place of %q", len(kvs), kv.Key, key)
		}
		f = found{ID: id, Create: kv.CreateRevision, Mod: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}
	}
	res.Found = append(res.Found, f)
}
