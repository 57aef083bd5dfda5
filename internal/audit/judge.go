package audit

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/shaper"
)

// Assume is what Judge takes for what a report does not say itself.
type Assume struct {
	Quota int64 // --quota-backend-bytes; 0 for what members say, or etcd's default
	// RevisionsPerSecond is the rate of writes, 0 for the one that was measured.
	RevisionsPerSecond float64
	Measured           float64 // over how many seconds; 0 where it is given
	// Compaction is what discards old revisions, nil where nobody says.
	Compaction *shaper.Compaction
}

const defaultQuota = 2 << 30 // of etcd

// Bounds of findings.
const (
	bloatWarning   = 1.5
	bloatCritical  = 3
	freeWorthwhile = 64 << 20 // what is less is no matter, however bloated
	quotaWarning   = .8
	quotaCritical  = .95
	dayOfSeconds   = 86400
	largeValue     = 512 << 10
	largestRequest = 1536 << 10 // --max-request-bytes of etcd
	historyShare   = .5
	historyMin     = 32 << 20
	churnPerKey    = 100
	churnRevisions = 10_000
	churnLinger    = 1.0 // seconds, of the rule that is proposed
	changedPart    = .1  // of a large value, from one put to the next
	seenCompaction = 2 * 3600
	idleLeaseKeys  = 1.5
	idleLeases     = 10_000
	catchUpEntries = 5000 // --snapshot-catchup-entries of etcd
)

// Judge fills in what follows from the rest of r: quota and growth, findings, the verdict.
func (r *Report) Judge(a Assume) {
	b := &r.Backend
	switch {
	case a.Quota != 0:
		b.Quota, b.QuotaAssumed = max(a.Quota, 0), false
	case b.Quota == 0 && r.Source.Kind == "db":
		b.Quota, b.QuotaAssumed = defaultQuota, true
	}
	if b.QuotaAssumed {
		r.estimate(fmt.Sprintf("the quota, %s, is etcd's default, since nobody says what it is: --quota-backend-bytes does", bytesText(uint64(b.Quota))))
	}
	b.QuotaUse = ratio(float64(b.Size), float64(b.Quota))
	r.project(a)
	r.Findings = nil
	r.findMembers()
	r.findSpace()
	r.findKeys()
	slices.SortStableFunc(r.Findings, func(x, y Finding) int { return y.Level.rank() - x.Level.rank() })
	r.Verdict = OK
	for _, f := range r.Findings {
		if f.Level.rank() > r.Verdict.rank() && f.Level != Info {
			r.Verdict = f.Level
		}
	}
}

// project fills in Growth, from a rate of revisions and the mean record.
func (r *Report) project(a Assume) {
	r.Growth = nil
	g := &Growth{RevisionsPerSecond: a.RevisionsPerSecond, Measured: a.Measured, Compaction: Kept{Mode: "none"}}
	if r.full() {
		r.Growth, g.SecondsToQuota = g, new(float64)
		return
	}
	if a.RevisionsPerSecond <= 0 {
		if a.Measured > 0 {
			r.Growth = g
			r.estimate(fmt.Sprintf("that nothing is written was seen in %.3g seconds: --sample looks for longer", a.Measured))
		}
		return
	}
	records := r.Totals.LiveRecords + r.Totals.HistoryRecords
	if records == 0 {
		r.Notes = append(r.Notes, "the growth cannot be projected: there is no record that says how large one is")
		return
	}
	keys, key := r.Totals.Keys, 64
	if keys > 0 {
		key = int(r.Totals.KeyBytes / keys)
	}
	mean := int((r.Totals.LiveBytes + r.Totals.HistoryBytes) / records)
	load := shaper.PutLoad(a.RevisionsPerSecond, 1, key, max(mean-key-40, 0)) // 40 for the revision and the numbers
	load.Live = shaper.Live{Revision: r.Source.Revision, InUse: r.Backend.InUse, Keys: int(keys), DbSize: r.Backend.Size}
	server := shaper.Server{Version: r.version(), Quota: cmp.Or(r.Backend.Quota, -1)}
	server.Compaction, g.Compaction.Seen = r.compaction(a)
	g.Compaction.Mode, g.Compaction.Revisions = cmp.Or(string(server.Compaction.Mode), "none"), server.Compaction.Revisions
	g.Compaction.Seconds = server.Compaction.Retention.Seconds()
	p, err := shaper.Project(server, load)
	if err != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("the growth cannot be projected: %v", err))
		return
	}
	r.Growth = g
	g.BytesPerSecond = p.Get(shaper.BackendGrowth).Expected
	if to := p.Get(shaper.TimeToQuota); to.Name != "" && r.Backend.Quota > 0 && to.Expected < 100*365*dayOfSeconds {
		s := to.Expected
		g.SecondsToQuota = &s
		g.remedy = keepLess(server, load)
	}
	r.Estimates = append(r.Estimates, "growth and the time to the quota are of records of the mean size at an even rate, with "+g.Compaction.text())
}

// full reports whether the quota is reached: then nothing is written, since etcd refuses it.
func (r *Report) full() bool {
	for _, m := range r.Members {
		if slices.Contains(m.Alarms, "NOSPACE") {
			return true
		}
	}
	return r.Backend.Quota > 0 && r.Backend.Size >= r.Backend.Quota
}

// version is the members', or of those that are known the newest.
func (r *Report) version() string {
	for _, m := range r.Members {
		if m.Version != "" {
			return m.Version
		}
	}
	return shaper.NewestKnown
}

// compaction returns what discards old revisions, and whether that is only seen: where
// nobody says, the last compaction does. When what it has kept is as much as is written in
// an hour or two, it was not the only one. If compactions stop, what is kept gets more.
func (r *Report) compaction(a Assume) (c shaper.Compaction, seen bool) {
	if a.Compaction != nil {
		return *a.Compaction, false
	}
	kept := float64(r.Source.Revision-r.Source.Compacted) / a.RevisionsPerSecond
	if r.Source.Compacted == 0 || !(kept < seenCompaction) {
		return c, false
	}
	retention := max(time.Duration(kept*float64(time.Second)), time.Minute).Round(time.Second)
	return shaper.Compaction{Mode: shaper.CompactPeriodic, Retention: retention}, true
}

// text is how the sentence ends that begins with "with".
func (k Kept) text() string {
	switch k.Mode {
	case string(shaper.CompactPeriodic):
		s := fmt.Sprintf("old revisions kept for %s", durationText(k.Seconds))
		if k.Seen {
			s += ", as the last compaction has: --auto-compaction-retention says otherwise"
		}
		return s
	case string(shaper.CompactRevision):
		return fmt.Sprintf("%s old revisions kept", count(uint64(k.Revisions)))
	}
	return "nothing compacted"
}

// What Finding.Saves is of.
const (
	ofDatabase = "the database"
	ofRaftLog  = "the raft log"
	ofWrites   = "writes a day"
)

func (r *Report) find(f Finding) {
	if f.Saves == 0 {
		f.SavesOf = ""
	}
	r.Findings = append(r.Findings, f)
}

// endpoints are what a command is given.
func (r *Report) endpoints() string {
	if len(r.Source.Endpoints) == 0 {
		return "ENDPOINTS"
	}
	return strings.Join(r.Source.Endpoints, ",")
}

func (r *Report) reclaim() string { return "shapecheck reclaim --endpoints " + r.endpoints() }

// keepLess is the setting of etcd that keeps a file below its quota, and as much as that
// allows.
func keepLess(server shaper.Server, load shaper.Load) string {
	for _, retention := range []string{"1h", "30m", "10m", "5m", "1m"} {
		d, err := time.ParseDuration(retention)
		if err != nil {
			panic(err)
		}
		server.Compaction = shaper.Compaction{Mode: shaper.CompactPeriodic, Retention: d}
		if p, err := shaper.Project(server, load); err == nil && math.IsInf(p.Get(shaper.TimeToQuota).Expected, 1) {
			return "--auto-compaction-mode=periodic --auto-compaction-retention=" + retention
		}
	}
	return "write less, as with kvwrap's rules: with one minute of old revisions, the least that etcd's --auto-compaction-retention is good for, the quota is reached, too"
}

// puts returns what part of all puts those are of which a key has had so many.
func (r *Report) puts(revisions uint64) float64 {
	all := float64(r.Totals.LiveRecords + r.Totals.HistoryRecords)
	if r.Source.Kind == "live" {
		all = float64(r.Source.Revision) // versions count from the beginning
	}
	return min(ratio(float64(revisions), all), 1)
}

// savedByChunks projects how much smaller the raft log is with the value of k in chunks, of
// which a part changes from one put to the next.
func (r *Report) savedByChunks(k KeyReport) uint64 {
	w := shaper.Workload{KeyBytes: len(k.Key), ValueBytes: int(k.ValueBytes), Interval: time.Second, Changed: changedPart}
	plan, err := shaper.Tune(w, shaper.Target{Server: shaper.Server{Version: r.version()}})
	if err != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("what chunks would save of %s cannot be projected: %v", k.Key, err))
		return 0
	}
	bytes := func(l shaper.Load) (sum float64) { // of one put
		for _, e := range l.Entries {
			sum += e.PerSecond * float64(e.Bytes)
		}
		return sum
	}
	r.estimate(fmt.Sprintf("what chunks save of the raft log is for %d entries, of which the key has its part, and for values of which %.0f %% changes", catchUpEntries, 100*changedPart))
	return uint64(catchUpEntries * r.puts(k.Revisions) * max(bytes(plan.PlainLoad)-bytes(plan.ShapedLoad), 0))
}

// savedByCoalescing projects how much less is written in a day where of the puts of a key in
// a second the last is written. What part of all puts those below p are it has from the
// revisions that there are.
func (r *Report) savedByCoalescing(p Prefix) uint64 {
	if r.Growth == nil {
		return 0
	}
	rate := r.Growth.RevisionsPerSecond * r.puts(p.Revisions)
	perKey := rate / float64(p.Keys) * churnLinger
	if perKey <= 0 {
		return 0
	}
	r.estimate("what coalescing saves is for puts at random times, as many as there are revisions")
	record := ratio(float64(p.LiveBytes+p.HistoryBytes), float64(p.Revisions))
	if r.Source.Kind == "live" {
		record = ratio(float64(p.LiveBytes), float64(p.Keys))
	}
	return uint64(rate * (1 - (1-math.Exp(-perKey))/perKey) * record * dayOfSeconds)
}

// estimate says once what an estimate is.
func (r *Report) estimate(what string) {
	if !slices.Contains(r.Estimates, what) {
		r.Estimates = append(r.Estimates, what)
	}
}

func (r *Report) findMembers() {
	for _, m := range r.Members {
		for _, alarm := range m.Alarms {
			f := Finding{Level: Critical, Reason: fmt.Sprintf("member %s has raised the alarm %s", m.Name, alarm)}
			f.Do = r.reclaim() + ", which disarms it"
			if alarm == "CORRUPT" {
				f.Do = "stop the member, remove it from the cluster and add it again with an empty data directory"
			}
			r.find(f)
		}
		if m.Error != "" {
			r.find(Finding{Level: Critical, Reason: fmt.Sprintf("member %s does not answer: %s", m.Name, m.Error), Do: "start the member, or remove it: etcdctl member remove " + m.ID})
		}
		if m.Lag > 5000 {
			r.find(Finding{Level: Warning, Reason: fmt.Sprintf("member %s is %d entries behind", m.Name, m.Lag), Do: "look at its disk and its network: writes are refused (\"too many requests\") above 5000 on the leader"})
		}
	}
}

func (r *Report) findSpace() {
	b := r.Backend
	if free := b.Size - b.InUse; b.Bloat >= bloatWarning && free >= freeWorthwhile {
		level := Warning
		if b.Bloat >= bloatCritical {
			level = Critical
		}
		r.find(Finding{Level: level, Reason: fmt.Sprintf("the database is %.1f times what is in use of it, and its whole size counts against the quota", b.Bloat),
			Saves: uint64(free), SavesOf: ofDatabase, Do: r.reclaim()})
	}
	if b.Quota > 0 && b.QuotaUse >= quotaWarning {
		level := Warning
		if b.QuotaUse >= quotaCritical {
			level = Critical
		}
		r.find(Finding{Level: level, Reason: fmt.Sprintf("the database takes %.0f %% of the quota, %s", 100*b.QuotaUse, bytesText(uint64(b.Quota))),
			Do: fmt.Sprintf("%s; delete keys; or raise the quota, --quota-backend-bytes=%d", r.reclaim(), min(2*b.Quota, max(b.Quota, 8<<30)))})
	}
	if g := r.Growth; g != nil && g.SecondsToQuota != nil && *g.SecondsToQuota < 7*dayOfSeconds && !r.full() {
		level := Warning
		if *g.SecondsToQuota < dayOfSeconds {
			level = Critical
		}
		r.find(Finding{Level: level, Reason: fmt.Sprintf("at %.4g revisions a second the quota is reached in %s, with %s", g.RevisionsPerSecond, durationText(*g.SecondsToQuota), g.Compaction.text()), Do: g.remedy})
	}
	t := r.Totals
	if all := t.LiveBytes + t.HistoryBytes; t.HistoryBytes >= historyMin && float64(t.HistoryBytes) >= historyShare*float64(all) {
		r.find(Finding{Level: Warning, Reason: fmt.Sprintf("%.0f %% of the data are old revisions and deletes", 100*float64(t.HistoryBytes)/float64(all)),
			Saves: t.HistoryBytes, SavesOf: ofDatabase, Do: r.reclaim() + ", and --auto-compaction-mode=periodic --auto-compaction-retention=1h"})
	}
}

func (r *Report) findKeys() {
	large := 0
	for _, k := range r.BySize {
		if k.ValueBytes < largeValue || k.StoredBytes > 0 {
			continue
		}
		if large++; large > 3 {
			break
		}
		level := Info
		if k.ValueBytes > largestRequest*2/3 {
			level = Warning
		}
		r.find(Finding{Level: level, About: k.Key, Reason: fmt.Sprintf("its value has %s: each put of it is one raft entry of that size, and etcd refuses more than %s", bytesText(k.ValueBytes), bytesText(largestRequest)),
			Saves: r.savedByChunks(k), SavesOf: ofRaftLog, Do: "write it through kvwrap with the zero Config, which stores it in chunks"})
	}
	churning := 0
	for _, p := range r.Prefixes {
		if !p.Rest && churning < 5 && p.Keys > 0 && p.PerKey >= churnPerKey && p.Revisions >= churnRevisions {
			churning++
			r.find(Finding{Level: Info, About: p.Prefix, Reason: fmt.Sprintf("its keys have %.0f revisions each", p.PerKey), Saves: r.savedByCoalescing(p), SavesOf: ofWrites,
				Do: fmt.Sprintf("kvwrap.Rule{Prefix: %q, Coalesce: coalesce.LastWriteWins, Linger: time.Second}, where nobody needs each step", string(p.Prefix))})
		}
	}
	if l := r.Leases; l.WithKeys >= idleLeases && l.PerLease < idleLeaseKeys {
		r.find(Finding{Level: Info, Reason: fmt.Sprintf("%d leases have %.1f keys each: each lease is kept alive, expired and checkpointed by itself", l.WithKeys, l.PerLease),
			Do: "share leases among keys that live equally long (Kubernetes: --lease-reuse-duration-seconds)"})
	}
	if r.Chunked.Unreadable > 0 {
		r.find(Finding{Level: Warning, Reason: fmt.Sprintf("%d values look like manifests of chunked values and cannot be read as such", r.Chunked.Unreadable),
			Do: "use a newer shapecheck, where a newer kvwrap has written them; else look for a client that writes manifests back"})
	}
	if len(r.Staging) > 0 {
		hosts := make(map[string]bool)
		for _, s := range r.Staging {
			hosts[fmt.Sprintf("%s, process %d", s.Host, s.PID)] = true
		}
		names := make([]string, 0, len(hosts))
		for h := range hosts {
			names = append(names, h)
		}
		slices.Sort(names)
		r.find(Finding{Level: Info, Reason: fmt.Sprintf("%d large values are being written, or were by processes that have crashed: %s", len(r.Staging)+r.StagingMore, strings.Join(names[:min(len(names), 3)], "; ")),
			Do: "nothing, if these run; else, once their leases have expired: shapecheck sweep --endpoints " + r.endpoints()})
	}
}
