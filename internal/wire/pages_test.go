package wire

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// old is a server without streams, of some keys.
type old struct {
	pb.KVClient
	keys    []string
	size    int // of values
	most    int // bytes that the client takes, 0 for any
	behind  bool
	pages   int // that were answered
	counted int // keys that were looked at to count them
}

func (o *old) RangeStream(ctx context.Context, _ *pb.RangeRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	return &without{ctx: ctx}, nil
}

// without is the stream of a server that has none.
type without struct {
	grpc.ServerStreamingClient[pb.RangeStreamResponse]
	ctx context.Context
}

func (w *without) Recv() (*pb.RangeStreamResponse, error) {
	return nil, status.Error(codes.Unimplemented, "unknown method RangeStream for service etcdserverpb.KV")
}

func (o *old) Range(_ context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	if o.pages > 0 && r.Revision != 9 {
		return nil, fmt.Errorf("page %d is at revision %d", o.pages, r.Revision)
	}
	if o.behind && o.pages > 0 && r.Serializable {
		return nil, rpctypes.ErrFutureRev
	}
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 9}}
	size := 0
	from, _ := slices.BinarySearch(o.keys, string(r.Key))
	for _, key := range o.keys[from:] {
		if end := string(r.RangeEnd); end == "" && key != string(r.Key) || end != "" && end != "\x00" && key >= end {
			break
		}
		o.counted++
		if resp.Count++; r.CountOnly || r.Limit > 0 && resp.Count > r.Limit {
			resp.More = !r.CountOnly
			continue
		}
		size += o.size
		resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: []byte(key), Value: make([]byte, o.size)})
	}
	if o.most > 0 && size > o.most {
		return nil, status.Error(codes.ResourceExhausted, "grpc: received message larger than max")
	}
	o.pages++
	return resp, nil
}

// all reads a stream, and checks that only the last message says what is known of all.
func all(t require.TestingT, s grpc.ServerStreamingClient[pb.RangeStreamResponse]) *pb.RangeResponse {
	joined, ended := &pb.RangeResponse{}, false
	for {
		m, err := s.Recv()
		if err == io.EOF {
			require.True(t, ended)
			return joined
		}
		require.NoError(t, err)
		require.False(t, ended)
		ended = m.RangeResponse.Header != nil
		require.True(t, ended || len(m.RangeResponse.Kvs) > 0 && m.RangeResponse.Count == 0 && !m.RangeResponse.More)
		proto.Merge(joined, m.RangeResponse)
	}
}

// TestAStreamOfPages compares a stream of pages with the one answer to the same request.
func TestAStreamOfPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := &old{
			size:   rapid.SampledFrom([]int{0, 10, 3000, 300_000}).Draw(t, "size"),
			behind: rapid.Bool().Draw(t, "behind"),
		}
		if rapid.Bool().Draw(t, "small messages") {
			o.most = 2 * o.size
		}
		key := rapid.OneOf(
			rapid.StringMatching(`[ab]{1,3}`),
			rapid.StringMatching(`objects/[0-9]{1,12}`),
			rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 12), func(b []byte) string { return string(b) }),
		)
		o.keys = rapid.SliceOfNDistinct(key, 0, 200, rapid.ID).Draw(t, "keys")
		slices.Sort(o.keys)
		r := &pb.RangeRequest{
			Key: []byte(key.Draw(t, "key")), Limit: rapid.Int64Range(0, 250).Draw(t, "limit"),
			Serializable: rapid.Bool().Draw(t, "serializable"), CountOnly: rapid.IntRange(0, 9).Draw(t, "count only") == 0,
		}
		switch rapid.IntRange(0, 3).Draw(t, "range") {
		case 0:
			r.Key, r.RangeEnd = []byte{0}, []byte{0}
		case 1:
			r.RangeEnd = []byte{0}
		case 2:
			r.RangeEnd = []byte(key.Draw(t, "end"))
		}
		want, err := (&old{keys: o.keys, size: o.size}).Range(t.Context(), r)
		require.NoError(t, err)
		s, err := Client(clientv3.NewKVFromKVClient(o, nil)).RangeStream(t.Context(), r)
		require.NoError(t, err)
		got := all(t, s)
		require.True(t, proto.Equal(want, got), "%d and %d keys, %v, %v", len(want.Kvs), len(got.Kvs), want.Header, got.Header)
	})
}

// TestPagesAreNotCountedAgain reads many keys: what the server looks at is what there is, a few
// times over.
func TestPagesAreNotCountedAgain(t *testing.T) {
	o := &old{size: 100}
	for i := range 300_000 {
		switch i % 3 {
		case 0:
			o.keys = append(o.keys, fmt.Sprintf("objects/%08d", i))
		case 1:
			o.keys = append(o.keys, fmt.Sprintf("offsets/orders/%d/offset", i))
		default:
			o.keys = append(o.keys, "z"+string(binary.BigEndian.AppendUint64(nil, uint64(i)*0x9e3779b97f4a7c15)))
		}
	}
	slices.Sort(o.keys)
	s, err := Client(clientv3.NewKVFromKVClient(o, nil)).RangeStream(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	require.NoError(t, err)
	require.Len(t, all(t, s).Kvs, len(o.keys))
	t.Logf("%d keys in %d pages, for which %d were counted", len(o.keys), o.pages, o.counted)
	require.Less(t, o.counted, 8*len(o.keys))
	require.Less(t, o.pages, 1000)
}

// TestWhatNoServerStreams is refused where the server has no streams as well.
func TestWhatNoServerStreams(t *testing.T) {
	o := &old{keys: []string{"a"}}
	c := Client(clientv3.NewKVFromKVClient(o, nil))
	for _, r := range []*pb.RangeRequest{
		{SortOrder: pb.RangeRequest_DESCEND}, {SortOrder: pb.RangeRequest_ASCEND, SortTarget: pb.RangeRequest_VALUE},
		{MinModRevision: 1}, {MaxModRevision: 1}, {MinCreateRevision: 1}, {MaxCreateRevision: 1},
	} {
		r.Key = []byte("a")
		s, err := c.RangeStream(t.Context(), r)
		require.NoError(t, err)
		_, err = s.Recv()
		require.Equal(t, codes.Unimplemented, status.Code(err))
	}
	require.Zero(t, o.pages)
}
