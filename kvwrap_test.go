package kvwrap

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/contract"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { testutil.MustTestMainWithLeakDetection(m) }

// stacks are configurations under which a client has to be as a plain one is.
var stacks = map[string]Config{
	"default": {},
	"group":   {Rules: []Rule{{Coalesce: coalesce.GroupCommit, Transactions: true}}},
	"retry":   {Rules: []Rule{{Coalesce: coalesce.LastWriteWins, Transactions: true, Retry: true, Linger: time.Millisecond}}},
	"paced": {
		Budget: budget.Config{Rates: budget.Rates{Revisions: 20_000, Bytes: 1 << 30}},
		Rules:  []Rule{{Prefix: "a", Class: budget.Critical, Coalesce: coalesce.GroupCommit, Transactions: true}, {Prefix: "b", Class: budget.Elastic}},
	},
	"mixed": {
		Chunk: chunker.Config{Threshold: 5000},
		Rules: []Rule{
			{Prefix: "a", Coalesce: coalesce.GroupCommit, Transactions: true},
			{Prefix: "a\x00", Coalesce: coalesce.LastWriteWins, Transactions: true, Retry: true},
			{Prefix: "b", Coalesce: coalesce.LastWriteWins, Retry: true, FlushEvery: time.Hour},
		},
	},
}

func TestContract(t *testing.T) {
	for name, cfg := range stacks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.Run(t, open(cfg, nil))
		})
	}
	t.Run("write-behind", func(t *testing.T) {
		t.Parallel()
		contract.Run(t, open(Config{Rules: []Rule{{Coalesce: coalesce.LastWriteWins, FlushEvery: time.Millisecond}}}, func(kv *KV) clientv3.KV {
			return told{kv}
		}))
	})
}

func TestDifferential(t *testing.T) {
	for name, cfg := range stacks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.Differential(t, open(cfg, nil), open(cfg, nil), open(Config{}, nil))
		})
	}
	t.Run("write-behind", func(t *testing.T) {
		t.Parallel()
		// What waits is sent because of what is asked after it.
		cfg := Config{Rules: []Rule{{Coalesce: coalesce.GroupCommit, FlushEvery: time.Hour}}}
		contract.Differential(t, open(cfg, func(kv *KV) clientv3.KV { return untold{told{kv}} }))
	})
}

// open installs kvwrap. As, where it is not nil, stands in for its KV.
func open(cfg Config, as func(*KV) clientv3.KV) contract.Open {
	return func(t *testing.T, cli *clientv3.Client) contract.Stack {
		kv, err := Install(cli, cfg)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, kv.Close()) })
		s := contract.Stack{KV: cli.KV, Watcher: cli.Watcher, Lease: cli.Lease}
		if as != nil {
			s.KV = as(kv)
		}
		return s
	}
}

// told has all puts made by PutAsync, flushes, and waits for their promises.
type told struct{ *KV }

func (a told) Put(ctx context.Context, key, val string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	resp, err := a.Do(ctx, clientv3.OpPut(key, val, opts...))
	return resp.Put(), err
}

func (a told) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	if !op.IsPut() {
		return a.KV.Do(ctx, op)
	}
	type answer struct {
		resp *clientv3.PutResponse
		err  error
	}
	end := make(chan answer, 1)
	a.putAsync(ctx, wire.PutRequest(op), func(resp *clientv3.PutResponse, err error) { end <- answer{resp, err} })
	a.Flush(ctx) // its error is the promise's
	got := <-end
	return got.resp.OpResponse(), got.err
}

// untold has puts by Do wait for no promise, unless one may be refused or is to return
// something.
type untold struct{ told }

func (a untold) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	if !op.IsPut() {
		return a.KV.Do(ctx, op)
	}
	if r := wire.PutRequest(op); !r.PrevKv && !r.IgnoreValue && !r.IgnoreLease && r.Lease == 0 {
		a.putAsync(ctx, r, nil)
		return (&clientv3.PutResponse{}).OpResponse(), nil
	}
	return a.told.Do(ctx, op)
}

func statistics() string { return string(workload.NewGateway(1000, 1).Publish(0)) }

// stored returns the keys that are stored, chunks included.
func stored(t *testing.T, cli *clientv3.Client) (keys []string) {
	resp, err := cli.KV.Get(t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly())
	require.NoError(t, err)
	for _, kv := range resp.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

func TestNewLeavesTheClientAsItIs(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	cli := cluster.Client(t)
	plain, lease := cli.KV, cli.Lease
	kv, err := New(cli, Config{})
	require.NoError(t, err)
	require.True(t, cli.KV == plain && cli.Lease == lease)
	_, err = kv.Put(t.Context(), "k", statistics())
	require.NoError(t, err)
	require.Greater(t, len(stored(t, cli)), 100)
	require.NoError(t, kv.Close())
	require.NoError(t, kv.Close())
	require.Equal(t, chunker.Stats{Staged: 1}, kv.Stats().Chunk)
	_, err = kv.Put(t.Context(), "k", "small values go on")
	require.NoError(t, err)
	_, err = kv.Put(t.Context(), "k", statistics())
	require.ErrorIs(t, err, chunker.ErrClosed)
}

// TestInstall uses the client alone, as an application does that knows nothing of
// kvwrap but the one line.
func TestInstall(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	other := cluster.Client(t)
	cli, err := clientv3.New(clientv3.Config{Endpoints: cluster.Endpoints(), Logger: zap.NewNop()})
	require.NoError(t, err)
	kv, err := Install(cli, Config{})
	require.NoError(t, err)
	require.Same(t, kv, cli.KV)

	lease, err := cli.Grant(t.Context(), 600)
	require.NoError(t, err)
	value := statistics()
	_, err = cli.Put(t.Context(), "k", value, clientv3.WithLease(lease.ID))
	require.NoError(t, err)
	resp, err := cli.Get(t.Context(), "k")
	require.NoError(t, err)
	require.True(t, value == string(resp.Kvs[0].Value))

	for _, l := range []clientv3.Lease{cli.Lease, kv.Lease()} {
		attached, err := l.TimeToLive(t.Context(), lease.ID, clientv3.WithAttachedKeys())
		require.NoError(t, err)
		require.Equal(t, [][]byte{[]byte("k")}, attached.Keys)
	}
	plain, err := other.TimeToLive(t.Context(), lease.ID, clientv3.WithAttachedKeys())
	require.NoError(t, err)
	require.Len(t, plain.Keys, len(stored(t, other)), "the chunks have the lease of their key")

	held, err := other.Leases(t.Context())
	require.NoError(t, err)
	require.Len(t, held.Leases, 2, "the application's and the one of unfinished writes")
	require.NoError(t, cli.Close())
	require.NoError(t, kv.Close())
	held, err = other.Leases(t.Context())
	require.NoError(t, err)
	require.Len(t, held.Leases, 1, "closing the client revokes the lease of unfinished writes")

	_, err = other.Revoke(t.Context(), lease.ID)
	require.NoError(t, err)
	require.Empty(t, stored(t, other))
}

// TestWhatGoesPastIt is what makes a KV or a watcher of its own from the client.
func TestWhatGoesPastIt(t *testing.T) {
	cli := etcdtest.Start(t, 1, nil).Client(t)
	kv, err := Install(cli, Config{})
	require.NoError(t, err)
	defer kv.Close()
	watcher := clientv3.NewWatcher(cli)
	defer watcher.Close()
	events := watcher.Watch(t.Context(), "k", clientv3.WithCreatedNotify())
	<-events
	_, err = cli.Put(t.Context(), "k", statistics())
	require.NoError(t, err)
	resp, err := clientv3.NewKV(cli).Get(t.Context(), "k")
	require.NoError(t, err)
	const manifest = "\xffkvw\x01\x01"
	require.True(t, strings.HasPrefix(string(resp.Kvs[0].Value), manifest))
	require.True(t, strings.HasPrefix(string((<-events).Events[0].Kv.Value), manifest))
}

func TestANamespacedClient(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	plain, cli := cluster.Client(t), cluster.Client(t)
	cli.KV = namespace.NewKV(cli.KV, "app/")
	cli.Lease = namespace.NewLease(cli.Lease, "app/")
	kv, err := Install(cli, Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kv.Close()) })
	value := statistics()
	for _, key := range []string{"k", "l"} {
		_, err = cli.Put(t.Context(), key, value)
		require.NoError(t, err)
	}
	resp, err := cli.Get(t.Context(), "", clientv3.WithPrefix())
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 2)
	require.True(t, value == string(resp.Kvs[0].Value) && value == string(resp.Kvs[1].Value))
	for _, key := range stored(t, plain) {
		require.True(t, strings.HasPrefix(key, "app/"), "%q", key)
	}
	_, err = cli.Delete(t.Context(), "k")
	require.NoError(t, err)
	_, err = cli.Delete(t.Context(), "k", clientv3.WithFromKey())
	require.NoError(t, err)
	require.Empty(t, stored(t, plain))
}

// TestNothingIsSent makes and closes a KV where there is no server.
func TestNothingIsSent(t *testing.T) {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}, Logger: zap.NewNop()})
	require.NoError(t, err)
	kv, err := Install(cli, Config{})
	require.NoError(t, err)
	require.NoError(t, kv.Close())
	require.NoError(t, cli.Close())
}

func TestWhatCannotBeInstalled(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	cli := cluster.Client(t)
	plain := cli.KV

	for _, none := range []*clientv3.Client{nil, clientv3.NewCtxClient(context.Background())} {
		_, err := Install(none, Config{})
		require.ErrorContains(t, err, "make one with clientv3.New")
	}
	_, err := Install(cli, Config{Chunk: chunker.Config{MaxEntryBytes: 100, MaxValueBytes: -1}})
	require.ErrorIs(t, err, chunker.ErrConfig)
	require.ErrorContains(t, err, "MaxEntryBytes is 100")
	require.ErrorContains(t, err, "MaxValueBytes is -1")
	require.True(t, cli.KV == plain)

	kv, err := Install(cli, Config{})
	require.NoError(t, err)
	_, err = Install(cli, Config{})
	require.ErrorContains(t, err, "already")
	_, err = New(cli, Config{})
	require.ErrorContains(t, err, "already")
	require.Same(t, kv, cli.KV)
}

// TestDependencies holds what an application takes in with kvwrap: etcd's client,
// what that takes in itself, and two small libraries.
func TestDependencies(t *testing.T) {
	list := func(args ...string) []string {
		out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
		require.NoError(t, err)
		return strings.Fields(string(out))
	}
	const module = "github.com/kvwrap/kvwrap"
	var library []string
	for _, p := range list("./...") {
		if !strings.Contains(p, "/internal/") && !strings.Contains(p, "/cmd/") {
			library = append(library, p)
		}
	}
	require.Contains(t, library, module)
	require.Contains(t, library, module+"/chunker")

	ours := map[string]bool{}
	for _, p := range list(append([]string{"-deps"}, library...)...) {
		for _, never := range []string{"go.etcd.io/etcd/server/", "go.etcd.io/bbolt", "github.com/spf13/cobra", "github.com/stretchr/", "pgregory.net/"} {
			require.False(t, strings.HasPrefix(p, never), "%s is for tests and commands, not for the library", p)
		}
		ours[p] = strings.HasPrefix(p, module)
	}
	allowed := []string{
		module, "go.etcd.io/etcd/client/v3", "go.etcd.io/etcd/api/v3", "google.golang.org/grpc", "google.golang.org/protobuf",
		"github.com/klauspost/compress", "github.com/cespare/xxhash/v2", "golang.org/x/time/rate",
	}
	apart := map[string]string{ // packages of their own, so that nothing else imports these
		module + "/shaper/kvotel": "go.opentelemetry.io/otel",
		module + "/shaper/kvprom": "github.com/prometheus/client_golang/prometheus",
	}
	for p, own := range ours {
		if !own {
			continue
		}
		for _, imported := range list("-f", "{{join .Imports \" \"}}", p) {
			if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
				continue // the standard library
			}
			ok := false
			for _, a := range append(allowed, apart[p]) {
				ok = ok || a != "" && (imported == a || strings.HasPrefix(imported, a+"/"))
			}
			require.True(t, ok, "%s imports %s", p, imported)
		}
	}
}

// TestTheReadmeCompiles holds the README's examples to those that are compiled.
func TestTheReadmeCompiles(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	compiled, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	examples := strings.Split(string(readme), "```go\n")[1:]
	require.Len(t, examples, 5)
	for _, e := range examples {
		example, _, _ := strings.Cut(e, "```")
		require.Contains(t, string(compiled), example)
	}
}
