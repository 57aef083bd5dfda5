package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/traffic"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchOnce runs watch --once -w json, with writes as soon as it watches.
func watchOnce(t *testing.T, endpoints string, write func(), args ...string) (d watchDocument) {
	t.Helper()
	var out bytes.Buffer
	errs := &interrupter{at: "watching for", interrupt: write}
	args = append([]string{"watch", "--endpoints", endpoints, "--once", "--for", "1s", "-w", "json"}, args...)
	require.Equal(t, exitOK, run(t.Context(), args, strings.NewReader(""), &out, errs), errs.String())
	require.NoError(t, json.Unmarshal(out.Bytes(), &d), out.String())
	return d
}

// TestWatchCounts what is written, all of it and nothing else.
func TestWatchCounts(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	endpoint := w.cluster.Endpoints()[0]
	w.put("before", "1")
	large := workload.Text(200e3, "v")
	write := func() {
		for i := range 2500 { // more than etcd sends at once to who is behind
			_, err := w.plain.Put(t.Context(), fmt.Sprintf("/a/%d/k", i%3), workload.Text(100+i%2, "v"))
			require.NoError(t, err)
		}
		_, err := w.plain.Txn(t.Context()).Then(clientv3.OpPut("/b/1", "1"), clientv3.OpPut("/b/2", "23"), clientv3.OpDelete("/a/0/k")).Commit()
		require.NoError(t, err)
		w.put("/large/k", large)
		_, err = w.plain.Put(t.Context(), "evil\x1b[2J", "")
		require.NoError(t, err)
	}
	d := watchOnce(t, endpoint, write, "--depth", "1")
	require.EqualValues(t, 2504, d.Total.Puts)
	require.EqualValues(t, 1, d.Total.Deletes)
	require.EqualValues(t, 200e3, d.Total.LargestValueBytes)
	require.Zero(t, d.LagRevisions)
	require.Zero(t, d.MissedRevisions)
	require.Equal(t, 1, d.Members)
	require.NotZero(t, d.QuotaBytes)
	require.InDelta(t, 2504/d.Seconds, d.Total.PutsPerSecond, 0.01)
	rows := make(map[string]watchRow)
	for _, r := range d.Prefixes {
		rows[string(r.Kind)+" "+string(r.Prefix)] = r
	}
	require.Len(t, rows, 4)
	require.Equal(t, "prefix /a/", string(d.Prefixes[0].Kind)+" "+string(d.Prefixes[0].Prefix), "most puts")
	a := rows["prefix /a/"]
	require.EqualValues(t, 2500, a.Puts)
	require.EqualValues(t, 1, a.Deletes)
	require.EqualValues(t, 2500*100+1250+2501*6, a.Bytes)
	require.EqualValues(t, 101, a.LargestValueBytes)
	require.EqualValues(t, 1, rows["noPrefix "].Puts)
	chunked := rows["prefix /large/"]
	require.EqualValues(t, 1, chunked.Puts)
	require.EqualValues(t, 200e3, chunked.AverageValueBytes)
	require.Greater(t, chunked.ChunkWrites, uint64(5))
	require.Less(t, chunked.Bytes, uint64(200e3), "it is compressed")

	d = watchOnce(t, endpoint, func() { write(); w.put("/large/l", large) }, "--prefix", "/large/")
	require.EqualValues(t, 2, d.Total.Puts)
	require.GreaterOrEqual(t, d.Total.ChunkWrites, chunked.ChunkWrites)
	require.True(t, d.ChunksCounted)
	require.Len(t, d.Prefixes, 1)

	d = watchOnce(t, endpoint, write, "--top", "1", "--reverse")
	require.Len(t, d.Prefixes, 1)
	require.Equal(t, 5, d.PrefixesNotInTheList)
}

// TestWatchInterrupted writes what it has seen until then, and has an exit code for it.
func TestWatchInterrupted(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	errs := &interrupter{at: "watching for", interrupt: cancel}
	code := run(ctx, []string{"watch", "--endpoints", cluster.Endpoints()[0], "--once", "--for", "1h"}, strings.NewReader(""), &out, errs)
	require.Equal(t, exitInterrupted, code, errs.String())
	require.Contains(t, out.String(), "\nall ")
	require.Contains(t, errs.String(), "shapecheck: interrupted\n")
	for want, args := range map[int][]string{
		exitUnreachable: {"watch", "--once", "--endpoints", "127.0.0.1:1", "--dial-timeout", "100ms"},
		exitFailed:      {"watch", "--once", "--endpoints", "127.0.0.1:1", "--depth", "0"},
	} {
		code, _, stderr := shapecheck(t, args...)
		require.Equal(t, want, code, stderr)
	}
}

// startObserver returns an observer of a cluster that runs until the test ends.
func startObserver(t *testing.T, cli *clientv3.Client) *observer {
	t.Helper()
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	o, err := newObserver(t.Context(), cli, cli, "", '/', space)
	require.NoError(t, err)
	startRun(t, o.run)
	<-o.feed.ready
	return o
}

// startRun runs something until the test ends, and takes no other end.
func startRun(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
	})
}

// TestWatchLines writes a line for each interval, with what was written in it.
func TestWatchLines(t *testing.T) {
	cli := etcdtest.Start(t, 1, nil).Client(t)
	o := startObserver(t, cli)
	w := &watch{interval: 2 * time.Second, cell: time.Second, depth: 2, top: 5, by: traffic.ByPuts}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ticks := make(chan time.Time)
	r, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- w.writeLines(ctx, o, ticks, out) }()
	lines := json.NewDecoder(r)
	for want := range 3 {
		for range want {
			_, err := cli.Put(t.Context(), "k", "v")
			require.NoError(t, err)
		}
		require.NoError(t, o.catchUp(t.Context(), time.Minute))
		ticks <- time.Time{}
		ticks <- time.Time{}
		var d watchDocument
		require.NoError(t, lines.Decode(&d))
		require.EqualValues(t, want, d.Total.Puts)
	}
	_, err := cli.Put(t.Context(), "k", "v")
	require.NoError(t, err)
	require.NoError(t, o.catchUp(t.Context(), time.Minute))
	cancel()
	var d watchDocument
	require.NoError(t, lines.Decode(&d))
	require.EqualValues(t, 1, d.Total.Puts, "in a part of an interval")
	require.ErrorIs(t, <-ended, context.Canceled)
}

// TestWatchShows a screen until somebody quits, or it is interrupted.
func TestWatchShows(t *testing.T) {
	cli := etcdtest.Start(t, 1, nil).Client(t)
	o := startObserver(t, cli)
	w := &watch{interval: time.Second, cell: time.Second, depth: 2, by: traffic.ByPuts}
	var out bytes.Buffer
	require.NoError(t, w.show(t.Context(), o, strings.NewReader("q"), &out))
	ctx, cancel := context.WithCancel(t.Context())
	r, never := io.Pipe()
	defer never.Close()
	shown := &interrupter{at: "\x1b[", interrupt: cancel}
	require.ErrorIs(t, w.show(ctx, o, r, shown), context.Canceled)
}

// TestWatchLosesAMember and goes on at another one, with nothing missed.
func TestWatchLosesAMember(t *testing.T) {
	cluster := etcdtest.Start(t, 3, etcdtest.Advertise(t, 1))
	var proxies []*etcdtest.Proxy
	var endpoints []string
	for _, e := range cluster.Endpoints() {
		p, err := etcdtest.NewProxy(e)
		require.NoError(t, err)
		t.Cleanup(p.Close)
		proxies, endpoints = append(proxies, p), append(endpoints, p.Address())
	}
	o := startObserver(t, cluster.ClientOf(t, endpoints...))
	writer := cluster.ClientOf(t, cluster.Endpoints()[1:]...)
	write := func() {
		t.Helper()
		for range 10 {
			_, err := writer.Put(t.Context(), "k", "v")
			require.NoError(t, err)
		}
	}
	write()
	require.NoError(t, o.catchUp(t.Context(), time.Minute))
	proxies[0].Refuse(true)
	for _, p := range proxies {
		p.Cut()
	}
	write()
	require.NoError(t, o.catchUp(t.Context(), time.Minute))
	require.NotZero(t, o.feed.current().Lost)

	lost := cluster.Members[0]
	lost.Close()
	cluster.Members = cluster.Members[1:]
	write()
	require.NoError(t, o.catchUp(t.Context(), time.Minute))
	o.advance()
	s := o.snapshot(5)
	require.EqualValues(t, 30, s.traffic.Total.Window.Puts)
	require.Zero(t, s.feed.Missed)
	require.Contains(t, strings.Join(s.notes(), "\n"), "Member "+lost.Config().Name+" does not answer.")
}

// TestWatchIsCompacted away, and restored from a backup: it goes on, and says what was missed.
func TestWatchIsCompacted(t *testing.T) {
	cli := etcdtest.Start(t, 1, nil).Client(t)
	put := func(n int) (revision int64) {
		t.Helper()
		for range n {
			resp, err := cli.Put(t.Context(), "k", "v")
			require.NoError(t, err)
			revision = resp.Header.Revision
		}
		return revision
	}
	end := put(10)
	_, err := cli.Compact(t.Context(), end-2)
	require.NoError(t, err)
	counted := make(chan int64, 100)
	f := newFeed(cli, func(events []*mvccpb.Event) {
		for _, e := range events {
			counted <- e.Kv.ModRevision
		}
	}, end-9, &fedRange{Range: format.Range{Key: []byte{0}, End: []byte{0}}})
	startRun(t, f.run)
	require.Eventually(t, func() bool { return f.current().Missed == 7 }, time.Minute, time.Millisecond)
	require.Equal(t, []int64{end - 2, end - 1, end}, []int64{<-counted, <-counted, <-counted})
	end = put(1)
	require.Equal(t, end, <-counted)

	f.skipTo(end + 50) // as if it were too far behind
	require.Eventually(t, func() bool { return f.current().Missed == 57 }, time.Minute, time.Millisecond)
	f.skipTo(end) // as after a restore
	require.Eventually(t, func() bool { return f.current().Seen == end }, time.Minute, time.Millisecond)
	end = put(1)
	require.Equal(t, end, <-counted)
	require.EqualValues(t, 57, f.current().Missed)
	require.Empty(t, f.current().Problem)
}

// TestFeedTakes has responses as servers give them.
func TestFeedTakes(t *testing.T) {
	header := func(revision int64) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: revision} }
	event := func(revision int64) []*mvccpb.Event {
		return []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: revision}}}
	}
	events := 0
	two := func() *feed {
		f := newFeed(nil, func(e []*mvccpb.Event) { events += len(e) }, 5, &fedRange{}, &fedRange{optional: true})
		require.EqualValues(t, 4, f.current().Seen)
		return f
	}
	denied := &pb.WatchResponse{Header: header(4), Created: true, Canceled: true, WatchId: -1, CancelReason: rpctypes.ErrGRPCPermissionDenied.Error()}

	f := two()
	_, err := f.take(denied, 0)
	require.ErrorIs(t, err, rpctypes.ErrPermissionDenied, "of keys")
	created, err := f.take(denied, 1)
	require.NoError(t, err, "of chunks")
	require.True(t, created)
	require.True(t, f.current().Refused)
	_, err = f.take(&pb.WatchResponse{Header: header(7), WatchId: 1, Events: event(6)}, 2)
	require.NoError(t, err)
	require.EqualValues(t, 6, f.current().Seen)

	f = two()
	_, err = f.take(&pb.WatchResponse{Header: header(7), WatchId: 1, Events: event(6), Fragment: true}, 2)
	require.NoError(t, err)
	require.EqualValues(t, 4, f.current().Seen, "events of the other range may be on their way")
	f.lost(io.EOF)
	require.EqualValues(t, 1, f.current().Missed, "the rest of revision 6")
	require.EqualValues(t, 7, f.ranges[0].next)
	require.EqualValues(t, 5, f.ranges[1].next)
	require.Equal(t, "EOF", f.current().Problem)
	_, err = f.take(&pb.WatchResponse{Header: header(9), WatchId: -1}, 2)
	require.NoError(t, err)
	require.EqualValues(t, 9, f.current().Seen)
	require.EqualValues(t, 10, f.ranges[1].next)
	_, err = f.take(&pb.WatchResponse{Header: header(20), WatchId: 1, Canceled: true, CompactRevision: 15}, 2)
	require.Equal(t, skipped(14), err)
	_, err = f.take(&pb.WatchResponse{Header: header(20), WatchId: 1, Canceled: true, CancelReason: "why not"}, 2)
	require.EqualError(t, err, "why not")
	require.Equal(t, 2, events)
}

func TestWatchedRanges(t *testing.T) {
	space, err := format.NewKeyspace("\x00kvw/")
	require.NoError(t, err)
	var got []string
	for _, prefix := range []string{"", "a/", "\x00kvw/a"} {
		for _, r := range watchedRanges(prefix, space) {
			got = append(got, fmt.Sprintf("%q %q %v", r.Key, r.End, r.optional))
		}
	}
	require.Equal(t, []string{`"\x00" "\x00" false`, `"a/" "a0" false`, `"\x00kvw/a/" "\x00kvw/a0" true`, `"\x00kvw/a" "\x00kvw/b" false`}, got)
}

// TestGathered reads what has gathered: the read after one that has emptied the connection
// waits.
func TestGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		theirs, ours := net.Pipe()
		g := &gathered{Conn: ours, closed: make(chan struct{})}
		began := time.Now()
		read := func(n int) string {
			b := make([]byte, n)
			n, err := g.Read(b)
			require.NoError(t, err)
			return string(b[:n])
		}
		go theirs.Write([]byte("abcdef"))
		require.Equal(t, "ab", read(2))
		require.Equal(t, "cd", read(2))
		require.Zero(t, time.Since(began), "there is more")
		require.Equal(t, "ef", read(4))
		require.Zero(t, time.Since(began))
		go theirs.Write([]byte("gh"))
		require.Equal(t, "gh", read(4))
		require.Equal(t, gatherFor, time.Since(began))
		ended := make(chan error)
		go func() {
			_, err := g.Read(make([]byte, 4))
			ended <- err
		}()
		synctest.Wait()
		require.NoError(t, g.Close())
		require.ErrorIs(t, <-ended, io.ErrClosedPipe)
		require.Equal(t, gatherFor, time.Since(began), "closing wakes it")
		require.NoError(t, g.Close())
		require.NoError(t, theirs.Close())
	})
}
