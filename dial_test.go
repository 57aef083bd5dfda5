package kvwrap

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/contract"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// dialedTo returns a client of the endpoints of cli, made with DialOptions.
func dialedTo(t testing.TB, cli *clientv3.Client, cfg Config) *clientv3.Client {
	t.Helper()
	dialed, err := clientv3.New(clientv3.Config{
		Endpoints: cli.Endpoints(), Logger: zap.NewNop(), DialOptions: DialOptions(cfg),
	})
	require.NoError(t, err)
	t.Cleanup(func() { dialed.Close() })
	return dialed
}

// openDialed is open with DialOptions in place of Install.
func openDialed(cfg Config) contract.Open {
	return func(t *testing.T, cli *clientv3.Client) contract.Stack {
		return contract.Plain(dialedTo(t, cli, cfg))
	}
}

func TestContractDialed(t *testing.T) {
	for _, name := range []string{"default", "mixed"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.Run(t, openDialed(stacks[name]))
		})
	}
}
