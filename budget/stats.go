package budget

import (
	"fmt"
	"strings"
	"time"
)

// Stats are counters of what a stage has done since it was made, and how it stands.
type Stats struct {
	ClassStats                        // of all classes
	Classes    [numClasses]ClassStats // by Class

	Limit     Rates   // what may go in a second now
	Why       string  // Limit is not what Config says, such as "a share of 500 revisions/s"; empty where it is
	Demand    Rates   // what was asked for in the last second
	Clients   int     // that are registered, 0 where that is not known
	Backend   Backend // as it was last seen
	NoSpace   bool    // whether writes are refused because etcd has no space
	AskErrors uint64  // failures to ask for the backend, other clients or the revision
}

// ClassStats are counters of the writes of a class.
type ClassStats struct {
	Admitted uint64        // writes that went at once
	Delayed  uint64        // and those that waited first
	Waited   time.Duration // by all of them together
	Refused  uint64        // writes that were refused
	Left     uint64        // writes whose contexts ended while they waited
	Waiting  int           // writes that wait now
}

func (c *ClassStats) add(d ClassStats) {
	c.Admitted += d.Admitted
	c.Delayed += d.Delayed
	c.Waited += d.Waited
	c.Refused += d.Refused
	c.Left += d.Left
	c.Waiting += d.Waiting
}

// Stats returns the counters. It does no I/O.
func (s *Stage) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	st := Stats{Limit: s.limiter.rates, Why: s.why(now), Demand: s.meter.rates(now), Backend: s.gate.backend, NoSpace: s.gate.noSpace, AskErrors: s.askErrors}
	for i := range s.limiter.classes {
		st.Classes[i] = s.limiter.classes[i].stats
		st.Classes[i].Waiting = s.limiter.classes[i].waiting
		st.add(st.Classes[i])
	}
	if s.share != nil {
		st.Clients = s.share.clients
	}
	return st
}

// why returns why the limit is not what the configuration says.
func (s *Stage) why(now time.Time) string {
	var why []string
	if s.share != nil {
		why = append(why, fmt.Sprintf("this client's share of %v for the cluster", Rates{Revisions: s.cfg.Rates.Revisions}))
		if s.cfg.Register && s.share.clients == 0 {
			why = append(why, "it is not registered yet")
		}
	}
	if s.gate.watched && s.gate.looks == 0 {
		why = append(why, "the backend was not seen yet")
	}
	if d := s.gate.derived(s.cfg.Retention, s.cfg.CompactionInterval); d > 0 && (s.cfg.Rates.Bytes == 0 || d < s.cfg.Rates.Bytes) {
		why = append(why, "bytes as derived from the quota")
	}
	if _, slowed := s.gate.slowed(now); slowed != "" {
		why = append(why, "slowed down: "+slowed)
	}
	return strings.Join(why, ", ")
}
