package shaper

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	gateway = Workload{Writers: 3, ValueBytes: 2_000_000, Changed: 0.03, Interval: 5 * time.Second}
	broker  = Workload{
		Prefix: "offsets/", Keys: 200, KeyBytes: 40, ValueBytes: 19, Interval: 40 * time.Millisecond,
		Freshness: 100 * time.Millisecond, Latest: true, Increasing: true, Polled: true,
	}
	newest = Server{Version: "3.7"}
)

func tuned(t *testing.T, w Workload, target Target) Plan {
	t.Helper()
	p, err := Tune(w, target)
	require.NoError(t, err)
	require.NotContains(t, p.String(), "NaN")
	_, err = json.Marshal(p)
	require.NoError(t, err)
	return p
}

func (p Plan) choice(setting string) string { return p.choiceOf(setting).Value }

func (p Plan) choiceOf(setting string) Choice {
	for _, c := range append(p.Choices, p.Flags...) {
		if c.Setting == setting {
			return c
		}
	}
	return Choice{}
}

// TestTheFoundingCases are met by what Tune chooses.
func TestTheFoundingCases(t *testing.T) {
	p := tuned(t, gateway, Target{Server: newest})
	require.Empty(t, p.Unmet)
	require.True(t, p.Settings.Chunked)
	require.InEpsilon(t, 10.1e9, p.Plain.Get(RaftLog).Expected, 0.01)
	require.Less(t, p.Shaped.Get(RaftLog).Expected, 250e6)

	p = tuned(t, broker, Target{RevisionsPerSecond: 100, Server: newest})
	require.Empty(t, p.Unmet)
	require.Equal(t, "Max", p.Settings.Mode)
	require.True(t, p.Settings.StaleReads)
	require.Less(t, p.ShapedLoad.entriesPerSecond(), 100.0)
	plain, err := Project(newest, p.PlainLoad)
	require.NoError(t, err)
	require.Less(t, plain.Get(TimeToQuota).Expected, 3700.0)
}

// TestEveryTargetCounts: with it something else is chosen, and it is met.
func TestEveryTargetCounts(t *testing.T) {
	small := Workload{Keys: 1000, Writers: 4, KeyBytes: 40, ValueBytes: 900, Interval: 100 * time.Millisecond, Freshness: time.Second, Latest: true}
	loose := tuned(t, small, Target{Server: newest})
	require.Empty(t, loose.Unmet)
	require.Equal(t, 800*time.Millisecond, loose.Settings.FlushEvery, "all that Freshness allows")

	p := tuned(t, small, Target{RaftLogBytes: 100 << 20, Server: newest})
	require.Empty(t, p.Unmet)
	require.Less(t, p.Shaped.Get(RaftLog).Expected, float64(100<<20))
	require.Less(t, p.Settings.MaxEntryBytes, loose.Settings.MaxEntryBytes)

	p = tuned(t, small, Target{RevisionsPerSecond: 400, Server: newest})
	require.Empty(t, p.Unmet)
	require.Less(t, p.Settings.FlushEvery, loose.Settings.FlushEvery, "the least that is enough")
	require.Equal(t, 400.0, p.Settings.Revisions)
	require.True(t, p.Settings.Shared)

	p = tuned(t, small, Target{BackendBytesPerSecond: 10e6, Server: newest})
	require.Empty(t, p.Unmet)
	require.Less(t, p.Shaped.Get(BackendGrowth).Expected, 10e6)
	require.Less(t, p.Settings.FlushEvery, loose.Settings.FlushEvery)

	p = tuned(t, small, Target{FileBytes: 1 << 30, Server: newest})
	require.Empty(t, p.Unmet)
	require.Less(t, p.Shaped.Get(FileSize).Expected, float64(1<<30))

	p = tuned(t, small, Target{Server: newest, Tmpfs: true})
	require.NotEqual(t, loose.choice("memory limit of the container"), p.choice("memory limit of the container"))
	require.Empty(t, p.choice("GOMEMLIMIT"))
}

// TestEveryPartOfAWorkloadCounts.
func TestEveryPartOfAWorkloadCounts(t *testing.T) {
	mode := func(edit func(*Workload)) Settings {
		w := broker
		edit(&w)
		return tuned(t, w, Target{Server: newest}).Settings
	}
	require.Equal(t, "LastWriteWins", mode(func(w *Workload) { w.Increasing = false }).Mode)
	require.Equal(t, "GroupCommit", mode(func(w *Workload) { w.Latest = false }).Mode)
	require.False(t, mode(func(w *Workload) { w.Polled = false }).StaleReads)
	require.Zero(t, mode(func(w *Workload) { w.Freshness = 0 }).FlushEvery)
	require.Equal(t, "Off", mode(func(w *Workload) { w.Latest, w.Interval = false, time.Hour }).Mode)
	require.True(t, mode(func(w *Workload) { w.Increasing, w.Unchanged = false, 0.5 }).SkipUnchanged)
	bytes := func(edit func(*Workload)) (sum float64) {
		w := gateway
		edit(&w)
		for _, e := range tuned(t, w, Target{Server: newest}).ShapedLoad.Entries {
			sum += e.PerSecond * float64(e.Bytes)
		}
		return sum
	}
	usual := bytes(func(*Workload) {})
	require.Greater(t, bytes(func(w *Workload) { w.Changed = 0 }), 5*usual, "all of it")
	require.Greater(t, bytes(func(w *Workload) { w.Compression = 1 }), 1.5*usual)
	require.NotEqual(t, usual, bytes(func(w *Workload) { w.ObjectBytes = 100 }))
	require.InEpsilon(t, 2*usual, bytes(func(w *Workload) { w.Writers = 6 }), 0.01)
	require.InEpsilon(t, 2*usual, bytes(func(w *Workload) { w.Keys = 2 }), 0.01)
}

// TestWhatCannotBeMet is said, with the nearest that can.
func TestWhatCannotBeMet(t *testing.T) {
	w := broker
	w.Freshness, w.Latest = 0, false
	p := tuned(t, w, Target{RevisionsPerSecond: 100, Server: newest})
	require.Len(t, p.Unmet, 1)
	require.Equal(t, "RevisionsPerSecond", p.Unmet[0].Target)
	require.InDelta(t, 5000, p.Unmet[0].Nearest, 1)
	require.Contains(t, strings.Join(strings.Fields(p.String()), " "), "Not met: RevisionsPerSecond is to be at most 100 revisions/s, the nearest is 5000 revisions/s: each put")

	large := Workload{Keys: 10_000, ValueBytes: 5_000_000, Interval: time.Hour}
	p = tuned(t, large, Target{Server: newest})
	require.NotEmpty(t, p.Unmet)
	require.Contains(t, p.String(), "Not met: ")
}

// TestARetentionIsExplained as it is: where no retention keeps the file small enough, the
// plan does not say that one does.
func TestARetentionIsExplained(t *testing.T) {
	const longest, none = "the longest of 1h, 30m, 10m, 5m and 1m with which the file stays small enough; ", "with none of 1h, 30m, 10m, 5m and 1m does the file stay small enough, and with this it comes nearest; "
	why := func(w Workload, target Target, unmet ...string) string {
		target.Server = newest
		p := tuned(t, w, target)
		require.Len(t, p.Unmet, len(unmet))
		for i, u := range p.Unmet {
			require.Equal(t, unmet[i], u.Target)
		}
		return p.choiceOf("--auto-compaction-retention").Why
	}
	require.Contains(t, why(gateway, Target{}), longest)
	require.Contains(t, why(gateway, Target{RevisionsPerSecond: 1e-3}, "RevisionsPerSecond"), longest)
	require.Contains(t, why(gateway, Target{FileBytes: 1 << 20}, "FileBytes"), none)
	large := Workload{Keys: 10_000, ValueBytes: 5_000_000, Interval: time.Hour}
	require.Contains(t, why(large, Target{}, "FileBytes"), none)
	seldom := Workload{Keys: 120_000, ValueBytes: 50_000, Interval: 400 * time.Hour}
	require.Contains(t, why(seldom, Target{FileBytes: 2 << 30}, "Server.Quota"), none, "at its largest it is too large")
}

// TestAnOldServer has flags of its own, and a raft log that is bounded where no target is given.
func TestAnOldServer(t *testing.T) {
	p := tuned(t, broker, Target{Server: Server{Version: "3.5.35"}})
	require.Empty(t, p.Unmet)
	require.Less(t, p.Shaped.Get(RaftLog).Expected, float64(512<<20))
	require.NotEmpty(t, p.choice("--snapshot-count"))

	fixed := Server{Version: "3.5.35", SnapshotCount: 100_000, CatchUpEntries: 5000, Compaction: Compaction{Mode: CompactRevision, Revisions: 1000}}
	p = tuned(t, broker, Target{Server: fixed})
	require.Equal(t, fixed, p.Server, "what is set stays")
	require.Empty(t, p.choice("--snapshot-count"))
}

// TestWhatIsWrongWithAWorkload is said with the values and the remedy, all at once.
func TestWhatIsWrongWithAWorkload(t *testing.T) {
	_, err := Tune(Workload{Keys: -1, Changed: 2, Unchanged: 1, Compression: 0.5, Freshness: -1}, Target{RaftLogBytes: -5})
	require.ErrorIs(t, err, ErrInput)
	for _, what := range []string{
		"Workload.Keys is -1: choose 1 to", "Workload.ValueBytes is 0: choose 1 to", "Workload.Changed is 2", "Workload.Unchanged is 1",
		"Workload.Compression is 0.5", "Workload.Interval is 0s", "Workload.Freshness is -1ns: choose 1ms to 1h", "Target.RaftLogBytes is -5", "Server.Version",
	} {
		require.ErrorContains(t, err, what)
	}
	_, err = Tune(Workload{Keys: 1 << 20, Writers: 1000, ValueBytes: 1, Interval: time.Nanosecond}, Target{Server: newest})
	require.ErrorContains(t, err, "writes a second: choose Keys, Writers and Interval")
}

// TestPlansFitOnAScreen.
func TestPlansFitOnAScreen(t *testing.T) {
	for _, w := range []Workload{gateway, broker} {
		for line := range strings.Lines(tuned(t, w, Target{Server: newest}).String()) {
			require.LessOrEqual(t, len(strings.TrimRight(line, "\n")), 96, "%s", line)
		}
	}
}

// TestWhereKvwrapIsMore is said: batches are larger entries, chunks are more records.
func TestWhereKvwrapIsMore(t *testing.T) {
	said := func(w Workload, target Target) string {
		return strings.Join(strings.Fields(tuned(t, w, target).String()), " ")
	}
	require.Contains(t, said(broker, Target{Server: newest}), "With kvwrap the raft log is ")
	noise := Workload{ValueBytes: 100 << 10, Compression: 1, Interval: time.Second}
	require.Contains(t, said(noise, Target{Server: newest}), "With kvwrap the backend growth is ")
	require.Contains(t, said(noise, Target{Server: newest}), "With kvwrap there are ")
	require.NotContains(t, said(gateway, Target{Server: newest}), "With kvwrap the raft log is")

	p := tuned(t, noise, Target{RevisionsPerSecond: 1.5, Server: newest})
	require.Empty(t, p.Unmet, "larger entries are tried, too")
	require.Greater(t, p.Settings.MaxEntryBytes, 64<<10)
	p = tuned(t, noise, Target{RevisionsPerSecond: 0.5, Server: newest})
	require.Len(t, p.Unmet, 1)
	require.Zero(t, p.Settings.Revisions, "what is needed would wait for ever longer")
}

// TestAMemberFitsIntoItsContainer, also when it starts again.
func TestAMemberFitsIntoItsContainer(t *testing.T) {
	p := tuned(t, gateway, Target{RaftLogBytes: 16 << 20, Server: newest})
	limit, err := strconv.ParseFloat(strings.TrimSuffix(p.choice("memory limit of the container"), "Mi"), 64)
	require.NoError(t, err)
	require.Greater(t, limit*(1<<20), p.Shaped.Get(PeakAtRestart).High)
	require.Greater(t, limit*(1<<20), p.Shaped.Get(PeakAnonymous).High)
}

// TestPlansAreRead back from JSON.
func TestPlansAreRead(t *testing.T) {
	p := tuned(t, Workload{Keys: 10_000, ValueBytes: 5_000_000, Interval: time.Hour}, Target{Server: newest})
	require.NotEmpty(t, p.Unmet)
	b, err := json.Marshal(p)
	require.NoError(t, err)
	var back Plan
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, p.String(), back.String())
}

// TestNamesInJSON are in one case, down to the last one, as those of a Report.
func TestNamesInJSON(t *testing.T) {
	plan := tuned(t, broker, Target{RevisionsPerSecond: 0.5, Server: newest})
	require.NotEmpty(t, plan.Unmet)
	var check func(path string, v any)
	check = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, v := range v {
				require.Regexp(t, `^[a-z][a-zA-Z0-9]*$`, name, "in %s", path)
				check(path+"."+name, v)
			}
		case []any:
			for _, v := range v {
				check(path, v)
			}
		}
	}
	for _, v := range []any{plan, Report{}, Stats{}} {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		var names any
		require.NoError(t, json.Unmarshal(b, &names))
		check(fmt.Sprintf("%T", v), names)
	}
	b, err := json.Marshal(Settings{MaxEntryBytes: 65536, Mode: "Max", StaleReads: true, FlushEvery: 80 * time.Millisecond, Revisions: 100})
	require.NoError(t, err)
	require.Equal(t, `{"maxEntryBytes":65536,"chunked":false,"mode":"Max","staleReads":true,"skipUnchanged":false,"flushEvery":80000000,"revisions":100,"shared":false}`, string(b))
}
