package kvprom_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/shaper/kvprom"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestTheGlossaryHasAllMetrics: the last column of docs/glossary.md has every metric that is
// collected, and no other; and docs/operations.md names none that there is not.
func TestTheGlossaryHasAllMetrics(t *testing.T) {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}}) // which is not asked
	require.NoError(t, err)
	defer cli.Close()
	kv, err := kvwrap.New(cli, kvwrap.Config{})
	require.NoError(t, err)
	defer kv.Close()
	descs := make(chan *prometheus.Desc, 100)
	kvprom.NewCollector(kv).Describe(descs)
	close(descs)
	var collected []string
	for d := range descs {
		collected = append(collected, regexp.MustCompile(`fqName: "kvwrap_(\w+)"`).FindStringSubmatch(d.String())[1])
	}

	glossary, err := os.ReadFile("../../docs/glossary.md")
	require.NoError(t, err)
	var named []string
	for line := range strings.SplitSeq(string(glossary), "\n") {
		if columns := strings.Split(line, "|"); len(columns) == 7 && !strings.Contains(columns[5], "the label") {
			for _, m := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(columns[5], -1) {
				named = append(named, m[1])
			}
		}
	}
	slices.Sort(collected)
	slices.Sort(named)
	require.Equal(t, collected, named)

	operations, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	alerts := regexp.MustCompile(`kvwrap_(\w+)`).FindAllStringSubmatch(string(operations), -1)
	require.NotEmpty(t, alerts)
	for _, m := range alerts {
		require.Contains(t, collected, m[1])
	}
}
