package kvprom_test

import (
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/shaper/kvprom"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// TestCollect what a KV has counted, by names and units as Prometheus' linter has them.
func TestCollect(t *testing.T) {
	cli := etcdtest.Start(t, 1, nil).Client(t)
	kv, err := kvwrap.New(cli, kvwrap.Config{
		Budget: budget.Config{Rates: budget.Rates{Revisions: 10_000}},
		Rules:  []kvwrap.Rule{{Prefix: "leaders/", Class: budget.Critical}, {Prefix: "\xff\xfe"}},
	})
	require.NoError(t, err)
	defer kv.Close()
	for range 3 {
		_, err = kv.Put(t.Context(), "leaders/1", "v")
		require.NoError(t, err)
	}
	_, err = kv.Put(t.Context(), "large", strings.Repeat("x", 100<<10)) // compressed, it is small
	require.NoError(t, err)
	_, err = kv.Get(t.Context(), "large")
	require.NoError(t, err)

	c := kvprom.NewCollector(kv)
	problems, err := testutil.CollectAndLint(c)
	require.NoError(t, err)
	require.Empty(t, problems)
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP kvwrap_requests_total Requests that write, by kind.
# TYPE kvwrap_requests_total counter
kvwrap_requests_total{kind="delete",side="asked"} 0
kvwrap_requests_total{kind="delete",side="proposed"} 0
kvwrap_requests_total{kind="put",side="asked"} 4
kvwrap_requests_total{kind="put",side="proposed"} 3
kvwrap_requests_total{kind="txn",side="asked"} 0
kvwrap_requests_total{kind="txn",side="proposed"} 1
# HELP kvwrap_rule_records_total Records by the prefix of the rule that is for them.
# TYPE kvwrap_rule_records_total counter
kvwrap_rule_records_total{prefix="",side="asked"} 1
kvwrap_rule_records_total{prefix="",side="proposed"} 3
kvwrap_rule_records_total{prefix="\"\\xff\\xfe\"",side="asked"} 0
kvwrap_rule_records_total{prefix="\"\\xff\\xfe\"",side="proposed"} 0
kvwrap_rule_records_total{prefix="leaders/",side="asked"} 3
kvwrap_rule_records_total{prefix="leaders/",side="proposed"} 3
# HELP kvwrap_budget_revisions_per_second Revisions a second that the budget lets go now; absent where there is no limit.
# TYPE kvwrap_budget_revisions_per_second gauge
kvwrap_budget_revisions_per_second 10000
`), "kvwrap_requests_total", "kvwrap_rule_records_total", "kvwrap_budget_revisions_per_second"))

	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "kvwrap_raft_entry_bytes" {
			h := f.GetMetric()[0].GetHistogram()
			require.EqualValues(t, 4, h.GetSampleCount())
			require.Greater(t, h.GetSampleSum(), 100e3)
			require.EqualValues(t, 3, h.GetBucket()[0].GetCumulativeCount(), "of up to 64 bytes")
			return
		}
	}
	t.Fatal("no histogram of entries")
}
