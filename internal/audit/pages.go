package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
)

// pages are those of a bbolt file, mapped into memory.
//
// bbolt's own cursor trusts a file: where a page of a damaged one leads back to itself, it
// runs for ever or fills the stack, which ends the process. Here each page is entered once in
// a walk, lies in the file, and is as deep as a tree can be; what is read from it lies in it.
// A walk counts the pages, too, which says how much of the file is in use: etcd has bbolt
// write no list of those that are free.
type pages struct {
	data []byte
	size uint64 // of a page, bytes
	high uint64 // how many pages there are
	root uint64 // of the bucket of buckets
}

// What a page begins with, and what stands in it (bbolt internal/common/page.go, meta.go,
// bucket.go). Numbers are as the machine has them.
const (
	pageHeader  = 16 // id (8), flags (2), count (2), overflow (4)
	elementSize = 16 // in a branch: pos (4), key's length (4), page (8); in a leaf: flags (4), pos (4), lengths of key and value (4, 4)
	metaSize    = 64 // magic, version, page size, flags (4 each), root, sequence, free list, pages, transaction, checksum (8 each)

	branchPage    = 0x01
	leafPage      = 0x02
	bucketElement = 0x01
	boltMagic     = 0xED0CDAED
	boltVersion   = 2

	maxTreeDepth = 40 // two children a page at the least, and fewer than 2^40 pages
)

var native = binary.NativeEndian

// newPages reads the newer of the two meta pages.
func newPages(data []byte, size int) (*pages, error) {
	p := &pages{data: data, size: uint64(size)}
	var newest uint64
	found := false
	for i := range uint64(2) {
		at := i*p.size + pageHeader
		if at+metaSize > uint64(len(data)) {
			break
		}
		m := data[at : at+metaSize]
		sum := fnv.New64a()
		sum.Write(m[:metaSize-8])
		transaction := native.Uint64(m[48:])
		if native.Uint32(m) != boltMagic || native.Uint32(m[4:]) != boltVersion || sum.Sum64() != native.Uint64(m[56:]) || found && transaction < newest {
			continue
		}
		found, newest = true, transaction
		p.root, p.high = native.Uint64(m[16:]), native.Uint64(m[40:])
	}
	if !found {
		return nil, errors.New("neither of its two meta pages is whole")
	}
	if have := uint64(len(data)); p.high > have/p.size {
		return nil, fmt.Errorf("it is cut off: it should have %d bytes, and has %d: copy it again", p.high*p.size, have)
	}
	return p, nil
}

// tree is what a bucket is stored in: pages from a root on, or, where that is 0, one page that
// stands in the bucket's value.
type tree struct {
	root   uint64
	inline []byte
}

// treeOf reads the value of a bucket.
func treeOf(value []byte) (tree, error) {
	if len(value) < 16 {
		return tree{}, fmt.Errorf("a bucket has %d bytes", len(value))
	}
	return tree{root: native.Uint64(value), inline: value[16:]}, nil
}

// walk tells f of everything in t, in order or backwards, and returns how many pages that
// took. What f is given is the file's memory. It ends with ctx, with its error.
func (p *pages) walk(ctx context.Context, t tree, backwards bool, f func(key, value []byte, bucket bool) error) (used int, err error) {
	w := walk{pages: p, ctx: ctx, backwards: backwards, f: f}
	if t.root == 0 {
		return 0, w.page(t.inline, 0)
	}
	w.seen = make([]uint64, p.high/64+1)
	err = w.enter(t.root, 0)
	return w.used, err
}

// first returns the smallest key that the root of t names.
func (p *pages) first(t tree) ([]byte, error) {
	w := walk{pages: p, seen: make([]uint64, p.high/64+1)}
	page := t.inline
	if t.root != 0 {
		var err error
		if page, err = w.run(t.root); err != nil {
			return nil, err
		}
	}
	flags, count, err := header(page)
	if err != nil || count == 0 {
		return nil, err
	}
	e, err := element(page, 0, flags == leafPage)
	return e.key, err
}

type walk struct {
	*pages
	ctx       context.Context
	backwards bool
	f         func(key, value []byte, bucket bool) error
	seen      []uint64 // a bit a page
	used      int
}

// run returns the page with id, with those that it continues on, and marks them.
func (w *walk) run(id uint64) ([]byte, error) {
	if id < 2 || id >= w.high {
		return nil, fmt.Errorf("page %d of %d is named", id, w.high)
	}
	from := w.data[id*w.size:]
	n := uint64(native.Uint32(from[12:])) + 1
	switch {
	case native.Uint64(from) != id:
		return nil, fmt.Errorf("page %d says that it is page %d", id, native.Uint64(from))
	case n > w.high-id:
		return nil, fmt.Errorf("page %d has %d pages, of %d", id, n, w.high)
	}
	for i := id; i < id+n; i++ {
		if w.seen[i/64]&(1<<(i%64)) != 0 {
			return nil, fmt.Errorf("page %d stands in two places", i)
		}
		w.seen[i/64] |= 1 << (i % 64)
	}
	w.used += int(n)
	return from[:n*w.size], nil
}

func (w *walk) enter(id uint64, depth int) error {
	page, err := w.run(id)
	if err != nil {
		return err
	}
	return w.page(page, depth)
}

func (w *walk) page(page []byte, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if depth > maxTreeDepth {
		return fmt.Errorf("a tree is more than %d pages deep", maxTreeDepth)
	}
	flags, count, err := header(page)
	if err != nil {
		return err
	}
	for i := range count {
		if w.backwards {
			i = count - 1 - i
		}
		e, err := element(page, i, flags == leafPage)
		if err != nil {
			return err
		}
		if flags == branchPage {
			err = w.enter(e.page, depth+1)
		} else {
			err = w.f(e.key, e.value, e.bucket)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func header(page []byte) (flags, count int, err error) {
	if len(page) < pageHeader {
		return 0, 0, fmt.Errorf("a page has %d bytes", len(page))
	}
	flags, count = int(native.Uint16(page[8:])), int(native.Uint16(page[10:]))
	switch {
	case flags != branchPage && flags != leafPage:
		return 0, 0, fmt.Errorf("page %d is neither branch nor leaf, but of kind %#x", native.Uint64(page), flags)
	case pageHeader+count*elementSize > len(page):
		return 0, 0, fmt.Errorf("page %d of %d bytes has %d elements", native.Uint64(page), len(page), count)
	}
	return flags, count, nil
}

type pageElement struct {
	key, value []byte
	bucket     bool
	page       uint64 // of a branch
}

func element(page []byte, i int, leaf bool) (e pageElement, err error) {
	at := uint64(pageHeader + i*elementSize)
	b := page[at : at+elementSize]
	var pos, keyLen, valueLen uint64
	if leaf {
		e.bucket = native.Uint32(b)&bucketElement != 0
		pos, keyLen, valueLen = uint64(native.Uint32(b[4:])), uint64(native.Uint32(b[8:])), uint64(native.Uint32(b[12:]))
	} else {
		pos, keyLen, e.page = uint64(native.Uint32(b)), uint64(native.Uint32(b[4:])), native.Uint64(b[8:])
	}
	key := at + pos
	if end := key + keyLen + valueLen; end > uint64(len(page)) {
		return e, fmt.Errorf("element %d of page %d ends at byte %d of %d", i, native.Uint64(page), end, len(page))
	}
	e.key = page[key : key+keyLen]
	e.value = page[key+keyLen : key+keyLen+valueLen]
	return e, nil
}
