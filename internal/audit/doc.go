// Package audit says what is in an etcd: which keys and prefixes take its space, which are
// written most, what old revisions keep, how near the quota is, and what to do about it.
//
// [OpenDB] and [DB.Audit] read a file, a snapshot or the db of a member that does not run;
// [Live] reads a cluster. Both fill a [Report], which [Report.Judge] completes with findings,
// and which is written as JSON, as a table, or as a page of HTML.
//
// # How it works
//
//   - db.go and live.go are where records come from, record.go reads their wire format; wal.go
//     reads what fills the raft log of a member.
//   - pages.go reads the pages of a file, each of them once, which map_unix.go and map_other.go
//     have in memory.
//   - tally.go counts records. It is pure and knows neither files nor clusters. keytable.go
//     finds out which revision of a key is its newest, in 16 bytes a key; top.go keeps the
//     largest, sizes.go has distributions.
//   - report.go is what comes out. judge.go and condition.go judge it, compare.go compares two.
//   - text.go and html.go write it for people.
package audit
