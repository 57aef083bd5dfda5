// Command shapecheck shows what an application's writes cost an etcd, and what
// kvwrap makes of them.
//
//	shapecheck audit --endpoints 10.0.0.1:2379      what takes the space, and what to do
//	shapecheck project --writes 0.6 --value-bytes 2MB
//	shapecheck tune --value-bytes 2MB --interval 5s --changed 0.03
//	shapecheck demo                                 the gateway's case, on servers of its own
//	shapecheck get KEY                              a value, put together from its chunks
//	shapecheck bench                                the plain client against kvwrap
//	shapecheck verify, sweep, roles, reclaim, unwrap
//
// docs/operations.md has what each does and writes; --help the flags and examples.
//
// # Exit codes
//
// 0 it is done, or all is well; 1 it failed, or the command line is wrong; 2 the cluster
// cannot be reached; 10 what was found wants to be looked at; 20 it is bad; 130 it was
// interrupted.
//
// # How it works
//
// main.go calls run, which a test calls as well, with arguments, streams and a context. Each
// command has a file of its own name, which reads flags, calls a package, and writes what it
// has returned. What several need:
//
//   - cluster.go has the flags of etcdctl and makes a client of them; serverflags.go has those
//     of etcd itself, when.go the rules of reclaim.
//   - output.go writes a table or JSON, figures.go numbers in units that suit them, progress.go
//     says what is being done.
//   - pages.go reads all keys of one revision, a page at a time; check.go, for verify, judges
//     what it finds; sample.go watches what is written.
//   - playground.go has the two sides of a demo, play.go plays the gateway's case on it and
//     offsets.go the broker's; result.go and comparison.go show what came of it. serve.go is
//     the server of a demo, a process of its own, and server.go how that is asked. bench.go
//     plays benchcases.go on the same two sides, in turns.
package main
