package coalesce

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func drawPut(t *rapid.T) *pb.PutRequest {
	return &pb.PutRequest{
		Key:         rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "key"),
		Value:       rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "value"),
		Lease:       rapid.SampledFrom([]int64{0, 0, 1, 1 << 62, -1}).Draw(t, "lease"),
		PrevKv:      rapid.Bool().Draw(t, "prevKV"),
		IgnoreValue: rapid.Bool().Draw(t, "ignoreValue"),
		IgnoreLease: rapid.Bool().Draw(t, "ignoreLease"),
	}
}

func TestPutBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPut(t)
		require.Equal(t, proto.Size(p), putBytes(p))
		require.Equal(t, proto.Size(&pb.TxnRequest{Success: []*pb.RequestOp{wire.Put(p)}}), itemBytes(wire.Put(p)))
	})
}

// TestWhatFitsIsAccepted draws plans, and holds that what fits, by what is computed of
// it, has no more operations and bytes than that when it is sent; and that the responses
// come back to where they belong.
func TestWhatFitsIsAccepted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			l     = limits{maxOps: maxMaxOps, entryBytes: rapid.IntRange(1000, 64<<10).Draw(t, "entryBytes"), txnOps: rapid.IntRange(4, 140).Draw(t, "txnOps")}
			sh    = shape{outer: rapid.Bool().Draw(t, "outer")}
			seq   = &sequence{key: sequenceKey(defaultSequencePrefix), lease: 1 << 62, version: 1 << 62}
			outer = sequenceBytes(defaultSequencePrefix)
			plans []*plan
			items []*pb.RequestOp
		)
		n := rapid.IntRange(1, 3000).Draw(t, "plans")
		one, guarded := drawPut(t), rapid.IntRange(0, 5).Draw(t, "one in so many has guards")
		for i := range n {
			p := &plan{step: write, ops: []*pb.RequestOp{wire.Put(one)}}
			if guarded > 0 && i%guarded == 0 {
				p.guards = []*pb.Compare{modified(one.Key, 1<<40), modified(one.Key, 1)}
				p.ops = append(p.ops, wire.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("k")}))
			}
			p.measure()
			if !sh.plus(p).fits(l, outer) {
				break
			}
			sh = sh.plus(p)
			plans, items = append(plans, p), append(items, p.request()...)
		}
		if len(plans) == 0 {
			return
		}
		size, ok := sh.groups(l.txnOps)
		require.True(t, ok)
		r := &pb.TxnRequest{Success: pack(items, size)}
		if sh.outer {
			r = seq.wrap(r.Success)
		}
		require.LessOrEqual(t, wire.Width(r), l.txnOps)
		bytes := wire.ProposalBytes(r)
		require.LessOrEqual(t, bytes, l.entryBytes)
		require.LessOrEqual(t, sh.proposalBytes(size, outer)-bytes, 80+nestedBytes*(len(r.Success)+len(plans)), "the bound is not far away")

		// Each response carries where it belongs.
		resps := answerAll(r.Success, new(int64))
		resps = unpack(resps[:len(pack(items, size))], size)
		next := int64(0)
		for _, p := range plans {
			var own []*pb.ResponseOp
			var held bool
			resps, own, held = p.take(resps)
			require.True(t, held)
			require.Len(t, own, len(p.ops))
			for _, resp := range own {
				next++
				if put := resp.GetResponsePut(); put != nil {
					require.Equal(t, next, put.Header.Revision)
				} else {
					require.Equal(t, next, resp.GetResponseDeleteRange().Deleted)
				}
			}
		}
		require.Empty(t, resps)
	})
}

// answerAll answers operations with the numbers that they have in order.
func answerAll(ops []*pb.RequestOp, n *int64) (resps []*pb.ResponseOp) {
	for _, op := range ops {
		switch {
		case op.GetRequestTxn() != nil:
			resps = append(resps, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: &pb.TxnResponse{
				Succeeded: true, Responses: answerAll(op.GetRequestTxn().Success, n),
			}}})
		case op.GetRequestPut() != nil:
			*n++
			resps = append(resps, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: &pb.ResponseHeader{Revision: *n}}}})
		default:
			*n++
			resps = append(resps, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Deleted: *n}}})
		}
	}
	return resps
}

// TestABatchOfThousands is one transaction within the server's default.
func TestABatchOfThousands(t *testing.T) {
	sh := shape{outer: true}
	p := &plan{ops: []*pb.RequestOp{put("k", "")}}
	n := 0
	for ; sh.plus(p).fits(limits{maxOps: maxMaxOps, entryBytes: 1 << 20, txnOps: defaultMaxTxnOps}, 0); n++ {
		sh = sh.plus(p)
	}
	require.GreaterOrEqual(t, n, 4000)
}
