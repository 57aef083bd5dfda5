package coalesce

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvwrap/kvwrap/internal/keys"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// fake is as much of etcd as a coalescer asks for, in the memory of a test whose clock
// is not real: there no server can run. What etcd does is tested with etcd.
type fake struct {
	pb.KVClient
	clientv3.Lease

	mu       sync.Mutex
	revision int64
	kvs      map[string]*mvccpb.KeyValue
	events   []event
	applying int // the request that is being applied, in sent
	leases   map[int64]bool
	sent     []sent

	began time.Time
	delay time.Duration // until a request is applied and answered
	fault func(r proto.Message) fault
}

// sent is a request, when it was sent, and whether it had no answer.
type sent struct {
	at         time.Duration
	req        proto.Message
	unanswered bool
}

// event is a change, when it was made, and by which request.
type event struct {
	*mvccpb.KeyValue
	at time.Duration
	by int
}

// fault is what goes wrong with a request.
type fault struct {
	err     error         // that is returned, where it is not nil
	lost    bool          // it is never applied
	late    time.Duration // after the error
	hanging bool          // it is not answered before its context ends
}

func newFake() *fake {
	return &fake{revision: 1, kvs: make(map[string]*mvccpb.KeyValue), leases: make(map[int64]bool), began: time.Now()}
}

// bubble runs f with a coalescer over a fake etcd, with a clock that begins at 0 and goes
// on when everybody waits.
func bubble(t *testing.T, cfg Config, f func(t *testing.T, e *fake, kv *KV)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e := newFake()
		kv := e.open(t, cfg)
		defer func() { require.NoError(t, kv.Close()) }()
		f(t, e, kv)
	})
}

// open returns a coalescer as of another process.
func (e *fake) open(t *testing.T, cfg Config) *KV {
	cfg.Lease = e
	s, err := New(e, cfg)
	require.NoError(t, err)
	return &KV{KV: clientv3.NewKVFromKVClient(s, nil), stage: s}
}

// clock returns the milliseconds since the beginning.
func (e *fake) clock() int { return int(time.Since(e.began).Milliseconds()) }

// writes returns when what was written, as "50: a=1 b=2", but for sequences.
func (e *fake) writes() (all []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.sent {
		puts := slices.DeleteFunc(values(s.req), func(put string) bool { return strings.HasPrefix(put, defaultSequencePrefix) })
		if len(puts) > 0 {
			all = append(all, s.at.Round(time.Millisecond).String()+": "+strings.Join(puts, " "))
		}
	}
	return all
}

// values returns what a request is to put, as key=value.
func values(r proto.Message) (all []string) {
	var visit func(ops []*pb.RequestOp)
	visit = func(ops []*pb.RequestOp) {
		for _, op := range ops {
			if p := op.GetRequestPut(); p != nil {
				all = append(all, string(p.Key)+"="+string(p.Value))
			}
			visit(op.GetRequestTxn().GetSuccess())
		}
	}
	switch r := r.(type) {
	case *pb.PutRequest:
		all = append(all, string(r.Key)+"="+string(r.Value))
	case *pb.TxnRequest:
		visit(r.Success)
	}
	return all
}

// value returns what is stored.
func (e *fake) value(key string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return string(e.kvs[key].GetValue())
}

// serve has a request applied, or not.
func serve[R proto.Message](ctx context.Context, e *fake, r proto.Message, apply func() (R, error)) (R, error) {
	type answer struct {
		resp R
		err  error
	}
	e.mu.Lock()
	e.sent = append(e.sent, sent{at: time.Since(e.began), req: r})
	delay, f := e.delay, fault{}
	if e.fault != nil {
		f = e.fault(r)
	}
	number := len(e.sent) - 1
	e.sent[number].unanswered = f.hanging || f.err != nil
	e.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return answer{}.resp, err
	}
	applied := make(chan answer, 1)
	go func() {
		time.Sleep(delay)
		if f.lost {
			return
		}
		time.Sleep(f.late)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.applying = number
		resp, err := apply()
		applied <- answer{resp, err}
	}()
	answers, fails := (<-chan answer)(applied), (<-chan time.Time)(nil)
	if f.hanging || f.err != nil {
		answers = nil
	}
	if f.err != nil {
		fails = time.After(delay)
	}
	select {
	case a := <-answers:
		return a.resp, a.err
	case <-fails:
		return answer{}.resp, f.err
	case <-ctx.Done():
		return answer{}.resp, ctx.Err()
	}
}

func (e *fake) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	return serve(ctx, e, r, func() (*pb.RangeResponse, error) {
		resp := e.find(r)
		resp.Header = e.header()
		return resp, nil
	})
}

func (e *fake) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	return serve(ctx, e, r, func() (*pb.PutResponse, error) {
		if err := e.check(r); err != nil {
			return nil, err
		}
		e.revision++
		resp := e.put(r)
		resp.Header = e.header()
		return resp, nil
	})
}

func (e *fake) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return serve(ctx, e, r, func() (*pb.DeleteRangeResponse, error) {
		e.revision++
		resp := &pb.DeleteRangeResponse{Deleted: e.delete(keys.Range{Key: r.Key, End: r.RangeEnd})}
		resp.Header = e.header()
		return resp, nil
	})
}

func (e *fake) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	return serve(ctx, e, r, func() (*pb.TxnResponse, error) {
		path := map[*pb.TxnRequest]bool{}
		writes := 0
		var decide func(t *pb.TxnRequest) error
		decide = func(t *pb.TxnRequest) error {
			path[t] = true
			for _, c := range t.Compare {
				if len(c.Key) == 0 {
					return rpctypes.ErrEmptyKey
				}
				path[t] = path[t] && e.holds(c)
			}
			for _, op := range branch(t, path[t]) {
				switch {
				case op.GetRequestTxn() != nil:
					if err := decide(op.GetRequestTxn()); err != nil {
						return err
					}
				case op.GetRequestPut() != nil:
					writes++
					if err := e.check(op.GetRequestPut()); err != nil {
						return err
					}
				case op.GetRequestDeleteRange() != nil:
					writes++
				}
			}
			return nil
		}
		if err := decide(r); err != nil {
			return nil, err
		}
		if writes > 0 {
			e.revision++
		}
		resp := e.txn(r, path)
		resp.Header = e.header()
		return resp, nil
	})
}

func branch(t *pb.TxnRequest, succeeded bool) []*pb.RequestOp {
	if succeeded {
		return t.Success
	}
	return t.Failure
}

func (e *fake) txn(t *pb.TxnRequest, path map[*pb.TxnRequest]bool) *pb.TxnResponse {
	resp := &pb.TxnResponse{Succeeded: path[t], Header: &pb.ResponseHeader{}}
	for _, op := range branch(t, path[t]) {
		var r pb.ResponseOp
		switch {
		case op.GetRequestTxn() != nil:
			r.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: e.txn(op.GetRequestTxn(), path)}
		case op.GetRequestPut() != nil:
			r.Response = &pb.ResponseOp_ResponsePut{ResponsePut: e.put(op.GetRequestPut())}
		case op.GetRequestRange() != nil:
			r.Response = &pb.ResponseOp_ResponseRange{ResponseRange: e.find(op.GetRequestRange())}
		default:
			d := op.GetRequestDeleteRange()
			r.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Deleted: e.delete(keys.Range{Key: d.Key, End: d.RangeEnd})}}
		}
		resp.Responses = append(resp.Responses, &r)
	}
	return resp
}

func (e *fake) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: 1, MemberId: 1, Revision: e.revision, RaftTerm: 1}
}

func (e *fake) check(r *pb.PutRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrEmptyKey
	}
	if r.Lease != 0 && !e.leases[r.Lease] {
		return rpctypes.ErrLeaseNotFound
	}
	return nil
}

func (e *fake) put(r *pb.PutRequest) *pb.PutResponse {
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, CreateRevision: e.revision, ModRevision: e.revision, Version: 1, Lease: r.Lease}
	if was := e.kvs[string(r.Key)]; was != nil {
		kv.CreateRevision, kv.Version = was.CreateRevision, was.Version+1
	}
	e.kvs[string(r.Key)] = kv
	e.happened(kv)
	return &pb.PutResponse{Header: &pb.ResponseHeader{Revision: e.revision}}
}

func (e *fake) happened(kv *mvccpb.KeyValue) {
	e.events = append(e.events, event{kv, time.Since(e.began), e.applying})
}

func (e *fake) delete(r keys.Range) (n int64) {
	for key := range e.kvs {
		if r.Contains([]byte(key)) {
			delete(e.kvs, key)
			e.happened(&mvccpb.KeyValue{Key: []byte(key), ModRevision: e.revision})
			n++
		}
	}
	return n
}

func (e *fake) find(r *pb.RangeRequest) *pb.RangeResponse {
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{}}
	in := keys.Range{Key: r.Key, End: r.RangeEnd}
	kvs := e.kvs
	if r.Revision != 0 {
		kvs = make(map[string]*mvccpb.KeyValue)
		for _, kv := range e.events {
			if kv.ModRevision <= r.Revision {
				kvs[string(kv.Key)] = kv.KeyValue
			}
		}
	}
	for _, kv := range kvs {
		if kv.Version > 0 && in.Contains(kv.Key) && kv.ModRevision >= r.MinModRevision {
			resp.Kvs = append(resp.Kvs, proto.CloneOf(kv))
		}
	}
	slices.SortFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	resp.Count = int64(len(resp.Kvs))
	return resp
}

func (e *fake) holds(c *pb.Compare) bool {
	found := e.find(&pb.RangeRequest{Key: c.Key, RangeEnd: c.RangeEnd}).Kvs
	if len(found) == 0 {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		found = []*mvccpb.KeyValue{{}}
	}
	for _, kv := range found {
		var o int
		switch c.Target {
		case pb.Compare_VALUE:
			o = bytes.Compare(kv.Value, c.GetValue())
		case pb.Compare_VERSION:
			o = cmp.Compare(kv.Version, c.GetVersion())
		case pb.Compare_CREATE:
			o = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
		case pb.Compare_MOD:
			o = cmp.Compare(kv.ModRevision, c.GetModRevision())
		case pb.Compare_LEASE:
			o = cmp.Compare(kv.Lease, c.GetLease())
		}
		if want := map[pb.Compare_CompareResult]bool{pb.Compare_EQUAL: o == 0, pb.Compare_NOT_EQUAL: o != 0, pb.Compare_LESS: o < 0, pb.Compare_GREATER: o > 0}; !want[c.Result] {
			return false
		}
	}
	return true
}

func (e *fake) Grant(context.Context, int64) (*clientv3.LeaseGrantResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id := int64(len(e.leases) + 1)
	e.leases[id] = true
	return &clientv3.LeaseGrantResponse{ID: clientv3.LeaseID(id)}, nil
}

func (e *fake) KeepAlive(ctx context.Context, _ clientv3.LeaseID) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	ch := make(chan *clientv3.LeaseKeepAliveResponse)
	context.AfterFunc(ctx, func() { close(ch) })
	return ch, nil
}

func (e *fake) TimeToLive(_ context.Context, id clientv3.LeaseID, _ ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.leases[int64(id)] {
		return &clientv3.LeaseTimeToLiveResponse{TTL: 60}, nil
	}
	return &clientv3.LeaseTimeToLiveResponse{TTL: -1}, nil
}

func (e *fake) Revoke(_ context.Context, id clientv3.LeaseID) (*clientv3.LeaseRevokeResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.expire(int64(id))
	return &clientv3.LeaseRevokeResponse{}, nil
}

// expire ends a lease, and deletes its keys.
func (e *fake) expire(id int64) {
	e.leases[id] = false
	e.revision++
	for key, kv := range e.kvs {
		if kv.Lease == id {
			e.delete(keys.Range{Key: []byte(key)})
		}
	}
}
