package budget

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ask is something that the stage asks etcd by itself, one at a time.
type ask struct {
	running bool
	last    time.Time // when it ended last
}

const (
	askTimeout = 5 * time.Second
	countEvery = time.Second // how often registered clients are counted
)

// askWhatIsDue asks, under mu, what is due: only while there are writes, which call it.
func (s *Stage) askWhatIsDue(now time.Time) {
	if s.cfg.Backend != nil {
		every := s.cfg.BackendEvery
		if s.gate.slowed(now) {
			every = min(every, time.Second)
		}
		s.ask(now, "backend", every, s.askBackend)
	}
	if s.cfg.Register {
		s.ask(now, "clients", countEvery, s.askClients)
	}
	if s.share != nil && s.limiter.waiting() && now.Sub(s.share.at) > shareAsk {
		s.ask(now, "revision", shareAsk, s.askRevision)
	}
}

// ask has f asked, unless that is being done, or was a moment ago.
func (s *Stage) ask(now time.Time, name string, every time.Duration, f func(context.Context) error) {
	a := s.asks[name]
	if a == nil {
		a = &ask{}
		s.asks[name] = a
	}
	if a.running || now.Sub(a.last) < every || s.closed {
		return
	}
	a.running = true
	s.asking.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, askTimeout)
		defer cancel()
		err := f(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil {
			s.stats.AskErrors++
		}
		now := time.Now()
		a.running, a.last = false, now
		s.move(now)
	})
}

// askBackend asks for the state of the backend.
func (s *Stage) askBackend(ctx context.Context) error {
	b, err := s.cfg.Backend(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Quota == 0 {
		b.Quota = s.cfg.Quota
	}
	if s.gate.observe(time.Now(), b, s.cfg.Retention+s.cfg.CompactionInterval) {
		s.shut()
	}
	return nil
}

// askRevision asks for the revision of the cluster.
func (s *Stage) askRevision(ctx context.Context) error {
	resp, err := s.inner.Range(ctx, &pb.RangeRequest{Key: []byte(s.cfg.RegisterPrefix), CountOnly: true})
	if err == nil {
		s.saw(resp.Header, false)
	}
	return err
}

// askClients registers the client, where it is not, and counts all.
func (s *Stage) askClients(ctx context.Context) error {
	all := &pb.RangeRequest{Key: []byte(s.cfg.RegisterPrefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(s.cfg.RegisterPrefix)), CountOnly: true}
	var clients int64
	err := s.session.With(ctx, func(lease clientv3.LeaseID) error {
		if s.registered == lease {
			resp, err := s.inner.Range(ctx, all)
			clients = resp.GetCount()
			return err
		}
		key := fmt.Appendf(nil, "%s%s", s.cfg.RegisterPrefix, rand.Text())
		resp, err := s.inner.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
			wire.Put(&pb.PutRequest{Key: key, Lease: int64(lease)}), wire.Range(all),
		}})
		if err == nil {
			s.registered, clients = lease, resp.Responses[1].GetResponseRange().Count
		}
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.share.register(int(clients))
	return nil
}
