package chunker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

// between is a stage that lets a test act, once, between two steps of a call. Its
// function is called, by one goroutine at a time, until it says that it has acted.
type between struct {
	pb.KVClient
	sending  func(*pb.TxnRequest) (acted bool)
	answered func(*pb.TxnRequest, *pb.TxnResponse) (acted bool)
	opening  func(n int) (acted bool) // the nth stream
	received func() (acted bool)      // a message of a stream

	mu     sync.Mutex
	acted  bool
	opened int
}

func (b *between) act(f func() (acted bool)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acted = b.acted || f()
}

func (b *between) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if b.sending != nil {
		b.act(func() bool { return b.sending(r) })
	}
	resp, err := b.KVClient.Txn(ctx, r, opts...)
	if err == nil && b.answered != nil {
		b.act(func() bool { return b.answered(r, resp) })
	}
	return resp, err
}

func (b *between) RangeStream(ctx context.Context, r *pb.RangeRequest, opts ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	if b.opened++; b.opening != nil {
		b.act(func() bool { return b.opening(b.opened) })
	}
	s, err := b.KVClient.RangeStream(ctx, r, opts...)
	return betweenMessages{s, b}, err
}

type betweenMessages struct {
	grpc.ServerStreamingClient[pb.RangeStreamResponse]
	b *between
}

func (s betweenMessages) Recv() (*pb.RangeStreamResponse, error) {
	m, err := s.ServerStreamingClient.Recv()
	if err == nil && s.b.received != nil {
		s.b.act(s.b.received)
	}
	return m, err
}

// interposed returns a chunker over b, which is over a client of e.
func (e *env) interposed(b *between, cfg Config) *KV {
	cli := e.cluster.Client(e)
	if b.KVClient == nil {
		b.KVClient = wire.Client(cli.KV)
	}
	cfg.Lease = cli.Lease
	s, err := New(b, cfg)
	require.NoError(e, err)
	e.Cleanup(func() { require.NoError(e, s.Close()) })
	return &KV{KV: clientv3.NewKVFromKVClient(s, nil), stage: s}
}

// compact compacts all but the newest revision.
func (e *env) compact() {
	resp := e.put("compacted", "")
	_, err := e.cli.Compact(e.ctx, resp.Header.Revision)
	require.NoError(e, err)
}

// puts reports whether r puts key.
func puts(r *pb.TxnRequest, key string) bool {
	for p := range anywhere.puts(r) {
		if string(p.Key) == key {
			return true
		}
	}
	return false
}

// TestAMoveMeetsAWrite moves a value to another lease while it is replaced: what
// is moved is the new value.
func TestAMoveMeetsAWrite(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	e.put("k", text(200<<10, "one"))
	kv := e.interposed(&between{sending: func(r *pb.TxnRequest) bool {
		if !puts(r, "k") {
			return false
		}
		e.put("k", text(200<<10, "two"))
		return true
	}}, Config{})
	_, err := kv.Put(e.ctx, "k", "", clientv3.WithIgnoreValue(), clientv3.WithLease(e.grant()))
	require.NoError(t, err)
	e.holds("k", text(200<<10, "two"))
	require.Empty(t, e.orphans())
}

// TestARangeComparisonMeetsADelete deletes the one key that a comparison of a
// range fails for, after it was looked at.
func TestARangeComparisonMeetsADelete(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	e.put("a", "1")
	e.put("a", "2")
	e.put("b", "1")
	kv := e.interposed(&between{sending: func(r *pb.TxnRequest) bool {
		if !wire.Writes(r) {
			return false
		}
		_, err := e.cli.Delete(e.ctx, "a")
		require.NoError(t, err)
		return true
	}}, Config{})
	resp, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Version("a"), "=", 1).WithRange("c")).
		Then(clientv3.OpPut("x", text(200<<10, "x"))).
		Else(clientv3.OpPut("x", "else")).Commit()
	require.NoError(t, err)
	require.True(t, resp.Succeeded)
	e.holds("x", text(200<<10, "x"))
}

// TestAComparisonMeetsACompaction has the value that was compared overwritten and
// compacted before it could be read.
func TestAComparisonMeetsACompaction(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	e.put("k", text(200<<10, "one"))
	e.put("y", "y")
	kv := e.interposed(&between{answered: func(r *pb.TxnRequest, resp *pb.TxnResponse) bool {
		if !wire.Writes(r) || resp.Succeeded {
			return false
		}
		e.put("k", incompressible(200<<10, "two"))
		e.compact()
		return true
	}}, Config{})
	_, err := kv.Put(e.ctx, "x", strings.Repeat("x", 100<<10))
	require.NoError(t, err)
	resp, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Value("k"), "=", "foo")).
		Then(clientv3.OpPut("x", strings.Repeat("y", 100<<10))).Else(clientv3.OpGet("y")).Commit()
	require.NoError(t, err)
	require.False(t, resp.Succeeded)
	require.Equal(t, "y", string(resp.Responses[0].GetResponseRange().Kvs[0].Value))
}

// TestABranchThatIsNotTaken may read what has been compacted, or is yet to come, as etcd
// has it: also where the base turns out to be another one.
func TestABranchThatIsNotTaken(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	old := e.put("y", "y").Header.Revision
	for _, revision := range []int64{old, 1 << 40} {
		kv, _ := e.another(Config{})
		_, err := kv.Put(e.ctx, "k", text(200<<10, "base"))
		require.NoError(t, err)
		_, err = e.cli.Put(e.ctx, "k", "by somebody else")
		require.NoError(t, err)
		e.compact()
		resp, err := kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Version("nothing"), "=", 0)).
			Then(clientv3.OpPut("k", text(200<<10, fmt.Sprint(revision)))).
			Else(clientv3.OpGet("y", clientv3.WithRev(revision))).Commit()
		require.NoError(t, err)
		require.True(t, resp.Succeeded)
		e.holds("k", text(200<<10, fmt.Sprint(revision)))
		_, err = kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Version("nothing"), ">", 0)).
			Then(clientv3.OpPut("k", text(200<<10, "more"))).
			Else(clientv3.OpGet("y", clientv3.WithRev(revision))).Commit()
		require.Error(t, err, "it is taken")
	}
}

// TestAppliedButUnreadable says that a write was applied where what it was to
// return cannot be read.
func TestAppliedButUnreadable(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	other, _ := e.another(Config{ReservedPrefix: "\x00other/"})
	for name, op := range map[string]clientv3.Op{
		"put":    clientv3.OpPut("k", "new", clientv3.WithPrevKV()),
		"delete": clientv3.OpDelete("k", clientv3.WithPrevKV()),
		"txn":    clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("z", "new"), clientv3.OpGet("k")}, nil),
	} {
		_, err := other.Put(e.ctx, "k", text(200<<10, "one"))
		require.NoError(t, err)
		_, err = e.kv.Do(e.ctx, op)
		require.ErrorIs(t, err, ErrApplied, name)
		require.ErrorIs(t, err, ErrPrefixMismatch, name)
		now, gerr := e.cli.Get(e.ctx, "k", clientv3.WithCountOnly())
		require.NoError(t, gerr)
		var applied *AppliedError
		require.ErrorAs(t, err, &applied)
		require.Equal(t, now.Header.Revision, applied.Revision)
	}

	// Nothing is written by the branch that runs.
	_, err := other.Put(e.ctx, "k", text(200<<10, "one"))
	require.NoError(t, err)
	for _, large := range []string{"", text(200<<10, "two")} {
		_, err = e.kv.Txn(e.ctx).If(clientv3.Compare(clientv3.Version("k"), "=", 99)).
			Then(clientv3.OpPut("x", large)).Else(clientv3.OpGet("k"), clientv3.OpDelete("none")).Commit()
		require.ErrorIs(t, err, ErrPrefixMismatch)
		require.NotErrorIs(t, err, ErrApplied)
	}
}

// TestTheClusterIsAnother is a cluster restored to where another value has the
// same revision.
func TestTheClusterIsAnother(t *testing.T) {
	before, after := newEnv(t, Config{}, nil), newEnv(t, Config{}, nil)
	b := &between{}
	kv := before.interposed(b, Config{})
	one, two := text(200<<10, "one"), strings.Repeat("two", 40<<10)
	require.Equal(t, before.put("k", one).Header.Revision, after.put("k", two).Header.Revision)
	read := func(want string) {
		t.Helper()
		resp, err := kv.Get(t.Context(), "k")
		require.NoError(t, err)
		require.True(t, want == string(resp.Kvs[0].Value), "another value, of %d bytes", len(resp.Kvs[0].Value))
	}
	for range 3 {
		read(one)
	}
	b.KVClient = wire.Client(after.cli.KV)
	for range 3 {
		read(two)
	}
}

// TestStreamsAreOvertaken has the revision of a stream compacted before it is
// read, and between a manifest and its chunks.
func TestStreamsAreOvertaken(t *testing.T) {
	for name, opts := range map[string][]clientv3.OpOption{"linearizable": nil, "serializable": {clientv3.WithSerializable()}} {
		for _, when := range []string{"before", "between"} {
			t.Run(name+", "+when, func(t *testing.T) {
				e := newEnv(t, Config{}, nil)
				e.put("k", text(200<<10, "one"))
				act := func() bool {
					e.put("k", incompressible(200<<10, "two"))
					e.compact()
					return true
				}
				b := &between{}
				if when == "before" {
					b.opening = func(int) bool { return act() }
				} else {
					b.received = act
				}
				ch, err := e.interposed(b, Config{}).GetStream(e.ctx, "k", opts...)
				require.NoError(t, err)
				resp, err := clientv3.GetStreamToGetResponse(ch)
				require.NoError(t, err)
				require.True(t, incompressible(200<<10, "two") == string(resp.Kvs[0].Value))
			})
		}
	}
}

// TestASerializableStreamIsOneSnapshot writes between the two parts of a range
// across the reserved prefix.
func TestASerializableStreamIsOneSnapshot(t *testing.T) {
	cfg := Config{ReservedPrefix: "kvw/"}
	e := newEnv(t, cfg, nil)
	write := func(v string) {
		_, err := e.kv.Txn(e.ctx).Then(clientv3.OpPut("a", v), clientv3.OpPut("z", v)).Commit()
		require.NoError(t, err)
	}
	write("1")
	kv := e.interposed(&between{opening: func(n int) bool {
		if n < 2 {
			return false
		}
		write("2")
		return true
	}}, cfg)
	ch, err := kv.GetStream(e.ctx, "", clientv3.WithPrefix(), clientv3.WithSerializable())
	require.NoError(t, err)
	resp, err := clientv3.GetStreamToGetResponse(ch)
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 2)
	require.Equal(t, "1", string(resp.Kvs[0].Value))
	require.Equal(t, "1", string(resp.Kvs[1].Value))
}

// TestRangesThatEndInsideTheReservedPrefix show no chunks.
func TestRangesThatEndInsideTheReservedPrefix(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	e.put("\x00a", "v")
	e.put("k", text(200<<10, "one"))
	for _, end := range []string{"\x00kvw/k", "\x00kvw0", "\x00kvw/\xff"} {
		for _, opts := range [][]clientv3.OpOption{nil, {clientv3.WithCountOnly()}, {clientv3.WithKeysOnly()}} {
			opts = append(opts, clientv3.WithRange(end))
			got, err := e.kv.Get(e.ctx, "\x00", opts...)
			require.NoError(t, err)
			require.EqualValues(t, 1, got.Count, "%q", end)
			ch, err := e.kv.GetStream(e.ctx, "\x00", opts...)
			require.NoError(t, err)
			got, err = clientv3.GetStreamToGetResponse(ch)
			require.NoError(t, err)
			require.EqualValues(t, 1, got.Count, "%q, streamed", end)
		}
		resp, err := e.kv.Txn(e.ctx).If(clientv3.Compare(clientv3.LeaseValue("\x00"), "=", 0).WithRange(end),
			clientv3.Compare(clientv3.Version("\x00"), "=", 1).WithRange(end)).Commit()
		require.NoError(t, err)
		require.True(t, resp.Succeeded)
	}
}

// TestWritersLearnTheRequestLimitTogether has many writers refused at once.
func TestWritersLearnTheRequestLimitTogether(t *testing.T) {
	e := newEnv(t, Config{}, func(cfg *embed.Config) { cfg.MaxRequestBytes = 40 << 10 })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := e.kv.Put(e.ctx, fmt.Sprint("k", i), incompressible(300<<10, fmt.Sprint(i))); err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 32<<10, e.kv.stage.limits.entry.Load())
}

// TestALargePutOverABusyKey keeps the lease of a key that others write all the
// time.
func TestALargePutOverABusyKey(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	lease := e.grant()
	e.put("k", "small", clientv3.WithLease(lease))
	ctx, cancel := context.WithCancel(e.ctx)
	var wg sync.WaitGroup
	for range 8 {
		cli := e.cluster.Client(t)
		wg.Go(func() {
			for ctx.Err() == nil {
				cli.Put(ctx, "k", "small", clientv3.WithLease(lease))
			}
		})
	}
	for i := range 10 {
		_, err := e.kv.Put(e.ctx, "k", incompressible(200<<10, fmt.Sprint(i)), clientv3.WithIgnoreLease())
		require.NoError(t, err)
	}
	cancel()
	wg.Wait()
}

// TestALeaseIsUsedAgain revokes and grants the lease of a put, under the same id,
// between the staging of its chunks and its commit.
func TestALeaseIsUsedAgain(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	leases := pb.NewLeaseClient(e.cli.ActiveConnection())
	grant := func() {
		_, err := leases.LeaseGrant(e.ctx, &pb.LeaseGrantRequest{ID: 77, TTL: 600})
		require.NoError(t, err)
	}
	grant()
	kv := e.interposed(&between{sending: func(r *pb.TxnRequest) bool {
		if !puts(r, "k") {
			return false
		}
		e.revoke(77)
		grant()
		return true
	}}, Config{})
	value := incompressible(200<<10, "x")
	_, err := kv.Put(e.ctx, "k", value, clientv3.WithLease(77))
	require.NoError(t, err)
	e.holds("k", value)
	kv.stage.background.Wait()
	require.Empty(t, e.orphans())
}

// TestAWriteThatNeverGetsThrough has its anchor taken away before each of its requests, as
// by somebody who means it. It gives up, and has written nothing.
func TestAWriteThatNeverGetsThrough(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	requests := 0
	writer := e.interposed(&between{sending: func(*pb.TxnRequest) bool {
		requests++
		_, err := e.kv.Delete(e.ctx, "k")
		require.NoError(t, err)
		return false
	}}, Config{})
	_, err := writer.Put(e.ctx, "k", incompressible(300<<10, "v"))
	var contention *ContentionError
	require.ErrorAs(t, err, &contention)
	require.ErrorIs(t, err, ErrContention)
	require.Equal(t, maxAttempts, contention.Attempts)
	require.GreaterOrEqual(t, requests, maxAttempts)
	require.NotContains(t, e.stored(), "k")
}

// TestWhoNoticesAnotherPrefix reads a chunked value of a client with another reserved prefix,
// or puts a large one over it. Who does neither cannot notice.
func TestWhoNoticesAnotherPrefix(t *testing.T) {
	e := newEnv(t, Config{}, nil)
	other, _ := e.another(Config{ReservedPrefix: "\x00other/"})
	large := text(200<<10, "large")
	for name, c := range map[string]struct {
		op      clientv3.Op
		notices bool
	}{
		"get":             {clientv3.OpGet("k"), true},
		"get a range":     {clientv3.OpGet("", clientv3.WithPrefix()), true},
		"a large put":     {clientv3.OpPut("k", large), true},
		"a small put":     {clientv3.OpPut("k", "small"), false},
		"a delete":        {clientv3.OpDelete("k"), false},
		"a list of keys":  {clientv3.OpGet("k", clientv3.WithPrefix(), clientv3.WithKeysOnly()), false},
		"a count of keys": {clientv3.OpGet("k", clientv3.WithPrefix(), clientv3.WithCountOnly()), false},
	} {
		_, err := e.cli.Delete(e.ctx, "k")
		require.NoError(t, err)
		_, err = other.Put(e.ctx, "k", large)
		require.NoError(t, err)
		_, err = e.kv.Do(e.ctx, c.op)
		if !c.notices {
			require.NoError(t, err, name)
			continue
		}
		var mismatch *PrefixMismatchError
		require.ErrorAs(t, err, &mismatch, name)
		require.Equal(t, "\x00other/", mismatch.Stored)
		require.Equal(t, "\x00kvw/", mismatch.Expected)
	}
}
