package budget

import "time"

// Stats are counters of what a stage has done since it was made, and how it stands.
type Stats struct {
	Admitted uint64        // writes that went at once
	Delayed  uint64        // and those that waited first
	Waited   time.Duration // by all of them together
	Refused  uint64        // writes that were refused
	Left     uint64        // writes whose contexts ended while they waited

	Waiting   int     // writes that wait now
	Limit     Rates   // what may go in a second now
	Demand    Rates   // what was asked for in the last second
	Clients   int     // that are registered, 0 where that is not known
	Backend   Backend // as it was last seen
	NoSpace   bool    // whether writes are refused because etcd has no space
	AskErrors uint64  // failures to ask for the backend, other clients or the revision
}

// Stats returns the counters. It does no I/O.
func (s *Stage) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	for i := range s.limiter.classes {
		st.Waiting += s.limiter.classes[i].waiting
	}
	st.Limit, st.Demand = s.limiter.rates, s.meter.rates(time.Now())
	if s.share != nil {
		st.Clients = s.share.clients
	}
	st.Backend, st.NoSpace = s.gate.backend, s.gate.noSpace
	return st
}
