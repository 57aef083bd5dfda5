package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/server/v3/embed"
)

// wrapped is a cluster with a client without kvwrap and one with it.
type wrapped struct {
	*testing.T
	cluster    *etcdtest.Cluster
	plain, cli *clientv3.Client
}

func newWrapped(t *testing.T, cfg chunker.Config, edit func(*embed.Config)) *wrapped {
	w := &wrapped{T: t, cluster: etcdtest.Start(t, 1, edit)}
	w.plain = w.cluster.Client(t)
	w.cli = w.client(cfg, "")
	return w
}

// client returns a client with kvwrap.
func (w *wrapped) client(cfg chunker.Config, ns string) *clientv3.Client {
	w.Helper()
	cli := w.cluster.Client(w)
	cli.KV, cli.Lease = namespace.NewKV(cli.KV, ns), namespace.NewLease(cli.Lease, ns)
	kv, err := kvwrap.Install(cli, kvwrap.Config{Chunk: cfg})
	require.NoError(w, err)
	w.Cleanup(func() { require.NoError(w, kv.Close()) })
	return cli
}

func (w *wrapped) put(key, value string, opts ...clientv3.OpOption) {
	w.Helper()
	_, err := w.cli.Put(w.Context(), key, value, opts...)
	require.NoError(w, err)
}

// all returns all keys as a client without kvwrap sees them.
func (w *wrapped) all() map[string]string {
	w.Helper()
	resp, err := w.plain.Get(w.Context(), "\x00", clientv3.WithFromKey())
	require.NoError(w, err)
	all := make(map[string]string)
	for _, kv := range resp.Kvs {
		all[string(kv.Key)] = string(kv.Value)
	}
	return all
}

// requireAll is require.Equal without the values in its message.
func (w *wrapped) requireAll(want map[string]string) {
	w.Helper()
	all := w.all()
	require.Len(w, all, len(want))
	for key, value := range want {
		require.True(w, all[key] == value, "%q", key)
	}
}

func (w *wrapped) unwrap(args ...string) (code int, stdout, stderr string) {
	w.Helper()
	return shapecheck(w.T, append([]string{"unwrap", "--endpoints", strings.Join(w.cluster.Endpoints(), ",")}, args...)...)
}

// unwrapAt runs unwrap and does something when it says a word.
func (w *wrapped) unwrapAt(word string, do func(cancel func())) (code int, stdout, stderr string) {
	w.Helper()
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	var out strings.Builder
	errs := &interrupter{at: word, interrupt: func() { do(cancel) }}
	code = run(ctx, []string{"unwrap", "--endpoints", strings.Join(w.cluster.Endpoints(), ",")}, strings.NewReader(""), &out, errs)
	return code, out.String(), errs.String()
}

func TestUnwrap(t *testing.T) {
	w := newWrapped(t, chunker.Config{Threshold: 100}, nil)
	lease, err := w.plain.Grant(t.Context(), 600)
	require.NoError(t, err)
	want := map[string]string{
		"small":    "value",
		"empty":    "",
		"staged":   workload.Incompressible(700<<10, "s"),
		"leased":   workload.Text(300<<10, "l"),
		"envelope": "\xffkvw is how this begins",
		"a\x00b":   workload.Text(1000, "a"),
		"\x00":     workload.Text(1000, "b"),
		"\xff":     workload.Text(1000, "c"),
	}
	for i := range 2*pageKeys + 10 {
		want[fmt.Sprint("many/", i)] = workload.Text(500+i, fmt.Sprint(i))
	}
	for key, value := range want {
		if w.put(key, value); key == "leased" {
			w.put(key, value, clientv3.WithLease(lease.ID))
		}
	}
	before := w.all()
	code, stdout, stderr := w.unwrap("--dry-run")
	require.Equal(t, exitOK, code, stderr)
	require.Regexp(t, `^In chunks or envelopes: values: 144, together 1\.\d\d MB, the largest 717 KB\.
Keys below "\\x00kvw/": \d+\.
$`, stdout)
	w.requireAll(before)

	code, stdout, stderr = w.unwrap()
	require.Equal(t, exitOK, code, stderr)
	require.Contains(t, stdout, "\nUnwrapped: values: 144, together 1.")
	require.Contains(t, stdout, "\nKeys below \"\\x00kvw/\": 0.\n")
	require.Contains(t, stderr, "unwrapping 72 of 144\n")
	w.requireAll(want)
	for key, version := range map[string]int64{"small": 1, "staged": 2, "leased": 3} {
		resp, err := w.plain.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, version, resp.Kvs[0].Version, key)
	}
	attached, err := w.plain.TimeToLive(t.Context(), lease.ID, clientv3.WithAttachedKeys())
	require.NoError(t, err)
	require.Equal(t, [][]byte{[]byte("leased")}, attached.Keys)

	_, err = w.plain.Delete(t.Context(), "envelope") // which nobody can tell from one now
	require.NoError(t, err)
	code, stdout, stderr = w.unwrap()
	require.Equal(t, exitOK, code, stderr)
	require.Equal(t, "In chunks or envelopes: no values.\nKeys below \"\\x00kvw/\": 0.\n", stdout)
}

// TestWhatCannotBeUnwrapped stays as it is, and does not stop the rest.
func TestWhatCannotBeUnwrapped(t *testing.T) {
	w := newWrapped(t, chunker.Config{Threshold: 100}, nil)
	value := workload.Text(1000, "v")
	for _, key := range []string{"damaged", "value", "zzz"} {
		w.put(key, value)
	}
	w.put("envelope", w.all()["value"])
	w.put("nested", "\xffkvw\x01\x00value")
	large := workload.Incompressible(5<<20, "l") // more than the server takes, and its transport
	w.put("large", large)
	larger := workload.Incompressible(1600<<10, "l")
	w.put("larger", larger)
	_, err := w.client(chunker.Config{Threshold: 100, ReservedPrefix: "other/"}, "").Put(t.Context(), "prefix", value)
	require.NoError(t, err)
	_, err = w.plain.Delete(t.Context(), "\x00kvw/damaged", clientv3.WithPrefix())
	require.NoError(t, err)
	for range 2 {
		code, stdout, stderr := w.unwrap()
		require.Equal(t, exitFailed, code)
		require.Regexp(t, `(?s)\nNot unwrapped:
  "damaged", 1\.00 KB: chunker: damaged value: .* missing.*
  "envelope", \d+ B: the value is an envelope itself: .*
  "large", 5\.24 MB: .*: raise the server's --max-request-bytes
  "larger", 1\.64 MB: etcdserver: request is too large: raise the server's --max-request-bytes
  "nested", 11 B: the value is an envelope itself: .*
  "prefix", 1\.00 KB: chunker: reserved prefix mismatch: .*
$`, stdout)
		require.Contains(t, stderr, "shapecheck: 6 of the values could not be unwrapped\n")
	}
	for key, value := range map[string]string{"large": large, "larger": larger} {
		resp, err := w.cli.Get(t.Context(), key)
		require.NoError(t, err)
		require.True(t, value == string(resp.Kvs[0].Value))
	}
	require.Equal(t, value, w.all()["value"])
	require.Equal(t, value, w.all()["zzz"])
	code, stdout, stderr := w.unwrap("--reserved-prefix", "other/")
	require.Equal(t, exitFailed, code)
	require.Contains(t, stdout, "Unwrapped: values: 1, together 1.00 KB", stderr)
	require.Equal(t, value, w.all()["prefix"])
}

// TestUnwrapMeanwhile has others write while it runs.
func TestUnwrapMeanwhile(t *testing.T) {
	w := newWrapped(t, chunker.Config{Threshold: 100}, nil)
	value := func(s string) string { return workload.Text(1000, s) }
	put := func(cli *clientv3.Client, key, value string, opts ...clientv3.OpOption) error {
		_, err := cli.Put(t.Context(), key, value, opts...)
		return err
	}
	for name, c := range map[string]struct {
		write func() error
		want  map[string]string
	}{
		"a put":          {func() error { return put(w.cli, "a", value("new")) }, map[string]string{"a": value("new"), "b": value("b")}},
		"a small put":    {func() error { return put(w.cli, "a", "small") }, map[string]string{"a": "small", "b": value("b")}},
		"a plain put":    {func() error { return put(w.plain, "a", "plain") }, map[string]string{"a": "plain", "b": value("b")}},
		"a delete":       {func() error { _, err := w.cli.Delete(t.Context(), "a"); return err }, map[string]string{"b": value("b")}},
		"the same again": {func() error { return put(w.cli, "a", "", clientv3.WithIgnoreValue()) }, map[string]string{"a": value("a"), "b": value("b")}},
		"another unwrap": {func() error { w.unwrap(); return nil }, map[string]string{"a": value("a"), "b": value("b")}},
	} {
		t.Run(name, func(t *testing.T) {
			w.cluster.Wipe(t)
			w.put("a", value("a"))
			w.put("b", value("b"))
			code, _, stderr := w.unwrapAt("unwrapping 0 of 2\n", func(func()) { require.NoError(t, c.write()) })
			require.Equal(t, exitOK, code, stderr)
			all := w.all()
			for key := range all {
				if strings.HasPrefix(key, "\x00kvw/") {
					require.Equal(t, "a plain put", name, "chunks that nobody can know of are left")
					delete(all, key)
				}
			}
			require.Equal(t, c.want, all)
		})
	}

	w.put("a", value("a"))
	code, _, stderr := w.unwrapAt("values that are left", func(func()) { w.put("c", value("c")) })
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "somebody has written chunks meanwhile: values: 1, together 1.00 KB, the largest 1.00 KB: set Chunk.ReadOnly")
	code, stdout, stderr := w.unwrap()
	require.Equal(t, exitOK, code, stderr)
	require.Contains(t, stdout, "Unwrapped: values: 1,")
}

// overtaking is a KV that is slow to read: something is done before it answers.
type overtaking struct {
	clientv3.KV
	do func()
}

func (o overtaking) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	resp, err := o.KV.Get(ctx, key, opts...)
	o.do()
	return resp, err
}

// TestUnwrapOvertaken has another write between the read of a value and its put.
func TestUnwrapOvertaken(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	space, err := (&spaceFlags{reservedPrefix: `\x00kvw/`}).keyspace()
	require.NoError(t, err)
	w.put("k", workload.Text(300<<10, "0"))
	found, err := w.plain.Get(t.Context(), "k")
	require.NoError(t, err)
	writes := 0
	u := &unwrapping{space: space, stored: w.plain, whole: overtaking{w.cli, func() {
		if writes++; writes < 4 {
			w.put("k", workload.Text(300<<10, fmt.Sprint(writes)))
		}
	}}}
	require.NoError(t, u.unwrap(t.Context(), found.Kvs[0]))
	w.requireAll(map[string]string{"k": workload.Text(300<<10, "3")})
	require.Equal(t, 1, u.done.values)
}

func TestUnwrapInterrupted(t *testing.T) {
	w := newWrapped(t, chunker.Config{Threshold: 100}, nil)
	want := make(map[string]string)
	for i := range 100 {
		key := fmt.Sprint(i)
		want[key] = workload.Text(1000, key)
		w.put(key, want[key])
	}
	code, stdout, stderr := w.unwrapAt("unwrapping 50 of 100\n", func(cancel func()) { cancel() })
	require.Equal(t, exitInterrupted, code)
	require.Contains(t, stdout, "Unwrapped: values: 50,")
	require.True(t, strings.HasSuffix(stderr, "\nshapecheck: interrupted\n"), stderr)
	code, stdout, stderr = w.unwrap()
	require.Equal(t, exitOK, code, stderr)
	require.Contains(t, stdout, "Unwrapped: values: 50,")
	w.requireAll(want)
}

func TestUnwrapANamespace(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, nil)
	cli, value := w.client(chunker.Config{}, "app/"), workload.Text(300<<10, "v")
	_, err := cli.Put(t.Context(), "k", value)
	require.NoError(t, err)
	code, stdout, _ := w.unwrap()
	require.Equal(t, exitFailed, code)
	require.Contains(t, stdout, "another namespace")
	code, _, stderr := w.unwrap("--namespace", "app/")
	require.Equal(t, exitOK, code, stderr)
	w.requireAll(map[string]string{"app/k": value})
}

func TestUnwrapKeepsOffAFullCluster(t *testing.T) {
	w := newWrapped(t, chunker.Config{}, func(cfg *embed.Config) { cfg.QuotaBackendBytes = 16 << 20 })
	for i := range 13 {
		w.put(fmt.Sprint(i), workload.Text(1<<20, "v"))
	}
	code, _, stderr := w.unwrap()
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "a quota of 16.8 MB, and up to 13.6 MB would be written: compact and defragment it, or raise its --quota-backend-bytes")
}
