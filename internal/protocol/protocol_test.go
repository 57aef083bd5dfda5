package protocol

import (
	"flag"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var wide = flag.Bool("wide", false, "explore the wide configurations, too")

// Puts over "ab" that share its first chunk, its second one, or none.
var (
	shares  = putSpec{value: "ac"}
	alike   = putSpec{value: "ad"}
	crossed = putSpec{value: "cb"}
	fresh   = putSpec{value: "cd"}
)

// inline makes the new chunks of a put fit in its commit, up to so many.
func (p putSpec) inline(chunks uint8) putSpec { p.fits = chunks; return p }

func (p putSpec) leased() putSpec { p.lease = 1; return p }

func puts(p ...putSpec) []putSpec { return p }

// safe are configurations in which every invariant has to hold. In the wide form a
// writer has all the tokens that there are, one attempt more before it is blind,
// and more may happen.
var safe = []struct {
	name string
	model
	wider budget
}{
	{"one writer, and all that may happen to it",
		model{first: "ab", puts: puts(shares), sweepers: 1, env: budget{
			plainPut: 1, wrapperPut: 1, wrapperDelete: 1, timeout: 1, crash: 1, sessionEnd: 1}},
		budget{plainDelete: 1, timeout: 1}},
	{"two writers that share a chunk, readers and watchers",
		model{first: "ab", puts: puts(shares, alike), sweepers: 1, readers: 1, env: budget{
			timeout: 1, wrapperDelete: 1, compact: 1}},
		budget{plainPut: 1, crash: 1}},
	{"K is absent at first, and again",
		model{puts: puts(shares, alike), sweepers: 1, env: budget{
			timeout: 1, plainDelete: 1, sessionEnd: 1}},
		budget{wrapperDelete: 1, plainPut: 1}},
	{"one commits inline, the other stages",
		model{first: "ab", puts: puts(shares.inline(1), fresh), tokens: 3, sweepers: 1, env: budget{
			timeout: 1, plainDelete: 1}},
		budget{plainPut: 1, crash: 1, timeout: 1}},
	{"commits without room for deletes, two sweepers",
		model{first: "ab", puts: puts(shares.inline(1), crossed), noRoom: true, sweepers: 2, readers: 1, env: budget{
			timeout: 1, compact: 1}},
		budget{plainPut: 1}},
	{"a lease that ends and is granted again, a key that is moved to another",
		model{first: "ab", lease: 1, puts: puts(shares.leased(), alike), sweepers: 1, env: budget{
			timeout: 1, leaseEnd: 1, plainMove: 1}},
		budget{plainPut: 1}},
	{"a lease that ends twice, sessions that end",
		model{first: "ab", lease: 1, puts: puts(fresh.leased()), sweepers: 1, env: budget{
			timeout: 1, leaseEnd: 2, sessionEnd: 1, wrapperDelete: 1}},
		budget{plainMove: 1, plainPut: 1, crash: 1}},
	{"three writers",
		model{first: "ab", puts: puts(shares, crossed, fresh.inline(2)), sweepers: 1, env: budget{timeout: 1}},
		budget{plainPut: 1, wrapperDelete: 1}},
	{"a restore",
		model{first: "ab", puts: puts(fresh), sweepers: 1, readers: 1, env: budget{restore: 2, plainPut: 1}},
		budget{timeout: 1, sessionEnd: 1}},
	{"a restore, two writers",
		model{first: "ab", puts: puts(shares, crossed.inline(1)), sweepers: 1, readers: 1, env: budget{restore: 2}},
		budget{timeout: 1}},
}

func TestSafe(t *testing.T) {
	for _, c := range safe {
		t.Run(c.name, func(t *testing.T) { requireSafe(t, c.model) })
	}
}

func TestWide(t *testing.T) {
	if !*wide {
		t.Skip("without -wide")
	}
	for _, c := range safe {
		t.Run(c.name, func(t *testing.T) {
			m := c.model
			m.tokens, m.blind = (tokens-1)/uint8(len(m.puts)), 3
			m.env = m.env.plus(c.wider)
			requireSafe(t, m)
		})
	}
}

func requireSafe(t *testing.T, m model) {
	r := m.explore()
	t.Logf("%d states, the last after %d steps", r.states, r.depth-1)
	if r.fault != nil {
		require.Fail(t, r.fault.String())
	}
}

func (b budget) plus(o budget) budget {
	return budget{
		plainPut: b.plainPut + o.plainPut, plainDelete: b.plainDelete + o.plainDelete, plainMove: b.plainMove + o.plainMove,
		wrapperPut: b.wrapperPut + o.wrapperPut, wrapperDelete: b.wrapperDelete + o.wrapperDelete,
		timeout: b.timeout + o.timeout, crash: b.crash + o.crash,
		sessionEnd: b.sessionEnd + o.sessionEnd, leaseEnd: b.leaseEnd + o.leaseEnd,
		compact: b.compact + o.compact, restore: b.restore + o.restore,
	}
}

// unsafe are protocols that break an invariant, each in its shortest way. With -v
// the test tells how.
var unsafe = []struct {
	name, breaks string
	steps        int
	model
}{
	{"the anchor is compared as it was made, a restore to between two batches", "I1", 6,
		model{puts: puts(fresh), env: budget{restore: 2}, variant: variant{anchorCreated: true}}},
	{"the anchor lies outside C(K)", "I1", 5,
		model{puts: puts(fresh), env: budget{wrapperDelete: 1}, variant: variant{anchorOutside: true}}},
	{"a range compare over staged chunks in place of the anchor", "I1", 5,
		model{puts: puts(fresh), env: budget{wrapperDelete: 1}, variant: variant{rangeForAnchor: true}}},
	{"an intent per client in place of an anchor per write", "I1", 6,
		model{puts: puts(fresh), env: budget{timeout: 1}, variant: variant{intentPerClient: true}}},
	// As built no anchor can come again: its put is not sent again.
	{"the anchor has to exist, whatever its revision, and batches are sent again", "I1", 7,
		model{puts: puts(fresh), env: budget{wrapperDelete: 1, timeout: 1}, variant: variant{anchorExists: true, stageAgain: true}}},

	// As built a sweep takes the anchor with the chunks, so that one too many costs
	// its writer an attempt and no more.
	{"sweep because K has moved past the base, sparing the anchor", "I1", 8,
		model{puts: puts(fresh), sweepers: 1, env: budget{plainPut: 1, plainDelete: 1}, variant: variant{sweepMoved: true, sweepSparesAnchor: true}}},
	{"sweep without a comparison with K", "I1", 6,
		model{puts: puts(fresh), sweepers: 1, variant: variant{sweepUnguarded: true}}},
	{"sweep a whole token that is named in part", "I1", 4,
		model{first: "ab", puts: puts(shares.inline(1)), noRoom: true, sweepers: 1, variant: variant{sweepWhole: true}}},
	{"sweep whole tokens only", "I3", 2,
		model{first: "ab", puts: puts(shares.inline(1)), noRoom: true, variant: variant{sweepWholeOnly: true}}},
	{"sweep over a plain value that is proved by its ModRevision alone, a restore", "I1", 9,
		model{puts: puts(fresh), sweepers: 1, env: budget{restore: 2, plainPut: 1}, variant: variant{sweepByModAlone: true}}},

	{"delete what was staged because K shows another token", "I1", 8,
		model{first: "ab", puts: puts(fresh, putSpec{value: "ce", fits: 1}), env: budget{timeout: 1}, variant: variant{abandonByToken: true}}},
	{"send a commit again that has neither base nor anchor", "I4", 5,
		model{puts: puts(fresh.inline(2)), env: budget{timeout: 1, plainDelete: 1}, variant: variant{commitAgain: true}}},
	{"send the old manifest for the new base", "I1", 8,
		model{first: "ab", puts: puts(shares, putSpec{value: "de"}), variant: variant{oldManifest: true}}},
	// As built no batch comes late while its writer goes on.
	{"number the chunks of a token anew, and send batches again", "I1", 9,
		model{first: "ab", puts: puts(shares, alike.inline(2)), env: budget{timeout: 1, plainPut: 1}, variant: variant{renumber: true, stageAgain: true}}},
	{"do not learn from a conflict", "I5", 2,
		model{first: "ab", puts: puts(fresh), blind: 20, env: budget{plainPut: 1}, variant: variant{deaf: true}}},

	{"read the chunks of what K holds by then", "I2", 5,
		model{first: "ab", puts: puts(fresh.inline(2)), noRoom: true, readers: 1, env: budget{compact: 1}, variant: variant{readByPlace: true}}},

	{"reuse across leases", "I1", 4,
		model{first: "ab", lease: 1, puts: puts(shares), env: budget{leaseEnd: 1}, variant: variant{reuseAcrossLeases: true}}},
	{"reuse by the lease of K, whatever the manifest says", "I1", 5,
		model{first: "ab", lease: 1, puts: puts(shares), env: budget{leaseEnd: 1, plainMove: 1}, variant: variant{reuseByKeyLease: true}}},
	{"the lease is granted again, and the first chunk not compared", "I1", 6,
		model{puts: puts(fresh.leased()), env: budget{leaseEnd: 1}, variant: variant{firstChunkUnproved: true}}},
	{"the base is proved by its ModRevision alone, a restore", "I1", 8,
		model{first: "ab", puts: puts(crossed.inline(2), putSpec{value: "de", fits: 2}, putSpec{value: "db", fits: 2}), env: budget{restore: 2}, variant: variant{baseByModAlone: true}}},
}

func TestUnsafe(t *testing.T) {
	for _, c := range unsafe {
		t.Run(c.name, func(t *testing.T) {
			r := c.explore()
			require.NotNil(t, r.fault, "the model does not see the fault, in %d states", r.states)
			t.Log(r.fault)
			require.Equal(t, c.breaks, r.fault.invariant, r.fault)
			require.Len(t, r.fault.trace, c.steps+1, r.fault)
		})
	}
}

// harmless are the changes that are unsafe only beside another one, alone where
// that one makes them unsafe.
var harmless = []struct {
	name string
	model
}{
	{"batches are sent again",
		model{first: "ab", puts: puts(shares, alike.inline(2)), env: budget{timeout: 1, plainPut: 1, wrapperDelete: 1}, variant: variant{stageAgain: true}}},
	{"the anchor has to exist, whatever its revision",
		model{puts: puts(fresh), env: budget{wrapperDelete: 1, timeout: 1}, variant: variant{anchorExists: true}}},
	{"the chunks of a token are numbered anew",
		model{first: "ab", puts: puts(shares, alike.inline(2)), env: budget{timeout: 1, plainPut: 1}, variant: variant{renumber: true}}},
	{"a sweep because K has moved past the base",
		model{puts: puts(fresh), sweepers: 1, env: budget{plainPut: 1, plainDelete: 1}, variant: variant{sweepMoved: true}}},
	{"a sweep that spares the anchor",
		model{puts: puts(fresh), sweepers: 1, env: budget{plainPut: 1, plainDelete: 1}, variant: variant{sweepSparesAnchor: true}}},
	{"a commit that consumes its anchor is sent again",
		model{puts: puts(fresh), env: budget{timeout: 1, plainPut: 1, plainDelete: 1, wrapperDelete: 1}, variant: variant{commitAgain: true}}},
	{"a commit that has a base, which it has until it is blind, is sent again",
		model{first: "ab", puts: puts(fresh.inline(2)), env: budget{timeout: 1, plainPut: 1, plainDelete: 1}, variant: variant{commitAgain: true}}},
}

func TestHarmless(t *testing.T) {
	for _, c := range harmless {
		t.Run(c.name, func(t *testing.T) { requireSafe(t, c.model) })
	}
}

func (f *fault) String() string { return f.invariant + " is broken\n" + strings.Join(f.trace, "\n") }
