// Package coalesce is a [clientv3.KV] that writes together what waits together. Many
// small puts become one transaction of etcd's: one raft entry, one revision.
//
//	kv, err := coalesce.NewKV(cli.KV, coalesce.Config{
//		Lease: cli.Lease,
//		Rules: []coalesce.Rule{
//			{Prefix: "heartbeats/", Mode: coalesce.GroupCommit},
//			{Prefix: "offsets/", Mode: coalesce.Max, FlushEvery: 50 * time.Millisecond},
//		},
//	})
//	if err != nil {
//		return err
//	}
//	defer kv.Close()
//	_, err = kv.Put(ctx, "heartbeats/42", "alive")        // returns when it is durable
//	kv.PutAsync(ctx, "offsets/orders/7", "10042", promise) // promise is told when it is
//
// Without a rule for a key nothing is coalesced but puts by PutAsync: these go into
// batches, in the order in which they came.
//
// # Guarantees
//
// A put returns nil only when its value is durable, or under Max a larger number is, or
// under SkipUnchanged the same value was. Each caller gets a response of its own, with
// the revision that etcd answered.
//
// A write of etcd's is never made up, lost, or made twice. After an error of etcd's it may
// have been made, or not, as after the same error of etcd's client; what was written
// together then has the same error. An error that etcd has because of one write is that
// write's alone: the others are written. Where a rule says Retry, and for PutAsync, an
// outcome that is not known is found out, and what was not written is sent again; but
// never over what somebody else has written in the meantime, which is an
// [*OvertakenError].
//
// Writes of one key keep the order in which they came, also against reads, deletes and
// transactions that are not coalesced: these wait for what came before, or where that
// cannot be sent fail with a [*BarrierError]. Reads may go past, where a rule says
// StaleReads. Puts of one key by callers who wait for them are concurrent, and are not
// made to wait for each other.
//
// A write under [WithFence] is made only while its conditions hold, however late its
// request comes.
//
// # What it costs
//
// A put of which nobody else waits is the request that it was; it is sent by its caller. A
// key under LastWriteWins or Max has less versions and events than puts. A batch makes one
// raft entry larger, up to MaxEntryBytes, in place of many: etcd keeps its newest 5,000
// entries in memory, so that a log full of batches takes up to 5,000 times that.
//
// What is tried again, and what depends on what this process has written, is sent under
// the sequence of the process: a key of its own, on a lease, which each of these batches
// compares and puts, one batch after the other. That is a record of some 100 bytes in the
// database for each batch.
//
// # How it works
//
// The code is in the order in which a write passes it.
//
//   - stage.go is the [Stage], a pb.KVClient over another one; kv.go makes a clientv3.KV of
//     it. join.go is what may wait, barrier.go what all else waits for before it goes
//     straight through. behind.go is PutAsync, Flush and Close; fence.go the conditions of
//     a context.
//   - unit.go is what is written whole or not at all: a put, puts that were merged into
//     one, a transaction. number.go compares numbers.
//   - queue.go holds units, and decides which of them are sent together, and when. plan.go
//     decides what is sent for one of them, given what is known to be stored, memory.go.
//     pack.go makes one transaction of many. These are pure.
//   - launch.go has batches be sent, and flight.go takes their steps: look, verify, write.
//     refusal.go tells etcd's errors apart, doubt.go takes care of what was not answered,
//     and sequence.go is the key that proves what has become of it. end.go tells who waits.
//   - config.go has the settings, errors.go what calls return, stats.go what is counted.
//
// docs/design.md walks through it.
package coalesce
