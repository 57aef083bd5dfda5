package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// prefix begins all keys.
const prefix = "faults/"

// names are the keys of an epoch: few, so that clients meet, and ones that begin
// with each other.
var names = []string{"a", "a\x00", "aa", "b"}

// epochRequests is how many requests an epoch has, unless there are many clients. Each
// has keys of its own, so that the search for an order of the operations on one key stays
// short however long the run is.
const epochRequests = 3000

func epoch(n int) string { return fmt.Sprintf("%s%04d/", prefix, n) }

func keysOf(epoch string) []string {
	var keys []string
	for _, name := range names {
		keys = append(keys, epoch+name)
	}
	return keys
}

// client asks for one operation after the other, chosen at random.
type client struct {
	id      int
	h       *history
	perform func(request) result
	role    role
	small   bool // values
	random  *rand.Rand

	written int
	leased  []request // to revoke the leases of this client
}

// role is what a client confines itself to.
type role int

const (
	anything role = iota
	reading       // so that what is wrong is seen before it is overwritten
	plain         // an application without kvwrap: it puts small values and deletes, now and then
)

// run is the client, until ctx ends.
func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		pause := 10 * time.Millisecond // where nobody answers
		switch ended := c.step(); {
		case c.role == plain:
			pause = 200 * time.Millisecond
		case ended == ok:
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// step asks for one operation; a swap, after a read of what it is to replace. All
// that is left to chance is drawn before any answer is known, so that it is the
// same at every run with the same seed.
func (c *client) step() outcome {
	at := epoch(int(c.h.started.Load() / c.h.epoch))
	keys := keysOf(at)
	c.random.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	r := request{Kind: c.drawKind(), Keys: keys[:1], PrevKV: c.random.IntN(3) == 0, Timeout: c.drawTimeout()}
	first, second := c.drawValue(), c.drawValue()
	switch {
	case c.role == reading && !r.reads():
		r.Kind = get
	case c.role == plain && r.Kind != del:
		r.Kind, first = put, c.drawSmall()
	}
	switch r.Kind {
	case put, putLeased, putBehind:
		r.Values = []value{first}
	case putPair:
		r.Keys, r.Values = keys[:2], []value{first, second}
	case getAll:
		r.Keys, r.Prefix = keys, at
	case swapByRevision, swapByValue:
		r.Values = []value{first}
		read := c.h.do(c.id, request{Kind: get, Keys: r.Keys, Timeout: 5 * time.Second}, c.perform)
		if read.Outcome != ok || read.Wrong != "" {
			return read.Outcome
		}
		r.Expected = read.Found[0]
		if r.Old = c.h.value(r.Expected.ID); r.Old.ID == "" {
			r.Kind = swapByRevision // there is none
		}
	case revoke:
		if len(c.leased) == 0 {
			return ok
		}
		r.Keys, r.Lease = c.leased[0].Keys, c.leased[0].Lease
		c.leased = c.leased[1:]
	}
	r.PrevKV = r.PrevKV && c.role != plain // which would find manifests
	res := c.h.do(c.id, r, c.perform)
	if r.Kind == putLeased && res.Lease != 0 {
		c.leased = append(c.leased, request{Keys: r.Keys, Lease: res.Lease})
	}
	return res.Outcome
}

func (c *client) drawKind() kind {
	shares := []struct {
		kind    kind
		percent int
	}{
		{put, 33}, {get, 14}, {swapByRevision, 10}, {swapByValue, 8}, {del, 9}, {getAll, 5},
		{getSerializable, 6}, {putPair, 5}, {putLeased, 6}, {revoke, 4},
	}
	n := c.random.IntN(100)
	if c.small && n < 15 {
		return putBehind // in place of some puts
	}
	for _, s := range shares {
		if n -= s.percent; n < 0 {
			return s.kind
		}
	}
	panic("the shares are less than 100 percent")
}

// drawTimeout returns when the request is cancelled, which is in the middle of it
// for some.
func (c *client) drawTimeout() time.Duration {
	early := time.Duration(c.random.Int64N(int64(100 * time.Millisecond)))
	if c.random.IntN(5) == 0 {
		return early
	}
	return 5 * time.Second
}

func (c *client) drawID() string {
	c.written++
	return fmt.Sprintf("%02d-%06d", c.id, c.written)
}

// drawValue returns a value: most are large, 70 KB to 1 MB, the more seldom the
// larger, and have little that others do not.
func (c *client) drawValue() value {
	if c.small && c.random.IntN(50) > 0 {
		return c.drawSmall()
	}
	size := 70<<10 + c.random.IntN(1+c.random.IntN(maxValueBytes-70<<10))
	edit := 1 + c.random.IntN([]int{2 << 10, 4 << 10, 4 << 10, 60 << 10, 300 << 10}[c.random.IntN(5)])
	v := value{ID: c.drawID(), Size: size, Edit: min(edit, size/2)}
	if small := 100 + c.random.IntN(2000); c.random.IntN(8) == 0 {
		v.Size, v.Edit = small, 0
	}
	return v
}

func (c *client) drawSmall() value {
	return value{ID: c.drawID(), Size: 100 + c.random.IntN(2000)}
}
