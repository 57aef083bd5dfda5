package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkWatchCost is what a watch costs the writers: an etcd in a process of its own gets
// puts of 100 bytes, in turns with and without a watch in another process, all of them on this
// machine. A ratio is the median of those of turns beside each other, watched over alone: of
// the writers' throughput, and of the median of their latencies. Latencies of paced puts count
// from when each was due.
//
// CPU is what the system says of the processes: cpu-ratio is of all three, the server, the
// writers, and the watch. It is what remains to look at where the machine is not quiet.
func BenchmarkWatchCost(b *testing.B) {
	b.Run("paced=10000", func(b *testing.B) { benchmarkWatchCost(b, 10_000) })
	b.Run("unpaced", func(b *testing.B) { benchmarkWatchCost(b, 0) })
}

const (
	watchCostTurn    = time.Second
	watchCostWriters = 128
)

// costs are what turns of one kind have come to.
type costs struct {
	rates                           []float64 // puts a second
	p50, p99                        []float64 // microseconds
	serverCPU, writersCPU, watchCPU []float64 // microseconds a put
}

func benchmarkWatchCost(b *testing.B, rate int) {
	b.Setenv("TMPDIR", b.TempDir())
	ctx, end := context.WithCancelCause(b.Context())
	s, err := startServer(ctx, end, 5000)
	require.NoError(b, err)
	defer func() { require.NoError(b, s.stop()) }()
	var clients []*clientv3.Client
	for range 8 {
		cli, err := newClient(clientv3.Config{Endpoints: []string{s.Endpoint}})
		require.NoError(b, err)
		defer cli.Close()
		clients = append(clients, cli)
	}
	paceWriters(b, clients, rate, new(costs), 0) // to warm up
	var alone, watched costs
	turn := func(with bool) {
		if !with {
			paceWriters(b, clients, rate, &alone, s.process.Process.Pid)
			alone.watchCPU = append(alone.watchCPU, 0)
			return
		}
		stop := startWatch(b, s.Endpoint)
		puts := paceWriters(b, clients, rate, &watched, s.process.Process.Pid)
		watched.watchCPU = append(watched.watchCPU, stop(puts))
	}
	for n := 0; b.Loop(); n++ {
		turn(n%2 == 0)
		turn(n%2 == 1)
	}
	ratio := func(of func(c costs, n int) float64) float64 {
		var ratios []float64
		for n := range alone.rates {
			ratios = append(ratios, of(watched, n)/of(alone, n))
		}
		return median(ratios)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(alone.rates), "puts/s-alone")
	b.ReportMetric(median(alone.p50), "p50-alone-us")
	b.ReportMetric(median(alone.serverCPU), "server-us/put-alone")
	b.ReportMetric(median(watched.serverCPU), "server-us/put-watched")
	b.ReportMetric(median(watched.watchCPU), "watch-us/put")
	b.ReportMetric(ratio(func(c costs, n int) float64 { return c.rates[n] }), "throughput-ratio")
	b.ReportMetric(ratio(func(c costs, n int) float64 { return c.p50[n] }), "p50-ratio")
	b.ReportMetric(ratio(func(c costs, n int) float64 { return c.p99[n] }), "p99-ratio")
	b.ReportMetric(ratio(func(c costs, n int) float64 { return c.serverCPU[n] + c.writersCPU[n] + c.watchCPU[n] }), "cpu-ratio")
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}

// paceWriters puts for a turn, and returns how many puts that were.
func paceWriters(b *testing.B, clients []*clientv3.Client, rate int, to *costs, server int) int {
	value := strings.Repeat("v", 100)
	var writers sync.WaitGroup
	var mu sync.Mutex
	var all paired.Durations
	var next atomic.Int64
	cpu, own, began := cpuOf(server), cpuOf(os.Getpid()), time.Now()
	for w := range watchCostWriters {
		writers.Go(func() {
			var took paired.Durations
			for time.Since(began) < watchCostTurn {
				n := next.Add(1)
				due := time.Now()
				if rate > 0 {
					if due = began.Add(time.Duration(n) * time.Second / time.Duration(rate)); due.Sub(began) >= watchCostTurn {
						break
					}
					time.Sleep(time.Until(due))
				}
				_, err := clients[w%len(clients)].Put(b.Context(), fmt.Sprintf("/bench/%d/%d", n%20, n%2000), value)
				if err != nil {
					b.Error(err)
					return
				}
				took = append(took, time.Since(due))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
		})
	}
	writers.Wait()
	to.rates = append(to.rates, float64(len(all))/time.Since(began).Seconds())
	to.p50 = append(to.p50, float64(all.Median().Microseconds()))
	to.p99 = append(to.p99, float64(all.Quantile(0.99).Microseconds()))
	to.serverCPU = append(to.serverCPU, (cpuOf(server)-cpu)*1e6/float64(len(all)))
	to.writersCPU = append(to.writersCPU, (cpuOf(os.Getpid())-own)*1e6/float64(len(all)))
	return len(all)
}

// cpuOf returns the seconds that a process has computed, where the system says it.
func cpuOf(pid int) float64 {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // elsewhere it is 0
	_, after, _ := bytes.Cut(stat, []byte(") "))
	fields := bytes.Fields(after)
	if len(fields) < 13 {
		return 0
	}
	var user, system float64
	fmt.Sscan(string(fields[11]), &user)
	fmt.Sscan(string(fields[12]), &system)
	return (user + system) / 100
}

// startWatch starts a watch, which watches when it returns. Stop ends it when it has counted
// so many puts, and returns how many microseconds it has computed for each.
func startWatch(b *testing.B, endpoint string) (stop func(puts int) float64) {
	self, err := os.Executable()
	require.NoError(b, err)
	cmd := exec.Command(self)
	cmd.Args = []string{"shapecheck", "watch", "--endpoints", endpoint, "-w", "json"}
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	lines := bufio.NewScanner(out)
	line := func() (d watchDocument) {
		require.True(b, lines.Scan(), "the watch has ended")
		require.NoError(b, json.Unmarshal(lines.Bytes(), &d))
		return d
	}
	line()
	before := cpuOf(cmd.Process.Pid)
	return func(puts int) float64 {
		for counted := uint64(0); counted < uint64(puts); {
			counted += line().Total.Puts
		}
		took := cpuOf(cmd.Process.Pid) - before
		require.NoError(b, cmd.Process.Signal(os.Interrupt))
		cmd.Wait() // says that it was interrupted
		return took * 1e6 / float64(puts)
	}
}
