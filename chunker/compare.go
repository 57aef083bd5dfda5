package chunker

import (
	"bytes"
	"cmp"

	"github.com/kvwrap/kvwrap/internal/format"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// etcd compares stored values. What a comparison says of the value that a
// manifest stands for is found out here, from what a read found, and then pinned:
// replaced by comparisons that etcd can make and that hold only while the answer
// is the same.

// maxOperandBytes is the length up to which a value to compare with is sent. A
// longer one would be as large a proposal as the value itself.
const maxOperandBytes = 512

// faithful reports whether c can be sent and etcd's yes to it is right whatever
// is chunked: it looks at no value and at no chunk, or holds for plain values
// only.
func faithful(space format.Keyspace, c *pb.Compare) bool {
	if space.Meets(compared(c)) {
		return false
	}
	if c.Target != pb.Compare_VALUE {
		return true
	}
	if len(c.GetValue()) > maxOperandBytes {
		return false
	}
	plainBelow := format.PlainBelow()
	switch c.Result {
	case pb.Compare_EQUAL:
		return bytes.Compare(c.GetValue(), plainBelow) < 0
	case pb.Compare_LESS:
		return bytes.Compare(c.GetValue(), plainBelow) <= 0
	}
	return false
}

func compared(c *pb.Compare) format.Range { return format.Range{Key: c.Key, End: c.RangeEnd} }

// holds answers c as etcd does, for the keys and values that were found in its
// range. Where the answer is no because of one of them, it returns that one.
func holds(c *pb.Compare, found []*mvccpb.KeyValue) (ok bool, because *mvccpb.KeyValue) {
	if len(found) == 0 {
		// etcd compares with a key of revision, version and lease 0, but has no
		// value for it.
		return c.Target != pb.Compare_VALUE && satisfies(c, order(c, &mvccpb.KeyValue{})), nil
	}
	for _, kv := range found {
		if !satisfies(c, order(c, kv)) {
			return false, kv
		}
	}
	return true, nil
}

// order compares what c looks at with what c names.
func order(c *pb.Compare, kv *mvccpb.KeyValue) int {
	switch c.Target {
	case pb.Compare_VALUE:
		return bytes.Compare(kv.Value, c.GetValue())
	case pb.Compare_CREATE:
		return cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		return cmp.Compare(kv.ModRevision, c.GetModRevision())
	case pb.Compare_VERSION:
		return cmp.Compare(kv.Version, c.GetVersion())
	case pb.Compare_LEASE:
		return cmp.Compare(kv.Lease, c.GetLease())
	}
	return 0
}

func satisfies(c *pb.Compare, order int) bool {
	switch c.Result {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_NOT_EQUAL:
		return order != 0
	case pb.Compare_GREATER:
		return order > 0
	case pb.Compare_LESS:
		return order < 0
	}
	return true
}

// pin returns comparisons that hold only while the answer to c is what holds
// found at the given revision.
func pin(space format.Keyspace, c *pb.Compare, found []*mvccpb.KeyValue, revision int64) []*pb.Compare {
	ok, because := holds(c, found)
	parts := space.Logical(compared(c))
	switch {
	case ok && c.Target != pb.Compare_VALUE && !space.Meets(compared(c)):
		return []*pb.Compare{c}
	case len(found) == 0:
		// While nothing is there.
		guards := make([]*pb.Compare, len(parts))
		for i, p := range parts {
			guards[i] = compareCreate(p.Key, 0)
			guards[i].RangeEnd = p.End
		}
		return guards
	case because != nil && c.Target != pb.Compare_VALUE:
		// While the one key that says no says it: not while nothing is written to
		// it, since what says no may well be a key that is written all the time.
		guards := []*pb.Compare{against(c, because)}
		if !compared(c).Single() { // which is not compared where it is not there
			guards = append(guards, exists(because.Key))
		}
		return guards
	case because != nil:
		return []*pb.Compare{compareMod(because.Key, because.ModRevision)}
	}
	// While nothing is written in the range, and one of its keys is there: less
	// keys would not change the answer.
	guards := []*pb.Compare{compareMod(found[0].Key, found[0].ModRevision)}
	if !compared(c).Single() {
		for _, p := range parts {
			g := compareMod(p.Key, revision+1)
			g.RangeEnd, g.Result = p.End, pb.Compare_LESS
			guards = append(guards, g)
		}
	}
	return guards
}

// against returns the comparison that says of the one key kv what makes c fail.
func against(c *pb.Compare, kv *mvccpb.KeyValue) *pb.Compare {
	result := pb.Compare_EQUAL
	switch o := order(c, kv); {
	case c.Result == pb.Compare_EQUAL:
		result = pb.Compare_NOT_EQUAL
	case o < 0:
		result = pb.Compare_LESS
	case o > 0:
		result = pb.Compare_GREATER
	}
	return &pb.Compare{Key: kv.Key, Target: c.Target, Result: result, TargetUnion: c.TargetUnion}
}

// sameWrite returns comparisons that hold only while the key holds a manifest, as
// it was at a revision. Its token tells it from another write at the same
// revision, which there may be after the cluster was restored.
func sameWrite(key []byte, mod int64, l *format.Layout) []*pb.Compare {
	above, below := format.TokenBounds(l.Token)
	return []*pb.Compare{
		compareMod(key, mod),
		compareValue(key, pb.Compare_GREATER, above),
		compareValue(key, pb.Compare_LESS, below),
	}
}

func compareMod(key []byte, revision int64) *pb.Compare {
	return &pb.Compare{Key: key, Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: revision}}
}

func compareCreate(key []byte, revision int64) *pb.Compare {
	return &pb.Compare{Key: key, Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: revision}}
}

// exists compares that there is a key.
func exists(key []byte) *pb.Compare {
	c := compareCreate(key, 0)
	c.Result = pb.Compare_GREATER
	return c
}

func compareLease(key []byte, lease int64) *pb.Compare {
	return &pb.Compare{Key: key, Target: pb.Compare_LEASE, TargetUnion: &pb.Compare_Lease{Lease: lease}}
}

func compareValue(key []byte, result pb.Compare_CompareResult, value []byte) *pb.Compare {
	return &pb.Compare{Key: key, Target: pb.Compare_VALUE, Result: result, TargetUnion: &pb.Compare_Value{Value: value}}
}
