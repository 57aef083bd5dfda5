package main

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	"github.com/kvwrap/kvwrap/internal/format"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// pager reads keys as they were at one revision, in order, a page at a time.
type pager interface {
	page(ctx context.Context, r format.Range, keysOnly bool) (kvs []*mvccpb.KeyValue, more bool, err error)
}

// pinned is a pager of a cluster.
type pinned struct {
	stored   clientv3.KV
	revision int64
	who      string // may read them, for errors
}

// keysPage is how many keys are listed at a time, without values.
const keysPage = 1000

func (p pinned) page(ctx context.Context, r format.Range, keysOnly bool) ([]*mvccpb.KeyValue, bool, error) {
	opts := []clientv3.OpOption{clientv3.WithRange(string(r.End)), clientv3.WithRev(p.revision)}
	if keysOnly {
		opts = append(opts, clientv3.WithKeysOnly(), clientv3.WithLimit(keysPage))
	} else {
		opts = append(opts, clientv3.WithLimit(pageKeys))
	}
	resp, err := p.stored.Get(ctx, string(r.Key), opts...)
	if err != nil {
		return nil, false, asking(p.who, fmt.Sprintf("reading keys from %q on", r.Key), err)
	}
	return resp.Kvs, resp.More, nil
}

// eachKey yields the keys of ranges.
func eachKey(ctx context.Context, p pager, ranges []format.Range, keysOnly bool) iter.Seq2[*mvccpb.KeyValue, error] {
	return func(yield func(*mvccpb.KeyValue, error) bool) {
		for _, r := range ranges {
			for more := true; more; {
				kvs, m, err := p.page(ctx, r, keysOnly)
				if err != nil {
					yield(nil, err)
					return
				}
				for _, kv := range kvs {
					if !yield(kv, nil) {
						return
					}
					r.Key = append(bytes.Clone(kv.Key), 0)
				}
				more = m
			}
		}
	}
}

// eachChunk visits those of the chunks of a key that are there.
func eachChunk(ctx context.Context, p pager, space format.Keyspace, key []byte, refs []format.Ref, visit func(format.ID, *mvccpb.KeyValue)) error {
	var ranges []format.Range
	for _, run := range format.Runs(refs) {
		ranges = append(ranges, space.IDs(key, run.First, run.Last))
	}
	for kv, err := range eachKey(ctx, p, ranges, false) {
		if err != nil {
			return err
		}
		if id, ok := format.ChunkID(kv.Key); ok {
			visit(id, kv)
		}
	}
	return nil
}
