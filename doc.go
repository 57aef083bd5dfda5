// Package kvwrap is a [clientv3.KV] that makes the writes of an application light
// for etcd. An application puts it in place of its client's own and goes on as
// before:
//
//	cli, err := clientv3.New(clientv3.Config{Endpoints: endpoints})
//	if err != nil {
//		return err
//	}
//	defer cli.Close()
//	if _, err := kvwrap.Install(cli, kvwrap.Config{}); err != nil {
//		return err
//	}
//	_, err = cli.Put(ctx, "gateway/statistics", twoMegabytes)
//
// # What costs
//
// etcd keeps its newest 5,000 requests in memory, whole, and every revision on
// disk until compaction. A value of megabytes that is written every few seconds
// costs gigabytes of the one, thousands of small puts a second fill the other.
//
// # What is done about it
//
// A large value is stored as a small manifest and chunks, and a write proposes
// the chunks that have changed. The zero [Config] does that, and no more.
//
// Many small writes are coalesced, where a [Rule] says so: what waits together becomes
// one raft entry and one revision, and [KV.PutAsync] writes behind.
//
// All that is proposed may be paced, to what the cluster can afford, by Config.Budget.
//
// And all of it is measured: [KV.Stats] has the counters, [KV.Report] what they come to
// on this cluster. [Tune] goes from a workload to a Config.
//
// # The chain
//
// Requests pass a chain of stages, each a middleware over etcd's own request
// interface. This package alone knows their order:
//
//	application -> meter -> chunker -> coalesce -> budget -> meter -> the client's own KV
//
// [DialOptions] puts the same chain into a client's connection, for code that makes a KV or a
// watcher of its own.
//
// What each guarantees stands with it: [github.com/kvwrap/kvwrap/chunker],
// [github.com/kvwrap/kvwrap/coalesce], [github.com/kvwrap/kvwrap/budget],
// [github.com/kvwrap/kvwrap/shaper], which has the meters. Each can be used alone, the first
// three by their NewKV.
//
// # What to rely on
//
// Every call returns what etcd's client would have returned. A put is durable when it
// returns nil, but for PutAsync. After an error of etcd's a write may have been applied
// where that is so after the same error of etcd's client; after an error of a stage nothing
// was written, unless it is a chunker.AppliedError. Errors that match [ErrNotSent] say that
// it may be tried again.
//
// Processes without kvwrap cannot read a chunked value: they see its manifest. So it is
// rolled out readers first, with chunker.Config.ReadOnly; docs/operations.md has the steps.
//
// # How it works
//
// kvwrap.go has Config, New and Install, and with them the chain; dial.go the way into a
// connection; tune.go the settings for
// a workload. docs/design.md walks through the whole.
package kvwrap
