package coalesce_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"
	"time"

	"github.com/kvwrap/kvwrap/coalesce"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func ExampleNewKV() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := coalesce.NewKV(cli.KV, coalesce.Config{
		Lease: cli.Lease,
		Rules: []coalesce.Rule{
			{Prefix: "heartbeats/", Mode: coalesce.GroupCommit},
			{Prefix: "offsets/", Mode: coalesce.Max, FlushEvery: 50 * time.Millisecond},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	ctx := context.Background()
	if _, err := kv.Put(ctx, "heartbeats/42", "alive"); err != nil { // it is durable
		log.Print(err)
	}
	kv.PutAsync(ctx, "offsets/orders/7", "10042", func(_ *clientv3.PutResponse, err error) {
		if err != nil {
			log.Printf("the offset is not committed: %v", err)
		}
	})
}

// The stage as middleware, between another one and a client's connection. What was put
// behind is in etcd when Flush returns nil.
func ExampleNew() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	stage, err := coalesce.New(clientv3.RetryKVClient(cli), coalesce.Config{
		Lease: cli.Lease,
		Rules: []coalesce.Rule{{Prefix: "gauges/", Mode: coalesce.LastWriteWins, FlushEvery: time.Second}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer stage.Close() // writes what waits
	ctx := context.Background()
	for i := range 100 { // of which the last is written
		stage.PutAsync(ctx, &pb.PutRequest{Key: []byte("gauges/1"), Value: []byte(strconv.Itoa(i))}, nil)
	}
	fmt.Println(stage.Pending().Puts, "puts are", stage.Pending().Writes, "writes")
	if err := stage.Flush(ctx); err != nil {
		log.Print(err)
	}
	fmt.Println(stage.Stats().Merged, "puts were merged")
}

// A broker commits offsets as long as it owns the partition.
func ExampleWithFence() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := coalesce.NewKV(cli.KV, coalesce.Config{Lease: cli.Lease})
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	ctx := context.Background()
	const owner = "owners/orders/7"
	taken, err := cli.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(owner), "=", 0)).Then(clientv3.OpPut(owner, "broker 3")).Commit()
	if err != nil || !taken.Succeeded {
		return // it is somebody else's
	}
	owned := coalesce.WithFence(ctx, clientv3.Compare(clientv3.CreateRevision(owner), "=", taken.Header.Revision))
	kv.PutAsync(owned, "offsets/orders/7", "10042", func(_ *clientv3.PutResponse, err error) {
		if errors.Is(err, coalesce.ErrFenced) {
			log.Print("the partition is somebody else's now: stop")
		}
	})
}
