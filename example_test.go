package kvwrap_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/shaper"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func publish(ctx context.Context, endpoints []string, statistics string) error {
	cli, err := clientv3.New(clientv3.Config{Endpoints: endpoints})
	if err != nil {
		return err
	}
	defer cli.Close()
	if _, err := kvwrap.Install(cli, kvwrap.Config{}); err != nil {
		return err
	}
	_, err = cli.Put(ctx, "gateway/statistics", statistics) // megabytes are fine now
	return err
}

func commit(ctx context.Context, cli *clientv3.Client, owned int64) error {
	kv, err := kvwrap.Install(cli, kvwrap.Config{Rules: []kvwrap.Rule{
		// Put together what is put at the same time.
		{Prefix: "heartbeats/", Coalesce: coalesce.GroupCommit},
		// Write the largest offset of a partition, every 50 ms.
		{Prefix: "offsets/", Coalesce: coalesce.Max, FlushEvery: 50 * time.Millisecond},
		// Transactions of 20 objects, most of them as they were.
		{Prefix: "status/", Coalesce: coalesce.GroupCommit, Transactions: true, SkipUnchanged: true},
	}})
	if err != nil {
		return err
	}
	if _, err := cli.Put(ctx, "heartbeats/42", "alive"); err != nil { // durable when it returns
		return err
	}
	// Only while this process owns the partition.
	owner := clientv3.Compare(clientv3.CreateRevision("owners/orders/7"), "=", owned)
	kv.PutAsync(coalesce.WithFence(ctx, owner), "offsets/orders/7", "10042", func(_ *clientv3.PutResponse, err error) {
		if err != nil {
			log.Printf("offset 10042 is not committed: %v", err)
		}
	})
	return kv.Flush(ctx) // or cli.Close
}

func pace(cli *clientv3.Client) error {
	_, err := kvwrap.Install(cli, kvwrap.Config{
		Budget: budget.Config{
			// What all clients of the cluster may write, together: they follow the revision
			// that etcd answers, and know by leased keys how many they are.
			Rates: budget.Rates{Revisions: 500}, Shared: true, Register: true,
			// Slow down near the quota, and stop before it.
			Backend: budget.Members(cli),
		},
		Rules: []kvwrap.Rule{
			{Prefix: "leaders/", Class: budget.Critical},
			{Prefix: "statistics/", Class: budget.Elastic, Reject: true},
		},
	})
	return err
}

func dial(ctx context.Context, endpoints []string, statistics string) error {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		DialOptions: kvwrap.DialOptions(kvwrap.Config{}),
	})
	if err != nil {
		return err
	}
	defer cli.Close()
	kv, err := kvwrap.Dialed(cli) // for Close, PutAsync, Stats and Report; the stages work without
	if err != nil {
		return err
	}
	defer kv.Close()
	_, err = clientv3.NewKV(cli).Put(ctx, "gateway/statistics", statistics)
	return err
}

// DialOptions is for code that makes a KV or a watcher of its own.
func ExampleDialOptions() {
	if err := dial(context.Background(), []string{"localhost:2379"}, "{}"); err != nil {
		log.Print(err)
	}
}

// A budget says how fast may be written.
func ExampleConfig_budget() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	if err := pace(cli); err != nil {
		log.Print(err)
	}
}

// Rules say which writes are put together, and how.
func ExampleRule() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	if err := commit(context.Background(), cli, 4711); err != nil {
		log.Print(err)
	}
}

// Install is all that an application needs.
func ExampleInstall() {
	if err := publish(context.Background(), []string{"localhost:2379"}, "{}"); err != nil {
		log.Print(err)
	}
}

// New leaves the client as it is, and gives a KV of its own.
func ExampleNew() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := kvwrap.New(cli, kvwrap.Config{Chunk: chunker.Config{Threshold: 16 << 10}})
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	resp, err := kv.Get(context.Background(), "gateway/", clientv3.WithPrefix())
	if err != nil {
		log.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		fmt.Printf("%s: %d bytes\n", kv.Key, len(kv.Value))
	}
}

// The first step of a roll-out: every process reads chunked values, none writes
// them yet.
func ExampleConfig_readOnly() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	if _, err := kvwrap.Install(cli, kvwrap.Config{Chunk: chunker.Config{ReadOnly: true}}); err != nil {
		log.Fatal(err)
	}
}

func report(ctx context.Context, kv *kvwrap.KV) error {
	report, err := kv.Report(ctx)
	if err != nil {
		return err
	}
	fmt.Print(report.Text()) // report.String() is a line for a log
	for _, w := range report.Warnings {
		log.Printf("%s: %s", w.Text, w.Remedy)
	}
	return nil
}

// A report is made once a minute, and logged.
func ExampleKV_Report() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := kvwrap.Install(cli, kvwrap.Config{})
	if err != nil {
		log.Fatal(err)
	}
	for range time.Tick(time.Minute) {
		if err := report(context.Background(), kv); err != nil {
			log.Print(err)
		}
	}
}

// Counters are those of this process. They are there without a server, which is why this
// example needs none.
func ExampleKV_Stats() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:1"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := kvwrap.New(cli, kvwrap.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	stats := kv.Stats()
	fmt.Println("asked for:", stats.Asked.Total.Puts, "puts, proposed:", stats.Proposed.Total.Puts)
	fmt.Println("chunked:", stats.Chunk.Inline+stats.Chunk.Staged)
	fmt.Println("in batches:", stats.Coalesce.Puts, "waiting for the budget:", stats.Budget.Waiting)

	// Output:
	// asked for: 0 puts, proposed: 0
	// chunked: 0
	// in batches: 0 waiting for the budget: 0
}

// What is put behind is durable when its promise says so, or Flush returns nil.
func ExampleKV_PutAsync() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close() // writes what waits, too
	kv, err := kvwrap.Install(cli, kvwrap.Config{
		Rules:    []kvwrap.Rule{{Prefix: "offsets/", Coalesce: coalesce.Max, FlushEvery: 50 * time.Millisecond}},
		Coalesce: coalesce.Config{OnError: func(key []byte, err error) { log.Printf("%s: %v", key, err) }},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for offset := range 1000 {
		kv.PutAsync(ctx, "offsets/orders/7", fmt.Sprint(offset), nil) // OnError is told
	}
	p := kv.Pending()
	fmt.Println("a crash now would lose", p.Writes, "writes of", p.Bytes, "bytes")
	if err := kv.Flush(ctx); err != nil {
		log.Print(err)
	}
}

// A watcher sees whole values, and a lease the keys of the application.
func ExampleKV_Watcher() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := kvwrap.New(cli, kvwrap.Config{}) // after Install it is cli itself
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lease, err := kv.Lease().Grant(ctx, 60)
	if err != nil {
		log.Fatal(err)
	}
	events := kv.Watcher().Watch(ctx, "gateway/", clientv3.WithPrefix())
	if _, err := kv.Put(ctx, "gateway/statistics", "{}", clientv3.WithLease(lease.ID)); err != nil {
		log.Fatal(err)
	}
	for resp := range events {
		if err := resp.Err(); err != nil {
			log.Fatal(err) // resp.CompactRevision says where to go on, where that is it
		}
		for _, e := range resp.Events {
			fmt.Printf("%s %s: %d bytes\n", e.Type, e.Kv.Key, len(e.Kv.Value))
		}
	}
}

// A sweep deletes what crashed writes have left behind.
func ExampleKV_Sweep() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := kvwrap.Install(cli, kvwrap.Config{})
	if err != nil {
		log.Fatal(err)
	}
	result, err := kv.Sweep(context.Background())
	if err != nil {
		log.Print(err) // the result says what was done until then
	}
	fmt.Println("chunks deleted:", result.Deleted, "writes under way:", result.Writes)
}

// Rates may be changed while others wait, for the night for instance.
func ExampleKV_SetRates() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := kvwrap.Install(cli, kvwrap.Config{Budget: budget.Config{Rates: budget.Rates{Revisions: 100}}})
	if err != nil {
		log.Fatal(err)
	}
	if err := kv.SetRates(budget.Rates{Revisions: 1000}); err != nil {
		log.Fatal(err)
	}
}

// A workload and what it may cost become a configuration.
func ExampleTune() {
	cfg, plan, err := kvwrap.Tune(shaper.Workload{
		Prefix: "status/", Keys: 2000, ValueBytes: 1500, Interval: 5 * time.Second, Unchanged: 0.95,
	}, shaper.Target{RevisionsPerSecond: 50, Server: shaper.Server{Version: "3.7"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(cfg.Rules[0].Coalesce, "SkipUnchanged:", cfg.Rules[0].SkipUnchanged)
	for _, u := range plan.Unmet {
		fmt.Println("not met:", u.Target, u.Why)
	}
	fmt.Printf("the backend grows by %.0f KB/s, not %.0f\n",
		plan.Shaped.Get(shaper.BackendGrowth).Expected/1e3, plan.Plain.Get(shaper.BackendGrowth).Expected/1e3)

	// Output:
	// GroupCommit SkipUnchanged: true
	// the backend grows by 41 KB/s, not 827
}

// A gateway of three members, each of which puts 2 MB of statistics every five seconds, of
// which three in a hundred have changed.
func ExampleGatewayStatistics() {
	cfg, plan, err := kvwrap.GatewayStatistics(3, 2_000_000, 0.03, 5*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("entries of up to", cfg.Chunk.MaxEntryBytes, "bytes")
	fmt.Printf("raft log: %.1f GB, with kvwrap %.0f MB\n", plan.Plain.Get(shaper.RaftLog).Expected/1e9, plan.Shaped.Get(shaper.RaftLog).Expected/1e6)
	for _, f := range plan.Flags {
		fmt.Println(f.Setting, f.Value)
	}
	// Then: kvwrap.Install(cli, cfg)

	// Output:
	// entries of up to 65536 bytes
	// raft log: 10.1 GB, with kvwrap 212 MB
	// --auto-compaction-mode periodic
	// --auto-compaction-retention 1h0m0s
	// --quota-backend-bytes 2147483648
	// memory limit of the container 2112Mi
	// GOMEMLIMIT 1900MiB
}

// A broker with 200 partitions commits 5,000 offsets a second. They are in etcd 100 ms later.
func ExampleOffsetCommits() {
	cfg, plan, err := kvwrap.OffsetCommits("offsets/", 200, 5000, 100*time.Millisecond)
	if err != nil {
		log.Fatal(err)
	}
	rule := cfg.Rules[0]
	fmt.Println(rule.Coalesce, "every", rule.FlushEvery)
	revisions := 0.0
	for _, e := range plan.ShapedLoad.Entries {
		revisions += e.PerSecond
	}
	fmt.Printf("%.0f revisions a second\n", revisions)
	// Then: kv, err := kvwrap.Install(cli, cfg), and kv.PutAsync for each commit.

	// Output:
	// Max every 80ms
	// 12 revisions a second
}
