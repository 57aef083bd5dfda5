package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/kvwrap/kvwrap/internal/record"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// bench compares the plain client and kvwrap, on a server each, case by case and in turns: a
// machine that is busy is so for both.
type bench struct {
	each    time.Duration // of a case, on each side
	turns   int
	only    []string
	catchUp uint64
	output  outputFlag
}

const asMarkdown = "markdown"

// benchReport is what comes out.
type benchReport struct {
	At      time.Time   `json:"at"`
	CPUs    int         `json:"cpus"`
	Go      string      `json:"go"`
	Etcd    string      `json:"etcd"`
	CatchUp uint64      `json:"snapshotCatchUpEntries"`
	Seconds float64     `json:"secondsOnEachSide"` // of each case
	Turns   int         `json:"turns"`
	Cases   []benchPair `json:"cases"`
}

// benchPair is a case on both sides.
type benchPair struct {
	Case    string    `json:"case"`
	Callers int       `json:"callers"`
	Plain   benchSide `json:"plain"`
	Kvwrap  benchSide `json:"kvwrap"`
}

// benchSide is what a case has come to on one side.
type benchSide struct {
	Operations          int     `json:"operations"`
	OperationsPerSecond float64 `json:"operationsPerSecond"`
	P50Seconds          float64 `json:"p50Seconds"`
	P99Seconds          float64 `json:"p99Seconds"`
	// Of each operation: what was proposed, in how many raft entries, and how many revisions
	// that has made.
	ProposedBytes float64 `json:"proposedBytesPerOperation"`
	Entries       float64 `json:"entriesPerOperation"`
	Revisions     float64 `json:"revisionsPerOperation"`
	// HeapBytes is by how much what lives on the server's heap has grown.
	HeapBytes int64 `json:"heapGrowthBytes"`
}

func benchCommand() *cobra.Command {
	var b bench
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Compares the plain client and kvwrap: speed, what is proposed, the server's memory",
		Long: `Plays small puts, reads, large values, a gateway's statistics and a broker's
offsets through a plain client and through kvwrap, in turns, and says how fast
each was, what it has proposed, and what the server's memory has grown by. Each
side has an etcd of its own, a child process on the loopback interface without
fsync, which is removed afterwards.

A case ends early where it would fill its server. Absolute figures are the
machine's; the ratios are what to compare. The cases:
  ` + strings.ReplaceAll(wrapped80(strings.Join(benchNames(), ", ")), "\n", "\n  ") + `

Exit codes: 0 measured; 1 failed, or the command line is wrong; 130 interrupted.`,
		Example: `  shapecheck bench
  shapecheck bench --only statistics,offsets --for 20s
  shapecheck bench -w markdown`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := b.check(); err != nil {
				return err
			}
			return b.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().DurationVar(&b.each, "for", 6*time.Second, "how long each case takes on each side")
	cmd.Flags().IntVar(&b.turns, "turns", 3, "in how many turns that is divided")
	cmd.Flags().StringSliceVar(&b.only, "only", nil, "play these cases, separated by commas")
	cmd.Flags().Uint64Var(&b.catchUp, "snapshot-catchup-entries", 5000, "of the servers")
	b.output.register(cmd, asMarkdown)
	complete(cmd, "only", benchNames()...)
	return cmd
}

func (b *bench) check() error {
	switch {
	case b.each < 10*time.Millisecond || b.each > time.Hour:
		return fmt.Errorf("--for is %v: choose 10ms to 1h", b.each)
	case b.turns < 1 || b.turns > 1000:
		return fmt.Errorf("--turns is %d: choose 1 to 1000", b.turns)
	case b.catchUp < 1 || b.catchUp > 1e6:
		return fmt.Errorf("--snapshot-catchup-entries is %d: choose 1 to 1000000", b.catchUp)
	}
	for _, name := range b.only {
		if !slices.Contains(benchNames(), name) {
			return fmt.Errorf("--only %s: there is no such case: choose of %s", name, strings.Join(benchNames(), ", "))
		}
	}
	return b.output.check()
}

func (b *bench) run(ctx context.Context, stdout, stderr io.Writer) error {
	p := newProgress(stderr)
	r := benchReport{At: time.Now(), CPUs: runtime.NumCPU(), Go: runtime.Version(), CatchUp: b.catchUp, Seconds: b.each.Seconds(), Turns: b.turns}
	for _, c := range benchCases() {
		if len(b.only) > 0 && !slices.Contains(b.only, c.name) {
			continue
		}
		sides := []*side{{}, {}} // with new servers: what a log holds of the case before would go meanwhile
		err := onOwnServers(ctx, p, b.catchUp, sides, func(ctx context.Context) error {
			p.say("%s", c.title)
			st, err := sides[0].state(ctx)
			if err != nil {
				return err
			}
			r.Etcd = st.version
			pair, err := b.play(ctx, c, sides)
			if err == nil {
				r.Cases = append(r.Cases, pair)
			}
			return err
		})
		if err != nil { // what was measured before is worth something
			p.end()
			if len(r.Cases) > 0 {
				err = errors.Join(r.write(stdout, b.output.format), fmt.Errorf("%s: %w", c.title, err))
			}
			return err
		}
	}
	p.end()
	return r.write(stdout, b.output.format)
}

// play measures a case on both sides, each of which goes first every other time.
func (b *bench) play(ctx context.Context, c benchCase, sides []*side) (pair benchPair, err error) {
	pair.Case, pair.Callers = c.title, c.callers
	players := make([]*player, len(sides))
	for i, s := range sides {
		players[i], err = newPlayer(ctx, c, s, i == 1)
		if err != nil {
			return pair, err
		}
		defer players[i].close()
	}
	for turn := range b.turns {
		for i := range players {
			if err := players[(i+turn)%2].turn(ctx, b.each/time.Duration(b.turns)); err != nil {
				return pair, err
			}
		}
	}
	for i, side := range []*benchSide{&pair.Plain, &pair.Kvwrap} {
		if *side, err = players[i].result(ctx); err != nil {
			return pair, err
		}
	}
	return pair, nil
}

// player plays a case on one side.
type player struct {
	c    benchCase
	s    *side
	cli  *clientv3.Client
	kv   *kvwrap.KV // nil for the plain client
	sent *record.Stage
	do   operation

	begun    atomic.Int64 // operations
	heap     uint64
	revision int64
	took     time.Duration
	done     paired.Durations
}

// newPlayer connects, and does what comes before the case.
func newPlayer(ctx context.Context, c benchCase, s *side, wrapped bool) (p *player, err error) {
	p = &player{c: c, s: s}
	if p.cli, err = newClient(clientv3.Config{Endpoints: []string{s.server.Endpoint}, MaxCallSendMsgSize: maxRequestBytes}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	p.sent = record.Over(wire.Client(p.cli.KV))
	p.cli.KV = clientv3.NewKVFromKVClient(p.sent, nil)
	if wrapped {
		if p.kv, err = kvwrap.Install(p.cli, c.config); err != nil {
			return nil, err
		}
	}
	if p.do, err = c.begin(ctx, p.cli, p.kv); err != nil {
		return nil, err
	}
	// The first operations connect, and fill caches.
	for caller := range min(c.callers, 8) {
		if err := p.do(ctx, caller); err != nil {
			return nil, err
		}
	}
	if p.heap, err = s.server.liveHeap(); err != nil {
		return nil, err
	}
	now, err := s.reader.Get(ctx, "now", clientv3.WithCountOnly())
	if err != nil {
		return nil, err
	}
	p.revision = now.Header.Revision
	p.sent.Take()
	return p, nil
}

func (p *player) close() {
	if p.kv != nil {
		p.kv.Close()
	}
	p.cli.Close()
}

// turn has all callers go on for so long.
func (p *player) turn(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	var all sync.WaitGroup
	var mu sync.Mutex
	for caller := range p.c.callers {
		all.Go(func() {
			var done paired.Durations
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				p.done = append(p.done, done...)
			}()
			for i := 0; time.Since(began) < d && ctx.Err() == nil && p.begun.Add(1) <= int64(p.c.most); i++ {
				if p.c.pause > 0 { // each caller has its turn when its time has come
					due := began.Add(time.Duration(i)*p.c.pause + p.c.pause*time.Duration(caller)/time.Duration(p.c.callers))
					select {
					case <-time.After(time.Until(due)):
					case <-ctx.Done():
						return
					}
				}
				start := time.Now()
				if err := p.do(ctx, caller); err != nil {
					cancel(err)
					return
				}
				done = append(done, time.Since(start))
			}
		})
	}
	all.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if p.kv != nil {
		if err := p.kv.Flush(ctx); err != nil {
			return err
		}
	}
	p.took += time.Since(began)
	return nil
}

func (p *player) result(ctx context.Context) (r benchSide, err error) {
	counts := p.sent.Take()
	now, err := p.s.reader.Get(ctx, "now", clientv3.WithCountOnly())
	if err != nil {
		return r, err
	}
	heap, err := p.s.server.liveHeap()
	if err != nil {
		return r, err
	}
	n := float64(len(p.done))
	r.Operations = len(p.done)
	r.OperationsPerSecond = n / p.took.Seconds()
	r.P50Seconds, r.P99Seconds = p.done.Median().Seconds(), p.done.Quantile(.99).Seconds()
	r.ProposedBytes = float64(counts.ProposedBytes()) / n
	r.Entries = float64(len(counts.Proposals)) / n
	r.Revisions = float64(now.Header.Revision-p.revision) / n
	r.HeapBytes = int64(heap) - int64(p.heap)
	return r, nil
}

// write writes the report.
func (r *benchReport) write(w io.Writer, form string) error {
	if form == asJSON {
		return writeJSON(w, r)
	}
	speed := [][]string{{"", "plain, ops/s", "kvwrap", "", "plain, p50 / p99", "kvwrap", ""}}
	cost := [][]string{{"of each operation", "proposed, plain", "kvwrap", "", "revisions, plain", "kvwrap", "heap, plain", "kvwrap"}}
	for _, c := range r.Cases {
		p, k := c.Plain, c.Kvwrap
		latency := func(s benchSide) string {
			d := func(seconds float64) string { return shortly(time.Duration(seconds * float64(time.Second))) }
			return d(s.P50Seconds) + " / " + d(s.P99Seconds)
		}
		speed = append(speed, []string{c.Case, fmt.Sprintf("%.0f", p.OperationsPerSecond), fmt.Sprintf("%.0f", k.OperationsPerSecond), times(k.OperationsPerSecond, p.OperationsPerSecond), latency(p), latency(k), times(k.P50Seconds, p.P50Seconds)})
		cost = append(cost, []string{c.Case, bytesOf(int(p.ProposedBytes)), bytesOf(int(k.ProposedBytes)), times(k.ProposedBytes, p.ProposedBytes),
			fmt.Sprintf("%.3g", p.Revisions), fmt.Sprintf("%.3g", k.Revisions), bytesOf(int(p.HeapBytes)), bytesOf(int(k.HeapBytes))})
	}
	var b strings.Builder
	about := fmt.Sprintf("etcd %s, one for each side, without fsync, --snapshot-catchup-entries %d; %s, %d CPUs; each case %v on each side, in %d turns. Ratios are kvwrap's over the plain client's.",
		r.Etcd, r.CatchUp, r.Go, r.CPUs, time.Duration(r.Seconds*float64(time.Second)), r.Turns)
	rows := alignedRows
	if form == asMarkdown {
		rows = markdownRows
		fmt.Fprintln(&b, about)
	} else {
		var c comparison
		c.say("%s", about)
		b.WriteString(c.b.String())
	}
	b.WriteByte('\n')
	rows(&b, speed)
	b.WriteByte('\n')
	rows(&b, cost)
	_, err := io.WriteString(w, b.String())
	return err
}

// times is how many times y x is.
func times(x, y float64) string {
	if y <= 0 {
		return ""
	}
	return fmt.Sprintf("x%.3g", x/y)
}

func benchNames() (names []string) {
	for _, c := range benchCases() {
		names = append(names, c.name)
	}
	return names
}

// operation is what a caller does again and again.
type operation func(ctx context.Context, caller int) error
