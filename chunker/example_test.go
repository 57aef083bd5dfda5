package chunker_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/kvwrap/kvwrap/chunker"
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
	kv, err := chunker.NewKV(cli.KV, chunker.Config{Lease: cli.Lease})
	if err != nil {
		log.Fatal(err)
	}
	defer kv.Close()
	ctx := context.Background()
	if _, err := kv.Put(ctx, "statistics", "two megabytes"); err != nil {
		log.Print(err)
	}
	if result, err := kv.Sweep(ctx); err == nil {
		fmt.Println(result.Deleted, "chunks were garbage")
	}
	fmt.Println(kv.Stats().Staged, "values took more than one proposal")
}

// The stage as middleware, between another one and a client's connection.
func ExampleNew() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	var below pb.KVClient = clientv3.RetryKVClient(cli)
	stage, err := chunker.New(below, chunker.Config{Lease: cli.Lease})
	if err != nil {
		log.Fatal(err)
	}
	defer stage.Close()
	cli.KV = clientv3.NewKVFromKVClient(stage, nil)
	cli.Watcher, cli.Lease = stage.Watcher(cli.Watcher), stage.Lease(cli.Lease)
	if n, err := stage.Count(context.Background()); err == nil {
		fmt.Println(n, "keys below the reserved prefix")
	}
	// Whether a put would be sent as it is, for who has another way to send it.
	if passes, err := stage.Passes(&pb.PutRequest{Key: []byte("k"), Value: []byte("small")}); err == nil && passes {
		fmt.Println("nothing about it has to do with chunks")
	}
}

// A role with a permission on a range of keys needs the same on the range of their chunks.
func ExampleConfig_ChunkRange() {
	var cfg chunker.Config
	from, to, err := cfg.ChunkRange("stats/", "stats0") // the keys that begin with stats/
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q to %q\n", from, to)
	from, to, err = cfg.ChunkRange("config", "") // one key
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q to %q\n", from, to)
	_, _, err = cfg.ChunkRange("\x00kvw/x", "")
	fmt.Println(errors.Is(err, chunker.ErrReservedKey))

	// Output:
	// "\x00kvw/stats/" to "\x00kvw/stats0"
	// "\x00kvw/config" to "\x00kvw/config\x00\xff"
	// true
}

// Chunks of keys with a prefix have a prefix, too; and other stages have keys that none of
// the application's maps to.
func ExampleConfig_ChunkPrefix() {
	var cfg chunker.Config
	fmt.Printf("%q\n", cfg.ChunkPrefix("stats/"))
	fmt.Printf("%q\n", cfg.OwnPrefix("sequence"))

	// Output:
	// "\x00kvw/stats/"
	// "\x00kvw/\x00\x02sequence/"
}
