package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestSweep leaves chunks behind as a client without kvwrap does, with a namespace
// and without.
func TestSweep(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	for _, ns := range []string{"", "ns/"} {
		cli := w.client(chunker.Config{}, ns)
		for _, key := range []string{"kept", "gone"} {
			_, err := cli.Put(t.Context(), key, workload.Text(200<<10, "value"))
			require.NoError(t, err)
		}
		_, err := w.plain.Delete(t.Context(), ns+"gone")
		require.NoError(t, err)
	}
	sweep := func(args ...string) (code int, stdout, stderr string) {
		return shapecheck(t, append([]string{"sweep", "--endpoints", strings.Join(w.cluster.Endpoints(), ",")}, args...)...)
	}
	for _, namespace := range []string{"", "ns/"} {
		below := fmt.Sprintf("Below %q: ", namespace+"\x00kvw/")
		for _, want := range []string{
			"keys with chunks: 2. Chunks deleted: 43. Writes under way: 0.\n",
			"keys with chunks: 1. Chunks deleted: 0. Writes under way: 0.\n",
		} {
			code, stdout, stderr := sweep("--namespace", namespace)
			require.Zero(t, code, stderr)
			require.Equal(t, below+want, stdout)
		}
	}
	left, err := w.plain.Get(t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
	require.NoError(t, err)
	require.EqualValues(t, 2*(1+43), left.Count)

	code, _, stderr := sweep("--rate", "0")
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "--rate 0")
}
