package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/audit/audittest"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/embed"
)

// The tests below are named for what other tools for etcd are known to do, and do what led
// to it.

// TestNoPanicAtStrangeKeys: auger's analyze ends in a panic at keys that are not those of
// Kubernetes.
func TestNoPanicAtStrangeKeys(t *testing.T) {
	g := audittest.New(t)
	for _, key := range []string{"k", "/", "//", "\x00", "\xff\xfe", "/registry", "/registry/", "registry/pods", "/a//b", "\x1b[31m", strings.Repeat("/", 300), strings.Repeat("x", 64<<10)} {
		for _, value := range []string{"", "{", "k8s\x00", "\xff\xff\xff\xff"} {
			g.Put(key, []byte(value), 0)
		}
	}
	for _, flags := range [][]string{nil, {"-w", "json"}, {"-w", "html"}, {"--depth", "50"}, {"--separator", "\x00"}} {
		code, stdout, stderr := shapecheck(t, append([]string{"audit", "--db", g.Close()}, flags...)...)
		require.Zero(t, code, stderr)
		require.NotContains(t, stdout, "\x1b", "a terminal would obey it")
	}
}

// TestTheFileIsNotWrittenTo: etcdutl hashkv and etcd-dump-db modify the file that they read.
func TestTheFileIsNotWrittenTo(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	_, err := cluster.Client(t).Put(t.Context(), "/k/a", "v")
	require.NoError(t, err)
	require.NotEmpty(t, cluster.EntryBytes(t)) // which stops it
	dir := cluster.Members[0].Config().Dir
	state := func() (all []string) {
		require.NoError(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			all = append(all, fmt.Sprintf("%s %v %v %x", path, info.Mode(), info.ModTime(), sha256.Sum256(content)))
			return err
		}))
		return all
	}
	before := state()
	require.Greater(t, len(before), 1)
	for _, flags := range [][]string{{"--data-dir", dir}, {"--db", filepath.Join(dir, "member", "snap", "db")}} {
		code, stdout, stderr := shapecheck(t, append([]string{"audit"}, flags...)...)
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "/k/")
		require.Equal(t, before, state())
	}
}

// TestUnreachableIsNotFine: kubent exits with 0 where the cluster cannot be reached.
func TestUnreachableIsNotFine(t *testing.T) {
	for _, command := range []string{"audit", "get k", "project --sample 1s", "reclaim --yes", "reclaim --dry-run", "roles", "sweep", "tune --sample 1s", "unwrap", "verify"} {
		args := append(strings.Fields(command), "--endpoints", "127.0.0.1:1", "--dial-timeout", "100ms")
		code, stdout, stderr := shapecheck(t, args...)
		require.Equal(t, exitUnreachable, code, "%s: %s", command, stderr)
		require.Empty(t, stdout)
	}
}

// TestReclaimKeepsOffAnUnstartedLearner: etcd-defrag's --move-leader chooses a learner that
// has not started, and exits with 0 although nothing came of it.
func TestReclaimKeepsOffAnUnstartedLearner(t *testing.T) {
	w := reclaimer{newWrapped(t, chunker.Config{}, etcdtest.Advertise(t, 1))}
	w.fill()
	_, err := w.plain.MemberAddAsLearner(t.Context(), []string{"http://127.0.0.1:1"})
	require.NoError(t, err)
	leader := w.status().Leader
	code, stdout, stderr := w.reclaim(t.Context(), "", "--yes")
	require.Zero(t, code, stderr)
	require.Regexp(t, `\nleft .*, learner: `, stdout)
	require.Equal(t, 1, strings.Count(stdout, "\ndefragmented "), stdout)
	require.Less(t, w.status().DbSize, int64(4<<20))
	require.Equal(t, leader, w.status().Leader)
}

// TestReclaimCountsMembersNotAddresses: etcd-defrag defragments a member with two client URLs
// twice. And its --dry-run leaves out the compaction that comes first.
func TestReclaimCountsMembersNotAddresses(t *testing.T) {
	w := reclaimer{newWrapped(t, chunker.Config{}, func(cfg *embed.Config) {
		etcdtest.Advertise(t, 2)(cfg)
		require.Len(t, cfg.AdvertiseClientUrls, 2)
	})}
	w.fill()
	code, plan, stderr := w.reclaim(t.Context(), "", "--dry-run")
	require.Zero(t, code, stderr)
	require.Contains(t, plan, "compact to revision ")
	planned, _, _ := strings.Cut(plan, "\nNothing was written")
	code, stdout, stderr := w.reclaim(t.Context(), "", "--yes")
	require.Zero(t, code, stderr)
	require.True(t, strings.HasPrefix(stdout, planned), "what was planned: %s\nwhat was done: %s", planned, stdout)
	require.Equal(t, 1, strings.Count(stdout, "\ndefragmented "), stdout)
}

// TestReclaimDoesNotGoOnPastAMemberThatIsLost: etcd-defrag, after a timeout and told to go on
// after errors, defragments three voters at once. What happens when a member is lost in the
// middle is tested in the package budget.
func TestReclaimDoesNotGoOnPastAMemberThatIsLost(t *testing.T) {
	cluster := etcdtest.Start(t, 3, nil)
	cli := cluster.Client(t)
	for range 20 {
		_, err := cli.Put(t.Context(), "k", strings.Repeat("v", 1<<20))
		require.NoError(t, err)
	}
	cluster.Members[2].Close()
	cluster.Members = cluster.Members[:2]
	sizes := func() (all []int64) {
		for _, e := range cluster.Endpoints() {
			st, err := cluster.ClientOf(t, e).Status(t.Context(), e)
			require.NoError(t, err)
			all = append(all, st.DbSize)
		}
		return all
	}
	code, stdout, stderr := shapecheck(t, "reclaim", "--endpoints", strings.Join(cluster.Endpoints(), ","), "--yes", "--keep-revisions", "1", "--min-free", "1MiB", "--command-timeout", "1s", "--catch-up-timeout", "1s")
	require.Equal(t, exitFailed, code, stderr)
	require.NotContains(t, stdout, "\ndefragmented ")
	for _, size := range sizes() {
		require.Greater(t, size, int64(20<<20))
	}
}

// TestAFlagAndItsVariable: etcdctl aborts where both are set.
func TestAFlagAndItsVariable(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	w.put("k", "v")
	t.Setenv("ETCDCTL_ENDPOINTS", "127.0.0.1:1")
	code, stdout, stderr := shapecheck(t, "get", "k", "--endpoints", w.cluster.Endpoints()[0])
	require.Zero(t, code, stderr)
	require.Equal(t, "v", stdout)
}
