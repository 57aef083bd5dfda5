package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// streamable reports whether a server that can stream does so for r. It refuses orders and
// filters with Unimplemented, which is what a server that cannot says to all.
func streamable(r *pb.RangeRequest) bool {
	inOrder := r.SortOrder == pb.RangeRequest_NONE || r.SortTarget == pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_ASCEND
	return inOrder && r.MinModRevision == 0 && r.MaxModRevision == 0 && r.MinCreateRevision == 0 && r.MaxCreateRevision == 0
}

// fallback is a stream that becomes one of pages where the server, before 3.7, has none.
type fallback struct {
	grpc.ServerStreamingClient[pb.RangeStreamResponse]
	ctx   context.Context
	c     client
	req   *pb.RangeRequest
	begun bool
}

func (f *fallback) Recv() (*pb.RangeStreamResponse, error) {
	resp, err := f.ServerStreamingClient.Recv()
	if !f.begun && status.Code(err) == codes.Unimplemented {
		f.ServerStreamingClient.CloseSend()
		f.ServerStreamingClient = newPages(f.ctx, f.c, f.req)
		resp, err = f.ServerStreamingClient.Recv()
	}
	f.begun = true
	return resp, err
}

// RecvMsg is Recv into m.
func (f *fallback) RecvMsg(m any) error { return RecvMsg(f, m) }

// pages is a stream that is read in pages, all at one revision: what the server says is its
// newest when it answers the first.
//
// A page by a limit alone has the server count all the rest of the keys, which makes a hundred
// thousand keys take a hundred times as long. So each page is of a range with an end. What lies
// between two keys is not known, and the end is guessed: as far from the last key as the page
// before reached. A page that was cut off by its limit goes on, and one that was short makes
// the next step longer.
type pages struct {
	ctx    context.Context
	cancel context.CancelFunc
	kv     interface {
		Range(context.Context, *pb.RangeRequest, ...grpc.CallOption) (*pb.RangeResponse, error)
	}
	req  *pb.RangeRequest // as it was asked
	next pb.RangeRequest  // Key, Revision, Serializable and Limit of the next page

	last  *pb.RangeResponse // header, count and more, of the first page
	left  int64             // keys that are to come
	guess guess
}

const (
	firstPageKeys = 16
	mostPageKeys  = 2000
	pageBytes     = 1 << 20 // that are aimed at
)

func newPages(ctx context.Context, kv client, r *pb.RangeRequest) *pages {
	p := &pages{kv: kv, req: r, left: -1}
	p.ctx, p.cancel = context.WithCancel(ctx)
	p.next.Key, p.next.Revision, p.next.Serializable, p.next.Limit = r.Key, r.Revision, r.Serializable, firstPageKeys
	return p
}

// Recv returns the next page. As of a stream of etcd's, only the last one has a header and the
// count.
func (p *pages) Recv() (*pb.RangeStreamResponse, error) {
	for p.left != 0 {
		page, err := p.page()
		if err != nil {
			p.cancel()
			return nil, err
		}
		if p.left -= int64(len(page.Kvs)); p.left == 0 {
			page.Header, page.Count, page.More = p.last.Header, p.last.Count, p.last.More
			return &pb.RangeStreamResponse{RangeResponse: page}, nil
		}
		if len(page.Kvs) > 0 {
			return &pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Kvs: page.Kvs}}, nil
		}
	}
	p.cancel()
	return nil, io.EOF
}

// page reads the next page and sees where the one after it begins.
func (p *pages) page() (*pb.RangeResponse, error) {
	r := &pb.RangeRequest{
		Key: p.next.Key, RangeEnd: p.req.RangeEnd, Revision: p.next.Revision, Serializable: p.next.Serializable,
		Limit: p.next.Limit, KeysOnly: p.req.KeysOnly, CountOnly: p.req.CountOnly,
	}
	if p.guess.end != nil && !reaches(p.guess.end, r.RangeEnd) {
		r.RangeEnd = p.guess.end
	} else {
		p.guess.end = nil
	}
	switch {
	case p.req.CountOnly:
		r.Limit = 0
	case p.left > 0:
		r.Limit = min(r.Limit, p.left)
	case p.req.Limit > 0:
		r.Limit = min(r.Limit, p.req.Limit)
	}
	for {
		resp, err := p.kv.Range(p.ctx, r)
		switch {
		case status.Code(err) == codes.ResourceExhausted && r.Limit > 1: // more than the client takes
			p.next.Limit = max(p.next.Limit/8, 1)
			r.Limit = min(r.Limit, p.next.Limit)
			continue
		case Is(err, rpctypes.ErrFutureRev) && r.Serializable && p.req.Revision == 0:
			// The member is behind the one that the first page came from.
			p.next.Serializable, r.Serializable = false, false
			continue
		case err != nil:
			return nil, err
		}
		if p.last == nil {
			p.first(resp)
		}
		p.advance(r, resp)
		return resp, nil
	}
}

// first takes from the first page what is known of all.
func (p *pages) first(resp *pb.RangeResponse) {
	p.last = &pb.RangeResponse{Header: resp.Header, Count: resp.Count}
	if p.next.Revision == 0 {
		p.next.Revision = resp.Header.GetRevision()
	}
	if p.req.CountOnly {
		p.left = 0
		return
	}
	if p.left = resp.Count; p.req.Limit > 0 && resp.Count > p.req.Limit {
		p.left, p.last.More = p.req.Limit, true
	}
}

// advance sets where the page after resp, the answer to r, begins and how long it is to be.
func (p *pages) advance(r *pb.RangeRequest, resp *pb.RangeResponse) {
	size, n := 0, len(resp.Kvs)
	if !resp.More && bytes.Equal(r.RangeEnd, p.req.RangeEnd) {
		p.left = int64(n) // whatever the first page said
	}
	for _, kv := range resp.Kvs {
		size += len(kv.Key) + len(kv.Value)
	}
	if size > pageBytes {
		p.next.Limit = max(p.next.Limit/2, 1)
	} else if size < pageBytes/2 {
		p.next.Limit = min(p.next.Limit*2, mostPageKeys)
	}
	if resp.More {
		p.next.Key = append(bytes.Clone(resp.Kvs[n-1].Key), 0)
		if p.guess.end == nil || resp.Count > 4*p.next.Limit { // else it is as good as it was
			p.guess = guessed(resp.Kvs, p.next.Limit)
		}
		return
	}
	p.next.Key = bytes.Clone(r.RangeEnd)
	p.guess.further(n < int(p.next.Limit/2)) // the step was too short, or there is nothing
}

// reaches reports whether the range to end holds that to the other one, of the same key.
func reaches(end, other []byte) bool {
	return len(other) == 0 || !bytes.Equal(other, []byte{0}) && bytes.Compare(end, other) >= 0
}

// guess is where a page ends: behind bytes that keys have in common stand eight which are
// taken for a number, or, where the step is 0, there is the end of all that begins so.
type guess struct {
	end  []byte // nil for the end of all
	step uint64 // of the number, from page to page
}

// guessed returns where a page of so many keys may end that begins behind kvs, from how far
// these are apart: all of them, or the last ones, where others are of another kind.
func guessed(kvs []*mvccpb.KeyValue, keys int64) guess {
	for n := len(kvs); n > 1; n /= 2 {
		first, last := kvs[len(kvs)-n].Key, kvs[len(kvs)-1].Key
		common := 0
		for common < min(len(first), len(last)) && first[common] == last[common] {
			common++
		}
		a, b := fraction(first[common:]), fraction(last[common:])
		gap := (b - a) / uint64(n-1)
		if gap == 0 || gap > 1<<62/uint64(keys) {
			continue
		}
		g := guess{end: binary.BigEndian.AppendUint64(bytes.Clone(last[:common]), b), step: gap * uint64(keys)}
		g.further(false)
		return g
	}
	if len(kvs) == 0 {
		return guess{}
	}
	last := kvs[len(kvs)-1].Key
	return guess{end: after(last[:len(last)-1])}
}

// further moves the end by a step, which is a longer one from now on where it was short. Where
// the number ends, it is to the end of what begins as it does, and then, byte by byte, of what
// begins with less of that.
func (g *guess) further(short bool) {
	if len(g.end) == 0 {
		return
	}
	if g.step == 0 {
		g.end = after(g.end[:len(g.end)-1])
		return
	}
	step := g.step
	if short && step <= 1<<60 {
		step *= 4
	}
	at := len(g.end) - 8
	v := binary.BigEndian.Uint64(g.end[at:])
	if v > ^uint64(0)-step {
		*g = guess{end: after(g.end[:at])}
		return
	}
	*g = guess{end: binary.BigEndian.AppendUint64(bytes.Clone(g.end[:at]), v+step), step: step}
}

// after returns the first key behind all that begin with prefix, nil where there is none.
func after(prefix []byte) []byte {
	for n := len(prefix); n > 0; n-- {
		if prefix[n-1] < 0xff {
			end := bytes.Clone(prefix[:n])
			end[n-1]++
			return end
		}
	}
	return nil
}

// fraction is the first 8 bytes of b as a number.
func fraction(b []byte) uint64 {
	var head [8]byte
	copy(head[:], b)
	return binary.BigEndian.Uint64(head[:])
}

// CloseSend ends the stream.
func (p *pages) CloseSend() error {
	p.cancel()
	return nil
}

func (p *pages) Context() context.Context     { return p.ctx }
func (p *pages) Header() (metadata.MD, error) { return nil, nil }
func (p *pages) Trailer() metadata.MD         { return nil }
func (p *pages) SendMsg(m any) error          { return errOneRequest(m) }
func (p *pages) RecvMsg(m any) error          { return RecvMsg(p, m) }
