// Package chunker is a [clientv3.KV] that stores large values as many small ones
// and reads them back whole.
//
// A value that does not fit in one raft entry of Config.MaxEntryBytes is cut into
// chunks, each compressed and put under a key of its own below a reserved prefix.
// What is stored at the value's key is a manifest: how long the value is, what it
// hashes to, and which chunks it is made of. When the key is written again, the
// chunks that are the same stay where they are, so that a raft entry holds what
// has changed and no more. Every call of [clientv3.KV] answers what etcd would
// have answered had the values been stored whole.
//
//	cli, _ := clientv3.New(clientv3.Config{Endpoints: endpoints})
//	kv, err := chunker.NewKV(cli.KV, chunker.Config{Lease: cli.Lease})
//	if err != nil {
//		return err
//	}
//	defer kv.Close()
//	_, err = kv.Put(ctx, "statistics", twoMegabytes)
//
// # Guarantees
//
// A put is one version of its key and one event on it, at one revision, whatever
// number of chunks it takes. A reader gets one value that was written, never parts
// of two; a chunk that is missing or not as it was written is an error that names
// it, a [*DamagedError], and never wrong bytes. A call returns nil only when what
// it was to write is durable. An error of etcd's is returned as it is, and after
// it a write may have been applied, or not, as after the same error of etcd's own
// client. After an error of this package nothing was written, but for an
// [*AppliedError].
//
// # How it works
//
// The code is in the order in which a call passes it.
//
//   - stage.go is the [Stage], a pb.KVClient over another one, and what passes it
//     without more ado. validate.go refuses what cannot be.
//   - read.go and stream.go are reads. resolve.go replaces manifests by the values
//     that they stand for, and fetches the chunks for it. cache.go remembers where
//     the chunks of recently used keys are, and some of the values.
//   - watch.go is what watchers see, events.go how events get their values. lease.go
//     hides chunks from what is attached to a lease.
//   - write.go is the one path of all that writes. It says how a transaction of
//     the application's becomes one of etcd's. tree.go walks through it, compare.go
//     answers its comparisons, rewrite.go makes the requests and folds their
//     responses back, arrange.go sorts what etcd could not sort.
//   - draft.go and staging.go put chunks, under an anchor that proves that nobody
//     has taken them away. internal/session keeps the lease that anchors are on.
//     commit.go sends the write, evidence.go reads what is stored when it failed.
//   - sweep.go deletes what writes have left behind, sweeper.go sees to it that
//     one sweep runs at a time.
//   - limits.go learns what the server allows, permission.go what it does not
//     allow the user.
//   - config.go has the settings, errors.go what calls return, stats.go what is counted.
//
// What is stored is the business of the package internal/format, and of
// docs/format.md. docs/design.md walks through the races.
package chunker
