package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/traffic"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	pollEvery   = 2 * time.Second // of the members
	pollTimeout = 2 * time.Second // of each request of these
	rateOver    = 10 * time.Second

	// etcd sends a watcher that is behind a thousand revisions every 100 ms at the most, so
	// that it never catches up with writers who do more than ten thousand a second.
	maxBehind = 100_000

	// stalledAfter is when a stream is given up on which a question is not answered, while
	// there is somebody who answers others.
	stalledAfter = 10 * time.Second
)

// observer counts what is written to a cluster, and asks the members how they are. Its methods
// are safe for concurrent use.
type observer struct {
	monitor *budget.Monitor
	feed    *feed
	now     func() time.Time

	mu     sync.Mutex
	table  *traffic.Table
	polls  []poll // of the last rateOver, oldest first; with one that has failed there is none
	failed error  // the last poll
}

// poll is what the members have said.
type poll struct {
	health   budget.Health
	revision int64 // the newest of any member's
	at       time.Time
}

// newObserver returns an observer of the keys with a prefix. Nothing counts before run.
func newObserver(ctx context.Context, cli, streams *clientv3.Client, prefix string, separator byte, space format.Keyspace) (*observer, error) {
	monitor, err := budget.NewMonitor(cli, budget.MonitorConfig{Timeout: pollTimeout})
	if err != nil {
		return nil, err
	}
	o := &observer{monitor: monitor, now: time.Now}
	if err := o.poll(ctx); err != nil {
		return nil, asking(mayWatchWho, "asking for the members", err)
	}
	o.table = traffic.NewTable(traffic.Config{Separator: separator, Space: space}, o.now())
	o.feed = newFeed(streams, o.count, o.polls[0].revision+1, watchedRanges(prefix, space)...)
	return o, nil
}

// watchedRanges are the keys with a prefix and the chunks of their values.
func watchedRanges(prefix string, space format.Keyspace) []*fedRange {
	if prefix == "" {
		return []*fedRange{{Range: format.Range{Key: []byte{0}, End: []byte{0}}}}
	}
	ofKeys := format.Range{Key: []byte(prefix), End: []byte(clientv3.GetPrefixRangeEnd(prefix))}
	if ofKeys.Overlaps(space.All()) { // somebody looks at chunks as such
		return []*fedRange{{Range: ofKeys}}
	}
	return []*fedRange{{Range: ofKeys}, {Range: space.Chunks(ofKeys), optional: true}}
}

func (o *observer) count(events []*mvccpb.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range events {
		o.table.Add(e)
	}
}

// run observes until ctx ends or it is not permitted.
func (o *observer) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var polling sync.WaitGroup
	defer polling.Wait()
	defer cancel()
	polling.Go(func() {
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_ = o.poll(ctx) // the snapshot says that it has failed
			}
		}
	})
	return o.feed.run(ctx)
}

// poll asks the members, and sets the feed right where it has to be.
func (o *observer) poll(ctx context.Context) error {
	var before feedState
	if o.feed != nil {
		o.feed.progress()
		before = o.feed.current()
	}
	health, err := o.monitor.Check(ctx)
	if _, ok := largest(health); err == nil && !ok {
		err = errors.New("no member answers")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed = err; err != nil {
		return err
	}
	p := poll{health: health, revision: newest(health), at: o.now()}
	o.polls = append(o.polls, p)
	for len(o.polls) > 2 && p.at.Sub(o.polls[1].at) >= rateOver {
		o.polls = o.polls[1:]
	}
	if o.feed == nil {
		return nil
	}
	switch after := o.feed.current(); {
	case p.revision < before.Seen && len(silent(health)) == 0: // it was restored from a backup
		o.polls = o.polls[len(o.polls)-1:]
		o.feed.skipTo(p.revision)
	case p.revision-after.Seen > maxBehind:
		o.feed.skipTo(p.revision)
	case after.Problem == "" && !after.Heard.IsZero() && p.at.Sub(after.Heard) > stalledAfter:
		o.feed.reopen(errors.New("the member does not answer on the stream"))
	}
	return nil
}

// catchUp waits until all is counted that was written before the call.
func (o *observer) catchUp(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := o.poll(ctx); err != nil {
		return err
	}
	o.mu.Lock()
	end := o.polls[len(o.polls)-1].revision
	o.mu.Unlock()
	ask := time.NewTicker(progressEvery)
	defer ask.Stop()
	for o.feed.current().Seen < end {
		o.feed.progress()
		select {
		case <-ask.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// advance closes a cell of time.
func (o *observer) advance() { o.advanceAt(o.now()) }

// advanceAt closes a cell that has ended at a time.
func (o *observer) advanceAt(at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.table.Advance(at)
}

// snapshot is what is known at a moment. It is a value: nothing changes it.
type snapshot struct {
	at      time.Time
	traffic traffic.Rows
	feed    feedState

	health    budget.Health
	polled    time.Time // when the members have said so
	failed    error     // since then
	revision  int64     // the newest
	revisions float64   // a second; negative where it is not known yet
}

// snapshot returns what was written in so many cells, and how the cluster is.
func (o *observer) snapshot(cells int) snapshot {
	state := o.feed.current()
	o.mu.Lock()
	defer o.mu.Unlock()
	last := o.polls[len(o.polls)-1]
	s := snapshot{
		at: o.now(), traffic: o.table.Rows(cells), feed: state,
		health: last.health, polled: last.at, failed: o.failed, revision: last.revision, revisions: -1,
	}
	if first := o.polls[0]; len(o.polls) > 1 {
		s.revisions = float64(last.revision-first.revision) / last.at.Sub(first.at).Seconds()
	}
	return s
}

// behind returns how many revisions there are that are not counted yet.
func (s snapshot) behind() int64 { return max(0, s.revision-s.feed.Seen) }

// largest is the member with the largest file, which is full first; false where none answers.
func largest(h budget.Health) (largest budget.HealthMember, ok bool) {
	for _, m := range h.Members {
		if m.Error == "" && (!ok || m.DbSize > largest.DbSize) {
			largest, ok = m, true
		}
	}
	return largest, ok
}

// nameOf is a member's name, or its ID before it has one: it gets that when it starts.
func nameOf(m budget.HealthMember) string { return cmp.Or(m.Name, m.ID.String()) }

// silent are the names of the members that do not answer.
func silent(h budget.Health) (names []string) {
	for _, m := range h.Members {
		if m.Error != "" {
			names = append(names, nameOf(m))
		}
	}
	return names
}

// notes is what is to be said of a snapshot beside its figures.
func (s snapshot) notes() (notes []string) {
	say := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if s.feed.Problem != "" {
		say("Not connected, trying again: %s.", s.feed.Problem)
	}
	if s.failed != nil {
		say("The members have not answered since %s: %s.", s.polled.Format(time.TimeOnly), s.failed)
	}
	for _, m := range s.health.Members {
		switch {
		case m.Error != "":
			say("Member %s does not answer.", quoted(nameOf(m)))
		case m.Lag >= 1000:
			say("Member %s has %d entries to apply.", quoted(m.Name), m.Lag)
		}
		for _, alarm := range m.Alarms {
			say("Alarm %s of member %s.", alarm, quoted(m.Name))
		}
	}
	if m, ok := largest(s.health); ok && m.QuotaUse >= 0.8 {
		say("Member %s has used %.1f %% of its quota: shapecheck audit says by what.", quoted(m.Name), 100*m.QuotaUse)
	}
	if s.feed.Missed > 0 {
		say("Up to %d revisions were missed, which were compacted or too far behind.", s.feed.Missed)
	}
	if s.feed.Refused {
		say("Chunks are not counted: the user may not read them.")
	}
	return notes
}

// mayWatch explains why a watch is not.
func mayWatch(prefix string, err error) error {
	if !errors.Is(err, rpctypes.ErrPermissionDenied) && !errors.Is(err, rpctypes.ErrUserEmpty) {
		return err
	}
	if prefix == "" {
		return fmt.Errorf("watching all keys: %w: give a --user who may read them all, or the --prefix of those that he may", err)
	}
	return fmt.Errorf("watching keys with the prefix %q: %w: give a --user who may read them all, or a longer --prefix", prefix, err)
}
