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
	last    time.Time     // when it was answered last; zero where that has failed
	failed  time.Time     // when it has failed last
	ended   bool          // whether it ever has ended
	end     chan struct{} // closed when it ends the next time
}

// asks is what the stage asks.
type asks struct{ backend, clients, revision ask }

const (
	askTimeout = 5 * time.Second
	askAgain   = time.Second // after a failure
	countEvery = time.Second // how often registered clients are counted
)

// askWhatIsDue asks, under mu, what is due: only while there are writes, which call it.
func (s *Stage) askWhatIsDue(now time.Time) {
	s.mayAsk(now, &s.asks.backend, s.cfg.Backend != nil && s.gate.due(now, s.asks.backend.last, s.cfg.BackendEvery), s.askBackend)
	s.mayAsk(now, &s.asks.clients, s.cfg.Register && now.Sub(s.asks.clients.last) >= countEvery, s.askClients)
	s.mayAsk(now, &s.asks.revision, s.share != nil && s.limiter.waiting() && now.Sub(s.share.at) > shareAsk && now.Sub(s.asks.revision.last) > shareAsk, s.askRevision)
}

// mayAsk has f asked where it is due, unless that is being done, or has failed a moment
// ago.
func (s *Stage) mayAsk(now time.Time, a *ask, due bool, f func(context.Context) error) {
	if !due || a.running || s.closed || now.Sub(a.failed) < askAgain {
		return
	}
	a.running = true
	s.asking.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, askTimeout)
		defer cancel()
		err := f(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		now := time.Now()
		if a.running, a.last = false, now; err != nil {
			s.askErrors++
			a.failed, a.last = now, time.Time{}
			if a == &s.asks.backend {
				s.gate.failed(now)
			}
		}
		close(a.end)
		a.ended, a.end = true, make(chan struct{})
		s.move(now)
	})
}

// askBackend asks for the state of the backend.
func (s *Stage) askBackend(ctx context.Context) error {
	s.mu.Lock()
	asked := time.Now()
	if s.gate.mark(asked); s.gate.asked.IsZero() {
		s.gate.asked = asked
	}
	before := s.gate.marks[0]
	s.mu.Unlock()
	b, err := s.cfg.Backend(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Quota == 0 {
		b.Quota = s.cfg.Quota
	}
	if s.gate.observe(time.Now(), asked, before, b, s.cfg.Retention+s.cfg.CompactionInterval) {
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
