package workload

import (
	"fmt"
	"math/rand/v2"
)

// Broker is the other case kvwrap was born from: a message broker that commits the next
// offset of a partition, a decimal of its own key, whenever it has flushed messages.
// It is not safe for concurrent use.
type Broker struct {
	rng     *rand.Rand
	offsets []int
}

// NewBroker returns a broker of so many partitions. Equal seeds give equal sequences.
func NewBroker(partitions int, seed uint64) *Broker {
	b := &Broker{rng: rand.New(rand.NewPCG(seed, 1)), offsets: make([]int, partitions)}
	for i := range b.offsets {
		b.offsets[i] = 1_000_000 + b.rng.IntN(9_000_000)
	}
	return b
}

// OffsetsPrefix begins all keys of a broker.
const OffsetsPrefix = "/broker/topics/orders/partitions/"

// OffsetKey returns the key of a partition.
func OffsetKey(partition int) string {
	return fmt.Sprintf("%s%04d/next_offset", OffsetsPrefix, partition)
}

// Commit returns the next commit, of a partition chosen at random.
func (b *Broker) Commit() (partition int, offset string) {
	partition = b.rng.IntN(len(b.offsets))
	b.offsets[partition] += 1 + b.rng.IntN(100)
	return partition, fmt.Sprint(b.offsets[partition])
}
