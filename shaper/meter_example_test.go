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
		return nil
	}
	_ = client
}
