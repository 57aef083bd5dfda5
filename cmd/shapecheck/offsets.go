package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/kvwrap/kvwrap/internal/record"
	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// offsets is the broker's case: an offset for each partition, put again and again.
type offsets struct {
	partitions int
	rate       int // commits a second
	duration   time.Duration
	flush      time.Duration
	cluster    clusterFlags
}

func offsetsCommand() *cobra.Command {
	var o offsets
	cmd := &cobra.Command{
		Use:   "offsets",
		Short: "Plays a broker's commits, with a plain client and with kvwrap",
		Long: `Plays the other case that kvwrap was made for: a broker that puts the next
offset of a partition, some bytes, whenever it has flushed messages, thousands
of times a second. First each commit is a put of the plain client; then commits
are written behind, the newest offset of a partition once in --flush.

Without --endpoints it starts two etcd servers of its own, one for each side, as
child processes on the loopback interface, and removes them afterwards. With
--endpoints it plays on that cluster, below a prefix of its own that it removes
afterwards; what the database grows by is then that of all of the cluster's
clients.

The other flags that say how to reach the cluster may be left out where the
environment has etcdctl's variables: ETCDCTL_CACERT, ETCDCTL_USER and so on;
--endpoints may not. A flag wins.

Exit codes: 0 played; 1 failed, or the command line is wrong; 2 the cluster
cannot be reached; 130 interrupted.`,
		Example: `  shapecheck demo offsets
  shapecheck demo offsets --flush 500ms
  shapecheck demo offsets --endpoints 10.0.0.1:2379`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(cmd.Flags().Changed); err != nil {
				return err
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().IntVar(&o.partitions, "partitions", 200, "partitions of the broker")
	cmd.Flags().IntVar(&o.rate, "rate", 5000, "commits a second")
	cmd.Flags().DurationVar(&o.duration, "duration", 5*time.Second, "how long to commit, on each side")
	cmd.Flags().DurationVar(&o.flush, "flush", 50*time.Millisecond, "how long a commit waits for others, at the most")
	o.cluster.register(cmd)
	return cmd
}

// What a commit may be in the backend, at the most.
const commitBytes = 400

func (o *offsets) check(set func(flag string) bool) error {
	switch {
	case o.partitions < 1 || o.partitions > 100_000:
		return fmt.Errorf("--partitions is %d: choose 1 to 100000", o.partitions)
	case o.rate < 1 || o.rate > 100_000:
		return fmt.Errorf("--rate is %d: choose 1 to 100000 commits a second", o.rate)
	case o.duration < time.Second || o.duration > time.Minute:
		return fmt.Errorf("--duration is %v: choose 1s to 1m", o.duration)
	case o.flush < 0 || o.flush > o.duration:
		return fmt.Errorf("--flush is %v: choose 0 to --duration, %v", o.flush, o.duration)
	}
	return o.cluster.check(set)
}

// committed is what one side has measured.
type committed struct {
	side
	sent     record.Counts
	progress func(done int)
	took     time.Duration
	grown    int64 // bytes of the database that are in use
	returned paired.Durations
	durable  paired.Durations
}

func (o *offsets) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	p := newProgress(stderr)
	var plain, wrapped committed
	sides := []*side{&plain.side, &wrapped.side}
	play := func(ctx context.Context) error {
		for _, c := range []*committed{&plain, &wrapped} {
			if err := o.play(ctx, p, c, c == &wrapped); err != nil {
				return err
			}
		}
		return nil
	}
	if len(o.cluster.endpoints) == 0 {
		err = onOwnServers(ctx, p, defaultCatchUp, sides, play)
	} else {
		most := 2 * commitBytes * int(o.duration.Seconds()*float64(o.rate))
		err = onCluster(ctx, p, &o.cluster, most, "choose less --rate or --duration", sides, play)
	}
	p.end()
	if err != nil {
		return err
	}
	return o.print(stdout, &plain, &wrapped)
}

// play commits on one side, and measures.
func (o *offsets) play(ctx context.Context, p *progress, c *committed, wrapped bool) error {
	sent := record.Over(wire.Client(c.writer.KV))
	c.writer.KV = clientv3.NewKVFromKVClient(sent, nil)
	put := func(ctx context.Context, key, offset string, done func(error)) {
		go func() {
			_, err := c.writer.Put(ctx, key, offset)
			done(err)
		}()
	}
	flush := func(context.Context) error { return nil }
	name := "the plain client"
	if wrapped {
		name = "kvwrap"
		kv, err := kvwrap.Install(c.writer, kvwrap.Config{Rules: []kvwrap.Rule{{
			Prefix: workload.OffsetsPrefix, Coalesce: coalesce.LastWriteWins, FlushEvery: o.flush,
		}}})
		if err != nil {
			return err
		}
		defer kv.Close()
		flush = kv.Flush
		put = func(ctx context.Context, key, offset string, done func(error)) {
			kv.PutAsync(ctx, key, offset, func(_ *clientv3.PutResponse, err error) { done(err) })
		}
	}
	// The first commits of all partitions count for nothing.
	broker := workload.NewBroker(o.partitions, 1)
	if err := o.commit(ctx, broker, o.partitions, 0, put, nil); err != nil {
		return err
	}
	before, err := c.inUse(ctx)
	if err != nil {
		return err
	}
	sent.Take()
	p.say("committing through %s", name)
	began := time.Now()
	n := int(float64(o.rate) * o.duration.Seconds())
	c.progress = func(i int) { p.count("committing through "+name+",", i, n) }
	if err := o.commit(ctx, broker, n, o.duration, put, c); err != nil {
		return err
	}
	if err := flush(ctx); err != nil {
		return err
	}
	c.took = time.Since(began)
	c.sent = sent.Take()
	after, err := c.inUse(ctx)
	c.grown = after - before
	return err
}

// maxOpen bounds the commits that are not yet durable.
const maxOpen = 10_000

// commit makes n commits, spread over a time, and waits until they are durable, or ctx ends.
// C, where it is not nil, takes note of how long they take.
func (o *offsets) commit(ctx context.Context, broker *workload.Broker, n int, over time.Duration, put func(ctx context.Context, key, offset string, done func(error)), c *committed) error {
	type end struct {
		after time.Duration
		err   error
	}
	ends := make(chan end, maxOpen) // none blocks: there are never more open
	open := 0
	var failed error
	await := func(until <-chan time.Time, most int) error { // until then, or until so few are open
		for open > most || until != nil {
			select {
			case <-until:
				return nil
			case e := <-ends:
				open--
				failed = cmp.Or(failed, e.err)
				if c != nil {
					c.durable = append(c.durable, e.after)
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	began := time.Now()
	for i := range n {
		if i%10 == 0 {
			if c != nil {
				c.progress(i)
			}
			due := began.Add(time.Duration(float64(over) * float64(i) / float64(n)))
			if err := await(time.After(time.Until(due)), maxOpen); err != nil {
				return err
			}
		}
		if err := await(nil, maxOpen-1); err != nil {
			return err
		}
		open++
		partition, offset := broker.Commit()
		start := time.Now()
		put(ctx, workload.OffsetKey(partition), offset, func(err error) { ends <- end{time.Since(start), err} })
		if c != nil {
			c.returned = append(c.returned, time.Since(start))
		}
	}
	if err := await(nil, 0); err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("committing an offset: %w", failed)
	}
	return nil
}

// inUse returns how many bytes of the database are in use, once the server has written
// what it was sent: it does so every 100 ms.
func (c *committed) inUse(ctx context.Context) (int64, error) {
	last := int64(-1)
	for {
		st, err := c.writer.Status(ctx, c.writer.Endpoints()[0])
		if err != nil {
			return 0, err
		}
		if st.DbSizeInUse == last {
			c.after.version = st.Version
			return last, nil
		}
		last = st.DbSizeInUse
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// print writes the two sides beside each other.
func (o *offsets) print(w io.Writer, plain, wrapped *committed) error {
	var c comparison
	c.say("A broker commits offsets of %d partitions, %d a second, for %v on each side: one put each; and written behind, the newest one of a partition once in %v.",
		o.partitions, o.rate, o.duration, o.flush)
	if plain.server != nil {
		c.say("etcd %s, one server for each side, without fsync.", plain.after.version)
	} else {
		c.say("etcd %s at %s.", plain.after.version, strings.Join(o.cluster.endpoints, ", "))
	}
	c.gap()
	// Where a side has not kept up, what its commits have cost counts as though it had.
	rate := func(c *committed, n float64) float64 { return n / float64(len(c.durable)) * float64(o.rate) }
	grown := func(c *committed) float64 { return rate(c, float64(c.grown)) }
	c.table(func(row func(what, plain, wrapped, note string)) {
		compare := func(what string, of func(c *committed) float64, format func(float64) string) {
			x, y := of(plain), of(wrapped)
			row(what, format(x), format(y), less(x, y))
		}
		each := func(what string, of func(c *committed) string) { row(what, of(plain), of(wrapped), "") }
		times := func(d paired.Durations) string {
			return fmt.Sprintf("%s / %s", shortly(d.Median()), shortly(d.Quantile(0.99)))
		}
		row("", "plain client", "kvwrap", "")
		compare("revisions a second", func(c *committed) float64 { return rate(c, float64(len(c.sent.Proposals))) },
			func(n float64) string { return fmt.Sprintf("%.1f", n) })
		compare("proposed a second", func(c *committed) float64 { return rate(c, float64(c.sent.ProposedBytes())) }, size.Bytes)
		compare("database grows a second by", grown, size.Bytes)
		each("quota of 2 GiB is full after", func(c *committed) string {
			if c.grown <= 0 {
				return "-"
			}
			return durationOf(defaultQuota / grown(c))
		})
		row("the broker waits, median / p99", times(plain.durable), times(wrapped.returned), "")
		each("durable after, median / p99", func(c *committed) string { return times(c.durable) })
	})
	c.gap()
	for name, side := range map[string]*committed{"The plain client": plain, "kvwrap": wrapped} {
		if side.took > o.duration+o.flush+o.duration/10 {
			c.say("%s has not kept up: %.0f commits a second, of %d.", name, float64(len(side.durable))/side.took.Seconds(), o.rate)
		}
	}
	c.say("%.0f commits a revision. A key that is written in every flush takes its bytes in every flush: a longer --flush saves more of the database, a shorter one less of the revisions.",
		float64(len(wrapped.durable))/float64(max(len(wrapped.sent.Proposals), 1)))
	if plain.server == nil {
		c.say("The keys are gone; their revisions take room in the database until it is compacted.")
	}
	return c.print(w)
}

// shortly writes a time with two or three digits.
func shortly(d time.Duration) string {
	switch {
	case d < 10*time.Microsecond:
		return fmt.Sprintf("%.1f µs", float64(d)/float64(time.Microsecond))
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	}
	return fmt.Sprintf("%.1f ms", millis(d))
}

// durationOf writes seconds in the unit that suits them.
func durationOf(seconds float64) string {
	switch {
	case seconds < 120:
		return fmt.Sprintf("%.0f s", seconds)
	case seconds < 7200:
		return fmt.Sprintf("%.0f min", seconds/60)
	case seconds < 48*3600:
		return fmt.Sprintf("%.1f h", seconds/3600)
	}
	return fmt.Sprintf("%.1f days", seconds/86400)
}
