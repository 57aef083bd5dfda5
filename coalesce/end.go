package coalesce

import (
	"cmp"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// end ends, under mu, a unit that was written or will not be, and tells who waits.
func (s *Stage) end(u *unit, err error) {
	if u.state != absorbed {
		s.queue.remove(u)
	}
	if err != nil {
		err = cmp.Or(u.unclear, err) // whatever was found out since
	}
	u.state, u.err = ended, err
	s.ended = append(s.ended, u)
	for _, j := range u.joined { // they came before it
		j.header, j.resps = u.header, u.resps
		s.end(j, err)
	}
	if u.async > 0 || u.counted {
		s.pending.Puts -= u.async
		s.pending.Bytes -= u.charged
		if u.counted {
			s.pending.Writes--
		}
		s.makeRoom()
		s.tell(u)
	}
}

// report has a promise be told of a put that was not taken.
func (s *Stage) report(key []byte, told promise, resp *pb.PutResponse, err error) {
	s.mu.Lock()
	defer s.unlock()
	if err != nil {
		s.stats.failed.Add(1)
	}
	switch {
	case told != nil:
		s.call(func() { told((*clientv3.PutResponse)(resp), err) })
	case err != nil && s.cfg.OnError != nil:
		s.call(func() { s.cfg.OnError(key, err) })
	}
}

// tell tells, under mu, promises how u has ended.
func (s *Stage) tell(u *unit) {
	if u.err != nil {
		s.stats.failed.Add(uint64(u.async))
		for range u.async - len(u.promises) {
			if s.cfg.OnError != nil {
				s.call(func() { s.cfg.OnError(u.put.Key, u.err) })
			}
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
	go func() {
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
	}()
}

// told returns what is closed when all that was to be called has been.
func (s *Stage) told() <-chan struct{} {
	told := make(chan struct{})
	s.mu.Lock()
	defer s.unlock()
	if s.calling {
		s.call(func() { close(told) })
	} else {
		close(told)
	}
	return told
}
