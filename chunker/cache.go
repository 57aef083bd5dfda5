package chunker

import (
	"bytes"
	"container/list"
	"sync"

	"github.com/kvwrap/kvwrap/internal/format"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// cache remembers where the chunks of recently used keys are stored, and the
// values that are read again and again. What it says may be out of date: a read
// compares the key with it, a write is guarded.
type cache struct {
	least  int // entries that stay, whatever they take
	mu     sync.Mutex
	size   int                      // bytes, at the most
	left   int                      // bytes
	recent *list.List               // of *chunked, the most recently used first
	byKey  map[string]*list.Element // into recent
}

// chunked is a chunked value as it was last seen at a key. It is immutable.
type chunked struct {
	key    string
	meta   *mvccpb.KeyValue // without the value
	layout *format.Layout
	value  []byte // nil unless it is kept

	damaged bool // chunks are missing or altered
}

func newChunked(kv *mvccpb.KeyValue, l *format.Layout) *chunked {
	return &chunked{key: string(kv.Key), layout: l, meta: &mvccpb.KeyValue{
		Key: bytes.Clone(kv.Key), CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease,
	}}
}

// with returns v and its value, of which it makes a copy.
func (v *chunked) with(value []byte) *chunked {
	kept := *v
	kept.value = bytes.Clone(value)
	return &kept
}

func (c *chunked) bytes() int { return 2*len(c.key) + c.layout.Bytes() + len(c.value) }

func newCache(bytes int) *cache {
	c := &cache{size: bytes}
	c.clear()
	return c
}

// clear forgets everything: the cluster has another history now.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left, c.recent, c.byKey = c.size, list.New(), make(map[string]*list.Element)
}

// get returns what is known of key, nil where nothing is.
func (c *cache) get(key []byte) *chunked {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[string(key)]
	if e == nil {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(*chunked)
}

// put remembers v, unless something newer is known of its key, or as much.
func (c *cache) put(v *chunked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[v.key]; e != nil {
		known := e.Value.(*chunked)
		if n := known.meta.ModRevision; n > v.meta.ModRevision ||
			n == v.meta.ModRevision && v.value == nil && !v.damaged && known.layout.Token == v.layout.Token {
			return
		}
		c.remove(e)
	}
	c.byKey[v.key] = c.recent.PushFront(v)
	for c.left -= v.bytes(); c.left < 0 && c.recent.Len() > c.least; {
		c.remove(c.recent.Back())
	}
}

// keep remembers v and its value, unless that would leave little for others.
func (c *cache) keep(v *chunked, value []byte) {
	if len(value) <= c.size/4 {
		c.put(v.with(value))
	}
}

// forget drops what is known of key and is not newer than the revision mod.
func (c *cache) forget(key []byte, mod int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[string(key)]; e != nil && e.Value.(*chunked).meta.ModRevision <= mod {
		c.remove(e)
	}
}

func (c *cache) remove(e *list.Element) {
	v := c.recent.Remove(e).(*chunked)
	delete(c.byKey, v.key)
	c.left += v.bytes()
}
