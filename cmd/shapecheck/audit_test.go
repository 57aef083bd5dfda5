package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/audit"
	"github.com/kvwrap/kvwrap/internal/audit/audittest"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// auditFile is a small file whose report is known.
func auditFile(t testing.TB, later bool) string {
	g := audittest.New(t)
	for i := range 9 {
		g.Put(fmt.Sprint("/a/key", i), []byte("v"), 0)
	}
	g.Put("/a/key0", make([]byte, 1000), 0)
	g.Put("/a/key0", []byte("v"), 0)
	g.Put("/b/big", make([]byte, 1024), 0)
	g.Delete("/a/key8")
	g.Put("\x00k\xff", []byte("v"), 7)
	if later {
		g.Put("/c/new", []byte("v"), 0)
	}
	return g.Close()
}

// auditEnvironment is what testdata/commands/audit.txtar names.
func auditEnvironment(t *testing.T) map[string]string {
	db := auditFile(t, false)
	whole, err := os.ReadFile(db)
	require.NoError(t, err)
	cut := filepath.Join(t.TempDir(), "cut.db")
	require.NoError(t, os.WriteFile(cut, whole[:len(whole)-4096], 0o600))
	cluster := etcdtest.Start(t, 1, nil)
	_, err = cluster.Client(t).Put(t.Context(), "k", "v")
	require.NoError(t, err)
	member := etcdtest.Start(t, 1, nil)
	_, err = member.Client(t).Put(t.Context(), "/w/a/l", "v")
	require.NoError(t, err)
	require.NotEmpty(t, member.EntryBytes(t)) // which stops it
	return map[string]string{
		"DATA_DIR": member.Members[0].Config().Dir, "RUNNING_DIR": cluster.Members[0].Config().Dir,
		"DB": db, "LATER_DB": auditFile(t, true), "CUT_DB": cut, "LIVE_ENDPOINTS": cluster.Endpoints()[0],
	}
}

func TestAuditExitCodes(t *testing.T) {
	db := auditFile(t, false)
	for _, c := range []struct {
		code int
		args []string
	}{
		{exitOK, nil},
		{exitOK, []string{"--fail-on", "keys>10,keys<10,history>10KB", "--warn-on", "critical"}},
		{exitWarning, []string{"--warn-on", "keys<11"}},
		{exitCritical, []string{"--fail-on", "keys>9", "--warn-on", "keys>9"}},
		{exitCritical, []string{"--fail-on", "time-to-quota<24h", "--revisions-per-second", "1e6"}},
		{exitFailed, []string{"--warn-on", "time-to-quota<24h"}},
		{exitFailed, []string{"--fail-on", "keys"}},
	} {
		code, _, stderr := shapecheck(t, append([]string{"audit", "--db", db}, c.args...)...)
		require.Equal(t, c.code, code, "%q: %s", c.args, stderr)
	}
	code, _, _ := shapecheck(t, "audit", "--endpoints", "127.0.0.1:1", "--dial-timeout", "100ms", "--fail-on", "keys>9")
	require.Equal(t, exitUnreachable, code)
}

// TestAuditPartial is interrupted, and prints what is known.
func TestAuditPartial(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g := audittest.New(t)
	for i := range 40_000 {
		g.Put(audittest.KeyName(i), []byte("v"), 0)
	}
	db := g.Close()
	var stdout, stderr bytes.Buffer
	code := run(ctx, []string{"audit", "--db", db, "-w", "json", "--fail-on", "keys>1000000"}, strings.NewReader(""), &stdout, &stderr)
	require.Equal(t, exitInterrupted, code, stderr.String())
	var r audit.Report
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &r), stdout.String())
	require.True(t, r.Partial)
	require.Less(t, r.Totals.Keys, uint64(40_000))
}

// TestAuditOfAClusterThatHasLostAMember says so, and reads the others.
func TestAuditOfAClusterThatHasLostAMember(t *testing.T) {
	cluster := etcdtest.Start(t, 3, nil)
	cli := cluster.Client(t)
	for i := range 5 {
		_, err := cli.Put(t.Context(), fmt.Sprint("/k/", i), "v")
		require.NoError(t, err)
	}
	lost := cluster.Members[2].Server.MemberID().String()
	cluster.Members[2].Close()
	cluster.Members = cluster.Members[:2]
	endpoints := strings.Join(cluster.Endpoints(), ",")
	code, stdout, stderr := shapecheck(t, "audit", "--endpoints", endpoints, "--sample", "0s", "--command-timeout", "1s", "--fail-on", "critical", "-w", "json")
	require.Equal(t, exitCritical, code, stderr)
	require.Contains(t, stderr, "critical: the verdict is critical")
	var r audit.Report
	require.NoError(t, json.Unmarshal([]byte(stdout), &r))
	require.False(t, r.Partial)
	require.Equal(t, uint64(5), r.Totals.Keys)
	require.Len(t, r.Members, 3)
	silent := 0
	for _, m := range r.Members {
		if m.Error != "" {
			silent++
			require.Equal(t, lost, m.ID)
		}
	}
	require.Equal(t, 1, silent)
	require.Contains(t, r.Findings[0].Do, "etcdctl member remove "+lost)
}

func TestAuditProgress(t *testing.T) {
	require.Equal(t, "100 of about 400 records, 50 a second, 6s left", progressLine(100, 400, 1, 1, 2*time.Second))
	require.Equal(t, "400 of about 300 records, 200 a second, 0s left of part 2 of 3", progressLine(400, 300, 2, 3, 2*time.Second))
}

// TestAuditHelp lists what scripts rely on.
func TestAuditHelp(t *testing.T) {
	code, stdout, _ := shapecheck(t, "audit", "--help")
	require.Equal(t, exitOK, code)
	for _, says := range []string{"; 10 a condition of --warn-on is met; 20 a condition of\n--fail-on is met; ", "time-to-quota", "ETCDCTL_ENDPOINTS"} {
		require.Contains(t, stdout, says)
	}
}

// BenchmarkAuditMemory is the anonymous memory of the command, at its most: for a file of five
// million keys, and for a cluster of 195,000 keys of 1 KiB and 48 of 1 MiB.
func BenchmarkAuditMemory(b *testing.B) {
	b.Run("db", func(b *testing.B) {
		g := audittest.New(b)
		g.Forget = true
		for i := range 5_000_000 {
			g.Put(audittest.KeyName(i), []byte("0123456789"), 0)
		}
		benchmarkMemory(b, 100, 5_000_000, "--db", g.Close())
	})
	b.Run("live", func(b *testing.B) {
		cluster := etcdtest.Start(b, 1, nil)
		cli := cluster.Client(b)
		small, large := strings.Repeat("v", 1<<10), strings.Repeat("v", 1<<20)
		for i := range 1950 {
			puts := make([]clientv3.Op, 100)
			for j := range puts {
				puts[j] = clientv3.OpPut(audittest.KeyName(i*100+j), small)
			}
			_, err := cli.Txn(b.Context()).Then(puts...).Commit()
			require.NoError(b, err)
		}
		for i := range 48 {
			_, err := cli.Put(b.Context(), audittest.KeyName(i*4001), large)
			require.NoError(b, err)
		}
		benchmarkMemory(b, 150, 195_000, "--sample", "0s", "--endpoints", cluster.Endpoints()[0])
	})
}

// benchmarkMemory runs an audit that finds so many keys, and fails where it takes more memory.
func benchmarkMemory(b *testing.B, mostMiB float64, keys uint64, args ...string) {
	self, err := os.Executable()
	require.NoError(b, err)
	var most int
	for b.Loop() {
		cmd := exec.Command(self)
		cmd.Args = append([]string{"shapecheck", "audit", "-w", "json"}, args...)
		var stdout bytes.Buffer
		cmd.Stdout = &stdout
		require.NoError(b, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for running := true; running; {
			select {
			case err := <-ended:
				require.NoError(b, err)
				running = false
			case <-time.After(5 * time.Millisecond):
				status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
				if _, after, ok := strings.Cut(string(status), "RssAnon:"); ok {
					var n int
					fmt.Sscan(after, &n)
					most = max(most, n)
				}
			}
		}
		var r audit.Report
		require.NoError(b, json.Unmarshal(stdout.Bytes(), &r))
		require.Equal(b, keys, r.Totals.Keys)
	}
	require.NotZero(b, most)
	require.Less(b, float64(most)/1024, mostMiB)
	b.ReportMetric(float64(most)/1024, "MiB-anonymous")
}
