package dial_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// dialed returns a client of a cluster of its own with the stages in its connection, and a
// plain one.
func dialed(t *testing.T, more ...grpc.DialOption) (cli, plain *clientv3.Client) {
	cluster := etcdtest.Start(t, 1, nil)
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: cluster.Endpoints(), Logger: zap.NewNop(), DialOptions: append(kvwrap.DialOptions(kvwrap.Config{}), more...),
	})
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	return cli, cluster.Client(t)
}

// raw is a stream of watches as the protocol has it.
type raw struct {
	*testing.T
	pb.Watch_WatchClient
}

func watchStream(t *testing.T, ctx context.Context, cli *clientv3.Client) raw {
	s, err := pb.NewWatchClient(cli.ActiveConnection()).Watch(ctx)
	require.NoError(t, err)
	return raw{t, s}
}

func (s raw) create(r *pb.WatchCreateRequest) {
	s.Helper()
	require.NoError(s, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}))
}

func (s raw) next() *pb.WatchResponse {
	s.Helper()
	resp, err := s.Recv()
	require.NoError(s, err)
	return resp
}

func key(k string) []byte { return []byte(k) }

// TestAStreamOfManyWatches asks for watches without waiting for the answers: these come in
// order, refusals among them, with the identifiers that were asked for.
func TestAStreamOfManyWatches(t *testing.T) {
	cli, _ := dialed(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := watchStream(t, ctx, cli)
	for range 20 {
		s.create(&pb.WatchCreateRequest{Key: key("\x00kvw/x")})
		s.create(&pb.WatchCreateRequest{Key: key("a"), WatchId: 40})
		s.create(&pb.WatchCreateRequest{Key: key("\x00kvw/y")})
		s.create(&pb.WatchCreateRequest{Key: key("a"), WatchId: 40}) // which is in use
		s.create(&pb.WatchCreateRequest{Key: key("a"), RangeEnd: key("c")})
		for i, refused := range []string{"reserved key", "", "reserved key", "duplicate", ""} {
			resp := s.next()
			require.True(t, resp.Created, "%d: %v", i, resp)
			require.Equal(t, refused != "", resp.Canceled, "%d: %v", i, resp)
			require.Contains(t, resp.CancelReason, refused)
			if resp.Canceled {
				require.EqualValues(t, clientv3.InvalidWatchID, resp.WatchId)
			} else if i == 1 {
				require.EqualValues(t, 40, resp.WatchId)
			} else {
				require.NotEqual(t, 40, resp.WatchId)
				// Both see it, each for itself.
				value := workload.Text(200<<10, fmt.Sprint(i))
				_, err := cli.Put(t.Context(), "a", value)
				require.NoError(t, err)
				for range 2 {
					es := s.next().Events
					require.Len(t, es, 1)
					require.True(t, value == string(es[0].Kv.Value))
				}
				for _, id := range []int64{40, resp.WatchId} {
					require.NoError(t, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}))
					end := s.next()
					require.True(t, end.Canceled)
					require.Equal(t, id, end.WatchId)
				}
			}
		}
	}
	s.create(&pb.WatchCreateRequest{Key: key("a")})
	require.True(t, s.next().Created)
	cancel()
	_, err := s.Recv()
	require.Equal(t, codes.Canceled, status.Code(err), "%v", err)
	require.Error(t, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: key("a")}}}))
}

// TestADamagedValueEndsItsWatchAlone has two watches on one stream, and a value that cannot be
// read for one of them.
func TestADamagedValueEndsItsWatchAlone(t *testing.T) {
	cli, plain := dialed(t)
	ctx := t.Context()
	s := watchStream(t, ctx, cli)
	s.create(&pb.WatchCreateRequest{Key: key("a"), WatchId: 1})
	s.create(&pb.WatchCreateRequest{Key: key("b"), WatchId: 2})
	for range 2 {
		require.True(t, s.next().Created)
	}
	_, err := plain.Put(ctx, "a", "\xffkvw of a later version")
	require.NoError(t, err)
	end := s.next()
	require.True(t, end.Canceled)
	require.EqualValues(t, 1, end.WatchId)
	require.Contains(t, end.CancelReason, "chunker: ")
	_, err = cli.Get(ctx, "a")
	require.EqualError(t, err, end.CancelReason)

	// The server does not go on with it, and its identifier is free.
	_, err = plain.Put(ctx, "a", "1")
	require.NoError(t, err)
	_, err = cli.Put(ctx, "b", "1")
	require.NoError(t, err)
	resp := s.next()
	require.EqualValues(t, 2, resp.WatchId)
	require.Equal(t, "1", string(resp.Events[0].Kv.Value))
	s.create(&pb.WatchCreateRequest{Key: key("a"), WatchId: 1})
	require.True(t, s.next().Created)

	// etcd's watcher ends it, too.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := cli.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	require.True(t, (<-watch).Created)
	_, err = plain.Put(ctx, "a", "\xffkvw of a later version")
	require.NoError(t, err)
	for resp := range watch {
		require.Empty(t, resp.Events)
	}
}

// TestProgressOfAStream asks for the progress of a stream: it comes behind what there is.
func TestProgressOfAStream(t *testing.T) {
	cli, _ := dialed(t)
	ctx := t.Context()
	s := watchStream(t, ctx, cli)
	s.create(&pb.WatchCreateRequest{Key: key("a"), Fragment: true})
	s.create(&pb.WatchCreateRequest{Key: key("b")})
	for range 2 {
		require.True(t, s.next().Created)
	}
	for i := range 5 {
		value := workload.Text(300<<10, fmt.Sprint(i))
		put, err := cli.Put(ctx, "a", value)
		require.NoError(t, err)
		require.NoError(t, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}))
		seen, reached := false, map[int64]bool{}
		for len(reached) < 2 {
			resp := s.next()
			if len(resp.Events) > 0 {
				require.True(t, bytes.Equal(resp.Events[0].Kv.Value, []byte(value)))
				seen = true
				continue
			}
			require.GreaterOrEqual(t, resp.WatchId, int64(0))
			if resp.Header.Revision >= put.Header.Revision {
				require.True(t, seen || resp.WatchId != 0)
				reached[resp.WatchId] = true
			}
		}
	}
}

// TestACancelIsAnsweredOnce, also where the chain ends the watch at the same time, and then the
// identifier is free.
func TestACancelIsAnsweredOnce(t *testing.T) {
	cli, plain := dialed(t)
	s := watchStream(t, t.Context(), cli)
	for i := range 100 {
		name := fmt.Sprint("a", i)
		s.create(&pb.WatchCreateRequest{Key: []byte(name), WatchId: 7})
		created := s.next()
		require.True(t, created.Created && !created.Canceled, "%v", created)
		put := make(chan error, 1)
		go func() {
			_, err := plain.Put(t.Context(), name, "\xffkvw of a later version")
			put <- err
		}()
		if i%2 == 0 { // the chain may be first
			require.NoError(t, <-put)
			put <- nil
		}
		require.NoError(t, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 7}}}))
		end := s.next()
		require.True(t, end.Canceled && end.WatchId == 7, "%v", end)
		require.NoError(t, <-put)
	}
}
