package contract

import (
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestPlainClient shows that the contract is etcd's.
func TestPlainClient(t *testing.T) {
	Run(t, func(_ *testing.T, cli *clientv3.Client) Stack { return Plain(cli) })
}

// TestPlainClientsDoNotDiffer shows that Differential finds nothing where there is
// nothing, though one cluster has other revisions and leases than the other.
func TestPlainClientsDoNotDiffer(t *testing.T) {
	open := func(t *testing.T, cli *clientv3.Client) Stack {
		for range 10 {
			_, err := cli.Put(t.Context(), "a", "")
			require.NoError(t, err)
		}
		return Plain(cli)
	}
	Differential(t, open, open)
}
