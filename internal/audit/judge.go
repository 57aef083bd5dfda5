package audit

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kvwrap/kvwrap/shaper"
)

// Assume is what Judge takes for what a report does not say itself.
type Assume struct {
	Quota int64 // --quota-backend-bytes; 0 for what members say, or etcd's default
	// RevisionsPerSecond is the rate of writes, 0 for the one that was measured.
	RevisionsPerSecond float64
	Measured           float64 // over how many seconds; 0 where it is given
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
	idleLeaseKeys  = 1.5
	idleLeases     = 10_000
)

// Judge fills in what follows from the rest of r: quota and growth, findings, the verdict.
func (r *Report) Judge(a Assume) {
	b := &r.Backend
	switch {
	case a.Quota != 0:
		b.Quota, b.QuotaAssumed = max(a.Quota, 0), false
	case b.Quota == 0:
		b.Quota, b.QuotaAssumed = defaultQuota, true
		r.Estimates = append(r.Estimates, fmt.Sprintf("the quota, %s, is etcd's default: --quota says another", bytesText(defaultQuota)))
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
	if a.RevisionsPerSecond <= 0 && a.Measured == 0 {
		return
	}
	g := &Growth{RevisionsPerSecond: a.RevisionsPerSecond, Measured: a.Measured}
	r.Growth = g
	keys, records := r.Totals.Keys, r.Totals.LiveRecords+r.Totals.HistoryRecords
	if keys == 0 || records == 0 || a.RevisionsPerSecond <= 0 {
		return
	}
	key := int(r.Totals.KeyBytes / keys)
	mean := int((r.Totals.LiveBytes + r.Totals.HistoryBytes) / records)
	load := shaper.PutLoad(a.RevisionsPerSecond, 1, key, max(mean-key-40, 0)) // 40 for the revision and the numbers
	load.Live = shaper.Live{Revision: r.Source.Revision, InUse: r.Backend.InUse, Keys: int(keys), DbSize: r.Backend.Size}
	server := shaper.Server{Version: shaper.NewestKnown, Quota: r.Backend.Quota}
	if r.Backend.Quota == 0 {
		server.Quota = -1
	}
	for _, m := range r.Members {
		if m.Version != "" {
			server.Version = m.Version
		}
	}
	p, err := shaper.Project(server, load)
	if err != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("the growth cannot be projected: %v", err))
		return
	}
	g.BytesPerSecond = p.Get(shaper.BackendGrowth).Expected
	if to := p.Get(shaper.TimeToQuota); to.Name != "" && r.Backend.Quota > 0 && to.Expected < 100*365*dayOfSeconds {
		s := to.Expected
		g.SecondsToQuota = &s
	}
	r.Estimates = append(r.Estimates, "growth and the time to the quota are of records of the mean size at an even rate, with nothing compacted")
}

func (r *Report) find(f Finding) { r.Findings = append(r.Findings, f) }

func (r *Report) findMembers() {
	for _, m := range r.Members {
		for _, alarm := range m.Alarms {
			f := Finding{Level: Critical, Reason: fmt.Sprintf("member %s has raised the alarm %s", m.Name, alarm)}
			f.Do = "compact, defragment each member, then: etcdctl alarm disarm"
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
			Saves: uint64(free), Do: "etcdctl defrag, one member after the other, the leader last"})
	}
	if b.Quota > 0 && b.QuotaUse >= quotaWarning {
		level := Warning
		if b.QuotaUse >= quotaCritical {
			level = Critical
		}
		r.find(Finding{Level: level, Reason: fmt.Sprintf("the database takes %.0f %% of the quota, %s", 100*b.QuotaUse, bytesText(uint64(b.Quota))),
			Do: fmt.Sprintf("compact and defragment, delete keys, or raise the quota: --quota-backend-bytes=%d", 2*b.Quota)})
	}
	if g := r.Growth; g != nil && g.SecondsToQuota != nil && *g.SecondsToQuota < 7*dayOfSeconds {
		level := Warning
		if *g.SecondsToQuota < dayOfSeconds {
			level = Critical
		}
		r.find(Finding{Level: level, Reason: fmt.Sprintf("at %.4g revisions a second the quota is reached in %s, unless old revisions are compacted", g.RevisionsPerSecond, durationText(*g.SecondsToQuota)),
			Do: "--auto-compaction-mode=periodic --auto-compaction-retention=1h"})
	}
	t := r.Totals
	if all := t.LiveBytes + t.HistoryBytes; t.HistoryBytes >= historyMin && float64(t.HistoryBytes) >= historyShare*float64(all) {
		r.find(Finding{Level: Warning, Reason: fmt.Sprintf("%.0f %% of the data are old revisions and deletes", 100*float64(t.HistoryBytes)/float64(all)),
			Saves: t.HistoryBytes, Do: fmt.Sprintf("etcdctl compact %d, and --auto-compaction-mode=periodic --auto-compaction-retention=1h", r.Source.Revision)})
	}
}

func (r *Report) findKeys() {
	for i, k := range r.BySize {
		if k.ValueBytes < largeValue || k.StoredBytes > 0 || i == 3 {
			break
		}
		level := Info
		if k.ValueBytes > largestRequest*2/3 {
			level = Warning
		}
		r.find(Finding{Level: level, About: k.Key, Reason: fmt.Sprintf("its value has %s: each put of it is one raft entry of that size, and etcd refuses more than %s", bytesText(k.ValueBytes), bytesText(largestRequest)),
			Do: "write it through kvwrap with the zero Config, which stores it in chunks"})
	}
	for i, p := range r.Prefixes {
		if i == 5 || p.Rest {
			break
		}
		if p.Keys > 0 && p.PerKey >= churnPerKey && p.Revisions >= churnRevisions {
			saves := p.HistoryBytes - p.HistoryBytes/10
			r.find(Finding{Level: Info, About: p.Prefix, Reason: fmt.Sprintf("its keys have %.0f revisions each", p.PerKey), Saves: saves,
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
		r.find(Finding{Level: Info, Reason: fmt.Sprintf("%d large values are being written, or were by processes that have crashed: %s", len(r.Staging), strings.Join(names[:min(len(names), 3)], "; ")),
			Do: "nothing, if these run; else: shapecheck sweep, once their leases have expired"})
	}
}
