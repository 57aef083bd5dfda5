//go:build unix

package faults

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// nemesis makes one fault after the other, and waits for progress in between.
type nemesis struct {
	t       testing.TB
	h       *history
	cluster *etcdtest.Members
	direct  *clientv3.Client
	seen    *witness
	writers []*writer
	random  *rand.Rand
	counts  map[string]int
}

// fault is something that goes wrong, for as long as it is to, and is mended.
// Which member or writer it is for was drawn; some are for the leader.
type fault struct {
	name string
	make func(n *nemesis, ctx context.Context, victim int, dwell time.Duration) error
}

var faults = []fault{
	{"kill the leader", func(n *nemesis, ctx context.Context, victim int, dwell time.Duration) error {
		return n.killMembers(ctx, dwell, n.leader(ctx, victim))
	}},
	{"kill a member", func(n *nemesis, ctx context.Context, victim int, dwell time.Duration) error {
		return n.killMembers(ctx, dwell, victim)
	}},
	{"kill all members", func(n *nemesis, ctx context.Context, _ int, _ time.Duration) error {
		return n.killMembers(ctx, 0, 0, 1, 2)
	}},
	{"pause the leader", func(n *nemesis, ctx context.Context, victim int, dwell time.Duration) error {
		return n.pauseMember(ctx, dwell, n.leader(ctx, victim))
	}},
	{"pause a member", func(n *nemesis, ctx context.Context, victim int, dwell time.Duration) error {
		return n.pauseMember(ctx, dwell, victim)
	}},
	{"kill one, pause one", func(n *nemesis, ctx context.Context, victim int, dwell time.Duration) error {
		n.cluster.Kill(victim)
		paused := n.pauseMember(ctx, dwell, (victim+1)%len(n.cluster.Proxies))
		return errorOf(paused, n.cluster.Restart(victim))
	}},
	{"cut connections", func(n *nemesis, _ context.Context, victim int, _ time.Duration) error {
		n.cluster.Proxies[victim].Cut()
		return nil
	}},
	{"refuse connections", func(n *nemesis, ctx context.Context, victim int, dwell time.Duration) error {
		p := n.cluster.Proxies[victim]
		p.Refuse(true)
		p.Cut()
		n.wait(ctx, dwell)
		p.Refuse(false)
		return nil
	}},
	{"lose answers", func(n *nemesis, ctx context.Context, _ int, dwell time.Duration) error {
		for end := n.h.now() + dwell; n.h.now() < end && ctx.Err() == nil; n.wait(ctx, 50*time.Millisecond) {
			for _, p := range n.cluster.Proxies {
				p.LoseAnswers()
			}
		}
		return nil
	}},
	{"kill the writers", func(n *nemesis, _ context.Context, _ int, _ time.Duration) error {
		for _, w := range n.writers {
			if err := w.kill(); err != nil {
				return err
			}
		}
		return nil
	}},
	{"pause a writer until its session has ended", func(n *nemesis, ctx context.Context, victim int, _ time.Duration) error {
		w := n.writers[victim]
		if err := w.with((*etcdtest.Process).Pause); err != nil {
			return err
		}
		n.wait(ctx, 2*sessionTTL)
		return w.with((*etcdtest.Process).Continue)
	}},
	{"compact", func(n *nemesis, ctx context.Context, _ int, dwell time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		revision, err := n.seen.seen() // what the watch has not seen has to stay
		if err == nil {
			_, err = n.direct.Compact(ctx, revision)
		}
		if err != nil {
			n.t.Logf("compaction at %d: %v", revision, err) // of an outcome that does not matter
		}
		return nil
	}},
}

func errorOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// run makes all faults once, in an order drawn at random, and again in another
// one, until ctx ends. Everything is mended then.
func (n *nemesis) run(ctx context.Context) error {
	n.counts = make(map[string]int)
	for {
		for _, i := range n.random.Perm(len(faults)) {
			f, victim := faults[i], n.random.IntN(3)
			dwell := 200*time.Millisecond + time.Duration(n.random.Int64N(int64(1300*time.Millisecond)))
			if err := n.progress(ctx); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
			n.t.Logf("%8.3fs %s, %d", n.h.now().Seconds(), f.name, victim)
			n.counts[f.name]++
			if err := f.make(n, ctx, victim, dwell); err != nil {
				return fmt.Errorf("%s, %d: %w", f.name, victim, err)
			}
		}
	}
}

// mostPause is how long clients may find nobody who answers, with all faults
// mended.
const mostPause = time.Minute

// progress waits until clients have got on.
func (n *nemesis) progress(ctx context.Context) error {
	stuck := time.NewTimer(mostPause)
	defer stuck.Stop()
	for enough := n.h.acked.Load() + 30; n.h.acked.Load() < enough; {
		select {
		case <-ctx.Done():
			return nil
		case <-stuck.C:
			return fmt.Errorf("no progress in %v with all faults mended", mostPause)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// wait waits until d has passed or ctx ends.
func (n *nemesis) wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// leader returns the member that leads, and the given one where none does.
func (n *nemesis) leader(ctx context.Context, otherwise int) int {
	if i := n.cluster.Leader(ctx); i >= 0 {
		return i
	}
	return otherwise
}

func (n *nemesis) killMembers(ctx context.Context, dwell time.Duration, victims ...int) error {
	for _, i := range victims {
		n.cluster.Kill(i)
	}
	n.wait(ctx, dwell)
	for _, i := range victims {
		if err := n.cluster.Restart(i); err != nil {
			return err
		}
	}
	return nil
}

func (n *nemesis) pauseMember(ctx context.Context, dwell time.Duration, i int) error {
	if err := n.cluster.Pause(i); err != nil {
		return err
	}
	n.wait(ctx, dwell)
	return n.cluster.Continue(i)
}

// table writes how often each fault was made.
func (n *nemesis) table(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	fmt.Fprintf(w, "fault\ttimes\t\n")
	for _, f := range faults {
		fmt.Fprintf(w, "%s\t%d\t\n", f.name, n.counts[f.name])
	}
}
