package chunker

import (
	"bytes"
	"cmp"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// etcd filters, sorts and limits what a range request found, in this order. It
// knows stored values only, so a request that sorts by value is sent without its
// sort and its limit where values may be chunked, and arranged here.

// sortsByValue reports whether the order, and so the choice, of what r returns
// depends on values.
func sortsByValue(r *pb.RangeRequest) bool {
	return r.SortTarget == pb.RangeRequest_VALUE && len(r.RangeEnd) > 0 && !r.CountOnly
}

// unsorted returns r as it has to be sent so that [arrange] can do the rest: it
// returns all that r chooses from, in the order of the keys, with values where
// these decide.
func unsorted(r *pb.RangeRequest) *pb.RangeRequest {
	u := part(r, r.Key, r.RangeEnd)
	u.KeysOnly = r.KeysOnly && !sortsByValue(r) // etcd leaves out the lease, too
	u.SortTarget, u.SortOrder = pb.RangeRequest_KEY, pb.RangeRequest_NONE
	u.Limit = 0
	if limitsFirst(r) {
		u.Limit = r.Limit + 1
	}
	return u
}

// limitsFirst reports a quirk of etcd's: with a sort target but no order it takes
// the first keys, one more than the limit, and sorts those (rangeLimit in
// etcdserver/txn/range.go).
func limitsFirst(r *pb.RangeRequest) bool {
	return r.SortTarget != pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_NONE && r.Limit > 0 &&
		r.MinModRevision == 0 && r.MaxModRevision == 0 && r.MinCreateRevision == 0 && r.MaxCreateRevision == 0
}

// part returns r for another range of keys.
func part(r *pb.RangeRequest, key, end []byte) *pb.RangeRequest {
	return &pb.RangeRequest{
		Key: key, RangeEnd: end,
		Limit: r.Limit, Revision: r.Revision,
		SortOrder: r.SortOrder, SortTarget: r.SortTarget,
		Serializable: r.Serializable, KeysOnly: r.KeysOnly, CountOnly: r.CountOnly,
		MinModRevision: r.MinModRevision, MaxModRevision: r.MaxModRevision,
		MinCreateRevision: r.MinCreateRevision, MaxCreateRevision: r.MaxCreateRevision,
	}
}

// concat joins the answers to the parts of a request, in the order of their keys.
func concat(parts []*pb.RangeResponse) *pb.RangeResponse {
	if len(parts) == 1 {
		return parts[0]
	}
	all := &pb.RangeResponse{Header: parts[0].Header}
	for _, p := range parts {
		all.Kvs = append(all.Kvs, p.Kvs...)
		all.Count += p.Count
		all.More = all.More || p.More
	}
	return all
}

// arrange sorts and limits what was found for r as etcd does. It uses etcd's
// sort algorithm, too, which decides the order of equal keys; that is another
// where both parts of a range were limited before.
func arrange(r *pb.RangeRequest, resp *pb.RangeResponse) {
	order := r.SortOrder
	if order == pb.RangeRequest_NONE && r.SortTarget != pb.RangeRequest_KEY {
		order = pb.RangeRequest_ASCEND
	}
	if limitsFirst(r) && int64(len(resp.Kvs)) > r.Limit+1 {
		resp.Kvs = resp.Kvs[:r.Limit+1]
	}
	if order != pb.RangeRequest_NONE {
		var by sort.Interface = sorter{resp.Kvs, comparer(r.SortTarget)}
		if order == pb.RangeRequest_DESCEND {
			by = sort.Reverse(by)
		}
		sort.Sort(by)
	}
	if r.Limit > 0 && int64(len(resp.Kvs)) > r.Limit {
		resp.Kvs, resp.More = resp.Kvs[:r.Limit], true
	}
	if r.KeysOnly {
		for _, kv := range resp.Kvs {
			kv.Value = nil
		}
	}
}

type sorter struct {
	kvs     []*mvccpb.KeyValue
	compare func(a, b *mvccpb.KeyValue) int
}

func (s sorter) Len() int           { return len(s.kvs) }
func (s sorter) Swap(i, j int)      { s.kvs[i], s.kvs[j] = s.kvs[j], s.kvs[i] }
func (s sorter) Less(i, j int) bool { return s.compare(s.kvs[i], s.kvs[j]) < 0 }

func comparer(target pb.RangeRequest_SortTarget) func(a, b *mvccpb.KeyValue) int {
	switch target {
	case pb.RangeRequest_VERSION:
		return func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.Version, b.Version) }
	case pb.RangeRequest_CREATE:
		return func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) }
	case pb.RangeRequest_MOD:
		return func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) }
	case pb.RangeRequest_VALUE:
		return func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Value, b.Value) }
	}
	return func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) }
}
