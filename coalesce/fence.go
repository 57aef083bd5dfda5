package coalesce

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// conditions are comparisons that a write is made under.
type conditions struct {
	compares []*pb.Compare
	id       string // equal where the comparisons are
	wrong    error  // why nothing can be written under them
}

type conditionsKey struct{}

// WithFence returns a context whose writes are made only while all conditions hold:
// an owner's key is what it was when this process became the owner, or is on its
// lease. They are evaluated by etcd, in the transaction that writes, so that a write
// that comes late, from a process that has lost its ownership and does not know, or
// was killed with its request under way, is not made. It fails with a [*FencedError].
//
//	owned := coalesce.WithFence(ctx, clientv3.Compare(clientv3.CreateRevision(owner), "=", revision))
//	kv.PutAsync(owned, offsetKey, "1234", promise)
//
// It is for all writes below a [Stage], coalesced or not, and means nothing to reads.
// Without a condition, or with one that has no key, nothing is written: a list that has
// come out empty must not lift the fence. Conditions of an outer context stay. A comparison of a value is with what etcd
// stores, which of a large value is not the value. Writes under different conditions
// may share a batch; each has its own answer.
func WithFence(ctx context.Context, conds ...clientv3.Cmp) context.Context {
	c := &conditions{}
	if outer := fenceOf(ctx); outer != nil {
		c.wrong = outer.wrong
		c.compares = append(c.compares, outer.compares...)
	}
	var id bytes.Buffer
	for _, cond := range conds {
		own := cond.Clone()
		if c.compares = append(c.compares, own.GetCompare()); len(own.GetCompare().GetKey()) == 0 {
			c.wrong = errNoKey
		}
	}
	if len(conds) == 0 {
		c.wrong = errNoConditions
	}
	for _, compare := range c.compares {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(compare)
		if err != nil {
			panic(fmt.Sprintf("coalesce: WithFence: %v", err)) // a comparison is bytes and numbers
		}
		fmt.Fprintf(&id, "%d:%s", len(b), b)
	}
	c.id = id.String()
	return context.WithValue(ctx, conditionsKey{}, c)
}

// fenceOf returns the conditions of a context, nil where it has none.
func fenceOf(ctx context.Context) *conditions {
	c, _ := ctx.Value(conditionsKey{}).(*conditions)
	return c
}

func (c *conditions) equal(o *conditions) bool {
	if c == nil || o == nil {
		return c == o
	}
	return c.id == o.id
}

// guards returns the comparisons, none where there are no conditions.
func (c *conditions) guards() []*pb.Compare {
	if c == nil {
		return nil
	}
	return c.compares
}

// failed returns the error where they do not hold.
func (c *conditions) failed(key []byte) error { return &FencedError{Key: key, Conditions: c.String()} }

// valid returns why nothing can be written under c, where that is so.
func (c *conditions) valid() error {
	if c == nil {
		return nil
	}
	return c.wrong
}

func (c *conditions) String() string {
	var all []string
	for _, compare := range c.compares {
		target := strings.ToLower(compare.Target.String())
		var operand any
		switch u := compare.TargetUnion.(type) {
		case *pb.Compare_Version:
			operand = u.Version
		case *pb.Compare_CreateRevision:
			operand = u.CreateRevision
		case *pb.Compare_ModRevision:
			operand = u.ModRevision
		case *pb.Compare_Lease:
			operand = fmt.Sprintf("%x", u.Lease)
		case *pb.Compare_Value:
			operand = fmt.Sprintf("%.40q", u.Value)
		}
		sign := map[pb.Compare_CompareResult]string{
			pb.Compare_EQUAL: "=", pb.Compare_NOT_EQUAL: "!=", pb.Compare_GREATER: ">", pb.Compare_LESS: "<",
		}[compare.Result]
		all = append(all, fmt.Sprintf("%s(%q) %s %v", target, compare.Key, sign, operand))
	}
	return strings.Join(all, " and ")
}

// under makes a write that is not coalesced under the conditions of its context. It
// returns the responses to ops, and the header.
func under(ctx context.Context, inner pb.KVClient, c *conditions, ops ...*pb.RequestOp) ([]*pb.ResponseOp, *pb.ResponseHeader, error) {
	resp, err := inner.Txn(ctx, &pb.TxnRequest{Compare: c.compares, Success: ops})
	switch {
	case err != nil:
		return nil, nil, err
	case !resp.Succeeded:
		return nil, nil, c.failed(firstKey(ops))
	}
	return resp.Responses, resp.Header, nil
}

// firstKey returns the first key that is written.
func firstKey(ops []*pb.RequestOp) []byte {
	for _, op := range ops {
		key := opKey(op)
		if t := op.GetRequestTxn(); t != nil {
			key = firstKey(append(t.Success[:len(t.Success):len(t.Success)], t.Failure...))
		}
		if key != nil {
			return key
		}
	}
	return nil
}

// putUnder is under for a put.
func putUnder(ctx context.Context, inner pb.KVClient, c *conditions, r *pb.PutRequest) (*pb.PutResponse, error) {
	resps, header, err := under(ctx, inner, c, wire.Put(r))
	if err != nil {
		return nil, err
	}
	resp := resps[0].GetResponsePut()
	resp.Header = header
	return resp, nil
}

// deleteUnder is under for a delete.
func deleteUnder(ctx context.Context, inner pb.KVClient, c *conditions, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	resps, header, err := under(ctx, inner, c, wire.DeleteRange(r))
	if err != nil {
		return nil, err
	}
	resp := resps[0].GetResponseDeleteRange()
	resp.Header = header
	return resp, nil
}

// txnUnder is under for a transaction.
func txnUnder(ctx context.Context, inner pb.KVClient, c *conditions, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if len(r.Compare) == 0 && len(r.Failure) == 0 { // nested it would have less operations
		resps, header, err := under(ctx, inner, c, r.Success...)
		if err != nil {
			return nil, err
		}
		return &pb.TxnResponse{Header: header, Succeeded: true, Responses: resps}, nil
	}
	resps, header, err := under(ctx, inner, c, wire.Txn(r))
	if err != nil {
		return nil, err
	}
	resp := resps[0].GetResponseTxn()
	resp.Header = header
	return resp, nil
}
