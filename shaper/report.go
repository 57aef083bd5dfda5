package shaper

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
	"time"
)

// Stats are the counters of a process: what the application has asked for, and what was
// sent to etcd.
type Stats struct {
	Asked    Traffic `json:"asked"`
	Proposed Traffic `json:"proposed"`
}

// Report is what an application does to an etcd, what that costs, and what it would cost
// without kvwrap. It can be marshalled as JSON.
type Report struct {
	At time.Time `json:"at"`

	// Asked is what the application has asked for, Proposed what was sent to etcd. Where others
	// write to the cluster, too, these are not in either of them.
	Asked    Traffic `json:"asked"`
	Proposed Traffic `json:"proposed"`

	Members []Member `json:"members"`
	// AsAsked and AsProposed project what the windows of Asked and Proposed come to on these
	// members, if they go on. They are of this process alone.
	AsAsked    Projection `json:"asAsked"`
	AsProposed Projection `json:"asProposed"`

	Budget  BudgetUse `json:"budget"`
	Pending Pending   `json:"pending"`
	Chunks  Chunks    `json:"chunks"`

	Warnings []Warning `json:"warnings"`
}

// Member is the state of a member of the cluster.
type Member struct {
	ID       string   `json:"id"` // hexadecimal
	Name     string   `json:"name"`
	Role     string   `json:"role"` // leader, follower or learner; empty where it does not answer
	Version  string   `json:"version"`
	DbSize   int64    `json:"dbSize"`
	InUse    int64    `json:"inUse"`
	Bloat    float64  `json:"bloat"` // DbSize over InUse
	Quota    int64    `json:"quota"` // 0 for none
	QuotaUse float64  `json:"quotaUse"`
	Lag      uint64   `json:"lag"` // entries that are committed and not applied
	Alarms   []string `json:"alarms,omitempty"`
	Error    string   `json:"error,omitempty"` // why nothing else is known
}

// BudgetUse is how a budget stands. Rates are 0 where there is no limit.
type BudgetUse struct {
	Revisions      float64 `json:"revisions"` // a second that may go
	Bytes          float64 `json:"bytes"`     // a second that may go, as etcd's quota counts them
	Why            string  `json:"why,omitempty"`
	RevisionsAsked float64 `json:"revisionsAsked"` // in the last second
	BytesAsked     float64 `json:"bytesAsked"`
	Waiting        int     `json:"waiting"`
	Delayed        uint64  `json:"delayed"` // writes that have waited
	Refused        uint64  `json:"refused"`
	NoSpace        bool    `json:"noSpace"` // writes are refused, since etcd has no space
}

// Pending is what is taken and not written yet: what a crash of this process would lose.
type Pending struct {
	Puts   int    `json:"puts"`
	Writes int    `json:"writes"`
	Bytes  int    `json:"bytes"`
	Failed uint64 `json:"failed"` // that were taken and given up
}

// Chunks is what chunked values have left.
type Chunks struct {
	// Stored is how many keys the cluster has below the reserved prefix, of all clients: chunks,
	// anchors of writes that are under way or have crashed, and some of kvwrap's own. -1 where
	// that is not known.
	Stored    int64  `json:"stored"`
	Abandoned uint64 `json:"abandoned"` // writes of this process that were given up after they had staged chunks
	Swept     uint64 `json:"swept"`     // chunks that sweeps of this process have deleted
	Oversized uint64 `json:"oversized"` // writes that could not be made to fit into entries of the size that is set
}

// Warning is something to be done.
type Warning struct {
	Text   string `json:"text"`   // what is so, with its numbers
	Remedy string `json:"remedy"` // what to do
}

// Complete fills in AsAsked, AsProposed and Warnings from the rest. Server is what is not
// known from the members: flags. The quota and the version are theirs.
func (r *Report) Complete(server Server) error {
	live := Live{}
	for _, m := range r.Members {
		if m.Error == "" && m.DbSize > live.DbSize {
			live.DbSize, live.InUse = m.DbSize, min(m.InUse, m.DbSize)
			server.Version = m.Version
			server.Quota = cmp.Or(m.Quota, -1) // there is none
		}
	}
	if server.Version == "" || r.newer(server.Version) {
		server.Version = NewestKnown
	}
	// What has come in the first moment is not taken for a rate.
	settled := func(t Traffic) Traffic {
		t.Window.Elapsed = max(t.Window.Elapsed, time.Second)
		return t
	}
	asked, proposed := settled(r.Asked), settled(r.Proposed)
	// What is in use is that of others, but for the keys that this process has put.
	for _, rate := range proposed.Load(live).Records {
		live.InUse -= int64(rate.Keys) * int64(rate.KeyBytes+rate.ValueBytes)
	}
	live.InUse = max(0, live.InUse)
	var err error
	if r.AsAsked, err = Project(server, asked.Load(live)); err != nil {
		return err
	}
	if r.AsProposed, err = Project(server, proposed.Load(live)); err != nil {
		return err
	}
	r.warn()
	return nil
}

// NewestKnown is the version that is taken for one that is not known.
const NewestKnown = "3.7"

func (r *Report) newer(version string) bool {
	_, err := Server{Version: version}.minor()
	return err != nil
}

// Load returns the traffic of the window as a load, on a cluster that has so much already.
//
// Of how many keys live only bounds are known: those that were put and not deleted, and those that
// were put in the window. They are taken to be spread over records of all sizes alike.
func (t Traffic) Load(live Live) Load {
	w := t.Window
	l := Load{Live: live}
	seconds := max(w.Elapsed.Seconds(), 1e-9)
	rate := func(n uint64) float64 { return min(float64(n)/seconds, maxPerSecond) }
	for _, b := range w.EntrySizes {
		l.Entries = append(l.Entries, EntryRate{PerSecond: rate(b.Count), Bytes: int(b.Bytes / b.Count)})
	}
	if len(l.Entries) == 0 {
		return l // records without entries are of what has not ended
	}
	puts := w.Records - min(w.Tombstones, w.Records)
	keys := float64(max(t.Keys-min(t.Total.Tombstones, t.Keys), min(t.Keys, puts)))
	for _, b := range w.RecordSizes {
		r := RecordRate{
			PerSecond: rate(b.Count), KeyBytes: int(b.KeyBytes / b.Count), ValueBytes: int(b.ValueBytes / b.Count),
			Leased: 2*w.Leased > w.Records,
			Delete: b.ValueBytes == 0 && 2*w.Tombstones >= b.Count,
		}
		if !r.Delete {
			r.Keys = int(min(max(1, keys*float64(b.Count)/float64(max(1, puts))), maxKeys/float64(numBuckets)))
		}
		l.Records = append(l.Records, r)
	}
	return l
}

// warn fills in the warnings.
func (r *Report) warn() {
	r.Warnings = []Warning{}
	warn := func(remedy, format string, args ...any) {
		r.Warnings = append(r.Warnings, Warning{fmt.Sprintf(format, args...), remedy})
	}
	for _, m := range r.Members {
		who := m.Name
		if who == "" {
			who = m.ID
		}
		switch {
		case m.Error != "":
			warn("look at the member, and at the network between", "%s does not answer: %s", who, m.Error)
			continue
		case len(m.Alarms) > 0:
			warn("compact and defragment, and disarm the alarm: budget.Reclaim does", "%s has the alarm %s", who, strings.Join(m.Alarms, ", "))
		}
		if m.Quota > 0 && m.QuotaUse >= 0.8 {
			warn("compact and defragment, or raise --quota-backend-bytes", "%s has used %.0f %% of its quota, %s of %s",
				who, 100*m.QuotaUse, Bytes.format(float64(m.DbSize)), Bytes.format(float64(m.Quota)))
		}
		if free := m.DbSize - m.InUse; m.Bloat >= 2 && free >= 100<<20 {
			warn("defragment it, when it may stall: budget.Reclaim does, one member after the other", "%s has a file of %s, of which %s are in use",
				who, Bytes.format(float64(m.DbSize)), Bytes.format(float64(m.InUse)))
		}
		if m.Lag >= 1000 {
			warn("write less, or find out what slows its disk", "%s has %d entries to apply; etcd refuses requests from 5000 on", who, m.Lag)
		}
	}
	if f := r.AsProposed.Get(TimeToQuota); !math.IsInf(f.Expected, 1) && f.Expected < 24*3600 && f.Expected > 0 {
		warn("set --auto-compaction-retention, or a shorter one, or write less (see Tune); where etcd compacts, set Config.Server.Compaction to what it does", "this process alone fills the quota in %s, if nothing is compacted meanwhile", Seconds.format(f.Expected))
	}
	if f := r.AsProposed.Get(RaftLog); f.Expected > 1e9 {
		warn("lower MaxEntryBytes, or --snapshot-catchup-entries", "the raft log of each member comes to %s by what this process writes", Bytes.format(f.Expected))
	}
	if b := r.Budget; b.Refused > 0 || b.Waiting > 0 {
		limit := ""
		if b.Why != "" {
			limit = " (" + b.Why + ")"
		}
		warn("raise the budget, or write less", "since the start the budget has refused %d writes, and %d wait%s", b.Refused, b.Waiting, limit)
	}
	if r.Pending.Failed > 0 {
		warn("see what promises and OnError have said", "%d puts by PutAsync were given up since the start", r.Pending.Failed)
	}
	if r.Chunks.Oversized > 0 {
		warn("divide the transactions, or raise Chunk.MaxEntryBytes", "%d writes since the start were larger than MaxEntryBytes, and could not be divided", r.Chunks.Oversized)
	}
	if r.Chunks.Abandoned > 0 && r.Chunks.Swept == 0 {
		warn("sweep: set Chunk.SweepInterval, or call Sweep", "%d writes were given up after they had staged chunks, which may be left", r.Chunks.Abandoned)
	}
	if p := r.Proposed.Window; p.Unknown > 0 {
		warn("look at the network, and at the members' disks", "%d writes of the last %v had no answer: they may have been applied", p.Unknown, p.Elapsed.Round(time.Second))
	}
}

// String returns one line, fit for a log.
func (r Report) String() string {
	a, p := r.Asked.Window, r.Proposed.Window
	s := fmt.Sprintf("asked for %.3g revisions/s, %s/s of entries; proposed %.3g revisions/s, %s/s; raft log %s, %s as asked; backend growth %s",
		a.PerSecond(a.Revisions), Bytes.format(a.PerSecond(a.EntryBytes)), p.PerSecond(p.Revisions), Bytes.format(p.PerSecond(p.EntryBytes)),
		Bytes.format(r.AsProposed.Get(RaftLog).Expected), Bytes.format(r.AsAsked.Get(RaftLog).Expected), BytesPerSecond.format(r.AsProposed.Get(BackendGrowth).Expected))
	for _, m := range r.Members {
		if m.Error != "" {
			s += fmt.Sprintf("; %s no answer", m.Name)
			continue
		}
		s += fmt.Sprintf("; %s %s %s, %s in use, %.0f %% of the quota", m.Name, m.Role, Bytes.format(float64(m.DbSize)), Bytes.format(float64(m.InUse)), 100*m.QuotaUse)
	}
	if n := len(r.Warnings); n > 0 {
		s += fmt.Sprintf("; warnings: %d, the first: %s: %s", n, r.Warnings[0].Text, r.Warnings[0].Remedy)
	}
	return s
}

// Text returns the report for people, about 80 columns wide.
func (r Report) Text() string {
	var b strings.Builder
	for _, w := range r.Warnings {
		wrap(&b, fmt.Sprintf("! %s: %s.", w.Text, w.Remedy))
	}
	if len(r.Warnings) > 0 {
		b.WriteByte('\n')
	}
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	a, p := r.Asked, r.Proposed
	fmt.Fprintf(t, "last %v\tasked\tproposed\t\t\n", p.Window.Elapsed.Round(time.Second))
	row := func(name string, asked, proposed float64, format func(float64) string) {
		less := ""
		switch {
		case proposed <= 0 || asked <= 0 || math.IsInf(asked, 0) || math.IsInf(proposed, 0):
		case asked > 1.05*proposed:
			less = fmt.Sprintf("%.1fx less", asked/proposed)
		case proposed > 1.05*asked:
			less = fmt.Sprintf("%.1fx more", proposed/asked)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t\n", name, format(asked), format(proposed), less)
	}
	number := func(v float64) string { return fmt.Sprintf("%.4g", v) }
	perSecond := func(of func(Counts) uint64) (float64, float64) {
		return a.Window.PerSecond(of(a.Window.Counts)), p.Window.PerSecond(of(p.Window.Counts))
	}
	rate := func(name string, of func(Counts) uint64, format func(float64) string) {
		x, y := perSecond(of)
		row(name, x, y, format)
	}
	rate("revisions/s", func(c Counts) uint64 { return c.Revisions }, number)
	rate("records/s", func(c Counts) uint64 { return c.Records }, number)
	rate("entries/s", func(c Counts) uint64 { return c.Entries }, number)
	rate("entry bytes/s", func(c Counts) uint64 { return c.EntryBytes }, Bytes.format)
	row("median entry", float64(a.Window.EntrySizes.Quantile(0.5)), float64(p.Window.EntrySizes.Quantile(0.5)), Bytes.format)
	row("largest entry", float64(a.LargestEntryBytes), float64(p.LargestEntryBytes), Bytes.format)
	for _, name := range []FigureName{RaftLog, PeakAnonymous, BackendGrowth} {
		x, y := r.AsAsked.Get(name), r.AsProposed.Get(name)
		row(string(name)+", projected", x.Expected, y.Expected, x.Unit.format)
	}
	fmt.Fprintf(t, "%s\t%s\t%s\t\t\n", TimeToQuota, Seconds.format(r.AsAsked.Get(TimeToQuota).Expected), Seconds.format(r.AsProposed.Get(TimeToQuota).Expected))
	t.Flush()

	if len(r.Members) > 0 {
		b.WriteByte('\n')
		m := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintf(m, "member\trole\tetcd\tfile\tin use\tbloat\tof quota\tlag\talarms\n")
		for _, x := range r.Members {
			if x.Error != "" {
				fmt.Fprintf(m, "%s\t%s\tno answer: %s\n", x.Name, x.Role, x.Error)
				continue
			}
			fmt.Fprintf(m, "%s\t%s\t%s\t%s\t%s\t%.2f\t%.1f %%\t%d\t%s\n", x.Name, x.Role, x.Version, Bytes.format(float64(x.DbSize)), Bytes.format(float64(x.InUse)),
				x.Bloat, 100*x.QuotaUse, x.Lag, strings.Join(x.Alarms, " "))
		}
		m.Flush()
	}
	if len(a.Heaviest) > 0 {
		b.WriteByte('\n')
		h := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintf(h, "asked below\trecords\tbytes\n")
		for _, x := range a.Heaviest[:min(5, len(a.Heaviest))] {
			fmt.Fprintf(h, "%q\t%d\t%s\n", x.Prefix, x.Records, Bytes.format(float64(x.Bytes)))
		}
		h.Flush()
	}
	b.WriteByte('\n')
	if u := r.Budget; u.Revisions > 0 || u.Bytes > 0 {
		var limits []string
		if u.Revisions > 0 {
			limits = append(limits, fmt.Sprintf("%.4g revisions/s are asked for, %.4g may go", u.RevisionsAsked, u.Revisions))
		}
		if u.Bytes > 0 {
			limits = append(limits, fmt.Sprintf("%s are asked for, %s may go", BytesPerSecond.format(u.BytesAsked), BytesPerSecond.format(u.Bytes)))
		}
		fmt.Fprintf(&b, "budget: %s; %d wait, %d have waited, %d were refused\n", strings.Join(limits, "; "), u.Waiting, u.Delayed, u.Refused)
	}
	fmt.Fprintf(&b, "pending: %d puts, %d writes of %s; given up %d\n", r.Pending.Puts, r.Pending.Writes, Bytes.format(float64(r.Pending.Bytes)), r.Pending.Failed)
	stored := "unknown"
	if r.Chunks.Stored >= 0 {
		stored = fmt.Sprint(r.Chunks.Stored)
	}
	fmt.Fprintf(&b, "chunks: %s stored, %d swept, %d writes abandoned, %d oversized\n", stored, r.Chunks.Swept, r.Chunks.Abandoned, r.Chunks.Oversized)
	return b.String()
}
