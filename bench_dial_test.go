package kvwrap

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/paired"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkDialed is BenchmarkSmall for a client that was made with DialOptions, and a small
// value from its put to its event.
func BenchmarkDialed(b *testing.B) {
	cluster := etcdtest.Start(b, 1, nil)
	plain := cluster.Client(b)
	cli := dialedTo(b, plain, Config{})
	const value = "a value of some dozens of bytes, as most are in etcd"
	put := func(b *testing.B, cli *clientv3.Client) func() {
		return func() {
			if _, err := cli.Put(b.Context(), "small", value); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("Put", func(b *testing.B) { paired.Benchmark(b, nil, put(b, plain), put(b, cli)) })
	b.Run("Get", func(b *testing.B) {
		paired.Benchmark(b, nil, func() { get(b, plain, "small") }, func() { get(b, cli, "small") })
	})
	b.Run("Watch", func(b *testing.B) {
		event := func(watcher *clientv3.Client, key string) func() {
			ch := watcher.Watch(b.Context(), key, clientv3.WithCreatedNotify())
			<-ch
			return func() {
				if _, err := plain.Put(b.Context(), key, value); err != nil {
					b.Fatal(err)
				}
				if resp := <-ch; len(resp.Events) != 1 {
					b.Fatal(resp)
				}
			}
		}
		paired.Benchmark(b, nil, event(plain, "plain"), event(cli, "dialed"))
	})
}
