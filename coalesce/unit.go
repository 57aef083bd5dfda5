package coalesce

import (
	"context"
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"github.com/kvwrap/kvwrap/internal/keys"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// unit is what is written whole or not at all: a put, of one caller or of several
// whose values were merged, or a transaction of one caller's.
type unit struct {
	ops      []*pb.RequestOp // puts and deletes, each key once
	rules    []*Rule         // of each of ops
	rule     [1]*Rule        // is rules, where they are one
	put      *pb.PutRequest  // the one operation of a put
	ctx      context.Context // of the first caller: its values, not its end
	outgoing metadata.MD     // of ctx: what a request carries beside itself
	fence    *conditions     // of ctx

	bytes int                 // that ops take in a transaction
	sums  [][sha256.Size]byte // of the values of ops; nil where no rule asks
	retry bool                // whether it is sent again after an unknown outcome

	sequenced bool // whether it is sent under the sequence of this process

	// Who waits for it: callers of Put and Txn, and puts by PutAsync, of which some
	// have promises.
	callers  int
	left     bool // whether one of them has: what it does next is not to go past this
	async    int
	promises []promise
	counted  bool // as a write that is pending
	charged  int  // bytes that count as pending

	// Where it is.
	seq    uint64 // its place in the order of all
	state  state
	lane   *lane
	added  time.Time
	joined []*unit // older ones that wait for this one
	into   *unit   // where it is joined to another one
	flight *batch  // that it is under way in

	// What was found out about it.
	plan     plan
	since    int64   // where not 0: its first attempt was made at this revision, and was not applied or is not known to be
	doubt    error   // the error of that attempt
	lost     bool    // whether that attempt may have been applied
	pins     []int64 // what its keys are at, where nobody has written them since; nil before that was looked at
	unclear  error   // that of one that may have been applied, of this value or one that another has taken the place of
	examine  bool    // its guards did not hold: find out why
	attempts int
	failed   chan struct{} // closed when an attempt fails after which there is another one; nil while nobody asks
	reason   error         // of the last such failure

	// How it ended, once done is closed.
	done   chan struct{}
	header *pb.ResponseHeader
	resps  []*pb.ResponseOp
	err    error
}

type promise func(*clientv3.PutResponse, error)

type state uint8

const (
	waiting  state = iota
	sealed         // in a batch
	absorbed       // in the joined of another unit
	ended
)

// newUnit returns a unit of one operation or several. It is not yet anybody's.
func newUnit(ctx context.Context, rs rules, ops []*pb.RequestOp) *unit {
	u := &unit{ops: ops, ctx: ctx, fence: fenceOf(ctx), done: make(chan struct{})}
	u.outgoing, _ = metadata.FromOutgoingContext(ctx)
	u.rules = u.rule[:]
	if len(ops) > 1 {
		u.rules = make([]*Rule, len(ops))
	}
	for i, op := range ops {
		r := rs.of(opKey(op))
		u.rules[i] = r
		u.retry = u.retry || r.Retry
		u.sequenced = u.sequenced || r.Retry || r.SkipUnchanged
		u.bytes += itemBytes(op)
		if p := op.GetRequestPut(); p != nil && r.SkipUnchanged {
			if u.sums == nil {
				u.sums = make([][sha256.Size]byte, len(ops))
			}
			u.sums[i] = sha256.Sum256(p.Value)
		}
	}
	return u
}

// newPut returns a unit of one put.
func newPut(ctx context.Context, rs rules, r *pb.PutRequest) *unit {
	u := newUnit(ctx, rs, []*pb.RequestOp{wire.Put(r)})
	u.put = r
	return u
}

// opKey returns the key of a put or a delete, or the first of its range.
func opKey(op *pb.RequestOp) []byte {
	if p := op.GetRequestPut(); p != nil {
		return p.Key
	}
	return op.GetRequestDeleteRange().GetKey()
}

// opRange returns what a put or a delete changes.
func opRange(op *pb.RequestOp) keys.Range {
	if d := op.GetRequestDeleteRange(); d != nil {
		return keys.Range{Key: d.Key, End: d.RangeEnd}
	}
	return keys.Range{Key: op.GetRequestPut().Key}
}

// remembers reports whether what is known to be stored decides on how u is written.
func (u *unit) remembers() bool {
	for _, r := range u.rules {
		if r.SkipUnchanged || r.Mode == Max {
			return true
		}
	}
	return false
}

// ranges returns what u changes.
func (u *unit) ranges() (all []keys.Range) {
	for _, op := range u.ops {
		all = append(all, opRange(op))
	}
	return all
}

// depends reports whether what p does depends on what is stored.
func depends(p *pb.PutRequest) bool { return p.PrevKv || p.IgnoreValue || p.IgnoreLease }

// merges reports whether n, a newer put of the same key, may take the place of u.
func (u *unit) merges(n *unit) bool {
	return u.put != nil && n.put != nil && u.rules[0].Mode >= LastWriteWins && u.sequenced == n.sequenced &&
		!depends(u.put) && !depends(n.put) && u.put.Lease == n.put.Lease && u.fence.equal(n.fence) && u.sameSender(n) && u.compares(n)
}

// compares reports whether one of the values can be said to be the one that stays. Where
// it cannot each is written on its own, or refused by what is stored then.
func (u *unit) compares(n *unit) bool {
	_, ok := order(n.put.Value, u.put.Value)
	return ok || u.rules[0].Mode == LastWriteWins
}

// sameSender reports whether one request may carry both.
func (u *unit) sameSender(n *unit) bool {
	return len(u.outgoing) == 0 && len(n.outgoing) == 0 || maps.EqualFunc(u.outgoing, n.outgoing, slices.Equal)
}

// wins reports whether n's value takes the place of u's, where the two merge.
func (u *unit) wins(n *unit) bool {
	c, _ := order(n.put.Value, u.put.Value)
	return c > 0 || u.rules[0].Mode == LastWriteWins
}

// takeValue has u write what n was to write.
func (u *unit) takeValue(n *unit) {
	u.ops, u.put, u.bytes, u.sums = n.ops, n.put, n.bytes, n.sums
	u.since, u.doubt, u.lost, u.pins = n.since, n.doubt, n.lost, nil
}

// takeCallers has u answer who waits for n.
func (u *unit) takeCallers(n *unit) {
	u.callers += n.callers
	u.async += n.async
	u.promises = append(u.promises, n.promises...)
	u.retry = u.retry || n.retry
}

// absorb has n, a newer put of the same key, answer for u, which is not written.
func (n *unit) absorb(u *unit) {
	n.retry, n.left = n.retry || u.retry, n.left || u.left
	n.joined = append(append(n.joined, u.joined...), u)
	u.joined, u.state = nil, absorbed
	for _, j := range n.joined {
		j.into = n
	}
	u.put = &pb.PutRequest{Key: u.put.Key} // its value is of no use any more
	u.ops = []*pb.RequestOp{wire.Put(u.put)}
}

// failure returns a channel that is closed when an attempt to write u fails.
func (u *unit) failure() <-chan struct{} {
	if u.failed == nil {
		u.failed = make(chan struct{})
	}
	return u.failed
}

// fails takes note of the failure of an attempt.
func (u *unit) fails(err error) {
	if u.reason = err; u.failed != nil {
		close(u.failed)
		u.failed = nil
	}
	for _, j := range u.joined {
		j.fails(err)
	}
}

// deserted reports whether nobody waits for u any more.
func (u *unit) deserted() bool {
	for _, j := range u.joined {
		if !j.deserted() {
			return false
		}
	}
	return u.callers == 0 && u.async == 0
}

// answerPut returns the response to a put.
func (u *unit) answerPut() *pb.PutResponse {
	return &pb.PutResponse{Header: copyHeader(u.header), PrevKv: u.resps[0].GetResponsePut().PrevKv}
}

// answerTxn returns the response to a transaction.
func (u *unit) answerTxn() *pb.TxnResponse {
	return &pb.TxnResponse{Header: copyHeader(u.header), Succeeded: true, Responses: u.resps}
}

func copyHeader(h *pb.ResponseHeader) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: h.ClusterId, MemberId: h.MemberId, Revision: h.Revision, RaftTerm: h.RaftTerm}
}
