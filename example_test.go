package kvwrap_test

import (
	"context"
	"fmt"
	"log"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/chunker"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func publish(ctx context.Context, endpoints []string, statistics string) error {
	cli, err := clientv3.New(clientv3.Config{Endpoints: endpoints})
	if err != nil {
		return err
	}
	defer cli.Close()
	if _, err := kvwrap.Install(cli, kvwrap.Config{}); err != nil {
		return err
	}
	_, err = cli.Put(ctx, "gateway/statistics", statistics) // megabytes are fine now
	return err
}

// Install is all that an application needs.
func ExampleInstall() {
	if err := publish(context.Background(), []string{"localhost:2379"}, "{}"); err != nil {
		log.Print(err)
	}
}

// New leaves the client as it is, and gives a KV of its own.
func ExampleNew() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := kvwrap.New(cli, kvwrap.Config{Chunk: chunker.Config{Threshold: 16 << 10}})
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	resp, err := kv.Get(context.Background(), "gateway/", clientv3.WithPrefix())
	if err != nil {
		log.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		fmt.Printf("%s: %d bytes\n", kv.Key, len(kv.Value))
	}
}

// The first step of a roll-out: every process reads chunked values, none writes
// them yet.
func ExampleConfig_readOnly() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	if _, err := kvwrap.Install(cli, kvwrap.Config{Chunk: chunker.Config{ReadOnly: true}}); err != nil {
		log.Fatal(err)
	}
}
