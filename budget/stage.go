package budget

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/kvwrap/kvwrap/internal/session"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Stage paces writes, as middleware: a pb.KVClient over another one. It is safe for
// concurrent use. Reads and compactions pass; so does everything where Config has neither
// Rates nor Backend.
//
// It implements every method by name, so that a new one in pb.KVClient breaks the build
// and does not slip past it.
type Stage struct {
	inner      pb.KVClient
	cfg        Config
	paces      bool
	session    *session.Session
	registered clientv3.LeaseID // used by askClients alone

	ctx    context.Context // of what it asks by itself; ends with Close
	cancel context.CancelFunc
	asking sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	limiter   *limiter
	rules     rules
	share     *share // nil where the budget is the client's own
	stepped   time.Time
	gate      gate
	meter     meter
	usual     Rates         // that was asked for before writes were slowed down
	takes     time.Duration // that etcd takes for a write, smoothed
	timer     *time.Timer
	asks      asks
	askErrors uint64
}

var _ pb.KVClient = (*Stage)(nil)

// New returns a stage over inner. It sends nothing before it is used.
func New(inner pb.KVClient, cfg Config) (*Stage, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if inner == nil {
		return nil, fmt.Errorf("%w: the KV to write to is nil: use the client's", ErrConfig)
	}
	cfg = cfg.withDefaults()
	s := &Stage{inner: inner, cfg: cfg, paces: cfg.Paces()}
	for _, a := range []*ask{&s.asks.backend, &s.asks.clients, &s.asks.revision} {
		a.end = make(chan struct{})
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.session = session.New(cfg.Lease, cfg.SessionTTL, context.Canceled)
	if cfg.Shared {
		s.share = newShare(cfg.Rates.Revisions)
	}
	now := time.Now()
	s.gate.watched = cfg.Backend != nil
	s.limiter = newLimiter(now, cfg.Rates, cfg.Burst, cfg.Weights, cfg.MaxWaiting)
	s.limiter.refuses = func(now time.Time, c Cost) error {
		err := s.gate.refuses(now, c)
		if err == nil {
			s.gate.goes(now, c)
		}
		return err
	}
	s.rules = newRules(cfg.Rules, s.limiter)
	s.refresh(now)
	return s, nil
}

// Put implements pb.KVClient. It waits until there is budget for it, or ctx ends, after
// which nothing was sent; or it is refused with a [*LimitError], [*QuotaError] or
// [*NoSpaceError].
func (s *Stage) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	if !s.paces {
		return s.inner.Put(ctx, r)
	}
	cost := costPut(r)
	g, err := s.admit(ctx, s.ruleOf(r.Key), cost)
	if err != nil {
		return nil, err
	}
	resp, err := s.inner.Put(ctx, r)
	s.done(g, cost, resp.GetHeader(), err)
	return resp, err
}

// DeleteRange implements pb.KVClient, as Put.
func (s *Stage) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	if !s.paces {
		return s.inner.DeleteRange(ctx, r)
	}
	g, err := s.admit(ctx, s.ruleOf(r.Key), Cost{Revisions: 1})
	if err != nil {
		return nil, err
	}
	resp, err := s.inner.DeleteRange(ctx, r)
	s.done(g, spentDelete(resp), resp.GetHeader(), err)
	return resp, err
}

// Txn implements pb.KVClient, as Put. A transaction that only reads passes; of another one
// what it has not written is given back.
func (s *Stage) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	cost := Cost{}
	if s.paces {
		cost = costTxn(r)
	}
	if cost == (Cost{}) {
		resp, err := s.inner.Txn(ctx, r)
		s.saw(resp.GetHeader(), wire.Serializable(r))
		return resp, err
	}
	g, err := s.admit(ctx, s.ruleOfAll(r), cost)
	if err != nil {
		return nil, err
	}
	resp, err := s.inner.Txn(ctx, r)
	spent := cost
	if err == nil {
		spent = spentTxn(r, resp)
	}
	s.done(g, spent, resp.GetHeader(), err)
	return resp, err
}

// Range implements pb.KVClient.
func (s *Stage) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	resp, err := s.inner.Range(ctx, r)
	s.saw(resp.GetHeader(), r.Serializable)
	return resp, err
}

// RangeStream implements pb.KVClient.
func (s *Stage) RangeStream(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	return s.inner.RangeStream(ctx, r)
}

// Compact implements pb.KVClient.
func (s *Stage) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	return s.inner.Compact(ctx, r)
}

// SetRates changes the rates, at once and for those who wait already. Of a shared budget
// Revisions is that of the cluster. A stage that paces nothing stays so, which is an error:
// it has not counted what is under way.
func (s *Stage) SetRates(r Rates) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := s.cfg
	cfg.Rates = r
	if err := cfg.Validate(); err != nil {
		return err
	}
	if !s.paces && cfg.Paces() {
		return fmt.Errorf("%w: nothing was paced so far: set Rates or Backend in the Config, to a rate that is never reached for instance, and change it then", ErrConfig)
	}
	if s.cfg = cfg; s.share != nil {
		s.share.setBudget(r.Revisions)
	}
	s.move(time.Now())
	return nil
}

// pace is how a write is paced: with those of a rule, and whether it may wait.
type pace struct {
	*rule
	reject bool
}

func (s *Stage) ruleOf(key []byte) pace {
	r := s.rules.of(key)
	return pace{r, r.Reject}
}

// ruleOfAll returns how a transaction is paced: as the most urgent of its keys, and refused
// only where that is so of all of them.
func (s *Stage) ruleOfAll(t *pb.TxnRequest) pace {
	p := pace{reject: true}
	each := func(key []byte) {
		r := s.rules.of(key)
		p.reject = p.reject && r.Reject
		if p.rule == nil || r.Class.urgency() < p.Class.urgency() {
			p.rule = r
		}
	}
	keysOf(t.Success, each)
	keysOf(t.Failure, each)
	return p
}

// admit waits until there is budget for a write.
func (s *Stage) admit(ctx context.Context, r pace, cost Cost) (grant, error) {
	if err := ctx.Err(); err != nil {
		return grant{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	began := time.Now()
	stats := &r.flow.class.stats
	if s.allowanceOf(ctx) == nil {
		s.meter.add(began, cost)
	}
	waited := false
	for {
		g, err := s.attempt(ctx, r, cost, &waited)
		switch {
		case err == errLook && s.gate.looks > 0 && (r.reject || time.Since(began) > patience):
			g, err = grant{}, s.gate.full(time.Now(), cost)
			stats.Refused++
		case err == errLook:
			if waited, err = true, s.sleep(ctx, s.asks.backend.end); err == nil {
				continue
			}
		}
		if waited {
			stats.Waited += time.Since(began)
		}
		switch {
		case err != nil && err == ctx.Err():
			stats.Left++
			err = s.left(err, began, r, cost)
		case err != nil || g.within:
		case waited:
			stats.Delayed++
		default:
			stats.Admitted++
		}
		return g, err
	}
}

// patience is for how long a write waits for the backend to have room for it, where that
// is not certain.
const patience = time.Second

// attempt is admit without a look: it may return errLook. It returns the context's error, as
// it is, where that has ended.
func (s *Stage) attempt(ctx context.Context, r pace, cost Cost, waited *bool) (grant, error) {
	// A client that registers has its share when it is registered, and goes on without where
	// that fails.
	for s.move(time.Now()); s.cfg.Register && !s.asks.clients.ended && !s.closed && s.allowanceOf(ctx) == nil; {
		*waited = true
		if err := s.sleep(ctx, s.asks.clients.end); err != nil {
			return grant{}, err
		}
	}
	g, wait, err := s.enter(ctx, time.Now(), r, cost)
	if wait == nil {
		return g, err
	}
	*waited = true
	s.mu.Unlock()
	select {
	case <-wait.goes:
	case <-ctx.Done():
	}
	s.mu.Lock()
	left := s.limiter.leave(wait) // it waits still: its context has ended
	switch {
	case !left && wait.refused != nil:
		return grant{}, wait.refused
	case !left && ctx.Err() == nil:
		wait.seen = s.newest()
		return wait.grant, nil
	case !left: // it may go, and its context has ended in the same moment
		s.limiter.giveBack(time.Now(), wait.grant, cost)
		s.gate.stays(cost)
	}
	s.move(time.Now())
	return grant{}, ctx.Err()
}

// left returns the error for a write whose context has ended while it waited.
func (s *Stage) left(err error, began time.Time, r pace, cost Cost) error {
	now := time.Now()
	e := LimitError{Wait: now.Sub(began), RetryAfter: s.limiter.expect(now, &r.flow, cost), Err: err}
	return s.limited(now, r, cost, e)
}

// limited returns e with what it has to say of the budget.
func (s *Stage) limited(now time.Time, r pace, cost Cost, e LimitError) error {
	e.Prefix, e.Class, e.Cost, e.Waiting = r.Prefix, r.Class, Cost{Revisions: cost.Revisions, Bytes: cost.Bytes}, r.flow.class.waiting
	e.Limit, e.Why, e.Demand = s.limiter.rates, s.why(now), s.meter.rates(now)
	e.RetryAfter = max(e.RetryAfter, time.Millisecond)
	return &e
}

// sleep waits, not under mu, until end is closed, for a moment at the most.
func (s *Stage) sleep(ctx context.Context, end <-chan struct{}) error {
	s.mu.Unlock()
	defer s.mu.Lock()
	moment := time.NewTimer(lookLeast)
	defer moment.Stop()
	select {
	case <-end:
	case <-moment.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// enter is admit under mu. It returns who waits, where that is what it has to do.
func (s *Stage) enter(ctx context.Context, now time.Time, r pace, cost Cost) (g grant, wait *waiter, err error) {
	if a := s.allowanceOf(ctx); a != nil {
		g = a.draw(now, s.limiter, &s.gate, cost)
		g.seen = s.newest()
		return g, nil, nil
	}
	stats := &r.flow.class.stats
	if err := s.gate.refuses(now, cost); err != nil {
		if err != errLook {
			stats.Refused++
		}
		return g, nil, err
	}
	g, ok := s.limiter.pass(now, &r.flow, cost)
	if ok {
		s.gate.goes(now, cost)
		g.seen = s.newest()
		return g, nil, nil
	}
	if s.share != nil {
		s.share.capped = true
	}
	full := s.limiter.full(&r.flow)
	expected := s.limiter.expect(now, &r.flow, cost)
	if full {
		expected = s.limiter.opens(now, &r.flow)
	}
	may := s.mayWait(ctx, now, r)
	// What a client that has just come will have of a shared budget nobody knows.
	if !full && (expected <= may || s.share.young(now) && !r.reject) {
		wait = s.limiter.enter(&r.flow, cost)
		s.move(now)
		if wait.at != nil {
			return g, wait, nil
		}
		if wait.refused != nil {
			return g, nil, wait.refused // which is counted
		}
		wait.seen = s.newest()
		return wait.grant, nil, nil
	}
	stats.Refused++
	after := expected
	if !full {
		after -= may
	}
	return g, nil, s.limited(now, r, cost, LimitError{Wait: expected, RetryAfter: after, Full: full})
}

// mayWait returns for how long a write may wait: so that etcd's answer comes before its
// context ends.
func (s *Stage) mayWait(ctx context.Context, now time.Time, r pace) time.Duration {
	if r.reject {
		return 0
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		return math.MaxInt64
	}
	return max(0, deadline.Sub(now)-s.takes)
}

// newest returns the newest revision that was seen, where that is of interest.
func (s *Stage) newest() int64 {
	if s.share == nil {
		return 0
	}
	return s.share.newest
}

// done is told how a write has ended that has taken g, and has spent this.
func (s *Stage) done(g grant, spent Cost, h *pb.ResponseHeader, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if err != nil {
		spent = g.cost // who knows
	} else {
		s.takes += (now.Sub(g.at) - s.takes) / 16
	}
	if s.share != nil {
		s.share.use(spent.Revisions)
	}
	if unused := g.cost.minus(spent); unused != (Cost{}) {
		s.limiter.giveBack(now, g, unused)
	}
	if s.share != nil && h != nil {
		s.share.observe(now, h.ClusterId, h.Revision, false)
		s.share.wrote(now, g.seen, h.Revision)
	}
	if unapplied(err) {
		spent.Bytes = 0 // of what may be in the backend
	}
	if s.gate.answered(now, g.cost, spent, err) {
		s.shut()
	}
	s.move(now)
}

// saw takes note of the header of a response to what is not paced.
func (s *Stage) saw(h *pb.ResponseHeader, stale bool) {
	if s.share == nil || h == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.share.observe(time.Now(), h.ClusterId, h.Revision, stale)
}

// shut refuses, under mu, all that wait and would take space.
func (s *Stage) shut() {
	now := time.Now()
	s.limiter.refuse(func(c Cost) error {
		if c.Bytes == 0 {
			return nil
		}
		return &NoSpaceError{Since: now}
	})
}

// move does, under mu, what time brings: the rates follow what was observed, who may go
// goes, what is to be asked is asked; and it sees to being called again.
func (s *Stage) move(now time.Time) {
	if s.share != nil && now.Sub(s.stepped) >= sharePeriod {
		s.stepped = now
		s.share.capped = s.share.capped || s.limiter.waiting()
		s.share.step(now)
	}
	s.refresh(now)
	again := s.limiter.serve(now)
	s.askWhatIsDue(now)
	if again == 0 {
		return // nobody waits
	}
	again = min(again, sharePeriod)
	if s.timer == nil {
		s.timer = time.AfterFunc(again, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.move(time.Now())
		})
	} else {
		s.timer.Reset(again)
	}
}

// slowedLeast is what those have at the least who have no limit, before they are slowed down.
var slowedLeast = Rates{Revisions: 500, Bytes: 4 << 20}

// unapplied reports whether what was answered with err was not applied.
func unapplied(err error) bool {
	var e rpctypes.EtcdError
	if errors.As(rpctypes.Error(err), &e) {
		return e.Code() != codes.Unavailable && e.Code() != codes.DeadlineExceeded && e.Code() != codes.Unknown
	}
	return errors.Is(err, ErrNotSent) || errors.Is(err, wire.ErrUnknownRequest)
}

// refresh sets the rates of the limiter.
func (s *Stage) refresh(now time.Time) {
	r := s.cfg.Rates
	if s.share != nil {
		r.Revisions = s.share.rate
	}
	if d := s.gate.derived(s.cfg.Retention, s.cfg.CompactionInterval); d > 0 && (r.Bytes == 0 || d < r.Bytes) {
		r.Bytes = d
	}
	f := s.gate.factor(now)
	if f < 1 && r == (Rates{}) && s.usual == (Rates{}) { // what there is no limit for is slowed down from what it was
		c := s.meter.cost(now)
		s.usual = Rates{max(slowedLeast.Revisions, float64(c.Revisions)), max(slowedLeast.Bytes, float64(c.Bytes))}
	}
	switch {
	case f == 1:
		s.usual = Rates{}
	case r == (Rates{}):
		r = s.usual.times(f)
	default:
		r = r.times(f)
	}
	if r != s.limiter.rates {
		s.limiter.set(now, r)
	}
}

// Close ends what the stage asks by itself, and its registration. Writes go on, at Rates, or
// the share of them that they have then; what Backend has said does not count any more.
// Closing twice is fine.
func (s *Stage) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.cancel()
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.asking.Wait()
	s.mu.Lock()
	s.gate.watched, s.gate.backend = false, Backend{} // nobody asks for it any more
	s.move(time.Now())
	s.mu.Unlock()
	if s.cfg.Lease == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.SessionTTL)
	defer cancel()
	return s.session.Close(ctx)
}
