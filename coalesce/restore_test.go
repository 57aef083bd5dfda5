package coalesce

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// snapshot and restore take the store back to an earlier state, as a cluster that is
// restored from a snapshot. Its revisions come again.
func (e *fake) snapshot() func() {
	kvs, revision, events := maps.Clone(e.kvs), e.revision, len(e.events)
	return func() { e.kvs, e.revision, e.events = kvs, revision, e.events[:events] }
}

// TestARestoreUnderWhatIsRemembered has a store come back to an earlier state, and then by
// somebody else's writes to the revision that a key was put at, before the process asks
// again: no header shows it.
func TestARestoreUnderWhatIsRemembered(t *testing.T) {
	for _, name := range []string{"after the sequence was made", "before the sequence was made"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, rule(Rule{Mode: GroupCommit, SkipUnchanged: true}), func(t *testing.T, e *fake, kv *KV) {
				stranger := clientv3.NewKVFromKVClient(e, nil)
				restore := e.snapshot()
				if name == "after the sequence was made" {
					mustPut(t, kv, "other", "1")
					restore = e.snapshot()
				}
				mustPut(t, kv, "a", "1")
				put := e.kvs["a"].ModRevision
				restore()
				for e.revision+1 < put {
					mustPut(t, stranger, "b", "")
				}
				mustPut(t, stranger, "a", "2")
				require.Equal(t, put, e.kvs["a"].ModRevision, "the revision is the same")
				mustPut(t, kv, "a", "1")
				require.Equal(t, "1", e.value("a"), "it was not there any more")
				require.Zero(t, kv.Stats().Skipped)
				mustPut(t, kv, "a", "1")
				require.EqualValues(t, 1, kv.Stats().Skipped)
			})
		})
	}
}
