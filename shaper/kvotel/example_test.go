package kvotel_test

import (
	"log"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/shaper/kvotel"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.opentelemetry.io/otel"
)

// The steps of large writes, and batches, are spans of the global provider.
func ExampleSpans() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	if _, err := kvwrap.Install(cli, kvwrap.Config{Span: kvotel.Spans(otel.GetTracerProvider())}); err != nil {
		log.Fatal(err)
	}
}
