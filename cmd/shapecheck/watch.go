package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/charmbracelet/x/term"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/traffic"
	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watch shows what is written.
type watch struct {
	prefix, separator string
	depth, top        int
	sort              string
	reverse, once     bool
	interval, during  time.Duration
	output            outputFlag
	space             spaceFlags
	cluster           clusterFlags

	by       traffic.Column
	keyspace format.Keyspace
	cell     time.Duration // of the table
}

func watchCommand() *cobra.Command {
	var w watch
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Shows live what is written to a cluster, by prefix",
		Long: `Shows what is written to a cluster, by prefix, as it happens: puts and bytes a
second, the average and the largest value, the trend of the last minute. Above
it are the revision rate, the size of the database, its quota, and the lag: of
the display behind the cluster, and of members behind what is committed.

Rates on the screen are of the last 5 seconds. Keys: left and right choose the
column to sort by, r reverses, + and - change the depth of prefixes, space
pauses the display, / filters, ? explains, q quits.

Values in chunks: puts and the sizes of values are those of the application,
bytes/s are what is stored. Chunks count as bytes, and as chunks/s, of the
prefix of the key whose value they are part of. So 0.2 puts/s of 2 MB, at 25
KB/s, are a large value of which little changes. A row marked with * has
prefixes in it that were too many to be told apart; the rest is "(other)".

With --once it observes for a time (--for), prints the table, and ends. With
-w json it writes a line for each interval, or one document with --once.

It watches: the member that it is connected to sends every value once more,
and it takes read permission on what it watches (--prefix narrows it). It
writes nothing.
` + clusterHelp + `

Exit codes: 0 observed, or quit with q; 1 failed, or not all was seen, or the
command line is wrong; 2 the cluster cannot be reached; 130 interrupted, also by
ctrl-C on the screen; what was seen until then is written.`,
		Example: `  shapecheck watch --endpoints 10.0.0.1:2379
  shapecheck watch --endpoints 10.0.0.1:2379 --once --for 30s --sort bytes
  shapecheck watch --endpoints 10.0.0.1:2379 --prefix /registry/ --depth 3
  shapecheck watch --endpoints 10.0.0.1:2379 -w json --interval 10s |
      jq -c '.prefixes[] | [.prefix, .putsPerSecond]'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.run(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&w.prefix, "prefix", "", "watch keys with this prefix only")
	f.IntVar(&w.depth, "depth", 2, fmt.Sprintf("components of the prefixes, up to %d", traffic.MaxDepth))
	f.StringVar(&w.separator, "separator", "/", "what separates the components of keys, one byte")
	f.DurationVar(&w.interval, "interval", time.Second, "between two updates of the screen, or two lines of JSON")
	f.StringVar(&w.sort, "sort", "puts", "column: prefix, puts, bytes, mean, largest, deletes or chunks")
	f.BoolVar(&w.reverse, "reverse", false, "the smallest first")
	f.IntVar(&w.top, "top", 20, "how many prefixes are listed, but on the screen")
	f.BoolVar(&w.once, "once", false, "observe for a time, print what was written, and end")
	f.DurationVar(&w.during, "for", 10*time.Second, "how long --once observes")
	w.output.register(cmd)
	w.space.register(cmd)
	w.cluster.register(cmd)
	return cmd
}

// screenWindow is how many cells, of a second each, the rates on the screen are of.
const screenWindow = 5

// mayWatchWho is the user that a watch takes.
const mayWatchWho = "who may read what is watched"

func (w *watch) check(cmd *cobra.Command) (err error) {
	switch {
	case len(w.separator) != 1:
		return fmt.Errorf("--separator %q: give one byte, as /", w.separator)
	case w.depth < 1 || w.depth > traffic.MaxDepth:
		return fmt.Errorf("--depth %d: choose 1 to %d", w.depth, traffic.MaxDepth)
	case w.top < 1 || w.top > 10_000:
		return fmt.Errorf("--top %d: choose 1 to 10000", w.top)
	case w.interval < time.Second || w.interval > traffic.Cells*time.Second || w.interval%time.Second != 0:
		return fmt.Errorf("--interval %v: choose whole seconds, 1s to %ds", w.interval, traffic.Cells)
	case w.during < time.Second || w.during > 24*time.Hour:
		return fmt.Errorf("--for %v: choose 1s to 24h", w.during)
	case !w.once && cmd.Flags().Changed("for"):
		return fmt.Errorf("--for is for --once: give both, or neither")
	case w.once && cmd.Flags().Changed("interval"):
		return fmt.Errorf("--interval and --once: --for says how long to observe")
	}
	if w.by, err = traffic.ParseColumn(w.sort); err != nil {
		return fmt.Errorf("--sort %w", err)
	}
	w.keyspace, err = w.space.keyspace()
	return err
}

func (w *watch) run(cmd *cobra.Command) error {
	ctx, stdout := cmd.Context(), cmd.OutOrStdout()
	asJSON, err := w.output.json()
	if err != nil {
		return err
	}
	if err := w.check(cmd); err != nil {
		return err
	}
	screen := !w.once && !asJSON
	shown, isShown := terminalOf(stdout)
	_, typed := terminalOf(cmd.InOrStdin())
	if screen && !(isShown && typed) {
		return fmt.Errorf("standard input and output are no terminal: give --once for a table, or -w json for lines of JSON")
	}
	w.cell = time.Second
	if w.once { // the table remembers all of it
		w.cell = w.during / min(time.Duration(traffic.Cells), w.during/time.Second)
	}
	cli, err := w.cluster.connect(ctx, 0)
	if err != nil {
		return err
	}
	defer cli.Close()
	streams, err := w.streams(ctx)
	if err != nil {
		return err
	}
	defer streams.Close()
	o, err := newObserver(ctx, cli, streams, w.prefix, w.separator[0], w.keyspace)
	if err != nil {
		return err
	}
	return w.observe(ctx, o, func(ctx context.Context) error {
		if screen {
			return w.show(ctx, o, cmd.InOrStdin(), shown)
		}
		tick := time.NewTicker(w.cell)
		defer tick.Stop()
		if w.once {
			p := newProgress(cmd.ErrOrStderr())
			p.say("watching for %v what is written", w.during)
			return w.writeOnce(ctx, o, tick.C, asJSON, p.end, stdout)
		}
		return w.writeLines(ctx, o, tick.C, stdout)
	})
}

// streams returns a client for streams, beside one that has been connected.
func (w *watch) streams(ctx context.Context) (*clientv3.Client, error) {
	cfg, err := w.cluster.config(0)
	if err != nil {
		return nil, err
	}
	gather(&cfg)
	// A host that is gone does not say so.
	cfg.DialKeepAliveTime, cfg.DialKeepAliveTimeout = 10*time.Second, 5*time.Second
	cli, err := newClient(cfg)
	if err != nil {
		return nil, unreachable(ctx, fmt.Errorf("asking %v: %w", w.cluster.endpoints, err))
	}
	return cli, nil
}

// terminalOf returns the terminal that a stream of a command is, if it is one.
func terminalOf(stream any) (*os.File, bool) {
	if o, ok := stream.(*output); ok {
		stream = o.to
	}
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(f.Fd())
}

// observe runs an observer while do does something with it, which begins when there is
// something to see.
func (w *watch) observe(ctx context.Context, o *observer, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cancel(o.run(ctx))
	}()
	defer func() { <-ended }()
	defer cancel(nil)
	select {
	case <-o.feed.ready:
	case <-ctx.Done():
	case <-time.After(w.cluster.commandTimeout):
		return fmt.Errorf("watching: there is no stream after --command-timeout, %v: %s", w.cluster.commandTimeout, o.feed.current().Problem)
	}
	if ctx.Err() == nil {
		err := do(ctx)
		if ctx.Err() == nil || err == nil {
			return err
		}
	}
	return mayWatch(w.prefix, context.Cause(ctx))
}

// writeOnce observes for --for, and writes what it has seen, also when ctx ends before.
func (w *watch) writeOnce(ctx context.Context, o *observer, ticks <-chan time.Time, asJSON bool, before func(), stdout io.Writer) error {
	var err error
	cells := int(w.during / w.cell)
	for n := 1; n <= cells && err == nil; n++ {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-ticks:
			if n < cells {
				break
			}
			at := o.now() // what was written until now may yet be on its way
			if e := o.catchUp(ctx, w.cluster.commandTimeout); ctx.Err() != nil {
				err = ctx.Err()
			} else if e != nil {
				err = asking(mayWatchWho, "not all that was written was seen: asking for the members", e)
			}
			o.advanceAt(at)
			continue
		}
		o.advance()
	}
	before()
	s := o.snapshot(traffic.Cells)
	if asJSON {
		return errors.Join(err, writeJSON(stdout, w.document(s)))
	}
	_, e := io.WriteString(stdout, w.text(s))
	return errors.Join(err, e)
}

// writeLines writes a line of JSON for each interval, until ctx ends; the last one is of a
// part of it.
func (w *watch) writeLines(ctx context.Context, o *observer, ticks <-chan time.Time, stdout io.Writer) error {
	lines := json.NewEncoder(stdout)
	lines.SetEscapeHTML(false)
	interval := int(w.interval / w.cell)
	for cells := 1; ; cells++ {
		select {
		case <-ctx.Done():
		case <-ticks:
		}
		o.advance()
		if cells < interval && ctx.Err() == nil {
			continue
		}
		if err := lines.Encode(w.document(o.snapshot(cells))); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		cells = 0
	}
}
