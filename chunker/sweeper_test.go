package chunker

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// pretended is a store and its leases as far as an empty sweep needs them, on the
// clock of a bubble.
type pretended struct {
	pb.KVClient
	clientv3.Lease

	mu    sync.Mutex
	keys  map[string]int64 // their leases
	lease int64
	err   error // of every request
}

func (p *pretended) Range(_ context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	resp := &pb.RangeResponse{}
	if _, ok := p.keys[string(r.Key)]; ok {
		resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: r.Key})
	}
	return resp, p.err
}

// Txn puts keys if others are absent.
func (p *pretended) Txn(_ context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range r.Compare {
		if _, ok := p.keys[string(c.Key)]; ok != (c.GetCreateRevision() > 0) {
			return &pb.TxnResponse{Header: &pb.ResponseHeader{}}, p.err
		}
	}
	for put := range anywhere.puts(r) {
		p.keys[string(put.Key)] = put.Lease
	}
	return &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: 1}, Succeeded: true}, p.err
}

func (p *pretended) Grant(_ context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lease++
	id := p.lease
	time.AfterFunc(time.Duration(ttl)*time.Second, func() { p.end(id) })
	return &clientv3.LeaseGrantResponse{ID: clientv3.LeaseID(id)}, p.err
}

func (p *pretended) KeepAlive(ctx context.Context, _ clientv3.LeaseID) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	alive := make(chan *clientv3.LeaseKeepAliveResponse)
	context.AfterFunc(ctx, func() { close(alive) })
	return alive, nil
}

func (p *pretended) Revoke(_ context.Context, id clientv3.LeaseID) (*clientv3.LeaseRevokeResponse, error) {
	p.end(int64(id))
	return &clientv3.LeaseRevokeResponse{}, nil
}

func (p *pretended) end(lease int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, l := range p.keys {
		if l == lease {
			delete(p.keys, key)
		}
	}
}

// TestBackgroundSweeps runs the clients of a cluster for a day. However many they
// are, one of them sweeps at a time, not more often than twice in an interval and
// not less often than in one and a half.
func TestBackgroundSweeps(t *testing.T) {
	const interval = 10 * time.Minute
	for _, clients := range []int{1, 2, 30} {
		synctest.Test(t, func(t *testing.T) {
			store := &pretended{keys: make(map[string]int64)}
			var (
				mu     sync.Mutex
				sweeps []time.Time
			)
			swept := func(result SweepResult, err error) {
				mu.Lock()
				defer mu.Unlock()
				require.NoError(t, err)
				require.Zero(t, result)
				sweeps = append(sweeps, time.Now())
			}
			var stages []*Stage
			for range clients {
				s, err := New(store, Config{Lease: store, SweepInterval: interval, OnSweep: swept})
				require.NoError(t, err)
				stages = append(stages, s)
			}
			begin := time.Now()
			<-time.After(24 * time.Hour)
			for _, s := range stages {
				require.NoError(t, s.Close())
			}
			last := begin
			for _, at := range sweeps {
				require.GreaterOrEqual(t, at.Sub(last), interval/2)
				require.LessOrEqual(t, at.Sub(last), interval*3/2)
				last = at
			}
			require.LessOrEqual(t, time.Since(last), interval*3/2)
			<-time.After(24 * time.Hour)
			require.WithinDuration(t, last, sweeps[len(sweeps)-1], 0) // Close has ended them
		})
	}
}

// TestBackgroundSweepsReportErrors and go on.
func TestBackgroundSweepsReportErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &pretended{keys: make(map[string]int64), err: errors.New("unreachable")}
		var errs []error
		s, err := New(store, Config{Lease: store, SweepInterval: time.Minute, OnSweep: func(_ SweepResult, err error) { errs = append(errs, err) }})
		require.NoError(t, err)
		<-time.After(time.Hour)
		synctest.Wait()
		require.GreaterOrEqual(t, len(errs), 40)
		require.EqualValues(t, len(errs), s.Stats().SweepErrors)
		require.Equal(t, store.err, errs[0])
		require.NoError(t, s.Close())
	})
}
