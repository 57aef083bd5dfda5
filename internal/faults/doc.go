// Package faults tests that kvwrap stays linearizable while members of the cluster
// are killed and paused, connections are cut, and processes die in mid-write.
//
//	go test ./internal/faults -run TestLinearizable -v -faults.duration 10m -timeout 30m
//	go test ./internal/faults -run TestWritersOfOneKey -v -faults.writers 30s
//
// The code is in the order in which a run uses it.
//
//   - load.go starts the cluster, the clients and the nemesis, and ends them.
//   - client.go chooses the operations, nemesis.go the faults. A seed fixes both, who
//     does what and in which order, but not when.
//   - value.go makes values that say which operation wrote them, and tells them from
//     mixtures of several.
//   - request.go is an operation as it is asked for and answered, perform.go carries
//     it out, writer.go has a process of its own do so.
//   - history.go records what was asked and answered, events.go what etcd says has
//     happened, and what kvwrap's own watch does.
//   - verdict.go ends a run. check.go compares the history with the events, model.go
//     asks porcupine whether what was answered can be explained by a register, and
//     orphans.go looks at what is left.
package faults
