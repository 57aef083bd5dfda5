package kvwrap

import (
	"fmt"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/kvwrap/kvwrap/internal/record"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// side is a cluster of its own, and what is sent to it: one side of a comparison.
type side struct {
	clientv3.KV
	cluster *etcdtest.Cluster
	cli     *clientv3.Client
	sent    *record.Stage
}

// newSide starts a cluster that takes whole values of megabytes, which etcd by
// default does not.
func newSide(b testing.TB) *side {
	s := &side{cluster: etcdtest.Start(b, 1, func(cfg *embed.Config) { cfg.MaxRequestBytes = 8 << 20 })}
	cli, err := clientv3.New(clientv3.Config{Endpoints: s.cluster.Endpoints(), MaxCallSendMsgSize: 8 << 20, Logger: zap.NewNop()})
	require.NoError(b, err)
	b.Cleanup(func() { cli.Close() })
	s.cli, s.sent = cli, record.Over(wire.Client(cli.KV))
	cli.KV = clientv3.NewKVFromKVClient(s.sent, nil)
	s.KV = cli.KV
	return s
}

// wrapped returns a KV over the client of s, with its own caches.
func (s *side) wrapped(b *testing.B, cfg chunker.Config) *KV {
	kv, err := New(s.cli, Config{Chunk: cfg})
	require.NoError(b, err)
	b.Cleanup(func() { kv.Close() })
	return kv
}

func (s *side) put(b *testing.B, key, value string) {
	if _, err := s.Put(b.Context(), key, value); err != nil {
		b.Fatal(err)
	}
}

func get(b *testing.B, kv clientv3.KV, key string) {
	if _, err := kv.Get(b.Context(), key); err != nil {
		b.Fatal(err)
	}
}

var shares = []float64{0.01, 0.03, 0.10, 1}

func percent(share float64) string { return fmt.Sprintf("changed=%.0f%%", 100*share) }

// BenchmarkPublish writes 2 MB of statistics again and again, a share of its 1000
// pipelines changed from one to the next. Run it with -benchtime 50x.
func BenchmarkPublish(b *testing.B) {
	for _, share := range shares {
		b.Run(percent(share), func(b *testing.B) {
			plain, wrapped := newSide(b), newSide(b)
			wrapped.KV = wrapped.wrapped(b, chunker.Config{})
			benchmarkPublish(b, share, plain, wrapped)
		})
	}
}

func benchmarkPublish(b *testing.B, share float64, plain, wrapped *side) {
	g := workload.NewGateway(1000, 1)
	value := string(g.Publish(0))
	sides := map[string]*side{"plain": plain, "kvwrap": wrapped}
	backend := make(map[string]int64)
	for name, s := range sides {
		s.put(b, "statistics", value)
		s.sent.Take()
		backend[name] = s.cluster.BackendBytes()
	}
	paired.Benchmark(b, func() { value = string(g.Publish(share)) },
		func() { plain.put(b, "statistics", value) },
		func() { wrapped.put(b, "statistics", value) })
	n := float64(b.N)
	for name, s := range sides {
		sent := s.sent.Take()
		b.ReportMetric(float64(sent.ProposedBytes())/n, name+"-B/publish")
		b.ReportMetric(float64(s.cluster.BackendBytes()-backend[name])/n, name+"-backend-B/publish")
		if name == "kvwrap" {
			b.ReportMetric(float64(len(sent.Proposals))/n, "proposals/publish")
			b.ReportMetric(float64(sent.Largest()), "largest-entry-B")
		}
	}
}

// BenchmarkChunkBytes is BenchmarkPublish over average chunk lengths: how the
// default was chosen. Run it with -benchtime 50x.
func BenchmarkChunkBytes(b *testing.B) {
	for _, avg := range []int{2 << 10, 3 << 10, 4 << 10, 6 << 10, 8 << 10, 12 << 10, 16 << 10} {
		for _, share := range shares {
			b.Run(fmt.Sprintf("avg=%d/%s", avg, percent(share)), func(b *testing.B) {
				s := newSide(b)
				s.KV = s.wrapped(b, chunker.Config{ChunkBytes: avg})
				g := workload.NewGateway(1000, 1)
				s.put(b, "statistics", string(g.Publish(0)))
				s.sent.Take()
				backend := s.cluster.BackendBytes()
				for b.Loop() {
					s.put(b, "statistics", string(g.Publish(share)))
				}
				b.ReportMetric(float64(s.sent.Take().ProposedBytes())/float64(b.N), "B/publish")
				b.ReportMetric(float64(s.cluster.BackendBytes()-backend)/float64(b.N), "backend-B/publish")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkRead reads 2 MB of statistics: for the first time, again as they are,
// and again with a share of the pipelines changed since.
func BenchmarkRead(b *testing.B) {
	s := newSide(b)
	writer, reader := s.wrapped(b, chunker.Config{}), s.wrapped(b, chunker.Config{})
	g := workload.NewGateway(1000, 1)
	publish := func(share float64) {
		value := string(g.Publish(share))
		s.put(b, "plain", value)
		if _, err := writer.Put(b.Context(), "chunked", value); err != nil {
			b.Fatal(err)
		}
		s.sent.Take()
	}
	publish(1)
	read := func(b *testing.B, before func()) {
		plain, chunked := 0, 0 // requests
		paired.Benchmark(b, before,
			func() { get(b, s, "plain"); plain += s.sent.Take().Requests },
			func() { get(b, reader, "chunked"); chunked += s.sent.Take().Requests })
		b.ReportMetric(float64(chunked)/float64(plain), "round-trips")
	}
	b.Run("first", func(b *testing.B) { read(b, func() { reader = s.wrapped(b, chunker.Config{}) }) })
	get(b, reader, "chunked")
	b.Run("unchanged", func(b *testing.B) { read(b, nil) })
	for _, share := range shares {
		b.Run(percent(share), func(b *testing.B) { read(b, func() { publish(share) }) })
	}
}

// BenchmarkSmall is a small value, of which kvwrap has nothing to do.
func BenchmarkSmall(b *testing.B) {
	s := newSide(b)
	kv := s.wrapped(b, chunker.Config{})
	const value = "a value of some dozens of bytes, as most are in etcd"
	b.Run("Put", func(b *testing.B) {
		paired.Benchmark(b, nil,
			func() { s.put(b, "small", value) },
			func() {
				if _, err := kv.Put(b.Context(), "small", value); err != nil {
					b.Fatal(err)
				}
			})
	})
	b.Run("Get", func(b *testing.B) {
		paired.Benchmark(b, nil, func() { get(b, s, "small") }, func() { get(b, kv, "small") })
	})
}

// BenchmarkWatch is a value from its put to its event, a small one and 2 MB of
// statistics, and what a watcher of these reads.
func BenchmarkWatch(b *testing.B) {
	bench := func(b *testing.B, value func() string) {
		s := newSide(b)
		writer, reader := s.wrapped(b, chunker.Config{}), s.wrapped(b, chunker.Config{})
		watch := func(w clientv3.Watcher, key string) clientv3.WatchChan { return w.Watch(b.Context(), key) }
		event := func(ch clientv3.WatchChan) {
			if resp := <-ch; len(resp.Events) != 1 {
				b.Fatal(resp)
			}
		}
		plain, wrapped := watch(s.cli.Watcher, "plain"), watch(reader.Watcher(), "chunked")
		published, read := "", 0
		publish := func() {
			if _, err := writer.Put(b.Context(), "chunked", published); err != nil {
				b.Fatal(err)
			}
			s.sent.Take()
			event(wrapped)
			read += s.sent.Take().ResponseBytes
		}
		published = value()
		publish()
		read = 0
		paired.Benchmark(b, func() { published = value() },
			func() {
				s.put(b, "plain", published)
				event(plain)
			}, publish)
		b.ReportMetric(float64(read)/float64(b.N), "chunk-B/event")
	}
	b.Run("small", func(b *testing.B) { bench(b, func() string { return "a value of some dozens of bytes" }) })
	for _, share := range shares {
		g := workload.NewGateway(1000, 1)
		g.Publish(0)
		b.Run(percent(share), func(b *testing.B) { bench(b, func() string { return string(g.Publish(share)) }) })
	}
}
