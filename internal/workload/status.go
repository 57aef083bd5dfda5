package workload

import (
	"fmt"
	"math/rand/v2"
)

// Status is what a member of a gateway says of its objects: a key for each, of one to
// two kilobytes, which it puts every few seconds, twenty in a transaction, whether they
// have changed or not. It is not safe for concurrent use.
type Status struct {
	member string
	rng    *rand.Rand
	states []string
	turns  []int
}

// NewStatus returns the status of so many objects of a member, its name. Equal names give
// equal sequences.
func NewStatus(objects int, member string) *Status {
	s := &Status{member: member, rng: rand.New(seeded(member)), states: make([]string, objects), turns: make([]int, objects)}
	for i := range s.states {
		s.change(i)
	}
	return s
}

func (s *Status) change(i int) {
	s.turns[i]++
	s.states[i] = Text(1000+s.rng.IntN(1000), fmt.Sprint(s.member, i, s.turns[i]))
}

// StatusPrefix begins all keys of a gateway's status.
const StatusPrefix = "/gateway/status/objects/"

// Sync has a share of the objects change, chosen at random, and returns all keys and
// values, as key, value, key, value, in transactions of so many keys.
func (s *Status) Sync(active float64, keys int) (txns [][]string) {
	n := int(active * float64(len(s.states)))
	for _, i := range s.rng.Perm(len(s.states))[:n] {
		s.change(i)
	}
	for i, state := range s.states {
		if i%keys == 0 {
			txns = append(txns, nil)
		}
		last := &txns[len(txns)-1]
		*last = append(*last, fmt.Sprintf("%spipeline-%04d/%s", StatusPrefix, i, s.member), state)
	}
	return txns
}
