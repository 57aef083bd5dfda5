package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// reclaimer is a cluster with much that is free.
type reclaimer struct{ *wrapped }

func (w reclaimer) fill() {
	w.Helper()
	for range 20 {
		_, err := w.plain.Put(w.Context(), "k", workload.Incompressible(1<<20, "v"))
		require.NoError(w, err)
	}
	require.Eventually(w, func() bool { return w.status().DbSize > 20<<20 }, 10*time.Second, 10*time.Millisecond)
}

func (w reclaimer) status() *clientv3.StatusResponse {
	w.Helper()
	st, err := w.plain.Status(w.Context(), w.cluster.Endpoints()[0])
	require.NoError(w, err)
	return st
}

// reclaim runs the command with bounds that a small database meets.
func (w reclaimer) reclaim(ctx context.Context, stdin string, args ...string) (code int, stdout, stderr string) {
	w.Helper()
	var out, errs bytes.Buffer
	args = append([]string{"reclaim", "--endpoints", w.cluster.Endpoints()[0], "--keep-revisions", "1", "--min-free", "1MiB"}, args...)
	code = run(ctx, args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func TestReclaim(t *testing.T) {
	w := reclaimer{newWrapped(t, chunker.Config{}, etcdtest.Advertise(t, 1))}
	w.fill()
	before := w.status()
	untouched := func() {
		t.Helper()
		require.Equal(t, before.Header.Revision, w.status().Header.Revision)
		_, err := w.plain.Get(t.Context(), "k", clientv3.WithRev(2))
		require.NoError(t, err, "nothing is compacted")
	}

	code, plan, stderr := w.reclaim(t.Context(), "", "--dry-run")
	require.Zero(t, code, stderr)
	require.Contains(t, plan, "compact to revision 21, which keeps 1\n")
	require.Contains(t, plan, "\nNothing was written: --dry-run.\n")
	untouched()

	for _, no := range []string{"", "n\n", "perhaps\n"} {
		code, stdout, stderr := w.reclaim(t.Context(), no)
		require.Equal(t, exitFailed, code)
		require.True(t, strings.HasPrefix(stdout, "compact to revision 21, which keeps 1\n"), stdout) // what is free changes for a while
		require.Contains(t, stderr, "Go on? [y/N] ")
		require.Contains(t, stderr, "nothing was done: it was not agreed to; answer y, or give --yes\n")
		untouched()
	}

	ctx, cancel := context.WithCancel(t.Context())
	errs := &interrupter{at: "Go on", interrupt: cancel}
	silent, never := io.Pipe() // somebody who does not answer
	defer never.Close()
	code = run(ctx, []string{"reclaim", "--endpoints", w.cluster.Endpoints()[0], "--keep-revisions", "1"}, silent, io.Discard, errs)
	require.Equal(t, exitInterrupted, code)
	untouched()

	code, stdout, stderr := w.reclaim(t.Context(), "", "--yes", "--when", "bloat>1000", "--when", "free>1TiB && size>0")
	require.Zero(t, code, stderr)
	require.Regexp(t, `^\d\d:\d\d:\d\d: nothing to do: no member has bloat>1000, or free>1TiB && size>0\.\n$`, stdout)
	untouched()

	code, stdout, stderr = w.reclaim(t.Context(), "y\n", "--when", "size>10MiB")
	require.Zero(t, code, stderr)
	require.Regexp(t, `^\d\d:\d\d:\d\d: member \S+ \([0-9a-f]+\) has size>10MiB\.\ncompact to revision 21`, stdout)
	require.Regexp(t, `\ncompacted to revision 21\ndefragmented \S+ \([0-9a-f]+\), leader: `, stdout)
	require.Contains(t, stderr, "defragmenting ", "it says what it does")
	require.Less(t, w.status().DbSize, int64(4<<20))

	w.fill()
	code, stdout, stderr = w.reclaim(t.Context(), "", "--yes", "-w", "json")
	require.Zero(t, code, stderr)
	var doc reclaimRound
	require.NoError(t, json.Unmarshal([]byte(stdout), &doc))
	require.EqualValues(t, doc.Compact, doc.Result.Compacted)
	require.Len(t, doc.Result.Members, 1)
	require.True(t, doc.Result.Members[0].Defragment)
	require.Less(t, doc.Result.Members[0].After, doc.Result.Members[0].Before)
	require.Empty(t, doc.Error)

	// Until it is interrupted.
	ctx, cancel = context.WithCancel(t.Context())
	out := &interrupter{at: "nothing to do", interrupt: cancel}
	code = run(ctx, []string{"reclaim", "--endpoints", w.cluster.Endpoints()[0], "--yes", "--every", "1h", "--when", "bloat>1000"}, strings.NewReader(""), out, io.Discard)
	require.Equal(t, exitInterrupted, code)

	// What it would not begin with.
	_, err := pb.NewMaintenanceClient(w.plain.ActiveConnection()).Alarm(t.Context(), &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT, MemberID: before.Header.MemberId,
	})
	require.NoError(t, err)
	code, stdout, stderr = w.reclaim(t.Context(), "", "--dry-run")
	require.Equal(t, exitFailed, code)
	require.Contains(t, stdout, "not now: ")
	require.Contains(t, stderr, "the alarm CORRUPT is raised: repair the member first")
}

// TestRepeat goes on after errors.
func TestRepeat(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tick := make(chan time.Time, 3)
	for range 3 {
		tick <- time.Time{}
	}
	var rounds int
	var failed []error
	broken := errors.New("broken")
	err := repeat(ctx, tick, func() error {
		switch rounds++; rounds {
		case 2:
			return broken
		case 4:
			cancel()
		}
		return nil
	}, func(err error) error { failed = append(failed, err); return nil })
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 4, rounds)
	require.Equal(t, []error{broken}, failed)

	hopeless := errors.New("hopeless")
	err = repeat(t.Context(), tick, func() error { return broken }, func(error) error { return hopeless })
	require.Equal(t, hopeless, err)
}

// TestReclaimIsDone has rounds on a cluster that nobody writes to: what the lock has written
// is not worth another compaction, which would be the reason for the next one. What somebody
// else has written is, were it one revision.
func TestReclaimIsDone(t *testing.T) {
	w := reclaimer{newWrapped(t, chunker.Config{}, etcdtest.Advertise(t, 1))}
	w.fill()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var done []int64
	idle := 0
	out := &interrupter{at: "Nothing to do", interrupt: func() {
		done = append(done, w.status().Header.Revision)
		switch idle++; idle {
		case 2:
			_, err := w.plain.Put(t.Context(), "k", "v")
			require.NoError(t, err)
		case 3:
			cancel()
		}
	}}
	args := []string{"reclaim", "--endpoints", w.cluster.Endpoints()[0], "--keep-revisions", "1", "--min-free", "1MiB", "--yes", "--every", "1s"}
	code := run(ctx, args, strings.NewReader(""), out, io.Discard)
	require.Equal(t, exitInterrupted, code)
	require.Equal(t, 2, strings.Count(out.String(), "\ncompacted to revision "), out.String())
	require.Contains(t, out.String(), "\ncompact nothing: that is done\n")
	require.Equal(t, done[0], done[1], "nothing is written")
}

// TestReclaimWaitsForTheCluster begins before the cluster does.
func TestReclaimWaitsForTheCluster(t *testing.T) {
	cluster := etcdtest.Start(t, 1, etcdtest.Advertise(t, 1))
	proxy, err := etcdtest.NewProxy(cluster.Endpoints()[0])
	require.NoError(t, err)
	defer proxy.Close()
	proxy.Refuse(true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &interrupter{at: "Nothing to do", interrupt: cancel}
	errs := &interrupter{at: "going on", interrupt: func() { proxy.Refuse(false) }}
	args := []string{"reclaim", "--endpoints", proxy.Address(), "--yes", "--every", "1s", "--dial-timeout", "300ms"}
	require.Equal(t, exitInterrupted, run(ctx, args, strings.NewReader(""), out, errs))
	require.Contains(t, errs.String(), "are these the client addresses of members")
	require.Contains(t, errs.String(), "\nshapecheck: going on: it looks again every 1s\n")

	// What does not pass ends it.
	for says, flag := range map[string][]string{
		"TLS: open /none":           {"--cacert", "/none", "--endpoints", "https://127.0.0.1:1"},
		"give the client addresses": {"--endpoints", ""},
	} {
		code, _, stderr := shapecheck(t, append([]string{"reclaim", "--yes", "--every", "1s"}, flag...)...)
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, says)
		require.NotContains(t, stderr, "going on")
	}
}

func TestRules(t *testing.T) {
	m := budget.HealthMember{DbSize: 300 << 20, DbSizeInUse: 100 << 20, Bloat: 3, QuotaUse: 0.25}
	for text, want := range map[string]bool{
		"bloat>2":                               true,
		"bloat > 3":                             false,
		"bloat>=3":                              true,
		"bloat<3":                               false,
		"bloat<=3":                              true,
		"bloat>2 && free>100MiB":                true,
		"bloat>2&&free>200MiB":                  false,
		"free>=200 MiB":                         true,
		"in-use<101MiB":                         true,
		"size>1GB || quota-use>20%":             true,
		"quota-use>0.3":                         false,
		"quota-use<=1":                          true,
		"bloat<80":                              true,
		"bloat>9 && size>1 || size>1":           true,
		"bloat>9 && (size>1 || size>1)":         false,
		"(bloat>2)":                             true,
		"size>1 || bloat>9 && bloat>9":          true,
		"(size>1 || bloat>9) && quota-use>0.99": false,
	} {
		r, err := parseRule(text)
		require.NoError(t, err, text)
		require.Equal(t, want, r.holds(m), text)
		got, held := meets(budget.Health{Members: []budget.HealthMember{{Error: "no answer", Bloat: 99}, m}}, []*rule{r})
		require.Equal(t, want, held != nil, text)
		if want {
			require.Equal(t, m, got)
		}
	}
	for text, says := range map[string]string{
		"":                 `"" is no figure`,
		"bloat":            `"" is no operator`,
		"bloat>":           `"" is no number`,
		"quota-use>80":     `80 is 8000 % of the quota: for 80 % write 80% or 0.8`,
		"bloat>much":       `"much" is no number`,
		"load>2":           `"load" is no figure`,
		"bloat=2":          `"=2" is neither`,
		"bloat>2 &&":       `"" is no figure`,
		"bloat>2 free>1":   `"free" is too much`,
		"(bloat>2":         `a ) is missing`,
		"free>100%":        `"100%" is no size`,
		"bloat>2 & free>1": `"& free>1" is neither`,
	} {
		_, err := parseRule(text)
		require.ErrorContains(t, err, says, text)
		require.ErrorContains(t, err, `write it as in "bloat>2 && free>100MiB"`, text)
	}
}
