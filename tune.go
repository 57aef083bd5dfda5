package kvwrap

import (
	"fmt"
	"time"

	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/shaper"
)

// Tune returns the configuration for a workload, and the plan that it follows from: what was
// chosen and why, etcd's flags, what it comes to, and the targets that it does not meet, if
// there are any. Its error is about w and t.
//
// It is for one kind of keys. An application with several adds up their Rules, and takes the
// smallest MaxEntryBytes.
func Tune(w shaper.Workload, t shaper.Target) (Config, shaper.Plan, error) {
	plan, err := shaper.Tune(w, t)
	if err != nil {
		return Config{}, plan, err
	}
	s := plan.Settings
	cfg := Config{Server: plan.Server}
	cfg.Chunk.MaxEntryBytes, cfg.Coalesce.MaxEntryBytes = s.MaxEntryBytes, s.MaxEntryBytes
	cfg.Budget.Rates.Revisions, cfg.Budget.Shared, cfg.Budget.Register = s.Revisions, s.Shared, s.Shared
	cfg.Budget.Retention, cfg.Budget.CompactionInterval = s.Retention, s.CompactionInterval
	if s.Mode != coalesce.Off.String() {
		rule := Rule{Prefix: w.Prefix, StaleReads: s.StaleReads, SkipUnchanged: s.SkipUnchanged, FlushEvery: s.FlushEvery}
		for _, m := range []coalesce.Mode{coalesce.GroupCommit, coalesce.LastWriteWins, coalesce.Max} {
			if m.String() == s.Mode {
				rule.Coalesce = m
			}
		}
		if rule.Coalesce == coalesce.Off {
			return Config{}, plan, fmt.Errorf("kvwrap: the plan has the mode %q, which this version does not know", s.Mode)
		}
		cfg.Rules = []Rule{rule}
	}
	return cfg, plan, nil
}

// GatewayStatistics is [Tune] for the statistics of a gateway: each of so many members puts a
// value of so many bytes, of which a part of 0 to 1 changes, to a key of its own again and
// again. The raft log is to take half a gigabyte at the most.
func GatewayStatistics(members, bytes int, changed float64, every time.Duration) (Config, shaper.Plan, error) {
	return Tune(shaper.Workload{
		Keys: 1, Writers: members, ValueBytes: bytes, Changed: changed, Interval: every,
	}, shaper.Target{RaftLogBytes: 512 << 20, Server: shaper.Server{Version: shaper.NewestKnown}})
}

// OffsetCommits is [Tune] for the offsets of a broker: below prefix, so many partitions, each
// with an offset that is a growing number, committed so often a second all together, with
// [KV.PutAsync], and polled. An offset is to be in etcd within the time that freshness says; after a
// crash those of that time are lost.
func OffsetCommits(prefix string, partitions int, commitsPerSecond float64, freshness time.Duration) (Config, shaper.Plan, error) {
	interval := time.Duration(0)
	if commitsPerSecond > 0 {
		interval = time.Duration(float64(partitions) / commitsPerSecond * float64(time.Second))
	}
	return Tune(shaper.Workload{
		Prefix: prefix, Keys: partitions, KeyBytes: len(prefix) + 24, ValueBytes: 19, Interval: interval,
		Freshness: freshness, Latest: true, Increasing: true, Polled: true,
	}, shaper.Target{Server: shaper.Server{Version: shaper.NewestKnown}})
}
