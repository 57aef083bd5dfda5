package kvwrap

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/kvwrap/kvwrap/shaper"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// TestReport says what was asked, what was proposed, how the members are, and what to do.
func TestReport(t *testing.T) {
	cli := etcdtest.Start(t, 1, func(c *embed.Config) { c.QuotaBackendBytes = 64 << 20 }).Client(t)
	kv, err := New(cli, Config{
		Rules:  []Rule{{Prefix: "offsets/", Coalesce: coalesce.LastWriteWins, FlushEvery: time.Hour}},
		Budget: budget.Config{Rates: budget.Rates{Revisions: 1000}},
	})
	require.NoError(t, err)
	defer kv.Close()
	gateway := workload.NewGateway(1000, 1)
	for range 3 {
		_, err := kv.Put(t.Context(), "statistics", string(gateway.Publish(0.03)))
		require.NoError(t, err)
	}
	for i := range 10 {
		kv.PutAsync(t.Context(), fmt.Sprint("offsets/", i%2), fmt.Sprint(i), nil)
	}
	var r shaper.Report
	require.Eventually(t, func() bool { // the backend commits every 100 ms
		r, err = kv.Report(t.Context())
		require.NoError(t, err)
		return r.Members[0].DbSize > 500<<10
	}, 10*time.Second, 10*time.Millisecond)

	require.EqualValues(t, 13, r.Asked.Total.Puts, "those of PutAsync, too")
	require.Greater(t, r.Asked.Total.EntryBytes, 5*r.Proposed.Total.EntryBytes/2)
	require.Greater(t, r.AsAsked.Get(shaper.RaftLog).Expected, 2*r.AsProposed.Get(shaper.RaftLog).Expected)
	require.LessOrEqual(t, r.Proposed.LargestEntryBytes, 64<<10)
	require.Equal(t, shaper.Pending{Puts: 10, Writes: 2, Bytes: r.Pending.Bytes}, r.Pending)
	require.Greater(t, r.Chunks.Stored, int64(400))
	require.Equal(t, 1000.0, r.Budget.Revisions)
	require.Len(t, r.Members, 1)
	m := r.Members[0]
	require.Equal(t, "leader", m.Role)
	require.EqualValues(t, 64<<20, m.Quota)
	require.Equal(t, m.Version, r.AsProposed.Server.Version)

	text := r.Text()
	for _, line := range strings.Split(text, "\n") {
		require.LessOrEqual(t, len(line), 110, "%s", line)
	}
	require.Contains(t, text, "pending: 10 puts, 2 writes")
	require.NotContains(t, r.String(), "\n")
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var back shaper.Report
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, r.Text(), back.Text())
}

// TestReportWarns of what an operator has to do something about.
func TestReportWarns(t *testing.T) {
	cli := etcdtest.Start(t, 1, func(c *embed.Config) { c.QuotaBackendBytes = 8 << 20 }).Client(t)
	kv, err := New(cli, Config{})
	require.NoError(t, err)
	defer kv.Close()
	for i := 0; err == nil; i++ {
		_, err = cli.Put(t.Context(), fmt.Sprint("k", i), strings.Repeat("x", 1<<20))
	}
	r, err := kv.Report(t.Context())
	require.NoError(t, err)
	var texts []string
	for _, w := range r.Warnings {
		texts = append(texts, w.Text+": "+w.Remedy)
	}
	all := strings.Join(texts, "\n")
	require.Contains(t, all, "has the alarm NOSPACE: compact and defragment, and disarm the alarm")
	require.Contains(t, all, "of its quota, ")
	require.Contains(t, r.String(), "the first: ")
}

// TestReportWithoutServers says so, and does not wait for longer than its context.
func TestReportWithoutServers(t *testing.T) {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}})
	require.NoError(t, err)
	defer cli.Close()
	kv, err := New(cli, Config{})
	require.NoError(t, err)
	defer kv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = kv.Report(ctx)
	require.Error(t, err)
}
