package coalesce

import (
	"bytes"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// step is what is to be done next for a unit.
type step uint8

const (
	look   step = iota // read what is stored, to decide
	verify             // make sure that there is nothing to write
	write
)

// plan is how a unit is to be written, as far as is known. It rests on the memory and
// on nothing else, so that it is made anew whenever that may have changed.
type plan struct {
	step   step
	most   int             // comparisons or operations of one transaction, as was known then
	ops    []*pb.RequestOp // that are sent
	from   []int           // where in the unit's ops each of these stands; nil where they are all
	guards []*pb.Compare   // that hold where the plan is right
	bytes  int             // that it takes in a transaction
}

// makePlan plans u. Most is the number of comparisons, or operations, that one
// transaction may have.
//
// A plan is of one of three steps. Where something has to be known that is not, or the
// last plan has turned out to be wrong, it is to look. Where nothing is to be written,
// because all is there already, it is to verify: under the guards, read nothing. Else
// it is to write what is left, under the guards where there are some.
//
// Guards are the conditions of the context; that what is not written is there; under
// Max that what is there is smaller; and of a unit whose first attempt had no answer
// that its keys are as they were then.
func makePlan(u *unit, m *memory, most int) plan {
	switch {
	case u.examine || u.pins == nil && u.anyOld():
		return plan{step: look, most: most}
	case !u.remembers() && u.since == 0:
		p := plan{step: write, most: most, ops: u.ops, guards: u.fence.guards()}
		p.measure()
		return p
	}
	p := plan{step: write, most: most, from: []int{}}
	p.guards = append(p.guards, u.fence.guards()...)
	for i, op := range u.ops {
		r, put := u.rules[i], op.GetRequestPut()
		switch {
		case put == nil || depends(put):
		case r.Mode == Max:
			known := m.get(put.Key)
			if known == nil || !known.number {
				return plan{step: look, most: most}
			}
			c, ok := order(put.Value, known.value)
			if !ok && !known.absent {
				return plan{step: look, most: most} // what is there decides whether it is to be refused
			}
			p.guards = append(p.guards, stillThere(put.Key, known)...)
			if known.absent || c > 0 {
				break
			}
			if known.lease == put.Lease {
				continue
			}
			op = wire.Put(&pb.PutRequest{Key: put.Key, Value: known.value, Lease: put.Lease})
		case r.SkipUnchanged:
			known := m.get(put.Key)
			if known == nil || known.revision == 0 || known.lease != put.Lease || known.sum != u.sums[i] {
				break
			}
			p.guards = append(p.guards, modified(put.Key, known.revision))
			continue
		}
		if u.old(i) {
			p.guards = append(p.guards, modified(opKey(op), u.pins[i]))
		}
		p.ops, p.from = append(p.ops, op), append(p.from, i)
	}
	if u.put == nil && max(len(p.guards), len(p.ops))+outerOps > most && len(p.ops) < len(u.ops) {
		// Too much for one transaction within others: write it all, unguarded.
		return makePlan(u, newMemory(0), most)
	}
	if len(p.ops) == 0 {
		p.step = verify
	}
	p.measure()
	return p
}

// outerOps is what a plan leaves to the transactions that it is nested in.
const outerOps = 4

// measure computes how many bytes the plan takes.
func (p *plan) measure() {
	for _, op := range p.ops {
		p.bytes += itemBytes(op)
	}
	if len(p.guards) == 0 {
		return
	}
	for _, g := range p.guards {
		p.bytes += compareBytes(g)
	}
	p.bytes += nestedBytes
}

// request returns what is sent for the plan beside other plans: its operations, or
// one transaction with the guards.
func (p *plan) request() []*pb.RequestOp {
	if len(p.guards) == 0 {
		return p.ops
	}
	return []*pb.RequestOp{wire.Txn(&pb.TxnRequest{Compare: p.guards, Success: p.ops})}
}

// take takes the responses to request from the beginning of resps, and returns the
// rest, and the responses to ops; or that the guards did not hold.
func (p *plan) take(resps []*pb.ResponseOp) (rest, own []*pb.ResponseOp, held bool) {
	if len(p.guards) == 0 {
		return resps[len(p.ops):], resps[:len(p.ops)], true
	}
	nested := resps[0].GetResponseTxn()
	return resps[1:], nested.Responses, nested.Succeeded
}

// responses returns the responses to all operations of u, where own are those to the
// operations that were sent, at revision. What was not written is answered as if it
// had been.
func (p *plan) responses(u *unit, own []*pb.ResponseOp, revision int64) []*pb.ResponseOp {
	if p.from == nil {
		return own
	}
	all := make([]*pb.ResponseOp, len(u.ops))
	for i := range all {
		all[i] = &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{
			ResponsePut: &pb.PutResponse{Header: &pb.ResponseHeader{Revision: revision}},
		}}
	}
	for i, resp := range own {
		all[p.from[i]] = resp
	}
	return all
}

// stillThere compares that the value under Max is what is known. After a restore a
// revision may be that of another value, so it is the value that is compared; and its
// lease, where it may not be written again.
func stillThere(key []byte, known *memo) []*pb.Compare {
	if known.absent {
		return []*pb.Compare{{Key: key, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{}}}
	}
	return []*pb.Compare{
		{Key: key, Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: known.value}},
		{Key: key, Target: pb.Compare_LEASE, TargetUnion: &pb.Compare_Lease{Lease: known.lease}},
	}
}

// modified compares that a key was last written at a revision, or is not there where that
// is 0.
func modified(key []byte, revision int64) *pb.Compare {
	return &pb.Compare{Key: key, Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: revision}}
}

// old reports whether what u writes by its i-th operation may be older than what somebody
// else has written, since it has been sent before. Under Max it is the larger one that is
// to stay; but where the first attempt may have been applied a smaller one may be there on
// purpose.
func (u *unit) old(i int) bool { return u.since > 0 && (u.lost || !u.maximal(i)) }

// maximal reports whether the i-th operation of u is a put of which the larger value stays.
func (u *unit) maximal(i int) bool {
	put := u.ops[i].GetRequestPut()
	return put != nil && u.rules[i].Mode == Max && !depends(put)
}

func (u *unit) anyOld() bool {
	for i := range u.ops {
		if u.old(i) {
			return true
		}
	}
	return false
}

// learn takes note of what was found at the keys of u, in the order of its ops, where
// its plan was to look: what is there now, nil where nothing is, and what was there at
// since, where that was asked. It returns an error where that decides that u is not
// written.
func (u *unit) learn(m *memory, now, then []*mvccpb.KeyValue) error {
	u.examine = false
	if u.since > 0 {
		u.pins = make([]int64, len(u.ops))
	}
	for i, op := range u.ops {
		key, put, kv := opKey(op), op.GetRequestPut(), now[i]
		old := u.old(i)
		if put != nil && u.rules[i].Mode == Max && !depends(put) {
			if kv == nil {
				m.set(key, memo{number: true, absent: true})
			} else {
				c, ok := order(put.Value, kv.Value)
				if !ok {
					m.forget(key)
					return &NumberError{Key: key, Value: put.Value, Before: kv.Value}
				}
				m.set(key, memo{number: true, value: bytes.Clone(kv.Value), lease: kv.Lease})
				old = old && c > 0 // else what is there is as good
			}
		} else if known := m.get(key); known != nil && kv.GetModRevision() != known.revision {
			m.forget(key)
		}
		if u.since > 0 {
			u.pins[i] = kv.GetModRevision()
		}
		if !old {
			continue
		}
		// Nobody has written the key since if it is there as it was. If it is not there,
		// somebody may have deleted what was there, or what the first attempt wrote.
		switch {
		case kv.GetModRevision() > u.since:
			return &OvertakenError{Key: key, Revision: kv.ModRevision, Err: u.doubt}
		case kv == nil && then[i] != nil:
			return &OvertakenError{Key: key, Err: u.doubt}
		case kv == nil && u.lost:
			return u.doubt
		}
	}
	return nil
}

// wrote takes note of what u has written at a revision.
func (u *unit) wrote(m *memory, revision int64) {
	if !u.remembers() {
		return
	}
	for at, i := range u.plan.from {
		op := u.plan.ops[at]
		put := op.GetRequestPut()
		switch {
		case put == nil || depends(put):
			forget(m, op)
		case u.rules[i].Mode == Max:
			m.set(put.Key, memo{number: true, value: put.Value, lease: put.Lease})
		case u.rules[i].SkipUnchanged:
			m.set(put.Key, memo{revision: revision, lease: put.Lease, sum: u.sums[i]})
		}
	}
}

// forget forgets what is known of the keys that op changes.
func forget(m *memory, op *pb.RequestOp) {
	r := opRange(op)
	if r.Single() {
		m.forget(r.Key)
		return
	}
	for key := range m.memos {
		if r.Contains([]byte(key)) {
			m.forget([]byte(key))
		}
	}
}
