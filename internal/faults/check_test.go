package faults

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// story makes histories of one key by hand. Times are in steps of its own clock.
type story struct {
	h      *history
	events []event
	now    time.Duration
}

const storyKey = "k"

func newStory() *story { return &story{h: newHistory()} }

// did adds an operation that began after all others had ended.
func (s *story) did(r record) *record {
	s.now += 2
	r.Key, r.Writes, r.Call, r.Return = storyKey, r.Kind != get && r.Kind != getSerializable, s.now, s.now+1
	r.Group = len(s.h.records)
	if r.Outcome == "" {
		r.Outcome = ok
	}
	if r.Outcome == unknown {
		r.Return = never
	}
	s.h.records = append(s.h.records, &r)
	return &r
}

// put is an acknowledged put, with its event.
func (s *story) put(id string, rev int64) *record {
	s.happened(id, rev)
	return s.did(record{Kind: put, ID: id, Wrote: true, Revision: rev})
}

// happened adds an event.
func (s *story) happened(id string, rev int64) {
	e := event{Key: storyKey, Rev: rev}
	if id != "" {
		e.found = s.at().put(id, rev, 0)
	}
	s.events = append(s.events, e)
}

// at is what is there after the last event.
func (s *story) at() found {
	if len(s.events) == 0 {
		return found{}
	}
	return s.events[len(s.events)-1].found
}

// read is a get at a revision.
func (s *story) read(rev int64, f found) *record {
	return s.did(record{Kind: get, Revision: rev, Observed: true, Found: f})
}

// TestTheChecksSeeWhatIsWrong tells stories that must not happen, and ones that
// may. Both checks judge each of them, as far as it can be seen from answers alone.
func TestTheChecksSeeWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		tell  func(s *story)
		wrong string // what check has to say, "" where all is well
		blind bool   // answers alone do not show it
	}{
		"all is well": {tell: func(s *story) {
			s.put("a", 2)
			s.read(2, s.at())
			s.put("b", 5)
			s.read(7, s.at())
			s.happened("", 8)
			s.did(record{Kind: del, Wrote: true, Revision: 8})
			s.read(8, found{})
			s.put("c", 9)
			s.read(9, s.at())
		}},
		"a lost write": {wrong: "lost: ", tell: func(s *story) {
			s.put("a", 2)
			before := s.at()
			s.did(record{Kind: put, ID: "b", Wrote: true, Revision: 3})
			s.read(4, before)
		}},
		"a lost write that nobody reads": {wrong: "lost: ", blind: true, tell: func(s *story) {
			s.did(record{Kind: put, ID: "b", Wrote: true, Revision: 3})
		}},
		"a lost update": {wrong: "found another value", tell: func(s *story) {
			s.put("a", 2)
			before := s.at()
			s.put("b", 3)
			s.put("c", 4).Observed = true // a swap that expected a
			s.h.records[2].Found = before
		}},
		"a stale read": {wrong: "stale: ", tell: func(s *story) {
			s.put("a", 2)
			before := s.at()
			s.put("b", 3)
			s.read(2, before)
		}},
		"a read of the past that says it is not": {wrong: "found another value", tell: func(s *story) {
			s.put("a", 2)
			before := s.at()
			s.put("b", 3)
			s.read(3, before)
		}},
		"a serializable read of the past": {tell: func(s *story) {
			s.put("a", 2)
			before := s.at()
			s.put("b", 3)
			s.read(2, before).Kind = getSerializable
		}},
		"a serializable read of what never was": {wrong: "found another value", blind: true, tell: func(s *story) {
			s.put("a", 2)
			f := s.at()
			s.put("b", 3)
			f.Mod = 3
			s.read(3, f).Kind = getSerializable
		}},
		"reads that go back": {wrong: "stale: ", tell: func(s *story) {
			s.put("a", 2)
			before := s.at()
			s.happened("b", 3)
			s.did(record{Kind: put, ID: "b", Outcome: unknown})
			s.read(3, s.at())
			s.read(2, before)
		}},
		"an unknown put that was applied": {tell: func(s *story) {
			s.put("a", 2)
			s.did(record{Kind: put, ID: "b", Outcome: unknown})
			s.read(2, s.at())
			s.happened("b", 3) // late
			s.read(3, s.at())
		}},
		"an unknown put that was not": {tell: func(s *story) {
			s.put("a", 2)
			s.did(record{Kind: put, ID: "b", Outcome: unknown})
			s.read(2, s.at())
		}},
		"an unknown put that was applied twice": {wrong: "applied twice", tell: func(s *story) {
			s.did(record{Kind: put, ID: "b", Outcome: unknown})
			s.happened("b", 3)
			s.read(3, s.at())
			s.put("c", 4)
			s.happened("b", 5)
			s.read(5, s.at())
		}},
		"a put that was applied before it began": {wrong: "stale: ", tell: func(s *story) {
			s.happened("b", 3)
			f := s.at()
			s.put("a", 4)
			s.did(record{Kind: put, ID: "b", Outcome: unknown})
			s.read(3, f)
		}},
		"an unknown swap of something else": {wrong: "found another value", tell: func(s *story) {
			s.put("a", 2)
			before := s.at()
			s.put("b", 3)
			s.happened("c", 4)
			s.did(record{Kind: swapByValue, ID: "c", Outcome: unknown, Observed: true, Found: before})
			s.read(4, s.at())
		}},
		"a put that failed and was applied": {wrong: "should not be", tell: func(s *story) {
			s.did(record{Kind: put, ID: "a", Outcome: failed})
			s.happened("a", 2)
			s.read(2, s.at())
		}},
		"a swap that was not made and was applied": {wrong: "should not be", tell: func(s *story) {
			s.put("a", 2)
			s.did(record{Kind: swapByRevision, ID: "b", Revision: 2, Observed: true, Found: s.at()})
			s.happened("b", 3)
			s.read(3, s.at())
		}},
		"a value that nobody wrote": {wrong: "put by nobody", tell: func(s *story) {
			s.happened("a", 2)
			s.read(2, s.at())
		}},
		"a put of two versions": {wrong: "etcd: ", tell: func(s *story) {
			s.put("a", 2)
			s.put("b", 3)
			s.events[1].Version = 3
			s.read(3, s.at())
		}},
		"a delete that nobody asked for": {wrong: "deleted by nobody", tell: func(s *story) {
			s.put("a", 2)
			s.happened("", 3)
			s.read(3, found{})
		}},
		"a delete of unknown outcome": {tell: func(s *story) {
			s.put("a", 2)
			s.did(record{Kind: del, Outcome: unknown})
			s.did(record{Kind: del, Outcome: unknown})
			s.read(2, s.at())
			s.happened("", 3)
			s.read(3, found{})
			s.put("b", 4)
			s.read(4, s.at())
		}},
		"a delete that did not happen": {wrong: "lost: ", tell: func(s *story) {
			s.put("a", 2)
			s.did(record{Kind: del, Wrote: true, Revision: 3})
			s.read(3, s.at())
		}},
		"a lease that was revoked": {tell: func(s *story) {
			s.happened("a", 2)
			s.events[0].Lease = 7
			s.did(record{Kind: put, ID: "a", Wrote: true, Revision: 2, Lease: 7})
			s.read(2, s.at())
			s.did(record{Kind: del, Outcome: unknown}) // was not applied
			s.happened("", 3)
			s.did(record{Kind: revoke, Revision: 3, Lease: 7})
			s.read(3, found{})
		}},
		"a lease that was not asked for": {wrong: "applied as", tell: func(s *story) {
			s.put("a", 2)
			s.events[0].Lease = 7
			s.read(2, s.at())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory()
			c.tell(s)
			found := s.h.check(s.events)
			pictured := s.h.linearizable(t.TempDir)
			if c.wrong == "" {
				require.Empty(t, found)
				require.Empty(t, pictured)
				return
			}
			require.Contains(t, strings.Join(found, "\n"), c.wrong)
			if !c.blind {
				require.NotEmpty(t, pictured)
				require.Contains(t, pictured[0], ".html")
			}
		})
	}
}

// TestATransactionAppliedInPart has one of two keys.
func TestATransactionAppliedInPart(t *testing.T) {
	s := newStory()
	s.happened("a", 2)
	one, two := s.did(record{Kind: putPair, ID: "a", Outcome: unknown}), s.did(record{Kind: putPair, ID: "b", Outcome: unknown})
	two.Group, two.Key = one.Group, "l"
	require.Contains(t, strings.Join(s.h.check(s.events), "\n"), "applied in part")
}

// TestAWatchThatTellsSomethingElse has witnesses tell of what did not happen, or not
// of all.
func TestAWatchThatTellsSomethingElse(t *testing.T) {
	s := newStory()
	s.happened("a", 2)
	s.happened("b", 3)
	s.happened("", 4)
	s.happened("c", 6)
	for i := range s.events {
		before := found{}
		if i > 0 {
			before = s.events[i-1].found
		}
		s.events[i].before = &before
	}
	for name, c := range map[string]struct {
		tell  func(w *witness)
		wrong string // "" where all is well
	}{
		"all":                    {func(w *witness) {}, ""},
		"not what was before":    {func(w *witness) { w.events[1].before = nil }, ""},
		"not what is gone":       {func(w *witness) { w.events, w.gaps = w.events[2:], []gap{{2, 4}} }, ""},
		"not all":                {func(w *witness) { w.events = w.events[1:] }, "missed"},
		"less than what is gone": {func(w *witness) { w.events, w.gaps = w.events[3:], []gap{{2, 4}} }, "missed"},
		"another value":          {func(w *witness) { w.events[1].ID = "x" }, "in place of"},
		"another version":        {func(w *witness) { w.events[1].Version = 7 }, "in place of"},
		"no delete":              {func(w *witness) { w.events[2].found = w.events[1].found }, "in place of"},
		"another one before":     {func(w *witness) { w.events[1].before = &found{} }, "was before"},
		"too much":               {func(w *witness) { w.events = append(w.events, event{Key: storyKey, Rev: 8}) }, "did not happen"},
		"twice":                  {func(w *witness) { w.events = append(w.events, w.events[3]) }, "twice"},
		"in another order":       {func(w *witness) { w.events[0], w.events[1] = w.events[1], w.events[0] }, "came after"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &witness{events: slices.Clone(s.events)}
			c.tell(w)
			if differ := strings.Join(w.compare(s.events), "\n"); c.wrong == "" {
				require.Empty(t, differ)
			} else {
				require.Contains(t, differ, c.wrong)
			}
		})
	}
}

// TestTornValues mixes values in each of the ways that chunks may be mixed up.
func TestTornValues(t *testing.T) {
	a, b := value{ID: "a", Size: 300 << 10, Edit: 5 << 10}, value{ID: "b", Size: 300 << 10, Edit: 5 << 10}
	one, two := string(a.bytes()), string(b.bytes())
	for _, v := range []value{a, b, {ID: "c", Size: 100}, {ID: "d", Size: maxValueBytes, Edit: maxValueBytes / 2}} {
		require.Len(t, v.bytes(), v.Size)
		id, err := identify(v.bytes())
		require.NoError(t, err)
		require.Equal(t, v.ID, id)
	}
	differ := 0
	for one[100+differ] == two[100+differ] {
		differ++
	}
	torn := []string{
		"", "x", one[:len(one)-1], one + "x", one[:20] + two[20:], one[:100+differ] + two[100+differ:], one[:200<<10] + two[:100<<10],
		one[:250<<10] + one[260<<10:] + one[250<<10:260<<10], strings.Replace(one, "a 307200", "a 307201", 1), strings.Replace(one, "5120\n", "9999999\n", 1),
	}
	for i, v := range torn {
		_, err := identify([]byte(v))
		require.Error(t, err, "%d", i)
	}
	var res result
	res.observe(storyKey)
	require.Empty(t, res.Wrong)
	require.Equal(t, []found{{}}, res.Found)
}

// TestEqualSeedsAreEqualSchedules asks clients for operations that nobody answers.
func TestEqualSeedsAreEqualSchedules(t *testing.T) {
	schedule := func(seed uint64) (all []request) {
		c := &client{id: 3, h: newHistory(), random: rand.New(rand.NewPCG(seed, 3))}
		c.perform = func(r request) result {
			all = append(all, r)
			return result{Outcome: failed}
		}
		for range 200 {
			c.step()
		}
		return all
	}
	require.Equal(t, schedule(1), schedule(1))
	require.NotEqual(t, schedule(1), schedule(2))
}
