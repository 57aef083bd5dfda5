package shaper_test

import (
	"fmt"
	"log"
	"time"

	"github.com/kvwrap/kvwrap/shaper"
)

// What three members of a gateway cost, each of which puts 2 MB every five seconds.
func ExampleProject() {
	p, err := shaper.Project(shaper.Server{Version: "3.7"}, shaper.PutLoad(0.6, 3, 64, 2_000_000))
	if err != nil {
		log.Fatal(err)
	}
	f := p.Get(shaper.RaftLog) // p.Explain() has its formula, and those of all others
	fmt.Printf("%.1f GB, from %.1f to %.1f\n", f.Expected/1e9, f.Low/1e9, f.High/1e9)
	fmt.Println(f.Contains(10.1e9))

	// Output:
	// 10.1 GB, from 10.0 to 10.2
	// true
}

// Two kinds of writers at once: raft sees entries, the backend records.
func ExampleLoad_Plus() {
	offsets := shaper.TxnLoad(20, 100, 200, 40, 19) // twenty transactions a second, of 100 puts each
	all := shaper.PutLoad(0.6, 3, 64, 2_000_000).Plus(offsets)
	if err := all.Validate(); err != nil {
		log.Fatal(err)
	}
	for _, r := range all.Records {
		fmt.Printf("%.1f records a second of %d bytes\n", r.PerSecond, r.ValueBytes)
	}
	fmt.Println(shaper.PutProposal(64, 2_000_000, false), "bytes of raft entry for a put")
	fmt.Println(shaper.TxnProposal(100, 40, 19, false), "for a transaction")

	// Output:
	// 0.6 records a second of 2000000 bytes
	// 2000.0 records a second of 19 bytes
	// 2000088 bytes of raft entry for a put
	// 6717 for a transaction
}

// Settings for a target, and the reason for each.
func ExampleTune() {
	plan, err := shaper.Tune(shaper.Workload{
		Prefix: "offsets/", Keys: 200, KeyBytes: 32, ValueBytes: 19, Interval: 40 * time.Millisecond,
		Freshness: 100 * time.Millisecond, Latest: true, Increasing: true, Polled: true,
	}, shaper.Target{Server: shaper.Server{Version: "3.7"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(plan.Settings.Mode, "every", plan.Settings.FlushEvery)
	for _, c := range plan.Choices {
		fmt.Println(c.Setting, "=", c.Value)
	}
	fmt.Println("targets that are not met:", len(plan.Unmet))

	// Output:
	// Max every 80ms
	// Chunk.MaxEntryBytes = 65536
	// Coalesce = Max
	// FlushEvery = 80ms
	// StaleReads = true
	// targets that are not met: 0
}

// A report of one's own, for what was counted elsewhere.
func ExampleReport_Complete() {
	meter, err := shaper.NewMeter(shaper.MeterConfig{})
	if err != nil {
		log.Fatal(err)
	}
	r := shaper.Report{
		Asked: meter.Traffic(), Proposed: meter.Traffic(),
		Members: []shaper.Member{{Name: "m0", Role: "leader", Version: "3.7.3", DbSize: 1900 << 20, InUse: 300 << 20, Bloat: 6.3, Quota: 2 << 30, QuotaUse: 0.93}},
	}
	if err := r.Complete(shaper.Server{}); err != nil {
		log.Fatal(err)
	}
	for _, w := range r.Warnings {
		fmt.Println(w.Text) // and r.Text() is all of it
	}

	// Output:
	// m0 has used 93 % of its quota, 1.99 GB of 2.15 GB
	// m0 has a file of 1.99 GB, of which 315 MB are in use
}
