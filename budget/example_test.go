package budget_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The stage by itself, as a KV over that of a client.
func ExampleNewKV() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := budget.NewKV(cli.KV, budget.Config{
		Rates:   budget.Rates{Revisions: 500, Bytes: 2 << 20},
		Backend: budget.Members(cli),
		Rules:   []budget.Rule{{Prefix: "statistics/", Class: budget.Elastic, Reject: true}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	_, err = kv.Put(context.Background(), "statistics/1", "...")
	var limited *budget.LimitError
	switch {
	case errors.As(err, &limited):
		time.Sleep(limited.RetryAfter) // nothing was sent
	case errors.Is(err, budget.ErrNotSent):
		log.Print("near the quota: ", err)
	case err != nil:
		log.Print("etcd: ", err)
	}
	fmt.Println(kv.Stats().Refused, "writes were refused")
	if err := kv.SetRates(budget.Rates{Revisions: 1000}); err != nil {
		log.Print(err)
	}
}

// The stage as middleware. What takes several requests waits once.
func ExampleStage_Admit() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	stage, err := budget.New(clientv3.RetryKVClient(cli), budget.Config{Rates: budget.Rates{Revisions: 500}})
	if err != nil {
		log.Fatal(err)
	}
	defer stage.Close()
	ctx, done, err := stage.Admit(context.Background(), []byte("large"), budget.Cost{Revisions: 3, Bytes: 150_000})
	if err != nil {
		return // nothing was sent
	}
	defer done() // what was not used is given back
	for i := range 3 {
		if _, err := stage.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "large/%d", i)}); err != nil {
			return
		}
	}
	txn := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k")}}}}}
	ctx, done, err = stage.AdmitTxn(context.Background(), txn)
	if err != nil {
		return
	}
	defer done()
	if _, err := stage.Txn(ctx, txn); err != nil {
		log.Print(err)
	}
}

// Whether there is anything to be held back.
func ExampleConfig_Paces() {
	fmt.Println(budget.Config{}.Paces(), budget.Config{Rates: budget.Rates{Revisions: 500}}.Paces())
	fmt.Println(budget.Rates{Revisions: 500, Bytes: 2 << 20})
	fmt.Println(budget.Config{Shared: true}.Validate())

	// Output:
	// false true
	// 500 revisions/s and 2.10 MB/s
	// budget: invalid config: Shared is set, Rates.Revisions is 0: set what all clients together may take in a second
}

// Space is given back at night, without asking.
func ExampleReclaim() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"10.0.0.1:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	result, err := budget.Reclaim(context.Background(), cli, budget.ReclaimOptions{KeepRevisions: 10_000})
	fmt.Print(result)
	if errors.Is(err, budget.ErrReclaimDoubt) {
		log.Print("it has stopped before a member that was not as it should be: ", err)
	}
}

// The members are asked once.
func ExampleMonitor_Check() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"10.0.0.1:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	monitor, err := budget.NewMonitor(cli, budget.MonitorConfig{})
	if err != nil {
		log.Fatal(err)
	}
	health, err := monitor.Check(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range health.Members {
		fmt.Println(m.Name, m.Level, m.Free(), "bytes to be had:", m.Advice)
	}
}
