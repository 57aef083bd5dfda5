package shaper

import "errors"

// Projection is what a member of a cluster comes to keep under a load.
type Projection struct {
	Server  Server   `json:"server"` // with its defaults filled in
	Figures []Figure `json:"figures"`
}

// Project projects what each member of a cluster keeps in memory and on disk under a load.
// It is pure: it asks nobody, and equal arguments give equal figures. Its errors are
// [*InputError]s, joined.
//
// The figures are of a load that goes on evenly. What deletes free is not projected: a key
// that was deleted counts as live. What leases take, and what
// requests that are being answered do, is not projected either.
func Project(s Server, l Load) (Projection, error) {
	if err := errors.Join(s.Validate(), l.Validate()); err != nil {
		return Projection{}, err
	}
	s, l = s.withDefaults(), l.withoutRare()
	minor, _ := s.minor()
	log, db := newRaftLog(minor, s, l), newBackend(s, l)
	p := Projection{Server: s, Figures: log.figures()}
	p.Figures = append(p.Figures, memoryFigures(minor, s, l, log.bytes(log.retained(), false), log.bytes(log.atRestart(), true), db)...)
	p.Figures = append(p.Figures, db.figures()...)
	rate := exactly(l.entriesPerSecond())
	full := newRaftLog(minor, s, endless(l)).retained().over(rate)
	disk := exactly(float64(s.SnapshotCount) + 1).over(rate)
	p.Figures = append(p.Figures,
		Figure{Name: TimeToFullLog, Unit: Seconds, Low: full.low, Expected: full.expected, High: full.high,
			Formula: "raft entries retained / entries a second", Source: "the figure above"},
		Figure{Name: TimeBetweenSnapshots, Unit: Seconds, Low: disk.low, Expected: disk.expected, High: disk.high,
			Formula: "(snapshot-count + 1) / entries a second", Source: "snapshot in etcdserver/server.go"})
	return p, nil
}

// endless is the load without an end.
func endless(l Load) Load {
	l.For = 0
	return l
}

// Get returns the figure of a name. It is the zero Figure where there is none.
func (p Projection) Get(name FigureName) Figure {
	for _, f := range p.Figures {
		if f.Name == name {
			return f
		}
	}
	return Figure{}
}
