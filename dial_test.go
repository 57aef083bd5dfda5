package kvwrap

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/contract"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// dialedTo returns a client of the endpoints of cli, made with DialOptions.
func dialedTo(t testing.TB, cli *clientv3.Client, cfg Config) *clientv3.Client {
	t.Helper()
	dialed, err := clientv3.New(clientv3.Config{
		Endpoints: cli.Endpoints(), Logger: zap.NewNop(), DialOptions: DialOptions(cfg),
	})
	require.NoError(t, err)
	t.Cleanup(func() { dialed.Close() })
	return dialed
}

// openDialed is open with DialOptions in place of Install.
func openDialed(cfg Config) contract.Open {
	return func(t *testing.T, cli *clientv3.Client) contract.Stack {
		return contract.Plain(dialedTo(t, cli, cfg))
	}
}

func TestContractDialed(t *testing.T) {
	for _, name := range []string{"default", "mixed"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract.Run(t, openDialed(stacks[name]))
		})
	}
}

// TestDialedAndInstalledDoNotDiffer has clients of both kinds take turns: each reads what the
// other has written.
func TestDialedAndInstalledDoNotDiffer(t *testing.T) {
	t.Parallel()
	contract.Differential(t, openDialed(Config{}), open(Config{}, nil), openDialed(stacks["mixed"]))
}

// TestWhateverIsMadeOfADialedClient uses what goes past the fields of a client.
func TestWhateverIsMadeOfADialedClient(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	plain := cluster.Client(t)
	ctx := t.Context()
	cli := dialedTo(t, plain, Config{})
	value, large := statistics(), statistics()+"."
	has := func(want string, kvs []*mvccpb.KeyValue) {
		t.Helper()
		require.Len(t, kvs, 1)
		require.True(t, want == string(kvs[0].Value))
	}

	watch := clientv3.NewWatcher(cli).Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithPrevKV())
	kv := clientv3.NewKV(cli)
	lease, err := clientv3.NewLease(cli).Grant(ctx, 600)
	require.NoError(t, err)
	_, err = kv.Put(ctx, "k", value, clientv3.WithLease(lease.ID))
	require.NoError(t, err)
	require.Greater(t, len(stored(t, plain)), 100)
	got, err := kv.Get(ctx, "k")
	require.NoError(t, err)
	has(value, got.Kvs)
	attached, err := clientv3.NewLease(cli).TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	require.NoError(t, err)
	require.Equal(t, [][]byte{[]byte("k")}, attached.Keys)

	resp, err := pb.NewKVClient(cli.ActiveConnection()).Range(ctx, &pb.RangeRequest{Key: []byte("k")})
	require.NoError(t, err)
	has(value, resp.Kvs)
	_, err = pb.NewKVClient(cli.ActiveConnection()).Range(ctx, &pb.RangeRequest{})
	require.Equal(t, codes.InvalidArgument, status.Code(err), "%v", err)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = pb.NewKVClient(cli.ActiveConnection()).Range(ended, &pb.RangeRequest{Key: []byte("k")})
	require.Equal(t, codes.Canceled, status.Code(err), "%v", err)

	k8s, err := kubernetes.New(clientv3.Config{Endpoints: cluster.Endpoints(), Logger: zap.NewNop(), DialOptions: DialOptions(Config{})})
	require.NoError(t, err)
	defer k8s.Close()
	object, err := k8s.Kubernetes.Get(ctx, "k", kubernetes.GetOptions{})
	require.NoError(t, err)
	require.True(t, value == string(object.KV.Value))
	put, err := k8s.Kubernetes.OptimisticPut(ctx, "k", []byte(large), object.KV.ModRevision, kubernetes.PutOptions{GetOnFailure: true})
	require.NoError(t, err)
	require.True(t, put.Succeeded)
	put, err = k8s.Kubernetes.OptimisticPut(ctx, "k", nil, object.KV.ModRevision, kubernetes.PutOptions{GetOnFailure: true})
	require.NoError(t, err)
	require.False(t, put.Succeeded)
	require.True(t, large == string(put.KV.Value))
	list, err := k8s.Kubernetes.List(ctx, "k", kubernetes.ListOptions{})
	require.NoError(t, err)
	has(large, list.Kvs)

	for _, want := range []struct{ value, previous string }{{value, ""}, {large, value}} {
		resp := <-watch
		require.NoError(t, resp.Err())
		require.Len(t, resp.Events, 1)
		require.True(t, want.value == string(resp.Events[0].Kv.Value))
		require.True(t, want.previous == string(resp.Events[0].PrevKv.GetValue()))
	}

	installed := cluster.Client(t)
	_, err = Install(installed, Config{})
	require.NoError(t, err)
	got, err = installed.Get(ctx, "k")
	require.NoError(t, err)
	has(large, got.Kvs)
	_, err = installed.Put(ctx, "k", value)
	require.NoError(t, err)
	got, err = kv.Get(ctx, "k")
	require.NoError(t, err)
	has(value, got.Kvs)

	// A namespace is above the connection, and so are its keys.
	space := namespace.NewKV(cli.KV, "app/")
	_, err = space.Put(ctx, "k", large)
	require.NoError(t, err)
	got, err = namespace.NewKV(installed.KV, "app/").Get(ctx, "k")
	require.NoError(t, err)
	has(large, got.Kvs)
	got, err = cli.Get(ctx, "app/k")
	require.NoError(t, err)
	has(large, got.Kvs)
	_, err = space.Delete(ctx, "k")
	require.NoError(t, err)
	_, err = kv.Delete(ctx, "k")
	require.NoError(t, err)
	for _, key := range stored(t, plain) {
		require.True(t, strings.HasPrefix(key, "\x00kvw/!"), "%q", key)
	}
}

// TestDialed uses what a KV has beside etcd's methods.
func TestDialed(t *testing.T) {
	cluster := etcdtest.Start(t, 1, etcdtest.Advertise(t, 1))
	plain := cluster.Client(t)
	ctx := t.Context()
	options := DialOptions(Config{
		Rules:    []Rule{{Prefix: "behind/", Coalesce: coalesce.LastWriteWins, FlushEvery: time.Hour}},
		Coalesce: coalesce.Config{CloseTimeout: 100 * time.Millisecond},
		Budget:   budget.Config{Retention: time.Hour},
	})
	dialedBy := func() (*clientv3.Client, *KV) {
		cli, err := clientv3.New(clientv3.Config{Endpoints: cluster.Endpoints(), Logger: zap.NewNop(), DialOptions: options})
		require.NoError(t, err)
		t.Cleanup(func() { cli.Close() })
		kv, err := Dialed(cli)
		require.NoError(t, err)
		return cli, kv
	}
	cli, kv := dialedBy()
	other, otherKV := dialedBy()
	_, err := cli.Put(ctx, "k", statistics())
	require.NoError(t, err)
	again, err := Dialed(cli)
	require.NoError(t, err)
	require.EqualValues(t, 1, again.Stats().Chunk.Staged)
	require.Zero(t, otherKV.Stats().Chunk.Staged, "clients of the same options have stages of their own")

	kv.PutAsync(ctx, "behind/a", "1", nil)
	got, err := clientv3.NewKV(cli).Get(ctx, "behind/a")
	require.NoError(t, err)
	require.Len(t, got.Kvs, 1, "a read has what waits be written")
	kv.PutAsync(ctx, "behind/b", "1", nil)
	require.NoError(t, kv.Flush(ctx))
	got, err = other.Get(ctx, "behind/b")
	require.NoError(t, err)
	require.Len(t, got.Kvs, 1)
	report, err := kv.Report(ctx)
	require.NoError(t, err)
	require.Len(t, report.Members, 1)
	require.Empty(t, report.Members[0].Error)
	swept, err := kv.Sweep(ctx)
	require.NoError(t, err)
	require.Zero(t, swept.Deleted)

	held, err := plain.Leases(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, held.Leases)
	require.NoError(t, kv.Close())
	require.NoError(t, otherKV.Close())
	held, err = plain.Leases(ctx)
	require.NoError(t, err)
	require.Empty(t, held.Leases)
	_, err = cli.Put(ctx, "small", "small values go on")
	require.NoError(t, err)
	_, err = cli.Put(ctx, "new", statistics())
	require.ErrorIs(t, err, chunker.ErrClosed)

	// Without a Close of the KV nothing is left running either, and what waits is told.
	late, lateKV := dialedBy()
	end := make(chan error, 1)
	lateKV.PutAsync(ctx, "behind/c", "1", func(_ *clientv3.PutResponse, err error) { end <- err })
	require.NoError(t, late.Close())
	require.Error(t, <-end)
}

func TestWhatCannotBeDialed(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	plain := cluster.Client(t)
	ctx := t.Context()
	for _, none := range []*clientv3.Client{nil, clientv3.NewCtxClient(ctx), plain} {
		_, err := Dialed(none)
		require.ErrorIs(t, err, errNotDialed)
	}

	wrong := dialedTo(t, plain, Config{Chunk: chunker.Config{MaxEntryBytes: 100}})
	_, err := Dialed(wrong)
	require.ErrorIs(t, err, chunker.ErrConfig)
	_, err = wrong.Put(ctx, "k", "v")
	require.ErrorIs(t, err, chunker.ErrConfig)
	stream, err := wrong.GetStream(ctx, "k")
	if err == nil {
		_, err = clientv3.GetStreamToGetResponse(stream)
	}
	require.ErrorIs(t, err, chunker.ErrConfig)
	resp := <-wrong.Watch(ctx, "k")
	require.ErrorIs(t, resp.Err(), chunker.ErrConfig)
	_, err = wrong.MemberList(ctx)
	require.NoError(t, err, "what is no business of the stages")

	budgeted := dialedTo(t, plain, Config{Budget: budget.Config{Retention: time.Hour}})
	_, err = budgeted.Put(ctx, "k", "v")
	require.ErrorIs(t, err, budget.ErrConfig)
	require.ErrorContains(t, err, "call Dialed")
	_, err = Dialed(budgeted)
	require.NoError(t, err)
	_, err = budgeted.Put(ctx, "k", "v")
	require.NoError(t, err)

	// Both ways at once.
	twice := dialedTo(t, plain, Config{})
	_, err = Install(twice, Config{})
	require.NoError(t, err, "it cannot know")
	_, err = twice.Put(ctx, "k", statistics())
	require.ErrorContains(t, err, "DialOptions")
	resp = <-twice.Watch(ctx, "k")
	require.ErrorContains(t, resp.Err(), "DialOptions")
	require.Equal(t, []string{"k"}, stored(t, plain))

	// The options twice is once.
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: plain.Endpoints(), Logger: zap.NewNop(), DialOptions: append(DialOptions(Config{}), DialOptions(Config{})...),
	})
	require.NoError(t, err)
	defer cli.Close()
	_, err = cli.Put(ctx, "k", statistics())
	require.NoError(t, err)
	got, err := cli.Get(ctx, "k")
	require.NoError(t, err)
	require.True(t, statistics() == string(got.Kvs[0].Value))
}

// TestNothingIsSentToDial makes a KV where there is no server.
func TestNothingIsSentToDial(t *testing.T) {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}, Logger: zap.NewNop(), DialOptions: DialOptions(Config{})})
	require.NoError(t, err)
	kv, err := Dialed(cli)
	require.NoError(t, err)
	require.NoError(t, kv.Close())
	require.NoError(t, cli.Close())
}

// TestDialedWithAPassword has tokens that the server does not know any more renewed by the
// client, for what the application asks and for what the stages do.
func TestDialedWithAPassword(t *testing.T) {
	cluster, root := etcdtest.StartAuth(t)
	from, to, err := chunker.Config{}.ChunkRange("app/", "app0")
	require.NoError(t, err)
	cluster.AddUser(t, root, "app",
		etcdtest.Permission{Key: "app/", RangeEnd: "app0", Type: clientv3.PermissionType(clientv3.PermReadWrite)},
		etcdtest.Permission{Key: from, RangeEnd: to, Type: clientv3.PermissionType(clientv3.PermReadWrite)})
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: cluster.Endpoints(), Username: "app", Password: "app", Logger: zap.NewNop(), DialOptions: DialOptions(Config{}),
	})
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	kv, err := Dialed(cli)
	require.NoError(t, err)
	watch := cli.Watch(t.Context(), "app/", clientv3.WithPrefix())
	for i := range 3 {
		value := statistics() + strconv.Itoa(i)
		_, err = cli.Put(t.Context(), "app/k", value)
		require.NoError(t, err)
		_, err = root.UserChangePassword(t.Context(), "app", "app") // its tokens are gone
		require.NoError(t, err)
		got, err := cli.Get(t.Context(), "app/k")
		require.NoError(t, err)
		require.True(t, value == string(got.Kvs[0].Value))
		stream, err := cli.GetStream(t.Context(), "app/", clientv3.WithPrefix())
		require.NoError(t, err)
		all, err := clientv3.GetStreamToGetResponse(stream)
		require.NoError(t, err)
		require.True(t, value == string(all.Kvs[0].Value))
		resp := <-watch
		require.NoError(t, resp.Err())
		require.True(t, value == string(resp.Events[0].Kv.Value))
		_, err = root.UserChangePassword(t.Context(), "app", "app")
		require.NoError(t, err)
	}
	_, err = cli.Get(t.Context(), "other")
	require.Equal(t, rpctypes.ErrPermissionDenied, err)
	require.NoError(t, kv.Close())
}
