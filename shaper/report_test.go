package shaper

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// traffic returns what a meter would have counted in a minute.
func traffic(rate, entry, key, value int, keys uint64) Traffic {
	n := uint64(60 * rate)
	s := Span{
		Elapsed:     time.Minute,
		Counts:      Counts{Puts: n, Entries: n, EntryBytes: n * uint64(entry), Revisions: n, Records: n, KeyBytes: n * uint64(key), ValueBytes: n * uint64(value)},
		EntrySizes:  EntrySizes{{Min: entry, Max: entry, Count: n, Bytes: n * uint64(entry)}},
		RecordSizes: RecordSizes{{Min: key + value, Max: key + value, Count: n, KeyBytes: n * uint64(key), ValueBytes: n * uint64(value)}},
	}
	return Traffic{Total: s, Window: s, LargestEntryBytes: entry, Keys: keys}
}

// TestTrafficIsALoad: what was counted projects to what a load of the same puts does.
func TestTrafficIsALoad(t *testing.T) {
	const rate, keys, key, value = 100, 50, 20, 1000
	l := traffic(rate, PutProposal(key, value, false), key, value, keys).Load(Live{})
	a, err := Project(newest, l)
	require.NoError(t, err)
	b, err := Project(newest, PutLoad(rate, keys, key, value))
	require.NoError(t, err)
	require.Equal(t, b.Figures, a.Figures)
	require.Empty(t, Traffic{}.Load(Live{}).Entries, "nothing was counted")
	idle := traffic(rate, 100, key, value, keys)
	idle.Window = Span{Elapsed: time.Minute}
	require.Empty(t, idle.Load(Live{}).Entries, "what was before does not go on")
	first := traffic(1e6, 100, key, value, keys)
	first.Window.Elapsed = time.Millisecond
	_, err = Project(newest, first.Load(Live{}))
	require.NoError(t, err)
}

// TestReportsWarn of each thing that somebody has to look at, and of nothing else.
func TestReportsWarn(t *testing.T) {
	healthy := Member{Name: "m0", Role: "leader", Version: "3.7.3", DbSize: 100 << 20, InUse: 90 << 20, Bloat: 1.1, Quota: 2 << 30, QuotaUse: 0.05}
	report := func(edit func(*Report, *Member)) Report {
		m := healthy
		r := Report{Asked: traffic(1, 2_000_000, 20, 2_000_000, 3), Proposed: traffic(1, 200, 20, 100, 3)}
		edit(&r, &m)
		r.Members = append(r.Members, m)
		require.NoError(t, r.Complete(Server{Compaction: Compaction{Mode: CompactPeriodic, Retention: time.Hour}}))
		require.NotEmpty(t, r.Text())
		return r
	}
	require.Empty(t, report(func(*Report, *Member) {}).Warnings)
	for what, edit := range map[string]func(*Report, *Member){
		"m0 does not answer: gone":                                        func(_ *Report, m *Member) { m.Error = "gone" },
		"m0 has the alarm NOSPACE":                                        func(_ *Report, m *Member) { m.Alarms = []string{"NOSPACE"} },
		"m0 has used 85 % of its quota":                                   func(_ *Report, m *Member) { m.QuotaUse = 0.85 },
		"m0 has a file of 1.07 GB, of which 94.4 MB are":                  func(_ *Report, m *Member) { m.DbSize, m.Bloat = 1<<30, 11 },
		"m0 has 1500 entries to apply":                                    func(_ *Report, m *Member) { m.Lag = 1500 },
		"fills the quota in":                                              func(r *Report, _ *Member) { r.Proposed = traffic(100, 200_000, 20, 200_000, 10_000) },
		"the raft log of each member comes to":                            func(r *Report, _ *Member) { r.Proposed = traffic(1, 2_000_000, 20, 1000, 1) },
		"since the start the budget has refused 3 writes, and 2 wait (x)": func(r *Report, _ *Member) { r.Budget = BudgetUse{Refused: 3, Waiting: 2, Why: "x"} },
		"4 puts by PutAsync were given up":                                func(r *Report, _ *Member) { r.Pending.Failed = 4 },
		"5 writes since the start were larger than MaxEntryBytes":         func(r *Report, _ *Member) { r.Chunks.Oversized = 5 },
		"6 writes were given up after":                                    func(r *Report, _ *Member) { r.Chunks.Abandoned = 6 },
		"7 writes of the last 1m0s had no answer":                         func(r *Report, _ *Member) { r.Proposed.Window.Unknown = 7 },
	} {
		r := report(edit)
		var all []string
		for _, w := range r.Warnings {
			require.NotEmpty(t, w.Remedy)
			all = append(all, w.Text)
		}
		require.Contains(t, strings.Join(all, "\n"), what)
	}
}

// TestAVersionThatIsNotKnown is taken for the newest that is.
func TestAVersionThatIsNotKnown(t *testing.T) {
	for _, version := range []string{"3.9.1", "", "4.0"} {
		r := Report{Members: []Member{{Version: version, DbSize: 1}}}
		require.NoError(t, r.Complete(Server{}))
		require.Equal(t, NewestKnown, r.AsProposed.Server.Version)
	}
}

// TestKeysThatComeAndGo do not add up: chunks are new keys with each write.
func TestKeysThatComeAndGo(t *testing.T) {
	churn := func(keys uint64) Traffic {
		tr := traffic(10, 50_000, 60, 5000, keys)
		tr.Total.Tombstones = keys - 100
		tr.Window.Tombstones = tr.Window.Records
		tr.Window.RecordSizes = append(RecordSizes{{Min: 60, Max: 63, Count: tr.Window.Records, KeyBytes: 60 * tr.Window.Records}}, tr.Window.RecordSizes...)
		tr.Window.Records *= 2
		return tr
	}
	inUse := func(keys uint64) float64 {
		r := Report{Asked: churn(keys), Proposed: churn(keys), Members: []Member{{Version: "3.7.3", DbSize: 20 << 20, InUse: 20<<20 + 1, Quota: 2 << 30}}}
		require.NoError(t, r.Complete(Server{Compaction: Compaction{Mode: CompactPeriodic, Retention: time.Hour}}))
		require.Empty(t, r.Warnings)
		return r.AsProposed.Get(InUse).Expected
	}
	require.InEpsilon(t, inUse(1000), inUse(8_640_000), 0.02)
	require.InEpsilon(t, inUse(1000), inUse(3_000_000_000), 0.02)
}

// TestWhatIsInUseIsNotCountedTwice: a report of what has been going on projects what there
// is.
func TestWhatIsInUseIsNotCountedTwice(t *testing.T) {
	r := Report{Proposed: traffic(1, 100_000, 20, 100_000, 5000), Members: []Member{{Version: "3.7.3", DbSize: 800 << 20, InUse: 600 << 20, Quota: -1}}}
	require.NoError(t, r.Complete(Server{Compaction: Compaction{Mode: CompactRevision, Revisions: 10}}))
	require.Less(t, r.AsProposed.Get(InUse).Expected, float64(750<<20))
}
