package budget

import "time"

// meter tells how much was asked for in the last second or so.
type meter struct {
	from       time.Time // of the second that runs
	this, last Cost      // of it, and of the one before
}

func (m *meter) add(now time.Time, c Cost) {
	m.turn(now)
	m.this = m.this.plus(c)
}

func (m *meter) turn(now time.Time) {
	switch since := now.Sub(m.from); {
	case since >= 2*time.Second:
		m.from, m.this, m.last = now, Cost{}, Cost{}
	case since >= time.Second:
		m.from, m.this, m.last = m.from.Add(time.Second), Cost{}, m.this
	}
}

// cost returns it: of the second before what is not yet replaced by this one.
func (m *meter) cost(now time.Time) Cost {
	m.turn(now)
	left := 1 - now.Sub(m.from).Seconds()
	return Cost{Revisions: m.this.Revisions + int(left*float64(m.last.Revisions)), Bytes: m.this.Bytes + int(left*float64(m.last.Bytes))}
}

// rates returns it as rates.
func (m *meter) rates(now time.Time) Rates {
	c := m.cost(now)
	return Rates{float64(c.Revisions), float64(c.Bytes)}
}
