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

// pager reads keys as they were at one revision, in order, a page of so many at a time.
type pager interface {
	page(ctx context.Context, r format.Range, most int, keysOnly bool) (kvs []*mvccpb.KeyValue, more bool, err error)
}

// pinned is a pager of a cluster.
type pinned struct {
	stored   clientv3.KV
	revision int64
	who      string // may read them, for errors
}

// keysPage is how many keys are listed at a time, without values.
const keysPage = 1000

// pageBytes is about how much a page of values is to have. How long they are is not known
// before: the first pages have few, and each is as long as the one before lets expect. Where
// large values follow small ones one page may have pageKeys of them.
const (
	pageBytes = 4 << 20
	firstKeys = 4
)

// nextPage is how many keys to read after a page of so many.
func nextPage(most int, page []*mvccpb.KeyValue) int {
	bytes := 0
	for _, kv := range page {
		bytes += len(kv.Key) + len(kv.Value)
	}
	switch {
	case bytes > pageBytes:
		return max(1, most*pageBytes/bytes)
	case len(page) > 0 && bytes <= pageBytes/2:
		return min(2*most, pageKeys)
	}
	return most
}

func (p pinned) page(ctx context.Context, r format.Range, most int, keysOnly bool) ([]*mvccpb.KeyValue, bool, error) {
	opts := []clientv3.OpOption{clientv3.WithRange(string(r.End)), clientv3.WithRev(p.revision), clientv3.WithLimit(int64(most))}
	if keysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	resp, err := p.stored.Get(ctx, string(r.Key), opts...)
	if err != nil {
		return nil, false, asking(p.who, fmt.Sprintf("reading keys from %q on", r.Key), err)
	}
	return resp.Kvs, resp.More, nil
}

// eachKey yields the keys of ranges, with values of any length.
func eachKey(ctx context.Context, p pager, ranges []format.Range) iter.Seq2[*mvccpb.KeyValue, error] {
	return inPages(ctx, p, ranges, firstKeys, nextPage, false)
}

// inPages yields the keys of ranges: first so many at a time, then as many as next says.
func inPages(ctx context.Context, p pager, ranges []format.Range, most int, next func(int, []*mvccpb.KeyValue) int, keysOnly bool) iter.Seq2[*mvccpb.KeyValue, error] {
	return func(yield func(*mvccpb.KeyValue, error) bool) {
		for _, r := range ranges {
			for more := true; more; {
				kvs, m, err := p.page(ctx, r, most, keysOnly)
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
				if next != nil {
					most = next(most, kvs)
				}
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
	for kv, err := range inPages(ctx, p, ranges, pageKeys, nil, false) {
		if err != nil {
			return err
		}
		if id, ok := format.ChunkID(kv.Key); ok {
			visit(id, kv)
		}
	}
	return nil
}
