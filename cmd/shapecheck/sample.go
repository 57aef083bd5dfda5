package main

import (
	"context"
	"fmt"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/shaper"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// sample is what a cluster was written to for some time.
type sample struct {
	Took    time.Duration  `json:"nanoseconds"`
	Traffic shaper.Traffic `json:"traffic"`
	Others  uint64         `json:"otherEntries"` // raft entries that have changed no key: leases, transactions that fail
	Version string         `json:"version"`
	Quota   int64          `json:"quota"` // 0 where the member does not say
	Live    shaper.Live    `json:"live"`
}

// otherEntryBytes is what an entry that changes no key is taken to have: a lease, or a
// comparison.
const otherEntryBytes = 100

// load returns the sample as a load.
func (s *sample) load() shaper.Load {
	t := s.Traffic
	t.Window = t.Total // all of it
	l := t.Load(s.Live)
	if s.Others > 0 {
		l.Entries = append(l.Entries, shaper.EntryRate{PerSecond: float64(s.Others) / s.Took.Seconds(), Bytes: otherEntryBytes})
	}
	return l
}

// sampler makes requests again of what a watcher is told, for a meter to count.
type sampler struct {
	meter *shaper.Meter
	stage *shaper.Stage
}

func newSampler() (*sampler, error) {
	meter, err := shaper.NewMeter(shaper.MeterConfig{})
	if err != nil {
		return nil, err
	}
	return &sampler{meter, meter.Stage(answers{})}, nil
}

// add takes the events of a response, which has all of a revision. A revision is one
// entry: a put, a delete, or a transaction.
func (s *sampler) add(ctx context.Context, events []*clientv3.Event) {
	for len(events) > 0 {
		n := 1
		for n < len(events) && events[n].Kv.ModRevision == events[0].Kv.ModRevision {
			n++
		}
		s.revision(ctx, events[:n])
		events = events[n:]
	}
}

func (s *sampler) revision(ctx context.Context, events []*clientv3.Event) {
	txn := &pb.TxnRequest{}
	for _, e := range events {
		put := &pb.PutRequest{Key: e.Kv.Key, Value: e.Kv.Value, Lease: e.Kv.Lease}
		gone := &pb.DeleteRangeRequest{Key: e.Kv.Key}
		switch {
		case len(events) == 1 && e.Type == clientv3.EventTypePut:
			s.meter.Observe(put)
			return
		case len(events) == 1:
			s.stage.DeleteRange(ctx, gone)
			return
		case e.Type == clientv3.EventTypePut:
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		default:
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: gone}})
		}
	}
	s.stage.Txn(ctx, txn)
}

// answers is a pb.KVClient to which everything has succeeded.
type answers struct{ pb.KVClient }

func (answers) DeleteRange(context.Context, *pb.DeleteRangeRequest, ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return &pb.DeleteRangeResponse{Deleted: 1}, nil
}

func (answers) Txn(_ context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	resp := &pb.TxnResponse{Succeeded: true}
	for _, op := range r.Success {
		answer := &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}}
		if op.GetRequestDeleteRange() != nil {
			answer.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Deleted: 1}}
		}
		resp.Responses = append(resp.Responses, answer)
	}
	return resp, nil
}

// progressEvery is how often a sample that has ended asks whether it was told all. A server
// that is behind with it does not answer.
const progressEvery = 50 * time.Millisecond

// takeSample watches the keys with a prefix, of all clients, until done.
func takeSample(ctx context.Context, cli *clientv3.Client, prefix string, took time.Duration, done <-chan time.Time, p *progress) (*sample, error) {
	monitor, err := budget.NewMonitor(cli, budget.MonitorConfig{})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	who, watched := fmt.Sprintf("who may read all keys with the prefix %q", prefix), clientv3.WithRequireLeader(ctx)
	if prefix == "" {
		who = `with the role root, or who may read all keys, from "\x00" on`
	}
	watch := cli.Watch(watched, prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify(), clientv3.WithFragment())
	if resp := <-watch; ctx.Err() != nil || resp.Err() != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, asking(who, fmt.Sprintf("watching keys with the prefix %q", prefix), resp.Err())
	}
	before, err := monitor.Check(ctx)
	if err != nil {
		return nil, asking(who, "asking for the members", err)
	}
	began := time.Now()
	s, err := newSampler()
	if err != nil {
		return nil, err
	}
	p.say("watching for %v what is written", took)
	var end int64 // the last revision of the sample; 0 while it goes on
	ask := time.NewTicker(progressEvery)
	defer ask.Stop()
	for seen := int64(0); end == 0 || seen < end; {
		select {
		case resp, ok := <-watch:
			if err := resp.Err(); err != nil || !ok {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				return nil, asking(who, "watching", err)
			}
			s.add(ctx, resp.Events)
			if resp.IsProgressNotify() {
				seen = resp.Header.Revision
			}
		case <-done:
			done = nil
			now, err := cli.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
			if err != nil {
				return nil, asking(who, "asking for the revision", err)
			}
			end = now.Header.Revision
		case <-ask.C:
			if end > 0 { // what was written until then may yet be on its way
				if err := cli.RequestProgress(watched); err != nil {
					return nil, asking(who, "watching", err)
				}
			}
		}
	}
	result := &sample{Took: time.Since(began), Traffic: s.meter.Traffic()}
	after, err := monitor.Check(ctx)
	if err != nil {
		return nil, asking(who, "asking for the members", err)
	}
	result.settle(before, after)
	return result, nil
}

// settle takes what the members say of themselves from the largest one that has answered.
func (s *sample) settle(before, after budget.Health) {
	index := func(h budget.Health) (n uint64) {
		for _, m := range h.Members {
			n = max(n, m.RaftIndex)
		}
		return n
	}
	if grown := index(after) - index(before); index(after) > index(before) && grown > s.Traffic.Total.Entries {
		s.Others = grown - s.Traffic.Total.Entries
	}
	for _, m := range after.Members {
		if m.Error == "" && m.DbSize > s.Live.DbSize {
			s.Version, s.Live = m.Version, shaper.Live{Revision: m.Revision, InUse: m.DbSizeInUse, DbSize: m.DbSize}
			if s.Quota = m.Quota; m.QuotaAssumed {
				s.Quota = 0
			}
		}
	}
}
