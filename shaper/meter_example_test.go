package shaper_test

import (
	"context"
	"fmt"

	"github.com/kvwrap/kvwrap/shaper"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A client's writes are measured, and shown as one line.
func ExampleMeter() {
	client := func(ctx context.Context, remote pb.KVClient) error {
		meter, err := shaper.NewMeter(shaper.MeterConfig{Rules: []string{"statistics/", "leaders/"}})
		if err != nil {
			return err
		}
		kv := clientv3.NewKVFromKVClient(meter.Stage(remote), nil)
		if _, err := kv.Put(ctx, "statistics/gateway", "..."); err != nil {
			return err
		}
		traffic := meter.Traffic()
		fmt.Println(traffic)
		fmt.Println(traffic.Window.EntrySizes.Quantile(0.99), "bytes")
		meter.Observe(&pb.PutRequest{Key: []byte("leaders/1")}) // a put that is made later, past all stages
		p, err := shaper.Project(shaper.Server{Version: "3.7"}, traffic.Load(shaper.Live{}))
		if err != nil {
			return err
		}
		fmt.Print(p) // what that comes to, if it goes on
		return nil
	}
	_ = client
}
