// Package contract says what etcd's client does, as tests written from etcd's
// documentation and seen to pass on etcd's own client. Whatever stands in for
// that client has to pass them unchanged.
//
// Revisions are compared by their order, not by their distance: a KV may use
// more of them than there are calls.
package contract

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/protobuf/proto"
)

// Stack is what is under test, in the place of a client's own three. Without a
// Watcher, nothing of watches is run.
type Stack struct {
	clientv3.KV
	clientv3.Watcher
	clientv3.Lease

	// Disturb, where it is set, does something that no answer may depend on: a
	// sweep, a session that is lost. Differential calls it between other calls.
	Disturb func(context.Context) error
}

// Plain returns the client's own.
func Plain(cli *clientv3.Client) Stack {
	return Stack{KV: cli.KV, Watcher: cli.Watcher, Lease: cli.Lease}
}

// Open returns what is under test, over a client of its own.
type Open func(t *testing.T, cli *clientv3.Client) Stack

// Cluster is where cases are run.
type Cluster interface {
	// Client returns a new plain client, which is closed with the test.
	Client(testing.TB) *clientv3.Client
	// Wipe deletes all keys, reserved ones included.
	Wipe(testing.TB)
}

// Run runs all cases, each on an empty cluster, once with values of a few bytes
// and once with values of many.
func Run(t *testing.T, open Open) {
	RunOn(t, etcdtest.Start(t, 1, func(cfg *embed.Config) { cfg.WatchProgressNotifyInterval = 50 * time.Millisecond }), open)
}

// RunOn is Run on a cluster, whose members are to notify watches of their progress at least
// every 100 ms, without the sizes, small and large, and the cases whose names begin with one of
// skipped.
func RunOn(t *testing.T, cluster Cluster, open Open, skipped ...string) {
	skips := func(name string) bool {
		return slices.ContainsFunc(skipped, func(s string) bool { return strings.HasPrefix(name, s) })
	}
	for _, size := range []struct {
		name  string
		bytes int
	}{{"small", 0}, {"large", 90 << 10}} {
		if skips(size.name) {
			continue
		}
		t.Run(size.name, func(t *testing.T) {
			for _, c := range cases {
				if skips(c.name) {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					cluster.Wipe(t)
					c.run(&fixture{
						T: t, Assertions: require.New(t), ctx: t.Context(),
						Stack: open(t, cluster.Client(t)), bytes: size.bytes, named: make(map[string]string),
					})
				})
			}
		})
	}
}

type testCase struct {
	name string
	run  func(*fixture)
}

// cases are those of all files of the package.
var cases = join(putCases, getCases, streamCases, deleteCases, txnCases, compareCases, widthCases, keyCases, errorCases, leaseCases, watchCases)

func join(all ...[]testCase) (joined []testCase) {
	for _, cs := range all {
		joined = append(joined, cs...)
	}
	return joined
}

// fixture is what a case has at hand.
type fixture struct {
	*testing.T
	*require.Assertions
	Stack
	ctx   context.Context
	bytes int
	named map[string]string // what v has returned
}

// v returns the value of that name. Values sort as their names do, and are
// followed by as many bytes as the size that the case runs with.
func (f *fixture) v(name string) string {
	if f.bytes == 0 {
		return name
	}
	if f.named[name] == "" {
		f.named[name] = fmt.Sprintf("%-32s%s", name, workload.Text(f.bytes, name))
	}
	return f.named[name]
}

func (f *fixture) put(key, val string, opts ...clientv3.OpOption) *clientv3.PutResponse {
	f.Helper()
	resp, err := f.Put(f.ctx, key, val, opts...)
	f.NoError(err)
	f.header(resp.Header)
	return resp
}

func (f *fixture) get(key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	f.Helper()
	resp, err := f.Get(f.ctx, key, opts...)
	f.NoError(err)
	f.header(resp.Header)
	return resp
}

func (f *fixture) del(key string, opts ...clientv3.OpOption) *clientv3.DeleteResponse {
	f.Helper()
	resp, err := f.Delete(f.ctx, key, opts...)
	f.NoError(err)
	f.header(resp.Header)
	return resp
}

// stream returns what GetStream streams, joined, and in how many messages.
func (f *fixture) stream(key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	f.Helper()
	ch, err := f.GetStream(f.ctx, key, opts...)
	f.NoError(err)
	resp, err := clientv3.GetStreamToGetResponse(ch)
	f.NoError(err)
	return resp
}

func (f *fixture) txn(cmps []clientv3.Cmp, then, otherwise []clientv3.Op) *clientv3.TxnResponse {
	f.Helper()
	resp, err := f.Txn(f.ctx).If(cmps...).Then(then...).Else(otherwise...).Commit()
	f.NoError(err)
	f.header(resp.Header)
	return resp
}

// header checks that a header is that of a member's own answer.
func (f *fixture) header(h *pb.ResponseHeader) {
	f.Helper()
	f.NotNil(h)
	f.NotZero(h.ClusterId)
	f.NotZero(h.MemberId)
	f.NotZero(h.Revision)
	f.NotZero(h.RaftTerm)
}

func (f *fixture) lease() clientv3.LeaseID {
	f.Helper()
	resp, err := f.Grant(f.ctx, 600)
	f.NoError(err)
	return resp.ID
}

// value checks that key holds val and returns it.
func (f *fixture) value(key, val string) *mvccpb.KeyValue {
	f.Helper()
	resp := f.get(key)
	f.Len(resp.Kvs, 1, "key %q", key)
	f.equal(val, resp.Kvs[0].Value)
	return resp.Kvs[0]
}

// missing checks that there is no key.
func (f *fixture) missing(key string) {
	f.Helper()
	f.Empty(f.get(key).Kvs)
}

// equal compares values without printing megabytes.
func (f *fixture) equal(want string, got []byte) {
	f.Helper()
	if want != string(got) {
		f.Failf("wrong value", "want %d bytes %.40q, got %d bytes %.40q", len(want), want, len(got), got)
	}
}

// same checks that two answers to a get are equal.
func (f *fixture) same(want, got *clientv3.GetResponse) {
	f.Helper()
	f.Equal(keys(want.Kvs), keys(got.Kvs))
	f.True(proto.Equal((*pb.RangeResponse)(want), (*pb.RangeResponse)(got)), "headers %v, %v, counts %d, %d, more %v, %v",
		want.Header, got.Header, want.Count, got.Count, want.More, got.More)
}

// keys returns the keys of kvs.
func keys(kvs []*mvccpb.KeyValue) []string {
	names := make([]string, len(kvs))
	for i, kv := range kvs {
		names[i] = string(kv.Key)
	}
	return names
}

// values checks that kvs are those keys and values, in that order.
func (f *fixture) values(kvs []*mvccpb.KeyValue, keysAndValues ...string) {
	f.Helper()
	f.Len(kvs, len(keysAndValues)/2, "keys %q", keys(kvs))
	for i, kv := range kvs {
		f.Equal(keysAndValues[2*i], string(kv.Key))
		f.equal(keysAndValues[2*i+1], kv.Value)
	}
}
