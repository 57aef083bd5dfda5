// Package compat holds tests of kvwrap with etcd servers of every version, over connections of
// every kind, below and above what else is made for etcd's client; and the table of them that
// the README has.
package compat
