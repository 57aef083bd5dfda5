package contract

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestPlainClient shows that the contract is etcd's.
func TestPlainClient(t *testing.T) {
	Run(t, func(_ *testing.T, cli *clientv3.Client) Stack { return Stack{cli.KV, cli.Watcher, cli.Lease} })
}
