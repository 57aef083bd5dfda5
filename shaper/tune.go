package shaper

import (
	"cmp"
	"errors"
	"math"
	"time"
)

// Plan says what Tune has chosen for a workload, why, and what that comes to.
type Plan struct {
	Workload Workload `json:"workload"` // with its defaults
	Target   Target   `json:"target"`
	Settings Settings `json:"settings"`
	Server   Server   `json:"server"` // as the flags have it

	Choices []Choice `json:"choices"` // of kvwrap's configuration, each with its reason
	Flags   []Choice `json:"flags"`   // of etcd's command line, and of what it runs in

	PlainLoad  Load       `json:"plainLoad"`  // of a plain client
	Plain      Projection `json:"plain"`      // of that, on Server
	ShapedLoad Load       `json:"shapedLoad"` // of kvwrap with Settings
	Shaped     Projection `json:"shaped"`     // of that, on Server

	// Unmet are the targets that these do not meet. Those in Plan are the nearest settings
	// that there are.
	Unmet []Unmet `json:"unmet"`
}

// Choice is a setting, and why it is chosen.
type Choice struct {
	Setting string `json:"setting"`
	Value   string `json:"value"`
	Why     string `json:"why"`
}

// Unmet is a target that cannot be met.
type Unmet struct {
	Target  string
	Wanted  float64
	Nearest float64
	Unit    string
	Why     string // what stands in the way, and what would help
}

// Tune chooses settings of kvwrap and of etcd for w, so that the targets of t are met, by
// the expected figures of the projection. Where several meet them it takes those that cost
// the application least: the raft entries that are largest, and so fewest, and the least
// delay, unless there is no target for what a delay saves, then all that Freshness allows.
//
// Its error is about w and t. Targets that cannot be met are in Plan.Unmet.
func Tune(w Workload, t Target) (Plan, error) {
	filled, err := w.filled()
	if err := errors.Join(err, t.validate(), t.Server.Validate()); err != nil {
		return Plan{}, err
	}
	t.RaftLogBytes = cmp.Or(t.RaftLogBytes, 512<<20)
	p := Plan{Workload: filled, Target: t}
	p.PlainLoad = filled.plain()
	found := false
	for _, c := range filled.candidates(t) {
		load := filled.shaped(c.settings)
		projection, err := Project(c.server, load)
		if err != nil {
			return Plan{}, err
		}
		unmet := t.unmet(c.settings, load, projection)
		if !found || over(unmet) < over(p.Unmet) {
			p.Settings, p.Server, p.ShapedLoad, p.Shaped, p.Unmet = c.settings, c.server, load, projection, unmet
			found = true
		}
		if len(unmet) == 0 {
			break
		}
	}
	if p.Plain, err = Project(p.Server, p.PlainLoad); err != nil {
		return Plan{}, err
	}
	for _, u := range p.Unmet {
		if u.Target == "RevisionsPerSecond" { // what is needed would wait for ever longer
			p.Settings.Revisions, p.Settings.Shared = 0, false
		}
	}
	p.explain()
	return p, nil
}

// candidate is what Tune may choose.
type candidate struct {
	settings Settings
	server   Server
}

// candidates returns what there is to choose from, the best first.
func (w Workload) candidates(t Target) (all []candidate) {
	for _, server := range t.servers() {
		for _, flush := range w.flushes(t) {
			for _, entry := range []int{64 << 10, 48 << 10, 32 << 10, 24 << 10, 16 << 10, 128 << 10, 256 << 10, 1 << 20} {
				all = append(all, candidate{w.settings(t, entry, flush), server})
			}
		}
	}
	return all
}

// flushes returns for how long writes behind may wait, the best first.
func (w Workload) flushes(t Target) (all []time.Duration) {
	// What is put at the end of a flush has to be written yet: a fifth is for that.
	most := w.Freshness * 4 / 5
	if most < leastFlush || w.large(64<<10) {
		return []time.Duration{0}
	}
	if t.RevisionsPerSecond == 0 && t.BackendBytesPerSecond == 0 && t.FileBytes == 0 {
		return []time.Duration{most}
	}
	for d := leastFlush; d < most; d *= 2 {
		all = append(all, d)
	}
	return append(all, most)
}

// leastFlush is the least that is worth waiting for others.
const leastFlush = 5 * time.Millisecond

// large reports whether values do not fit into one proposal.
func (w Workload) large(entry int) bool { return proposal(w.KeyBytes, w.ValueBytes) > entry }

func (w Workload) settings(t Target, entry int, flush time.Duration) Settings {
	s := Settings{MaxEntryBytes: entry, Chunked: w.large(entry), Mode: "Off"}
	if !s.Chunked {
		switch {
		case w.Increasing && w.Latest:
			s.Mode = "Max"
		case w.Latest:
			s.Mode = "LastWriteWins"
		case w.writes() > 1:
			s.Mode = "GroupCommit"
		}
		if s.Mode != "Off" {
			s.FlushEvery = flush
			s.StaleReads = w.Polled
			s.SkipUnchanged = w.Unchanged > 0 && s.Mode != "Max"
		}
	}
	s.Revisions, s.Shared = t.RevisionsPerSecond, w.Writers > 1 && t.RevisionsPerSecond > 0
	return s
}

// over says how far targets are missed: how many, and then by which factors.
func over(unmet []Unmet) (distance float64) {
	for _, u := range unmet {
		distance += 1 + math.Log(u.Nearest/u.Wanted)
	}
	return distance
}
