package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/workload"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// benchCase is something that applications do.
type benchCase struct {
	name, title string
	callers     int
	pause       time.Duration // between two operations of a caller, 0 for none
	config      kvwrap.Config // of kvwrap's side
	most        int           // operations on each side: what they write is to stay below the quota

	// begin does what comes first, and returns what is measured. KV is nil on the plain
	// client's side.
	begin func(ctx context.Context, cli *clientv3.Client, kv *kvwrap.KV) (operation, error)
}

// The load of a broker.
const (
	benchPartitions = 200
	benchCommits    = 5000 // a second
	benchCommitters = 50
	benchBytes      = 800e6 // of the database, that a case writes on each side at the most
)

func benchCases() []benchCase {
	grouped := kvwrap.Config{Rules: []kvwrap.Rule{{Prefix: "small/", Coalesce: coalesce.GroupCommit}}}
	behind := kvwrap.Config{Rules: []kvwrap.Rule{{Prefix: workload.OffsetsPrefix, Coalesce: coalesce.LastWriteWins, FlushEvery: 100 * time.Millisecond}}}
	cases := []benchCase{
		{name: "put", title: "small puts, 1 caller", callers: 1, begin: smallPuts},
		{name: "puts", title: "small puts, 128 callers", callers: 128, begin: smallPuts},
		{name: "group-commit", title: "small puts, 128 callers, GroupCommit", callers: 128, config: grouped, begin: smallPuts},
		{name: "get", title: "small reads, 1 caller", callers: 1, begin: smallGets},
		{name: "gets", title: "small reads, 128 callers", callers: 128, begin: smallGets},
		{name: "list", title: "lists of 100 small values, 1 caller", callers: 1, begin: lists},
		{name: "large-put", title: "large puts, 1 MB of new text", callers: 1, most: benchBytes / 1e6, begin: largePuts},
		{name: "large-get", title: "large reads, 1 MB of text", callers: 1, begin: largeGets},
		{name: "statistics", title: "statistics, 2 MB, 3 % changed", callers: 1, most: benchBytes / 2e6, begin: publishes},
		{
			name: "offsets", title: fmt.Sprintf("offsets, %d a second; kvwrap: PutAsync", benchCommits), callers: benchCommitters,
			pause: time.Second * benchCommitters / benchCommits, config: behind, begin: commits,
		},
	}
	for i := range cases {
		cases[i].most = cmp.Or(cases[i].most, benchBytes/500)
	}
	return cases
}

func smallPuts(_ context.Context, cli *clientv3.Client, _ *kvwrap.KV) (operation, error) {
	value := workload.Text(100, "small")
	return func(ctx context.Context, caller int) error {
		_, err := cli.Put(ctx, fmt.Sprint("small/", caller), value)
		return err
	}, nil
}

// fill puts a hundred small values.
func fill(ctx context.Context, cli *clientv3.Client) error {
	for i := range 100 {
		if _, err := cli.Put(ctx, fmt.Sprintf("small/%03d", i), workload.Text(100, "small")); err != nil {
			return err
		}
	}
	return nil
}

func smallGets(ctx context.Context, cli *clientv3.Client, _ *kvwrap.KV) (operation, error) {
	return func(ctx context.Context, caller int) error {
		_, err := cli.Get(ctx, fmt.Sprintf("small/%03d", caller%100))
		return err
	}, fill(ctx, cli)
}

func lists(ctx context.Context, cli *clientv3.Client, _ *kvwrap.KV) (operation, error) {
	return func(ctx context.Context, _ int) error {
		_, err := cli.Get(ctx, "small/0", clientv3.WithPrefix())
		return err
	}, fill(ctx, cli)
}

func largePuts(_ context.Context, cli *clientv3.Client, _ *kvwrap.KV) (operation, error) {
	values := make([]string, 4)
	for i := range values {
		values[i] = workload.Text(1e6, fmt.Sprint("large", i))
	}
	var turn atomic.Int64
	return func(ctx context.Context, _ int) error {
		_, err := cli.Put(ctx, "large", values[turn.Add(1)%int64(len(values))])
		return err
	}, nil
}

func largeGets(ctx context.Context, cli *clientv3.Client, _ *kvwrap.KV) (operation, error) {
	_, err := cli.Put(ctx, "large", workload.Text(1e6, "large"))
	return func(ctx context.Context, _ int) error {
		_, err := cli.Get(ctx, "large")
		return err
	}, err
}

func publishes(_ context.Context, cli *clientv3.Client, _ *kvwrap.KV) (operation, error) {
	gateway := workload.NewGateway(1000, 1)
	gateway.Publish(0)
	return func(ctx context.Context, _ int) error {
		_, err := cli.Put(ctx, "statistics", string(gateway.Publish(0.03)))
		return err
	}, nil
}

func commits(_ context.Context, cli *clientv3.Client, kv *kvwrap.KV) (operation, error) {
	broker := workload.NewBroker(benchPartitions, 1)
	var mu sync.Mutex
	next := func() (key, offset string) {
		mu.Lock()
		defer mu.Unlock()
		partition, offset := broker.Commit()
		return workload.OffsetKey(partition), offset
	}
	if kv == nil {
		return func(ctx context.Context, _ int) error {
			key, offset := next()
			_, err := cli.Put(ctx, key, offset)
			return err
		}, nil
	}
	var failed atomic.Pointer[error]
	promise := func(_ *clientv3.PutResponse, err error) {
		if err != nil {
			failed.Store(&err)
		}
	}
	return func(ctx context.Context, _ int) error {
		if err := failed.Load(); err != nil {
			return *err
		}
		key, offset := next()
		kv.PutAsync(ctx, key, offset, promise)
		return nil
	}, nil
}

// alignedRows writes a table for a terminal, the first row of which is its head.
func alignedRows(b *strings.Builder, rows [][]string) {
	width := 0
	for _, row := range rows {
		width = max(width, len(row[0]))
	}
	var all strings.Builder
	t := tabwriter.NewWriter(&all, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		fmt.Fprintf(t, "%-*s\t%s\t\n", width, row[0], strings.Join(row[1:], "\t"))
	}
	t.Flush() // to memory
	for line := range strings.Lines(all.String()) {
		b.WriteString(strings.TrimRight(strings.TrimPrefix(line, "  "), " \n") + "\n")
	}
}

// markdownRows writes a table of Markdown.
func markdownRows(b *strings.Builder, rows [][]string) {
	for i, row := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(b, "|---|%s\n", strings.Repeat("---:|", len(row)-1))
		}
	}
}
