// Package protocol is a model of how the chunks of a key are written, read and
// swept: small enough that a test visits every state that it can reach, in every
// order of what may happen. It has no code in common with the package chunker and
// does no I/O; a change to the protocol is made here first.
//
// The model is one key K whose values have two chunks, up to three writers that
// put one value each, sweepers, readers and watchers. Chunks that are equal in
// two values are reused. A transaction is applied at once or, where its sender has
// no answer, at any later time or never. The environment, as often as a
// configuration says, has K put, deleted or moved to another lease by clients
// that know of chunks and by others that do not; writers crash; sessions and
// leases end, and leases are granted again under the same id; revisions are
// compacted, and the store is restored to an earlier state under clients that
// live on.
//
// What has to hold in every state:
//
//   - I1: the chunks that K's manifest names exist, with the content that the
//     manifest was made for. (Not where a plain client has moved K to a lease that
//     is not that of its chunks.)
//   - I2: a read returns one value that was current while it ran. At the revision
//     of the manifest that follows from I1; after a compaction chunks are read by
//     id, and have to be those of the manifest.
//   - I3: once writers have ended, or crashed and lost their sessions, one sweep
//     leaves nothing that K does not name.
//   - I4: a put that was answered took effect once, one that failed never, and
//     none twice.
//   - I5: a writer that runs alone from here on comes to an end, with a fresh token
//     at the most.
//
// The files follow the chunker's: store.go is etcd; writer.go is draft.go,
// staging.go and commit.go there, and internal/session; sweep.go the sweep. model.go has
// the configuration, the environment and who moves when, explore.go visits the
// states. variant.go names departures from the protocol, most of them unsafe:
// the test finds each of them out, which shows that the model can see a fault.
// Run it with -v for the traces.
//
// # What the model has found
//
// A comparison with the CreateRevision of the anchor holds in a store that was
// restored to a state between two batches as well: the anchor is there and what was
// staged after it is not, and the manifest names chunks that do not exist. So each
// batch puts the anchor again, and the commit compares its ModRevision.
//
// A sweep that has found a plain value at K has to compare that K holds no
// manifest beside its ModRevision, for the same reason: after a restore the
// revision may be that of a manifest.
//
// # Bounds
//
// A writer may take two or three tokens and is blind after two attempts. The test
// visits 600,000 states in six seconds of one core. The wide form, in which more
// may happen, visits 25 million in five to ten minutes, in up to 4 GB:
//
//	go test ./internal/protocol -run Wide -wide -timeout 1h -v
//
// Not in the model: more than one key, transactions, lists of chunks in chunks of
// their own, batches of one write in flight together, what caches remember (a
// writer's base may be as old as a cache's), members that lag behind. That two
// writers do not defeat each other for ever is not checked.
package protocol
