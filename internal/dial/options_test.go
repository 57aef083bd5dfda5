package dial_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// TestOptionsAreOfTheirCall and of the connection, and not of the calls that come later.
func TestOptionsAreOfTheirCall(t *testing.T) {
	var seen sync.Map // method to whether it came with credentials
	look := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		for _, o := range opts {
			if _, ok := o.(grpc.PerRPCCredsCallOption); ok {
				seen.Store(method, true)
			}
		}
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	cli, _ := dialed(t, grpc.WithDefaultCallOptions(grpc.PerRPCCredentials(nobody{})), grpc.WithChainUnaryInterceptor(look))
	_, err := pb.NewKVClient(cli.ActiveConnection()).Range(t.Context(), &pb.RangeRequest{Key: []byte("none")}, grpc.MaxCallRecvMsgSize(4096))
	require.NoError(t, err)
	value := strings.Repeat("v", 50<<10)
	_, err = cli.Put(t.Context(), "k", value)
	require.NoError(t, err)
	resp, err := cli.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, value, string(resp.Kvs[0].Value))
	for _, method := range []string{pb.KV_Range_FullMethodName, pb.KV_Put_FullMethodName} {
		with, _ := seen.Load(method)
		require.Equal(t, true, with, method)
	}
}

// nobody has no credentials.
type nobody struct{}

func (nobody) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return nil, nil
}
func (nobody) RequireTransportSecurity() bool { return false }
