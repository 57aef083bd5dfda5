package wire

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// PutRequest returns the request that etcd's client makes of op, a put.
func PutRequest(op clientv3.Op) *pb.PutRequest {
	var c captured
	clientv3.NewKVFromKVClient(&c, nil).Do(context.Background(), op) // what fails is sending, and nothing is sent
	return c.put
}

// captured takes a put and sends nothing.
type captured struct {
	pb.KVClient
	put *pb.PutRequest
}

func (c *captured) Put(_ context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	c.put = r
	return &pb.PutResponse{}, nil
}
