package coalesce

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/kvwrap/kvwrap/internal/session"
	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// sequence is a key of this process's, on the lease of its session, that every batch
// compares and puts:
//
//	If    Version(S) = n
//	Then  the batch, Put(S, its token)
//	Else  Get(S)
//
// So the batches of a process are applied one after the other, each at most once, and
// S tells which was the last:
//
//   - A batch whose answer was lost is settled by a transaction that puts S in its
//     place. Where that is applied the batch never will be. Where it is not, S says that
//     the batch was applied, and at which revision.
//   - A batch that comes late finds that S has moved on. So does one of a process that
//     has been killed, a minute later: S is gone with the lease.
//   - A cluster that was restored to a time before the last batch has another S, or none.
//     So while S holds the process knows that all that it has written is in the history
//     that it talks to, and what it remembers of it can be proved by revisions.
//
// What goes with it is not: where S is gone and an answer is missing it is not known
// whether the batch was applied, but it will not be any more.
//
// It is used by one goroutine at a time.
type sequence struct {
	inner   pb.KVClient
	session *session.Session
	prefix  string

	key     []byte // nil while there is none
	lease   int64
	version int64
	unheard [][]byte // the tokens of batches that had no answer, the last one last
}

// settled is put by what takes the place of a batch. A token is longer.
var settled = []byte{0}

const tokenBytes = 8

func newToken() []byte {
	t := make([]byte, tokenBytes)
	rand.Read(t) // never fails
	return t
}

// sequenceKey returns a key that nobody has.
func sequenceKey(prefix string) []byte {
	var id [16]byte
	rand.Read(id[:])
	return fmt.Appendf(nil, "%s%x", prefix, id)
}

// sequenceBytes returns what the sequence takes in a batch at the most.
func sequenceBytes(prefix string) int {
	s := &sequence{key: sequenceKey(prefix), lease: -1, version: -1} // the longest varints
	with := &pb.TxnRequest{Compare: s.compare(), Success: []*pb.RequestOp{s.put(newToken())}, Failure: s.read()}
	return wire.ProposalBytes(with) - wire.ProposalBytes(&pb.TxnRequest{})
}

// open makes a key where there is none. Where it fails a key may be left, until the lease
// ends.
func (s *sequence) open(ctx context.Context) error {
	if s.key != nil {
		return nil
	}
	return s.session.With(ctx, func(lease clientv3.LeaseID) error {
		key := sequenceKey(s.prefix)
		if _, err := s.inner.Put(ctx, &pb.PutRequest{Key: key, Value: settled, Lease: int64(lease)}); err != nil {
			return err
		}
		s.key, s.lease = key, int64(lease)
		s.moved(1)
		return nil
	})
}

// drop forgets the key, so that another one is made.
func (s *sequence) drop() { s.key = nil }

func (s *sequence) compare() []*pb.Compare {
	return []*pb.Compare{{Key: s.key, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: s.version}}}
}

func (s *sequence) put(value []byte) *pb.RequestOp {
	return wire.Put(&pb.PutRequest{Key: s.key, Value: value, Lease: s.lease})
}

func (s *sequence) read() []*pb.RequestOp {
	return []*pb.RequestOp{wire.Range(&pb.RangeRequest{Key: s.key})}
}

// moved takes note that S has another version.
func (s *sequence) moved(version int64) { s.version, s.unheard = version, nil }

// wrap returns the transaction that makes ops as the next batch.
func (s *sequence) wrap(ops []*pb.RequestOp) *pb.TxnRequest {
	token := newToken()
	s.unheard = append(s.unheard, token)
	return &pb.TxnRequest{Compare: s.compare(), Success: slices.Concat(ops, []*pb.RequestOp{s.put(token)}), Failure: s.read()}
}

// fate is what has become of a batch.
type fate uint8

const (
	unapplied fate = iota // and it never will be
	applied
	lost // S is gone, or is another one: it is not known, but if the batch was not applied it never will be
)

// heard takes note of the answer to what wrap returned.
func (s *sequence) heard(resp *pb.TxnResponse) fate {
	if resp.Succeeded {
		s.moved(s.version + 1)
		return applied
	}
	s.unheard = s.unheard[:len(s.unheard)-1] // it was not applied, and is not under way
	if f, _ := s.look(resp.Responses[0].GetResponseRange()); f == lost {
		return lost
	}
	return unapplied
}

// look takes note of what S is where it is not what was expected. It returns what has
// become of the last batch that had no answer, and the revision that it was applied at.
// Batches before that one, whose answers nobody waited for, may have been applied in
// its place.
func (s *sequence) look(found *pb.RangeResponse) (fate, int64) {
	if len(found.Kvs) != 1 || found.Kvs[0].Version != s.version+1 {
		s.drop()
		return lost, 0
	}
	kv := found.Kvs[0]
	at := slices.IndexFunc(s.unheard, func(token []byte) bool { return slices.Equal(token, kv.Value) })
	last := at >= 0 && at == len(s.unheard)-1
	if at < 0 && !slices.Equal(kv.Value, settled) {
		s.drop()
		return lost, 0
	}
	s.moved(kv.Version)
	if last {
		return applied, kv.ModRevision
	}
	return unapplied, 0
}

// settling returns the transaction that settles.
func (s *sequence) settling() *pb.TxnRequest {
	return &pb.TxnRequest{Compare: s.compare(), Success: []*pb.RequestOp{s.put(settled)}, Failure: s.read()}
}

// settle finds out what has become of the last batch, which had no answer, and sees to
// it that it is not applied from now on. Where it was applied the header is the one that
// its answer would have had.
func (s *sequence) settle(ctx context.Context) (fate, *pb.ResponseHeader, error) {
	resp, err := s.inner.Txn(ctx, s.settling())
	if err != nil {
		return unapplied, nil, err
	}
	if resp.Succeeded {
		s.moved(s.version + 1)
		return unapplied, nil, nil
	}
	f, revision := s.look(resp.Responses[0].GetResponseRange())
	h := copyHeader(resp.Header)
	h.Revision = revision
	return f, h, nil
}
