// Package budget is a [clientv3.KV] that writes at a pace that the cluster can afford: so
// many revisions and bytes a second, and none that would fill the backend.
//
//	kv, err := budget.NewKV(cli.KV, budget.Config{
//		Rates:   budget.Rates{Revisions: 500, Bytes: 2 << 20},
//		Backend: budget.Members(cli),
//		Rules: []budget.Rule{
//			{Prefix: "leaders/", Class: budget.Critical},
//			{Prefix: "statistics/", Class: budget.Elastic, Reject: true},
//		},
//	})
//
// Every put, delete and transaction that writes is one revision, however many keys it has,
// and as many bytes as etcd's quota counts. Reads and compactions are never held back.
//
// # Who waits
//
// Where there is no budget a write waits, unless its context would end before, its rule
// says Reject, or too many wait already: then it is refused at once, with a [*LimitError]
// that has the numbers and says when to try again. Classes share what there is by weight;
// what one does not use is lent to the others, and a class within its share waits for
// none of them. Within a class the prefixes of rules take turns. After an error of this
// package, which matches [ErrNotSent], nothing was sent; etcd's own errors pass unchanged.
//
// # Where a budget comes from
//
// It is given, as Rates. Or derived: where Retention is set, from the quota and what is in
// use of it. Or shared: with Shared, Rates.Revisions is that of the cluster, and clients
// that do not know each other keep to it together, by following the revision in the
// headers of responses, which counts everybody's writes.
//
// # What it heeds
//
// When etcd has no space left, writes are refused at once, but for one a second that finds
// out whether it has again. When it has too many requests, or Backend tells that its
// database comes near the quota or a member falls behind, writes are slowed down; and
// refused, with a [*QuotaError], before the quota is reached.
//
// # Operating
//
// [Monitor] logs the size, use and bloat of each member's database, and [Reclaim]
// compacts and defragments, one member after the other.
//
// # How it works
//
//   - stage.go is the [Stage], a pb.KVClient over another one; kv.go makes a clientv3.KV of
//     it; admission.go lets what takes several requests wait once.
//   - limiter.go decides who may go when, pool.go are its tokens, cost.go what a request
//     takes. share.go is the law of a shared budget, gate.go what follows from the state
//     of the backend, meter.go what is asked for. These are pure: time is told to them.
//   - ask.go asks etcd, backend.go for the state of members.
//   - health.go judges members, monitor.go asks them; reclaim_plan.go, reclaim.go and
//     reclaim_lock.go give space back.
//   - config.go has the settings, errors.go what calls return, stats.go what is counted.
package budget
