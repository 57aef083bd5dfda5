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
// It is for one kind of keys. An application with several takes the Rules of all, the smallest
// MaxEntryBytes, and one Budget for what they may write together. That a writer does not fill
// the backend, whatever it writes, is for Config.Budget.Backend to see to.
func Tune(w shaper.Workload, t shaper.Target) (Config, shaper.Plan, error) {
	plan, err := shaper.Tune(w, t)
	if err != nil {
		return Config{}, plan, err
	}
	s := plan.Settings
	cfg := Config{Server: t.Server} // what is set; the plan's flags may not be
	cfg.Chunk.MaxEntryBytes, cfg.Coalesce.MaxEntryBytes = s.MaxEntryBytes, s.MaxEntryBytes
	cfg.Budget.Rates.Revisions, cfg.Budget.Shared, cfg.Budget.Register = s.Revisions, s.Shared, s.Shared
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
// again; JSON, which zstd makes 2.8 times smaller. The raft log is to take half a gigabyte at
// the most. For other values use Tune.
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
	if partitions < 1 || !(commitsPerSecond >= 0.001 && commitsPerSecond <= 1e6) {
		return Config{}, shaper.Plan{}, fmt.Errorf("%w: %d partitions, %v commits a second: choose 1 partition or more, and 0.001 to 1,000,000 commits", shaper.ErrInput, partitions, commitsPerSecond)
	}
	interval := time.Duration(min(float64(partitions)/commitsPerSecond, 1e9) * float64(time.Second))
	return Tune(shaper.Workload{
		Prefix: prefix, Keys: partitions, KeyBytes: len(prefix) + 24, ValueBytes: 19, Interval: interval,
		Freshness: freshness, Latest: true, Increasing: true, Polled: true,
	}, shaper.Target{Server: shaper.Server{Version: shaper.NewestKnown}})
}
