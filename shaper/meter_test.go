package shaper

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"
)

func newMeter(t testing.TB, cfg MeterConfig) *Meter {
	m, err := NewMeter(cfg)
	require.NoError(t, err)
	return m
}

func put(key string, valueBytes int) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(key), Value: make([]byte, valueBytes)}
}

func answer(r any) *pb.ResponseOp {
	switch r := r.(type) {
	case *pb.DeleteRangeResponse:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: r}}
	case *pb.RangeResponse:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: r}}
	case *pb.TxnResponse:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: r}}
	}
	return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}}
}

// counted returns the counts of one request.
func counted(t *testing.T, a *answers, request any) Counts {
	m := newMeter(t, MeterConfig{})
	s := m.Stage(a)
	switch r := request.(type) {
	case *pb.PutRequest:
		s.Put(t.Context(), r)
	case *pb.DeleteRangeRequest:
		s.DeleteRange(t.Context(), r)
	case *pb.TxnRequest:
		s.Txn(t.Context(), r)
	case *pb.RangeRequest:
		s.Range(t.Context(), r)
	case *pb.CompactionRequest:
		s.Compact(t.Context(), r)
	}
	got := m.Traffic()
	require.Equal(t, got.Total.Counts, got.Window.Counts)
	return got.Total.Counts
}

func TestWhatARequestCounts(t *testing.T) {
	p := put("key", 10)
	del := &pb.DeleteRangeRequest{Key: []byte("key")}
	many := &pb.DeleteRangeRequest{Key: []byte("ke"), RangeEnd: []byte("kf"), PrevKv: true}
	get := &pb.RangeRequest{Key: []byte("key")}
	kvs := []*mvccpb.KeyValue{{Key: []byte("key1"), Value: []byte("value")}, {Key: []byte("key22"), Value: []byte("")}}
	entry := func(r any) uint64 {
		switch r := r.(type) {
		case *pb.PutRequest:
			return uint64(wire.ProposalBytes(r))
		case *pb.DeleteRangeRequest:
			return uint64(wire.ProposalBytes(r))
		case *pb.TxnRequest:
			return uint64(wire.ProposalBytes(r))
		}
		panic(r)
	}
	written := &pb.TxnRequest{
		Success: []*pb.RequestOp{wire.Put(p), wire.Range(get), wire.DeleteRange(del), wire.Txn(&pb.TxnRequest{
			Success: []*pb.RequestOp{wire.Put(put("a", 1)), wire.Put(put("b", 2))},
			Failure: []*pb.RequestOp{wire.Put(put("not", 1000))},
		})},
		Failure: []*pb.RequestOp{wire.Range(get), wire.DeleteRange(del)},
	}
	mixed := &pb.TxnRequest{Success: []*pb.RequestOp{wire.Put(p), wire.DeleteRange(del), wire.Txn(&pb.TxnRequest{Failure: []*pb.RequestOp{wire.Range(get)}})}}
	leased := &pb.PutRequest{Key: []byte("key"), Lease: 5}
	txn := uint64(1)
	for name, c := range map[string]struct {
		request any
		answers *answers
		want    Counts
	}{
		"put":              {p, &answers{}, Counts{Puts: 1, Entries: 1, EntryBytes: entry(p), Revisions: 1, Records: 1, KeyBytes: 3, ValueBytes: 10}},
		"put with a lease": {leased, &answers{}, Counts{Puts: 1, Entries: 1, EntryBytes: entry(leased), Revisions: 1, Records: 1, Leased: 1, KeyBytes: 3}},
		"put refused":      {p, &answers{err: rpctypes.ErrTooManyRequests}, Counts{Puts: 1, Refused: 1}},
		"put failed":       {p, &answers{err: rpctypes.ErrLeaseNotFound}, Counts{Puts: 1, Failed: 1, Entries: 1, EntryBytes: entry(p)}},
		"put unknown":      {p, &answers{err: rpctypes.ErrTimeout}, Counts{Puts: 1, Unknown: 1, Entries: 1, EntryBytes: entry(p)}},
		"delete":           {del, &answers{del: pb.DeleteRangeResponse{Deleted: 1}}, Counts{Deletes: 1, Entries: 1, EntryBytes: entry(del), Revisions: 1, Records: 1, Tombstones: 1, KeyBytes: 3}},
		"delete nothing":   {del, &answers{}, Counts{Deletes: 1, Entries: 1, EntryBytes: entry(del)}},
		"delete many":      {many, &answers{del: pb.DeleteRangeResponse{Deleted: 3}}, Counts{Deletes: 1, Entries: 1, EntryBytes: entry(many), Revisions: 1, Records: 3, Tombstones: 3, KeyBytes: 6}},
		"delete known":     {many, &answers{del: pb.DeleteRangeResponse{Deleted: 2, PrevKvs: kvs}}, Counts{Deletes: 1, Entries: 1, EntryBytes: entry(many), Revisions: 1, Records: 2, Tombstones: 2, KeyBytes: 9}},
		"delete refused":   {del, &answers{err: wire.ErrNotSent}, Counts{Deletes: 1, Refused: 1}},
		"txn": {written, &answers{txn: pb.TxnResponse{Succeeded: true, Responses: []*pb.ResponseOp{
			answer(nil), answer(&pb.RangeResponse{Kvs: kvs}), answer(&pb.DeleteRangeResponse{Deleted: 1}),
			answer(&pb.TxnResponse{Succeeded: true, Responses: []*pb.ResponseOp{answer(nil), answer(nil)}}),
		}}}, Counts{Txns: txn, Entries: 1, EntryBytes: entry(written), Revisions: 1, Records: 4, Tombstones: 1, KeyBytes: 8, ValueBytes: 13, Ranges: 1, RangeBytes: 14}},
		"txn else, nothing deleted": {written, &answers{txn: pb.TxnResponse{Responses: []*pb.ResponseOp{
			answer(&pb.RangeResponse{}), answer(&pb.DeleteRangeResponse{}),
		}}}, Counts{Txns: txn, Entries: 1, EntryBytes: entry(written), Ranges: 1}},
		"txn cut short": {written, &answers{txn: pb.TxnResponse{Succeeded: true}}, Counts{Txns: txn, Entries: 1, EntryBytes: entry(written)}},
		"txn failed":    {written, &answers{err: rpctypes.ErrKeyNotFound}, Counts{Txns: txn, Failed: 1, Entries: 1, EntryBytes: entry(written)}},
		"txn that reads": {&pb.TxnRequest{Failure: []*pb.RequestOp{wire.Range(get)}}, &answers{txn: pb.TxnResponse{Responses: []*pb.ResponseOp{
			answer(&pb.RangeResponse{Kvs: kvs}),
		}}}, Counts{Ranges: 1, RangeBytes: 14}},
		"txn that reads, failed":           {&pb.TxnRequest{Failure: []*pb.RequestOp{wire.Range(get)}}, &answers{err: rpctypes.ErrTimeout}, Counts{}},
		"range":                            {get, &answers{get: pb.RangeResponse{Kvs: kvs}}, Counts{Ranges: 1, RangeBytes: 14}},
		"range failed":                     {get, &answers{err: rpctypes.ErrTimeout}, Counts{}},
		"compact":                          {&pb.CompactionRequest{}, &answers{}, Counts{Compactions: 1}},
		"compact failed":                   {&pb.CompactionRequest{}, &answers{err: rpctypes.ErrCompacted}, Counts{}},
		"delete of which not all is known": {many, &answers{del: pb.DeleteRangeResponse{Deleted: 3, PrevKvs: kvs}}, Counts{Deletes: 1, Entries: 1, EntryBytes: entry(many), Revisions: 1, Records: 3, Tombstones: 3, KeyBytes: 6}},
		"txn that writes, then reads": {mixed, &answers{txn: pb.TxnResponse{Succeeded: true, Responses: []*pb.ResponseOp{
			answer(nil), answer(&pb.DeleteRangeResponse{}), answer(&pb.TxnResponse{Responses: []*pb.ResponseOp{answer(&pb.RangeResponse{})}}),
		}}}, Counts{Txns: txn, Entries: 1, EntryBytes: entry(mixed), Revisions: 1, Records: 1, KeyBytes: 3, ValueBytes: 10, Ranges: 1}},
	} {
		require.Equal(t, c.want, counted(t, c.answers, c.request), name)
	}
}

func TestOutcomes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want outcome
	}{
		{nil, succeeded},
		{fmt.Errorf("budget: %w", wire.ErrNotSent), refused},
		{wire.ErrUnknownRequest, refused},
		{rpctypes.ErrRequestTooLarge, refused},
		{rpctypes.ErrGRPCRequestTooManyRequests, refused},
		{rpctypes.ErrGRPCDuplicateKey, refused},
		{rpctypes.ErrInvalidAuthToken, refused},
		{status.Error(codes.ResourceExhausted, "trying to send message larger than max (3 vs. 2)"), refused},
		{rpctypes.ErrGRPCLeaseNotFound, failed},
		{rpctypes.ErrKeyNotFound, failed},
		{rpctypes.ErrPermissionDenied, failed},
		{rpctypes.ErrAuthOldRevision, failed},
		{rpctypes.ErrCompacted, failed},
		{rpctypes.ErrNoSpace, unknown},
		{rpctypes.ErrTimeout, unknown},
		{errors.New("the connection broke"), unknown},
		{status.Error(codes.ResourceExhausted, "received message larger than max"), unknown},
	} {
		require.Equal(t, c.want, outcomeOf(c.err), "%v", c.err)
	}
}

func TestStreamsAreCounted(t *testing.T) {
	m := newMeter(t, MeterConfig{})
	a := &answers{get: pb.RangeResponse{Kvs: []*mvccpb.KeyValue{{Key: []byte("key"), Value: []byte("value")}}}}
	for range 2 {
		s, err := m.Stage(a).RangeStream(t.Context(), &pb.RangeRequest{})
		require.NoError(t, err)
		_, err = s.Recv()
		require.NoError(t, err)
		_, err = s.Recv()
		require.Error(t, err)
	}
	s, err := m.Stage(a).RangeStream(t.Context(), &pb.RangeRequest{})
	require.NoError(t, err)
	require.NoError(t, s.RecvMsg(&pb.RangeStreamResponse{}))
	a.err = rpctypes.ErrTimeout
	_, err = m.Stage(a).RangeStream(t.Context(), &pb.RangeRequest{})
	require.ErrorIs(t, err, rpctypes.ErrTimeout)
	require.Equal(t, Counts{Ranges: 3, RangeBytes: 24}, m.Traffic().Total.Counts)
}

// TestALargePut is one put, one record, one revision, whatever it takes below.
func TestALargePut(t *testing.T) {
	m := newMeter(t, MeterConfig{})
	m.Observe(put("statistics", 2<<20))
	got := m.Traffic()
	require.EqualValues(t, 1, got.Total.Puts)
	require.EqualValues(t, 1, got.Total.Revisions)
	require.EqualValues(t, 1, got.Total.Records)
	require.EqualValues(t, 1, got.Keys)
	require.Equal(t, wire.ProposalBytes(put("statistics", 2<<20)), got.LargestEntryBytes)
	require.EqualValues(t, got.LargestEntryBytes, got.Total.EntryBytes)
}

// TestTheWindow at fixed times, of 4 slots of 10 s.
func TestTheWindow(t *testing.T) {
	m := newMeter(t, MeterConfig{Window: 40 * time.Second, Slots: 4, Rules: []string{"k"}})
	at := func(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
	window := func(seconds float64, elapsed float64, puts int) {
		t.Helper()
		got := m.traffic(at(seconds))
		require.Equal(t, at(elapsed), got.Window.Elapsed)
		require.EqualValues(t, puts, got.Window.Puts)
		require.EqualValues(t, puts, got.Window.Entries)
		require.EqualValues(t, puts, got.ByRule[0].Window.Records)
		sizes := uint64(0)
		for _, b := range got.Window.EntrySizes {
			sizes += b.Count
		}
		require.EqualValues(t, puts, sizes)
		require.Equal(t, at(seconds), got.Total.Elapsed)
	}
	put := func(seconds float64) { m.put(at(seconds), put("key", 1), nil) }
	window(0, 0, 0)
	put(1)
	window(1, 1, 1)
	put(9.9)
	put(10)
	window(15, 15, 3)
	window(40, 40, 3)
	window(40.1, 30.1, 1) // the first slot has gone
	window(50, 40, 1)
	window(50.1, 30.1, 0)
	window(1000, 40, 0)
	put(1001)
	put(1009)
	window(1010, 40, 2)
	put(1012)
	put(1021)
	put(1031)
	window(1040, 40, 5)
	window(1041, 31, 3)
	put(1041)
	window(1041, 31, 4)
	put(1055)
	window(1055, 35, 4) // those at 1021, 1031, 1041 and 1055
	window(1065, 35, 3)
	require.EqualValues(t, 10, m.traffic(at(1065)).Total.Puts)
}

// TestTheWindowIsWhatCameInIt compares windows with a list of what came when.
func TestTheWindowIsWhatCameInIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := rapid.IntRange(1, 6).Draw(t, "slots")
		slot := time.Duration(rapid.IntRange(1, 30).Draw(t, "slot")) * time.Second
		m, err := NewMeter(MeterConfig{Window: time.Duration(slots) * slot, Slots: slots, Rules: []string{"k"}})
		require.NoError(t, err)
		var now time.Duration
		var came []time.Duration
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				m.put(now, put("key", 1), nil)
				came = append(came, now)
			},
			"wait": func(t *rapid.T) { now += time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond },
			"idle": func(t *rapid.T) { now += time.Duration(rapid.IntRange(0, 300).Draw(t, "s")) * time.Second },
			"turn": func(*rapid.T) { m.turn(now) }, // as two do that end in the same moment
			"": func(t *rapid.T) {
				got := m.traffic(now)
				w := got.Window
				require.LessOrEqual(t, w.Elapsed, m.cfg.Window)
				require.Greater(t, w.Elapsed, min(now, m.cfg.Window-slot)-1)
				n := 0
				for _, at := range came {
					if at >= now-w.Elapsed {
						n++
					}
				}
				require.EqualValues(t, n, w.Puts)
				require.EqualValues(t, n, got.ByRule[0].Window.Records)
				require.Equal(t, n > 0, len(w.EntrySizes) == 1 && w.EntrySizes[0].Count == w.Puts)
				require.Equal(t, n > 0, len(w.RecordSizes) == 1 && w.RecordSizes[0].Count == w.Puts)
			},
		})
	})
}

func TestPerSecond(t *testing.T) {
	require.Zero(t, Span{}.PerSecond(5))
	require.Equal(t, 2.5, Span{Elapsed: 2 * time.Second}.PerSecond(5))
}

func TestRules(t *testing.T) {
	m := newMeter(t, MeterConfig{Rules: []string{"a/", "a/b/", "c"}})
	for _, key := range []string{"a/x", "a/b/x", "a/b/y", "cc", "d", "a"} {
		m.Observe(put(key, 10))
	}
	m.Stage(&answers{del: pb.DeleteRangeResponse{Deleted: 2}}).DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("a/b/")})
	got := m.Traffic().ByRule
	for i := range got {
		require.Equal(t, got[i].Total, got[i].Window)
		got[i].Window = RuleCounts{}
	}
	require.Equal(t, []RuleTraffic{
		{Prefix: "a/", Total: RuleCounts{1, 0, 3, 10}},
		{Prefix: "a/b/", Total: RuleCounts{4, 2, 18, 20}},
		{Prefix: "c", Total: RuleCounts{1, 0, 2, 10}},
		{Prefix: "", Total: RuleCounts{2, 0, 2, 20}},
	}, got)

	m = newMeter(t, MeterConfig{Rules: []string{"", "a"}})
	m.Observe(put("b", 1))
	require.Len(t, m.Traffic().ByRule, 2)
	require.EqualValues(t, 1, m.Traffic().ByRule[0].Total.Records)
}

// TestEveryKnobTurns: Window and Slots are turned in TestTheWindow, Rules in TestRules.
func TestEveryKnobTurns(t *testing.T) {
	prefixes := func(cfg MeterConfig) (found []string) {
		m := newMeter(t, cfg)
		for i := range 100 {
			m.Observe(put(fmt.Sprintf("/a.x/b.x/c%03d.x/d", i), i))
		}
		for _, p := range m.Traffic().Heaviest {
			found = append(found, p.Prefix)
		}
		return found
	}
	require.Equal(t, []string{"/a.x/b.x/"}, prefixes(MeterConfig{}))
	require.Equal(t, []string{"/a.x/"}, prefixes(MeterConfig{Depth: 1}))
	require.Equal(t, []string{"/a.x/b.x/c099.x/", "/a.x/b.x/c098.x/"}, prefixes(MeterConfig{Depth: 3, Heaviest: 100})[:2])
	require.Equal(t, []string{"/a."}, prefixes(MeterConfig{Separator: '.', Depth: 1}))
	require.Len(t, prefixes(MeterConfig{Depth: 3}), 20)
	require.Len(t, prefixes(MeterConfig{Depth: 3, Heaviest: 3}), 3)

	elapsed := func(cfg MeterConfig) time.Duration {
		return newMeter(t, cfg).traffic(time.Hour + time.Second).Window.Elapsed
	}
	require.Equal(t, 56*time.Second, elapsed(MeterConfig{}))
	require.Equal(t, 31*time.Second, elapsed(MeterConfig{Slots: 2}))
	require.Equal(t, 11*time.Second, elapsed(MeterConfig{Window: 12 * time.Second, Slots: 6}))
}

func TestConfigErrors(t *testing.T) {
	_, err := NewMeter(MeterConfig{Rules: []string{"a", "b", "a"}, Window: -1, Slots: -2, Depth: -3, Heaviest: 5000})
	require.ErrorIs(t, err, ErrConfig)
	for _, part := range []string{`"a" twice`, "Window is -1ns", "Slots is -2", "Depth is -3", "Heaviest is 5000"} {
		require.ErrorContains(t, err, part)
	}
	_, err = NewMeter(MeterConfig{Window: 5 * time.Millisecond, Slots: 10})
	require.ErrorContains(t, err, "set Window to 10ms or more, or fewer Slots")
	rules := []string{"a", "b"}
	m := newMeter(t, MeterConfig{Rules: rules})
	rules[0] = "c"
	require.Equal(t, "a", m.Traffic().ByRule[0].Prefix, "a config is copied")
}

// TestManyAtOnce: whoever counts at the same time, and reads, the sums are exact.
func TestManyAtOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	m := newMeter(t, MeterConfig{Window: 40 * time.Millisecond, Slots: 20, Rules: []string{"/a/"}})
	require.Len(t, m.shards, 4)
	const writers, each = 16, 2000
	puts := make([]*pb.PutRequest, 100)
	for i := range puts {
		puts[i] = put(fmt.Sprintf("/%c/%d/k", 'a'+i%2, i), i)
	}
	txn, resp := txnOf(puts)
	s := m.Stage(&answers{txn: pb.TxnResponse{Succeeded: true, Responses: resp.Responses}})
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := range each {
				if i%100 == 99 {
					s.Txn(t.Context(), txn)
				} else {
					s.Put(t.Context(), puts[i%100])
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var last Traffic
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		got := m.Traffic()
		require.GreaterOrEqual(t, got.Total.Records, last.Total.Records)
		require.LessOrEqual(t, got.Window.Records, got.Total.Records)
		var entries, records uint64
		for _, b := range got.Window.EntrySizes {
			entries += b.Count
		}
		for _, b := range got.Window.RecordSizes {
			records += b.Count
		}
		require.Equal(t, got.Window.Entries, entries)
		require.Equal(t, got.Window.Records, records)
		last = got
	}
	const txns = writers * each / 100
	require.EqualValues(t, writers*each, last.Total.Entries)
	require.EqualValues(t, writers*each, last.Total.Revisions)
	require.EqualValues(t, txns, last.Total.Txns)
	require.EqualValues(t, writers*each-txns, last.Total.Puts)
	require.EqualValues(t, writers*each-txns+100*txns, last.Total.Records)
	require.Equal(t, last.Total.Records, last.ByRule[0].Total.Records+last.ByRule[1].Total.Records)
	require.InDelta(t, 100, last.Keys, 3)
}

// TestNothingIsAllocated for a request, though prefixes come and go and slots pass.
func TestNothingIsAllocated(t *testing.T) {
	m := newMeter(t, MeterConfig{Rules: fiveRules, Window: 12 * time.Millisecond})
	puts := manyPuts()
	for _, p := range puts {
		m.Observe(p)
	}
	txn, resp := txnOf(puts[:100])
	s := m.Stage(&answers{txn: pb.TxnResponse{Succeeded: true, Responses: resp.Responses}, del: pb.DeleteRangeResponse{Deleted: 1}})
	ctx, i := t.Context(), 0
	del, get := &pb.DeleteRangeRequest{Key: []byte("/kafscale/")}, &pb.RangeRequest{}
	require.Zero(t, testing.AllocsPerRun(5000, func() {
		i++
		s.Put(ctx, puts[i%len(puts)])
		s.Txn(ctx, txn)
		s.DeleteRange(ctx, del)
		s.Range(ctx, get)
	}))
}

// TestEveryCountIsAdded: a field that is new in Counts is in all, and has a name of its own.
func TestEveryCountIsAdded(t *testing.T) {
	var c Counts
	v := reflect.ValueOf(&c).Elem()
	require.Equal(t, v.NumField(), len(c.all()))
	for i, n := range c.all() {
		require.Equal(t, v.Field(i).Addr().Interface(), n, v.Type().Field(i).Name)
	}
}

func TestTrafficIsShown(t *testing.T) {
	m := newMeter(t, MeterConfig{Rules: []string{"/a/"}})
	require.NotContains(t, m.Traffic().String(), "NaN", "without any traffic")
	for i := range 60 {
		m.put(time.Duration(i)*time.Second, put(fmt.Sprint("/a/b/", i), 1000), nil)
	}
	m.put(59*time.Second, put("k", 1), rpctypes.ErrTimeout)
	got := m.traffic(time.Minute)
	line := got.String()
	require.Equal(t, `last 1m0s: 1 revisions/s, 1 records/s, 1.017 entries/s of 1.03 KB/s (median 1.03 KB, 99th percentile 1.03 KB), `+
		`0 ranges/s of 0 B/s, 0 refused, 0 failed, 1 unknown; 1m0s in all: 60 revisions, 60 records, 60 keys, largest entry 1.03 KB, `+
		`most below "/a/b/": 60 records, 60.4 KB`, line)
	require.NotContains(t, line, "\n")

	text, err := json.Marshal(got)
	require.NoError(t, err)
	var back Traffic
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, got.Total, back.Total)
	require.Equal(t, got.ByRule, back.ByRule)
	require.True(t, strings.Contains(string(text), `"revisions":60`))
}
