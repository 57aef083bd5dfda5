package chunker

import (
	"bytes"
	"slices"
	"testing"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"pgregory.net/rapid"
)

// The model of these properties is a store of a few keys, some of them chunks.
// What it holds at a key is the logical value; a comparison that is sent sees
// something else there, but then it compares revisions.

var pinKeys = []string{"\x00a", "\x00kvw/x", "\x00z", "a", "a\x00", "b"}

func drawStore(t *rapid.T, label string) []*mvccpb.KeyValue {
	var kvs []*mvccpb.KeyValue
	for _, key := range pinKeys {
		if !rapid.Bool().Draw(t, label+" has "+key) {
			continue
		}
		create := rapid.Int64Range(1, 4).Draw(t, "create")
		kvs = append(kvs, &mvccpb.KeyValue{
			Key: []byte(key), CreateRevision: create, ModRevision: create + rapid.Int64Range(0, 3).Draw(t, "mod"),
			Version: rapid.Int64Range(1, 3).Draw(t, "version"), Lease: rapid.Int64Range(0, 2).Draw(t, "lease"),
			Value: []byte{byte(rapid.IntRange('a', 'c').Draw(t, "value"))},
		})
	}
	return kvs
}

func drawCompare(t *rapid.T) *pb.Compare {
	c := &pb.Compare{
		Key:    []byte(rapid.SampledFrom(pinKeys[2:]).Draw(t, "key")),
		Result: rapid.SampledFrom([]pb.Compare_CompareResult{pb.Compare_EQUAL, pb.Compare_NOT_EQUAL, pb.Compare_GREATER, pb.Compare_LESS}).Draw(t, "result"),
		Target: rapid.SampledFrom([]pb.Compare_CompareTarget{pb.Compare_VALUE, pb.Compare_CREATE, pb.Compare_MOD, pb.Compare_VERSION, pb.Compare_LEASE}).Draw(t, "target"),
	}
	if rapid.Bool().Draw(t, "range") {
		c.Key = []byte(rapid.SampledFrom([]string{"\x00", "\x00a", "a"}).Draw(t, "from"))
		c.RangeEnd = []byte(rapid.SampledFrom([]string{"\x00", "a\x00", "b"}).Draw(t, "to"))
	}
	n := rapid.Int64Range(0, 5).Draw(t, "operand")
	switch c.Target {
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: []byte{byte('a' + n%3)}}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n}
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: n}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: n}
	}
	return c
}

// within returns the keys of a store that are in the range of c.
func within(kvs []*mvccpb.KeyValue, c *pb.Compare) (found []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		switch {
		case len(c.RangeEnd) == 0:
			if bytes.Equal(kv.Key, c.Key) {
				found = append(found, kv)
			}
		case bytes.Compare(kv.Key, c.Key) >= 0 && (bytes.Equal(c.RangeEnd, []byte{0}) || bytes.Compare(kv.Key, c.RangeEnd) < 0):
			found = append(found, kv)
		}
	}
	return found
}

// TestPinsHoldTheAnswer draws a store, a comparison and what the store has become
// since: the guards hold on the first, and where they hold on the second the
// answer is the same.
func TestPinsHoldTheAnswer(t *testing.T) {
	space, err := format.NewKeyspace(defaultReservedPrefix)
	require.NoError(t, err)
	logical := func(kvs []*mvccpb.KeyValue) []*mvccpb.KeyValue {
		return slices.DeleteFunc(slices.Clone(kvs), func(kv *mvccpb.KeyValue) bool { return space.Reserved(kv.Key) })
	}
	held, changed := 0, 0
	property := func(t *rapid.T) {
		const revision = 7 // that the store was read at: nothing in it is newer
		before, c := drawStore(t, "before"), drawCompare(t)
		answer, _ := holds(c, within(logical(before), c))
		guards := pin(space, c, within(logical(before), c), revision)
		sent := func(kvs []*mvccpb.KeyValue) bool {
			for _, g := range guards {
				if ok, _ := holds(g, within(kvs, g)); !ok {
					return false
				}
			}
			return true
		}
		require.True(t, sent(before), "the guards hold on what they were made from")

		// Since then some keys were deleted, and others written.
		var after []*mvccpb.KeyValue
		for _, kv := range before {
			if rapid.Bool().Draw(t, "stays") {
				after = append(after, kv)
			}
		}
		for i, kv := range drawStore(t, "written") {
			if !rapid.Bool().Draw(t, "is written") {
				continue
			}
			kv.ModRevision = revision + 1 + int64(i)
			if at, ok := slices.BinarySearchFunc(after, kv, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) }); ok {
				kv.CreateRevision, kv.Version = after[at].CreateRevision, after[at].Version+1
				after[at] = kv
			} else {
				kv.CreateRevision, kv.Version = kv.ModRevision, 1
				after = slices.Insert(after, at, kv)
			}
		}
		if now, _ := holds(c, within(logical(after), c)); sent(after) {
			require.Equal(t, answer, now, "%v", c)
			held++
		} else if now != answer {
			changed++
		}
	}
	for range 50 { // until both have been seen, however few draws a check is told to make
		if rapid.Check(t, property); held > 0 && changed > 0 {
			break
		}
	}
	require.NotZero(t, held)
	require.NotZero(t, changed)
}

// TestFaithfulComparisonsOfValues holds that a comparison which is sent as it is
// never says yes to a manifest.
func TestFaithfulComparisonsOfValues(t *testing.T) {
	space, err := format.NewKeyspace(defaultReservedPrefix)
	require.NoError(t, err)
	stored := [][]byte{format.PlainBelow(), append(format.PlainBelow(), "manifest"...), {0xff, 0xff, 0xff}}
	operands := [][]byte{nil, {}, []byte("a"), {0xff}, format.PlainBelow(), append(format.PlainBelow(), 0), {0xff, 0xff, 0xff, 0xff}, bytes.Repeat([]byte("x"), maxOperandBytes+1)}
	sent := 0
	for _, operand := range operands {
		for result := range pb.Compare_CompareResult_name {
			c := &pb.Compare{Key: []byte("k"), Target: pb.Compare_VALUE, Result: pb.Compare_CompareResult(result), TargetUnion: &pb.Compare_Value{Value: operand}}
			if !faithful(space, c) {
				continue
			}
			sent++
			for _, v := range stored {
				require.False(t, satisfies(c, order(c, &mvccpb.KeyValue{Value: v})), "%v, stored %x", c, v)
			}
		}
	}
	require.NotZero(t, sent)
}
