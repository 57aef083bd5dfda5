package coalesce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
// rule, as far as etcd can be reached. Under LastWriteWins or Max, of the puts of a key
// that wait one value is written; else each of them is, in the order in which they
// came. A put that is taken is written in the end, however often it has to be tried,
// once: unless etcd refuses it, a fence does, somebody else writes the key while it is
// not known whether an attempt was applied, or Close gives up. After a crash of the
// process at most what Pending has last reported is lost.
//
// Promise, which may be nil, is told how it ended, one call at a time and in the order
// of the ends; without one, Config.OnError is told of errors. A promise may call the
// stage, but for Flush and Close, which wait for it. Where the put is not taken it is
// told before PutAsync returns.
//
// PutAsync returns at once, but waits for room where more than MaxPendingBytes are
// pending and RejectWhenFull is not set. Ctx ends that wait, and nothing else, if it has
// not ended before: a put that was taken does not depend on it. Its values are kept, see [WithFence].
func (s *Stage) PutAsync(ctx context.Context, r *pb.PutRequest, promise func(*clientv3.PutResponse, error)) {
	err := s.takeAsync(ctx, r, promise)
	if err == nil {
		return
	}
	if promise != nil {
		s.stats.failed.Add(1)
		promise(nil, err)
	} else {
		s.Fail(r.Key, err)
	}
}

// Fail counts a put without a promise that was not taken, and tells Config.OnError.
func (s *Stage) Fail(key []byte, err error) {
	s.stats.failed.Add(1)
	if s.cfg.OnError != nil {
		s.cfg.OnError(key, err)
	}
}

func (s *Stage) takeAsync(ctx context.Context, r *pb.PutRequest, told promise) error {
	if s.cfg.Lease == nil {
		return fmt.Errorf("%w: Lease is nil: PutAsync takes one, set it to the client's", ErrConfig)
	}
	if err := cmp.Or(refused(r), ctx.Err()); err != nil {
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
		if s.cfg.RejectWhenFull || more > s.cfg.MaxPendingBytes {
			return &FullError{Key: r.Key, Bytes: more, Pending: s.pending.Bytes, Most: s.cfg.MaxPendingBytes}
		}
		if err := s.waitForRoom(ctx); err != nil {
			return err
		}
	}
	u, _, err := s.enqueue(u, laneKey{u.rules[0], true, true})
	if err != nil {
		return err
	}
	s.stats.async.Add(1)
	s.pending.Puts++
	if u.charged == 0 {
		s.pending.Writes++
	}
	now := u.charge()
	s.pending.Bytes += now - u.charged
	u.charged = now
	return nil
}

// charge returns what a unit counts as pending.
func (u *unit) charge() int {
	return putCharge + len(u.put.Key) + len(u.put.Value) + promiseCharge*len(u.promises)
}

// refused returns etcd's error for a put whose form it refuses.
func refused(r *pb.PutRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrEmptyKey
	case r.IgnoreValue && len(r.Value) > 0:
		return rpctypes.ErrValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrLeaseProvided
	}
	return nil
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
// promises have been told. It returns a [*FlushError] where puts by PutAsync among it were
// not written, and where ctx has ended before they were; then they wait on.
func (s *Stage) Flush(ctx context.Context) error {
	began := time.Now()
	var units []*unit
	s.mu.Lock()
	for u := range s.queue.all {
		s.queue.hurry(u)
		units = append(units, u)
	}
	slices.SortFunc(units, func(a, b *unit) int { return cmp.Compare(a.seq, b.seq) })
	units = slices.Compact(units)
	s.launch(nil)
	s.unlock()
	result := FlushError{}
	for _, u := range units {
		select {
		case <-u.done:
			if u.err != nil {
				result.Failed += u.puts()
				result.Err = cmp.Or(result.Err, u.err)
			}
		case <-ctx.Done():
			s.mu.Lock()
			result.Waiting += u.puts()
			s.unlock()
			result.Err = ctx.Err()
		}
	}
	told := make(chan struct{})
	s.mu.Lock()
	if s.calling {
		s.call(func() { close(told) })
	} else {
		close(told)
	}
	s.unlock()
	select {
	case <-told:
	case <-ctx.Done():
	}
	if result.Failed+result.Waiting == 0 {
		return nil
	}
	result.After = time.Since(began)
	return &result
}

// puts returns how many puts by PutAsync u is.
func (u *unit) puts() int {
	n := u.async
	for _, j := range u.joined {
		n += j.puts()
	}
	return n
}

// Close writes what waits, for CloseTimeout at the most, and gives the rest up: promises
// are told, and a [*FlushError] says how many. PutAsync fails with ErrClosed from then on;
// all else goes on, without waiting for others. Closing twice is fine.
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
	var left []*unit
	s.mu.Lock()
	s.cancel() // under mu, so that nothing is launched after it
	if s.timer != nil {
		s.timer.Stop()
	}
	for u := range s.queue.all {
		if u.state == waiting { // what is under way ends with its flight
			left = append(left, u)
		}
	}
	for _, u := range left {
		if u.state == waiting { // of several keys, and ended before
			s.end(u, ErrClosed)
		}
	}
	s.unlock()
	landed := make(chan struct{})
	go func() {
		s.flying.Wait()
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

// end ends, under mu, a unit that was written or will not be, and tells who waits.
func (s *Stage) end(u *unit, err error) {
	if u.state != absorbed {
		s.queue.remove(u)
		s.waiting.Add(-1)
	}
	if err != nil {
		err = cmp.Or(u.unclear, err) // whatever was found out since
	}
	u.state, u.err = ended, err
	s.ended = append(s.ended, u)
	if u.async > 0 {
		s.pending.Puts -= u.async
		s.pending.Writes--
		s.pending.Bytes -= u.charged
		s.makeRoom()
		s.tell(u)
	}
	for _, j := range u.joined {
		j.header, j.resps = u.header, u.resps
		s.end(j, err)
	}
}

// tell tells, under mu, promises how u has ended.
func (s *Stage) tell(u *unit) {
	if u.err != nil {
		s.stats.failed.Add(uint64(u.async))
		if s.cfg.OnError != nil && u.async > len(u.promises) {
			s.call(func() { s.cfg.OnError(u.put.Key, u.err) })
		}
	}
	for _, told := range u.promises {
		s.call(func() {
			if u.err != nil {
				told(nil, u.err)
				return
			}
			told((*clientv3.PutResponse)(u.answerPut()), nil)
		})
	}
}

// call has f called, after all that was to be called before. It is called under mu.
func (s *Stage) call(f func()) {
	s.calls = append(s.calls, f)
	if s.calling {
		return
	}
	s.calling = true
	s.flying.Go(func() {
		s.mu.Lock()
		defer s.unlock()
		for len(s.calls) > 0 {
			calls := s.calls
			s.calls = nil
			s.unlock()
			for _, f := range calls {
				f()
			}
			s.mu.Lock()
		}
		s.calling = false
	})
}
