package kvprom_test

import (
	"log"
	"net/http"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/shaper/kvprom"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The counters of an application that writes to one cluster.
func ExampleNewCollector() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	kv, err := kvwrap.Install(cli, kvwrap.Config{})
	if err != nil {
		log.Fatal(err)
	}
	prometheus.MustRegister(kvprom.NewCollector(kv))
	http.Handle("/metrics", promhttp.Handler())
	log.Fatal(http.ListenAndServe("localhost:8080", nil))
}
