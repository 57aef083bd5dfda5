package shaper

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestFoundingCases projects the two reports that the project was born from.
func TestFoundingCases(t *testing.T) {
	// An API gateway writes 2 MB of statistics in one key every five seconds.
	p, err := Project(Server{Version: "3.7.3"}, PutLoad(1.0/5, 1, 30, 2_000_000))
	require.NoError(t, err)
	require.InEpsilon(t, 10e9, p.Get(RaftLog).Expected, 0.03)
	require.InEpsilon(t, 5050, p.Get(RaftEntries).Expected, 0.001)
	require.InEpsilon(t, (7 * time.Hour).Seconds(), p.Get(TimeToFullLog).Expected, 0.01)

	// A broker commits 5000 offsets a second. The report assumed 1 KiB for a revision,
	// which is what a value of 790 bytes takes, and a quota of 2 GiB.
	key := len("/kafscale/topics/orders/partitions/0012/next_offset")
	p, err = Project(Server{Version: "3.7"}, PutLoad(5000, 1000, key, 790))
	require.NoError(t, err)
	require.InDelta(t, 1024, p.Get(BytesPerRecord).Expected, 15)
	require.InDelta(t, 7, p.Get(TimeToQuota).Expected/60, 0.2)

	// An offset has 19 bytes at the most. A revision of it takes 138, and the quota is
	// reached after 52 minutes, not 7.
	p, err = Project(Server{Version: "3.7"}, PutLoad(5000, 1000, key, 19))
	require.NoError(t, err)
	require.InDelta(t, 138, p.Get(BytesPerRecord).Expected, 3)
	require.InDelta(t, 52, p.Get(TimeToQuota).Expected/60, 1)
	require.True(t, math.IsInf(p.Get(InUse).Expected, 1))
	require.NotEmpty(t, p.Get(InUse).Note)

	// With revisions kept for five minutes it never is: half a gigabyte is in use.
	p, err = Project(Server{Version: "3.7", Compaction: Compaction{Mode: CompactPeriodic, Retention: 5 * time.Minute}},
		PutLoad(5000, 1000, key, 19))
	require.NoError(t, err)
	require.InEpsilon(t, 5000*(330+630)/2*138, p.Get(InUse).Expected, 0.03)
	require.True(t, math.IsInf(p.Get(TimeToQuota).Expected, 1))
}

func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		version             string
		low, expected, high float64
		restart             time.Duration
	}{
		{"3.5.35", 5000, 55000, 105001, 100_001 * time.Second},
		{"3.6.16", 5000, 5050, 5101, 10_001 * time.Second},
		{"v3.7.3", 5000, 5050, 5101, 10_001 * time.Second},
	} {
		p, err := Project(Server{Version: c.version}, PutLoad(1, 1, 10, 10))
		require.NoError(t, err)
		f := p.Get(RaftEntries)
		require.Equal(t, []float64{c.low, c.expected}, []float64{f.Low, f.Expected})
		require.InDelta(t, c.high, f.High, 1+ownEntries)
		require.Equal(t, c.restart.Seconds(), p.Get(TimeBetweenSnapshots).Expected)
		require.Equal(t, int64(2<<30), p.Server.Quota)
	}
}

// TestPeriodicCompaction plays the compactor of etcd: a revision is noted ten times in an
// interval, and there is a compaction at the oldest that is noted, once in an interval.
func TestPeriodicCompaction(t *testing.T) {
	for _, retention := range []time.Duration{time.Minute, time.Hour, 10 * time.Hour} {
		const rate = 1000.0
		p, err := Project(Server{Version: "3.7", Quota: -1, Compaction: Compaction{Mode: CompactPeriodic, Retention: retention}},
			PutLoad(rate, 1, 10, 10))
		require.NoError(t, err)
		interval := min(retention, time.Hour).Seconds()
		var noted []float64
		compacted, last, base := 0.0, 0.0, retention.Seconds()
		low, high := math.Inf(1), 0.0
		for tick := range 500 {
			now := float64(tick) * interval / 10
			noted = append(noted, now*rate)
			noted = noted[max(0, len(noted)-int(retention.Seconds()/(interval/10)+0.5)-1):]
			now += interval / 10
			if tick > 400 {
				high = max(high, now*rate-compacted)
			}
			if now-last < base-1e-6 {
				continue
			}
			base, last, compacted = interval, now, noted[0]
			if tick > 400 {
				low = min(low, now*rate-compacted)
			}
		}
		per := p.Get(BytesPerRecord)
		require.InEpsilon(t, low*per.Low, p.Get(InUse).Low, 0.02, "%v", retention)
		require.InEpsilon(t, (low+high)/2*per.Expected, p.Get(InUse).Expected, 0.02, "%v", retention)
		require.Greater(t, p.Get(InUse).High, high*per.High, "%v", retention)
	}
}

func TestRevisionCompaction(t *testing.T) {
	p, err := Project(Server{Version: "3.7", Compaction: Compaction{Mode: CompactRevision, Revisions: 100_000}},
		TxnLoad(10, 20, 1000, 10, 10))
	require.NoError(t, err)
	per := p.Get(BytesPerRecord)
	// 100,000 revisions of 20 records, and those of five minutes.
	require.InEpsilon(t, 2_001_000*per.Low, p.Get(InUse).Low, 0.01)
	require.Greater(t, p.Get(InUse).High, 2_061_000*per.High)
}

func TestInput(t *testing.T) {
	load := PutLoad(1, 1, 1, 1)
	for name, c := range map[string]struct {
		server Server
		load   Load
		says   string
	}{
		"no version":          {Server{}, load, `Server.Version is ""`},
		"unknown version":     {Server{Version: "3.4.1"}, load, `Server.Version is "3.4.1"`},
		"version 4":           {Server{Version: "4.5"}, load, "of 3.5, 3.6 or 3.7"},
		"GOGC off":            {Server{Version: "3.7", GOGC: -1}, load, "Server.GOGC is -1"},
		"mode":                {Server{Version: "3.7", Compaction: Compaction{Mode: "hourly"}}, load, `Compaction.Mode is "hourly"`},
		"no retention":        {Server{Version: "3.7", Compaction: Compaction{Mode: CompactPeriodic}}, load, "Compaction.Retention is 0s"},
		"retention, no mode":  {Server{Version: "3.7", Compaction: Compaction{Retention: 1}}, load, "set Mode to CompactPeriodic"},
		"no revisions":        {Server{Version: "3.7", Compaction: Compaction{Mode: CompactRevision}}, load, "Compaction.Revisions is 0"},
		"revisions, no mode":  {Server{Version: "3.7", Compaction: Compaction{Revisions: -1}}, load, "set Mode to CompactRevision"},
		"catch-up":            {Server{Version: "3.7", CatchUpEntries: 1 << 63}, load, "or 0 for the default, 5000"},
		"snapshot-count":      {Server{Version: "3.7", SnapshotCount: 1 << 63}, load, "Server.SnapshotCount"},
		"rate not a number":   {Server{Version: "3.7"}, PutLoad(math.NaN(), 1, 1, 1), "Load.Entries[0].PerSecond is NaN"},
		"rate infinite":       {Server{Version: "3.7"}, PutLoad(math.Inf(1), 1, 1, 1), "Load.Records[0].PerSecond is +Inf"},
		"rate negative":       {Server{Version: "3.7"}, PutLoad(-1, 1, 1, 1), "Load.Records[0].PerSecond is -1"},
		"size negative":       {Server{Version: "3.7"}, PutLoad(1, 1, 1, -1), "Load.Records[0].ValueBytes is -1"},
		"keys negative":       {Server{Version: "3.7"}, PutLoad(1, -1, 1, 1), "Load.Records[0].Keys is -1"},
		"records, no entries": {Server{Version: "3.7"}, Load{Records: load.Records}, "Load.Entries"},
		"in use over size":    {Server{Version: "3.7"}, Load{Live: Live{InUse: 2, DbSize: 1}}, "it is part of Live.DbSize, which is 1"},
		"revision negative":   {Server{Version: "3.7"}, Load{Live: Live{Revision: -1}}, "Load.Live.Revision is -1"},
		"for negative":        {Server{Version: "3.7"}, Load{For: -1}, "Load.For is -1ns"},
		"streams negative":    {Server{Version: "3.7"}, Load{WatchStreams: -1}, "Load.WatchStreams is -1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Project(c.server, c.load)
			require.ErrorContains(t, err, c.says)
			require.ErrorIs(t, err, ErrInput)
			var input *InputError
			require.ErrorAs(t, err, &input)
			require.NotEmpty(t, input.Remedy)
		})
	}
	_, err := Project(Server{GOGC: -3}, PutLoad(-1, -1, -1, -1))
	require.Len(t, strings.Split(err.Error(), "\n"), 7, "all that is wrong: %v", err)
}

// draw returns anything that Project accepts.
func draw(t *rapid.T) (Server, Load) {
	rate := rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(1e-9, 10), rapid.Float64Range(0, maxPerSecond))
	size := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, 5000), rapid.IntRange(0, maxBytes))
	s := Server{
		Version:        rapid.SampledFrom([]string{"3.5", "3.6.1", "v3.7.3"}).Draw(t, "version"),
		SnapshotCount:  rapid.Uint64Range(0, maxEntries).Draw(t, "snapshot-count"),
		CatchUpEntries: rapid.Uint64Range(0, maxEntries).Draw(t, "catch-up"),
		Quota:          rapid.Int64Range(-1, 1<<40).Draw(t, "quota"),
		GOGC:           rapid.IntRange(0, 1000).Draw(t, "GOGC"),
		Compaction: rapid.SampledFrom([]Compaction{
			{}, {Mode: CompactPeriodic, Retention: 1}, {Mode: CompactPeriodic, Retention: maxDuration},
			{Mode: CompactRevision, Revisions: 1}, {Mode: CompactRevision, Revisions: 1e12},
		}).Draw(t, "compaction"),
	}
	var l Load
	for range rapid.IntRange(0, 4).Draw(t, "puts") {
		l = l.Plus(TxnLoad(rate.Draw(t, "rate"), rapid.IntRange(1, 100).Draw(t, "puts of one"), rapid.IntRange(0, maxKeys).Draw(t, "keys"), 1+size.Draw(t, "key")/1000, size.Draw(t, "value")/200))
	}
	for i := range l.Records {
		l.Records[i].PerSecond = min(l.Records[i].PerSecond, maxPerSecond)
	}
	l.For = time.Duration(rapid.SampledFrom([]int64{0, 1, 1e9, int64(maxDuration)}).Draw(t, "for"))
	l.WatchStreams = rapid.IntRange(0, 10).Draw(t, "streams")
	l.Live.Revision = rapid.Int64Range(0, 1<<50).Draw(t, "revision")
	l.Live.Keys = rapid.IntRange(0, maxKeys).Draw(t, "live keys")
	return s, l
}

// TestFigures holds what is true of every projection.
func TestFigures(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, l := draw(t)
		p, err := Project(s, l)
		require.NoError(t, err)
		for _, f := range p.Figures {
			require.False(t, math.IsNaN(f.Low+f.Expected+f.High) || math.IsInf(f.Low, -1), "%+v", f)
			require.GreaterOrEqual(t, f.Low, 0.0, "%+v", f)
			require.LessOrEqual(t, f.Low, f.Expected, "%+v", f)
			require.LessOrEqual(t, f.Expected, f.High, "%+v", f)
			require.NotEmpty(t, f.Formula, f.Name)
			require.NotEmpty(t, f.Source, f.Name)
		}
		encoded, err := json.Marshal(p)
		require.NoError(t, err)
		var decoded Projection
		require.NoError(t, json.Unmarshal(encoded, &decoded))
		require.Equal(t, p, decoded)
		for _, text := range []string{p.String(), p.Explain()} {
			for line := range strings.Lines(text) {
				require.LessOrEqual(t, len(line), 101, line)
			}
		}
	})
}

// TestBounded has loads that are far from even, and of many sizes.
func TestBounded(t *testing.T) {
	many := Load{Entries: []EntryRate{{PerSecond: 1, Bytes: 100}}}
	for i := range 20_000 {
		many.Records = append(many.Records, RecordRate{PerSecond: 1e-5, KeyBytes: 10, ValueBytes: i})
	}
	for _, l := range []Load{
		{Entries: []EntryRate{{PerSecond: maxPerSecond}}, Records: []RecordRate{{PerSecond: leastPerSecond}}},
		{Entries: []EntryRate{{PerSecond: leastPerSecond}}, Records: []RecordRate{{PerSecond: maxPerSecond}, {PerSecond: leastPerSecond}}},
		many,
	} {
		began := time.Now()
		_, err := Project(Server{Version: "3.7"}, l)
		require.NoError(t, err)
		require.Less(t, time.Since(began), 10*time.Second)
	}
}

// TestMore holds that more puts, or larger ones, never take less.
func TestMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(1, 1000).Draw(t, "rate")
		value := rapid.IntRange(4096, 1<<20).Draw(t, "value")
		s := Server{Version: "3.7", Compaction: Compaction{Mode: CompactPeriodic, Retention: time.Minute}}
		less, err := Project(s, PutLoad(rate, 10, 10, value))
		require.NoError(t, err)
		for _, l := range []Load{PutLoad(rate*1.5, 10, 10, value), PutLoad(rate, 10, 10, value+value/2)} {
			more, err := Project(s, l)
			require.NoError(t, err)
			for _, name := range []FigureName{RaftLog, LiveHeap, PeakAnonymous, BackendGrowth, InUse} {
				require.GreaterOrEqual(t, more.Get(name).Expected, less.Get(name).Expected, name)
			}
			require.LessOrEqual(t, more.Get(TimeToQuota).Expected, less.Get(TimeToQuota).Expected)
		}
	})
}

func Example() {
	server := Server{
		Version:    "3.7.3",
		Compaction: Compaction{Mode: CompactPeriodic, Retention: 5 * time.Minute},
	}
	p, err := Project(server, PutLoad(0.2, 1, 30, 2_000_000))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(p)
	// Output:
	// etcd 3.7.3, catch-up 5000, snapshot-count 10000, quota 2.15 GB, compaction after 5m0s, GOGC 100
	//                                        low  expected      high
	//   raft entries retained               5000      5050      5106
	//   raft log                         10.0 GB   10.1 GB   10.2 GB
	//   raft log at a restart                0 B   10.0 GB   20.1 GB
	//   index of keys                    1.23 KB   2.21 KB   4.23 KB
	//   write buffers                        0 B   40.1 KB    140 KB
	//   live heap                        10.0 GB   10.1 GB   10.3 GB
	//   peak memory, anonymous           10.0 GB   21.3 GB   26.7 GB
	//   peak memory at a restart         7.30 MB   21.1 GB   52.3 GB
	//   peak memory, with file           10.0 GB   21.6 GB   27.1 GB
	//   backend per record               2.00 MB   2.00 MB   2.00 MB
	//   backend growth                  400 KB/s  400 KB/s  400 KB/s
	//   backend in use                    134 MB    196 MB    266 MB
	//   backend file                      254 MB    312 MB    373 MB
	//   time to the quota                  never     never     never
	//   time to the full raft log         6.94 h    7.01 h    7.09 h
	//   time between disk snapshots       13.9 h    13.9 h    13.9 h
	// raft log at a restart: all of the WAL since the last snapshot is read into memory, and compacted
	//     when it has been applied.
	// time to the quota: the file stays below the quota.
}
