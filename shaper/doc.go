// Package shaper says what an application does to its etcd, what that costs, and which
// settings keep it within bounds. It writes nothing, and talks to nobody.
//
// # Measure
//
// A [Meter] is a stage that counts what passes: puts, transactions, revisions, records and
// bytes, the sizes of raft entries, what falls under which rule, and the heaviest prefixes,
// since the start and in the last minute. kvwrap has two of them, over the other stages and
// below, so that what was asked for stands beside what was proposed. A meter takes a fixed
// amount of memory, whatever the number of keys.
//
// # Project
//
// [Project] takes a [Server], which is a version and its flags, and a [Load], and returns
// what each member of the cluster comes to keep: raft entries and their bytes, heap, growth
// of the backend, its file, the time to the quota. Each [Figure] has a low, an expected and a high
// value, its formula, and where that comes from. [Traffic.Load] makes a load of what a
// meter has counted.
//
//	l := shaper.PutLoad(0.6, 3, 64, 2_000_000) // three members, 2 MB each five seconds
//	p, err := shaper.Project(shaper.Server{Version: "3.7"}, l)
//	fmt.Print(p)           // the raft log: 10.1 GB
//	fmt.Print(p.Explain()) // why
//
// # Tune
//
// [Tune] goes the other way: from a [Workload] and a [Target] to [Settings], which
// kvwrap.Tune makes a configuration of, and etcd's flags, with a [Plan] that explains each
// choice, says what it comes to, and which targets cannot be met.
//
// # Report
//
// A [Report] has all of it together, with the state of the members, and warnings with
// their remedies; kvwrap.KV.Report makes one. The packages kvprom and kvotel below this one
// hand counters to Prometheus and steps of writes to OpenTelemetry.
//
// # How it works
//
//   - meter.go, stage.go and traffic.go count, as meter_config.go says, and meter_outcome.go tells
//     what was proposed from what was not; histogram.go has sizes, sketch_keys.go the number
//     of keys, sketch_prefix.go the heaviest prefixes.
//   - server.go and load.go are what a projection is of; raftlog.go, memory.go, records.go
//     and pages.go its formulas, allocate.go Go's allocator, project.go puts them together.
//     figure.go is what comes out; errors.go what is wrong with what went in.
//   - workload.go, target.go, effect.go and tune.go choose, explain.go says why.
//   - report.go judges, text.go writes for people.
package shaper
