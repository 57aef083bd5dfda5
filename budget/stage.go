package budget

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/kvwrap/kvwrap/internal/session"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
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
	if cfg.Backend != nil {
		s.asks.backend.first = make(chan struct{})
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.session = session.New(cfg.Lease, cfg.SessionTTL, context.Canceled)
	if cfg.Shared {
		s.share = newShare(cfg.Rates.Revisions)
	}
	if cfg.Register {
		s.asks.clients.first = make(chan struct{})
	}
	now := time.Now()
	s.gate.stale = max(3*cfg.BackendEvery, 3*askTimeout)
	s.limiter = newLimiter(now, cfg.Rates, cfg.Burst, cfg.Weights, cfg.MaxWaiting)
	s.limiter.refuses = func(now time.Time, c Cost) error {
		err := s.gate.refuses(now, c)
		if err == nil {
			s.gate.flying += c.Bytes
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
	s.move(began)
	stats := &r.flow.class.stats
	if err := s.awaitFirst(ctx, cost); err != nil {
		stats.Left++
		return grant{}, s.left(err, began, r, cost)
	}
	now := time.Now()
	g, wait, err := s.enter(ctx, now, r, cost)
	if wait == nil {
		return g, err
	}
	s.mu.Unlock()
	select {
	case <-wait.goes:
	case <-ctx.Done():
	}
	s.mu.Lock()
	now = time.Now()
	stats.Waited += now.Sub(began)
	left := s.limiter.leave(wait) // it waits still: its context has ended
	switch {
	case !left && wait.refused != nil:
		return grant{}, wait.refused
	case !left && ctx.Err() == nil:
		stats.Delayed++
		wait.seen = s.newest()
		return wait.grant, nil
	case !left: // it may go, and its context has ended in the same moment
		s.limiter.giveBack(now, wait.grant, cost)
		s.gate.flying = max(0, s.gate.flying-cost.Bytes)
	}
	stats.Left++
	err = s.left(ctx.Err(), began, r, cost)
	s.move(now)
	return grant{}, err
}

// left returns the error for a write whose context has ended while it waited.
func (s *Stage) left(err error, began time.Time, r pace, cost Cost) error {
	now := time.Now()
	return s.limited(now, r, cost, LimitError{Wait: now.Sub(began), RetryAfter: s.limiter.expect(now, &r.flow, cost), Err: err})
}

// limited returns e with what it has to say of the budget.
func (s *Stage) limited(now time.Time, r pace, cost Cost, e LimitError) error {
	e.Prefix, e.Class, e.Cost, e.Waiting = r.Prefix, r.Class, cost, r.flow.class.waiting
	e.Limit, e.Why, e.Demand = s.limiter.rates, s.why(now), s.meter.rates(now)
	e.RetryAfter = max(e.RetryAfter, time.Millisecond)
	return &e
}

// awaitFirst has a write wait, not under mu, for what is to be known before it: how many
// clients there are, and how much room, if it is large. It returns the context's error.
func (s *Stage) awaitFirst(ctx context.Context, cost Cost) error {
	var firsts []chan struct{}
	if first := s.asks.clients.first; first != nil {
		firsts = append(firsts, first)
	}
	if first := s.asks.backend.first; first != nil && s.gate.blind(cost) {
		firsts = append(firsts, first)
	}
	if len(firsts) == 0 || s.allowanceOf(ctx) != nil {
		return nil
	}
	s.mu.Unlock()
	defer s.mu.Lock()
	for _, first := range firsts {
		select {
		case <-first:
		case <-s.ctx.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// enter is admit under mu. It returns who waits, where that is what it has to do.
func (s *Stage) enter(ctx context.Context, now time.Time, r pace, cost Cost) (g grant, wait *waiter, err error) {
	if a := s.allowanceOf(ctx); a != nil {
		g = a.draw(now, s.limiter, cost)
		g.seen = s.newest()
		return g, nil, nil
	}
	stats := &r.flow.class.stats
	s.meter.add(now, cost)
	if err := s.gate.refuses(now, cost); err != nil {
		stats.Refused++
		return g, nil, err
	}
	g, ok := s.limiter.pass(now, &r.flow, cost)
	if ok {
		stats.Admitted++
		s.gate.flying += cost.Bytes
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
	if !full && (expected <= may || s.share.young() && !r.reject) {
		wait = s.limiter.enter(&r.flow, cost)
		s.move(now)
		if wait.at != nil {
			return g, wait, nil
		}
		if wait.refused != nil {
			return g, nil, wait.refused // refuse has counted it
		}
		stats.Admitted++
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
	if err != nil {
		spent.Bytes = 0 // of what is in the backend
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
		s.usual = Rates{max(1, float64(c.Revisions)), max(1<<10, float64(c.Bytes))}
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

// Close ends what the stage asks by itself, and its registration. Writes go on, at the pace
// that they have then. Closing twice is fine.
func (s *Stage) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.gate.backend = Backend{} // nobody asks for it any more
	s.cancel()
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.asking.Wait()
	if s.cfg.Lease == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.SessionTTL)
	defer cancel()
	return s.session.Close(ctx)
}
