//go:build unix

package servers

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/shaper"
)

// observer passes every request on, and tells which load that was.
type observer struct {
	pb.KVClient

	mu      sync.Mutex
	entries map[int]int     // proposals, by their size
	records map[kind]int    // puts
	keys    map[string]kind // the last put of each
	deleted map[int]int     // deletes, by the length of their key
}

// kind is puts of one size.
type kind struct{ key, value int }

// observe returns a client of which every write is seen.
func observe(cli *clientv3.Client) *observer {
	o := &observer{KVClient: wire.Client(cli.KV), entries: map[int]int{}, records: map[kind]int{}, keys: map[string]kind{}, deleted: map[int]int{}}
	cli.KV = clientv3.NewKVFromKVClient(o, nil)
	return o
}

func (o *observer) Put(ctx context.Context, r *pb.PutRequest, opts ...grpc.CallOption) (*pb.PutResponse, error) {
	resp, err := o.KVClient.Put(ctx, r, opts...)
	o.wrote(r, func() { o.put(r) })
	return resp, err
}

func (o *observer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, opts ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	resp, err := o.KVClient.DeleteRange(ctx, r, opts...)
	o.wrote(r, func() { o.deleted[len(r.Key)] += int(resp.GetDeleted()) })
	return resp, err
}

func (o *observer) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	resp, err := o.KVClient.Txn(ctx, r, opts...)
	if wire.Writes(r) {
		o.wrote(r, func() { o.txn(r, resp) })
	}
	return resp, err
}

func (o *observer) wrote(r proto.Message, records func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.entries[wire.ProposalBytes(r)]++
	records()
}

func (o *observer) put(r *pb.PutRequest) {
	k := kind{len(r.Key), len(r.Value)}
	o.records[k]++
	o.keys[string(r.Key)] = k
}

func (o *observer) txn(r *pb.TxnRequest, resp *pb.TxnResponse) {
	ops := r.Failure
	if resp.GetSucceeded() {
		ops = r.Success
	}
	for i, op := range ops {
		switch {
		case op.GetRequestPut() != nil:
			o.put(op.GetRequestPut())
		case op.GetRequestDeleteRange() != nil:
			o.deleted[len(op.GetRequestDeleteRange().Key)] += int(resp.Responses[i].GetResponseDeleteRange().Deleted)
		case op.GetRequestTxn() != nil:
			o.txn(op.GetRequestTxn(), resp.Responses[i].GetResponseTxn())
		}
	}
}

// load returns what was written, over a time that it took.
func (o *observer) load(took time.Duration) (l shaper.Load) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.For = took
	rate := func(n int) float64 { return float64(n) / took.Seconds() }
	for bytes, n := range o.entries {
		l.Entries = append(l.Entries, shaper.EntryRate{PerSecond: rate(n), Bytes: bytes})
	}
	for of, r := range o.records {
		l.Records = append(l.Records, shaper.RecordRate{
			KeyBytes: of.key, ValueBytes: of.value, PerSecond: rate(r), Keys: 1,
		})
	}
	// Which keys are put in which size is not told apart in a projection: each has its last.
	byKind := map[kind]int{}
	for _, of := range o.keys {
		byKind[of]++
	}
	for i, r := range l.Records {
		l.Records[i].Keys = max(1, byKind[kind{r.KeyBytes, r.ValueBytes}])
	}
	for key, n := range o.deleted {
		l.Records = append(l.Records, shaper.RecordRate{KeyBytes: key, PerSecond: rate(n), Delete: true})
	}
	return l
}
