package main

import (
	"context"
	"fmt"

	"github.com/kvwrap/kvwrap/internal/format"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// chunkReader reads chunks as they were at a revision.
type chunkReader struct {
	stored   clientv3.KV // as plain clients see it
	space    format.Keyspace
	revision int64
}

// read visits those of the chunks of a key that are there.
func (c chunkReader) read(ctx context.Context, key []byte, refs []format.Ref, visit func(format.ID, *mvccpb.KeyValue)) error {
	for _, run := range format.Runs(refs) {
		r := c.space.IDs(key, run.First, run.Last)
		for from, more := string(r.Key), true; more; {
			page, err := c.stored.Get(ctx, from, clientv3.WithRange(string(r.End)), clientv3.WithLimit(pageKeys), clientv3.WithRev(c.revision))
			if err != nil {
				return asking(fmt.Sprintf("reading the chunks of %q", key), err)
			}
			for _, kv := range page.Kvs {
				from = string(kv.Key) + "\x00"
				if id, ok := format.ChunkID(kv.Key); ok {
					visit(id, kv)
				}
			}
			more = page.More
		}
	}
	return nil
}
