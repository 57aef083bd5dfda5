package coalesce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Pending is what [Stage.PutAsync] has taken and not yet written.
type Pending struct {
	Puts   int // that were taken
	Writes int // that these will be: less where values take the place of others
	Bytes  int // of keys and values, and 256 for each write; what MaxPendingBytes bounds
}

// putCharge is what a write counts beside its key and value, promiseCharge each promise.
const (
	putCharge     = 256
	promiseCharge = 64
)

// PutAsync takes a put that is to be written later: within the FlushEvery of its key's
// rule, at once where there is none, as far as etcd can be reached. Under LastWriteWins or Max, of the puts of a key
// that wait one value is written; else each of them is, in the order in which they
// came. A put that is taken is written in the end, however often it has to be tried,
// once: unless etcd refuses it, a fence does, somebody else writes the key while it is
// not known whether an attempt was applied, or Close gives up. After a crash of the
// process at most what Pending has last reported is lost.
//
// Promise, which may be nil, is told how it ended, one call at a time and in the order
// of the ends, on a goroutine of the stage; without one, Config.OnError is told of errors,
// in the same way. A promise may call the stage, but for Flush and Close, which wait for it.
// It should be quick: the puts that have ended and whose promises wait for it are not
// pending any more, and nothing bounds them.
//
// PutAsync returns at once, but waits for room where more than MaxPendingBytes are
// pending and RejectWhenFull is not set. Ctx ends that wait, and nothing else, if it has
// not ended before: a put that was taken does not depend on it. Its values are kept, see [WithFence].
func (s *Stage) PutAsync(ctx context.Context, r *pb.PutRequest, promise func(*clientv3.PutResponse, error)) {
	if err := s.takeAsync(ctx, r, promise); err != nil {
		s.report(r.Key, promise, nil, err)
	}
}

// PutThrough is PutAsync for a put of key that does not wait for others: put writes it,
// before PutThrough returns, and promise is told.
func (s *Stage) PutThrough(key []byte, promise func(*clientv3.PutResponse, error), put func() (*pb.PutResponse, error)) {
	s.mu.Lock()
	closed := s.closed
	s.unlock()
	if closed {
		s.report(key, promise, nil, ErrClosed)
		return
	}
	resp, err := put()
	s.report(key, promise, resp, err)
}

func (s *Stage) takeAsync(ctx context.Context, r *pb.PutRequest, told promise) error {
	if s.cfg.Lease == nil {
		return fmt.Errorf("%w: Lease is nil: PutAsync takes one, set it to the client's", ErrConfig)
	}
	if err := cmp.Or(refused(r), s.rules.of(r.Key).refuses(r), ctx.Err()); err != nil {
		return err
	}
	if err := s.fenced(ctx); err != nil {
		return err
	}
	u := newPut(context.WithoutCancel(ctx), s.rules, r)
	u.async, u.retry, u.sequenced = 1, true, true
	if told != nil {
		u.promises = []promise{told}
	}
	s.mu.Lock()
	defer s.unlock()
	for {
		if s.closed {
			return ErrClosed
		}
		more := u.charge()
		if before := s.queue.answers(u); before != nil {
			more += promiseCharge*len(before.promises) - before.charged
		}
		if s.pending.Bytes+more <= s.cfg.MaxPendingBytes {
			break
		}
		s.hurryAll()
		if s.cfg.RejectWhenFull || more > s.cfg.MaxPendingBytes {
			return &FullError{Key: r.Key, Bytes: more, Pending: s.pending.Bytes, Most: s.cfg.MaxPendingBytes}
		}
		if err := s.waitForRoom(ctx); err != nil {
			return err
		}
	}
	u, _ = s.enqueue(u)
	s.stats.async.Add(1)
	s.pending.Puts++
	if !u.counted {
		u.counted = true
		s.pending.Writes++
	}
	s.recharge(u)
	return nil
}

// charge returns what a unit counts as pending.
func (u *unit) charge() int {
	return putCharge + len(u.put.Key) + len(u.put.Value) + promiseCharge*len(u.promises)
}

// recharge takes note, under mu, of what a unit counts now.
func (s *Stage) recharge(u *unit) {
	now := promiseCharge * len(u.promises)
	if u.counted {
		now = u.charge()
	}
	s.pending.Bytes += now - u.charged
	u.charged = now
}

// transfer has n count, under mu, for u, whose place it has taken.
func (s *Stage) transfer(u, n *unit) {
	if u.counted {
		if u.counted = false; n.counted {
			s.pending.Writes--
		}
		n.counted = true
	}
	s.recharge(n)
	s.recharge(u)
	s.makeRoom()
}

// hurryAll has all that waits be sent, under mu, since there is no room for more.
func (s *Stage) hurryAll() {
	for _, l := range s.lanes {
		if n := len(l.units); n > 0 {
			s.queue.hurry(l.units[n-1])
		}
	}
	s.launch(nil)
}

// waitForRoom waits, under mu, until pending has shrunk, or ctx ends.
func (s *Stage) waitForRoom(ctx context.Context) error {
	if s.room == nil {
		s.room = make(chan struct{})
	}
	room := s.room
	s.unlock()
	defer s.mu.Lock()
	select {
	case <-room:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Pending returns what was taken and is not yet written.
func (s *Stage) Pending() Pending {
	s.mu.Lock()
	defer s.unlock()
	return s.pending
}

// Flush has all that waits be sent now, and waits until it was written, and until
// promises have been told. It returns a [*FlushError] where puts by PutAsync that waited
// were not written, and where ctx has ended before they were; then they wait on. What had
// ended before, or was not taken, its promise or OnError was told of, and Flush is silent.
func (s *Stage) Flush(ctx context.Context) error {
	began := time.Now()
	var units []*unit
	s.mu.Lock()
	for u := range s.queue.all {
		s.queue.hurry(u)
		units = append(units, u)
		units = append(units, u.joined...)
	}
	slices.SortFunc(units, func(a, b *unit) int { return cmp.Compare(a.seq, b.seq) })
	units = slices.Compact(units)
	s.launch(nil)
	s.unlock()
	result := FlushError{}
	for _, u := range units {
		select {
		case <-u.done:
		case <-ctx.Done():
		}
		s.mu.Lock()
		switch {
		case u.state != ended:
			result.Waiting += u.async
			result.first(u, ctx.Err())
		case u.err != nil:
			result.Failed += u.async
			result.first(u, u.err)
		}
		s.unlock()
	}
	select {
	case <-s.told():
	case <-ctx.Done():
	}
	if result.Failed+result.Waiting == 0 {
		return nil
	}
	result.After = time.Since(began)
	return &result
}

// first takes note of an error, if it is the first.
func (e *FlushError) first(u *unit, err error) {
	if e.Err == nil {
		e.Key, e.Err = opKey(u.ops[0]), err
	}
}

// Close writes what waits, for CloseTimeout at the most, and gives the rest up: promises
// are told, and a [*FlushError] says how many. Where etcd does not answer it waits as long
// again for what is under way, and for the revocation of its lease. PutAsync fails with
// ErrClosed from then on, and so do puts under Max, which could make a number smaller; all
// else goes on, without waiting for others. Closing twice is fine.
func (s *Stage) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.makeRoom()
	s.unlock()
	if closed {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.CloseTimeout)
	defer cancel()
	err := s.Flush(ctx)
	s.mu.Lock()
	s.cancel() // under mu, so that nothing is launched after it
	if s.timer != nil {
		s.timer.Stop()
	}
	for _, l := range s.queue.lanes { // what is under way ends with its batch
		for _, u := range slices.Clone(l.units) {
			s.end(u, ErrClosed)
		}
	}
	s.unlock()
	landed := make(chan struct{})
	go func() {
		s.flying.Wait()
		<-s.told()
		close(landed)
	}()
	select {
	case <-landed:
	case <-time.After(s.cfg.CloseTimeout): // for a promise that does not return
	}
	if s.cfg.Lease == nil {
		return err
	}
	ctx, cancel = context.WithTimeout(context.Background(), s.cfg.CloseTimeout)
	defer cancel()
	return errors.Join(err, s.session.Close(ctx))
}

// makeRoom wakes, under mu, who waits for room.
func (s *Stage) makeRoom() {
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}
