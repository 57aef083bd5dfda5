package faults

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/kvwrap/kvwrap/internal/format"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// event is one change of a key, as a watch tells it. Found is what is there since,
// its zero value after a delete.
type event struct {
	Key string
	Rev int64
	found
	before *found // nil where the watch does not tell
}

func (e event) deletes() bool { return e.ID == "" }

func (e event) String() string { return fmt.Sprintf("%q at %d: %+v", e.Key, e.Rev, e.found) }

// witness watches all that happens below the prefix.
type witness struct {
	cancel context.CancelFunc
	ended  chan struct{}

	mu       sync.Mutex
	events   []event
	revision int64 // of the newest one
	gaps     []gap
	err      error // why there are no more
}

// gap is where a watch has missed what was compacted.
type gap struct{ from, to int64 }

// identifier says which operation wrote a value, as it comes with an event.
type identifier func([]byte) (string, error)

// witness begins to watch, from the first revision on and until the test ends.
func (h *history) witness(t testing.TB, watcher clientv3.Watcher, identify identifier) *witness {
	ctx, cancel := context.WithCancel(context.Background())
	w := &witness{cancel: cancel, ended: make(chan struct{})}
	t.Cleanup(func() { w.close() })
	go func() {
		defer close(w.ended)
		for w.watch(ctx, watcher, identify) {
		}
	}()
	return w
}

// close ends the watch, and returns what it has seen.
func (w *witness) close() []event {
	w.cancel()
	<-w.ended
	return w.events
}

// watch watches from where it stopped last, and reports whether it can be resumed.
func (w *witness) watch(ctx context.Context, watcher clientv3.Watcher, identify identifier) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next := w.revision + 1
	for resp := range watcher.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(next)) {
		w.mu.Lock()
		w.add(resp, identify)
		err := w.err
		if resp.CompactRevision > next {
			w.gaps, w.revision, w.err = append(w.gaps, gap{next, resp.CompactRevision}), resp.CompactRevision-1, nil
		}
		w.mu.Unlock()
		if err != nil {
			return resp.CompactRevision > next
		}
		next = w.revision + 1
	}
	return false
}

func (w *witness) add(resp clientv3.WatchResponse, identify identifier) {
	w.err = resp.Err()
	is := func(kv *mvccpb.KeyValue) found {
		id, err := identify(kv.Value)
		if err != nil {
			w.err = fmt.Errorf("%q at %d: %w", kv.Key, kv.ModRevision, err)
		}
		return found{ID: id, Create: kv.CreateRevision, Mod: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}
	}
	for _, ev := range resp.Events {
		e := event{Key: string(ev.Kv.Key), Rev: ev.Kv.ModRevision}
		if ev.Type == mvccpb.PUT {
			e.found = is(ev.Kv)
		}
		if ev.PrevKv != nil {
			before := is(ev.PrevKv)
			e.before = &before
		}
		w.events = append(w.events, e)
		w.revision = e.Rev
	}
}

// seen returns the revision of the newest event, and why there will be none any
// more, if so.
func (w *witness) seen() (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revision, w.err
}

// identifyStored returns the id of the operation that wrote what is stored at a
// key. A manifest says by its digest which value it stands for.
func (h *history) identifyStored(stored []byte) (string, error) {
	if format.Plain(stored) {
		return identify(stored)
	}
	_, m, err := format.Parse(stored, maxValueBytes)
	if err != nil {
		return "", err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	id, ok := h.ids[digest{m.Length, m.Digest}]
	if !ok {
		return "", fmt.Errorf("a manifest of a value of %d bytes that nobody wrote", m.Length)
	}
	return id, nil
}

// compare returns where a witness does not tell what happened: other events, or
// others before them; or not all, where nothing was compacted.
func (w *witness) compare(happened []event) (differences []string) {
	told := make(map[change]event)
	for i, e := range w.events {
		told[change{e.Key, e.Rev}] = e
		if i > 0 && e.Rev < w.events[i-1].Rev {
			differences = append(differences, fmt.Sprintf("watch: %v came after %v", e, w.events[i-1]))
		}
	}
	if len(told) < len(w.events) {
		differences = append(differences, "watch: an event came twice")
	}
	last := make(map[string]found)
	for _, e := range happened {
		t, is := told[change{e.Key, e.Rev}]
		delete(told, change{e.Key, e.Rev})
		switch {
		case !is && !w.missed(e):
			differences = append(differences, fmt.Sprintf("watch: missed %v", e))
		case is && t.found != e.found:
			differences = append(differences, fmt.Sprintf("watch: told of %v in place of %v", t, e))
		case is && t.before != nil && *t.before != last[e.Key]:
			differences = append(differences, fmt.Sprintf("watch: %v was before %v in place of %v", *t.before, e, last[e.Key]))
		}
		last[e.Key] = e.found
	}
	for _, e := range told {
		differences = append(differences, fmt.Sprintf("watch: told of %v, which did not happen", e))
	}
	return differences
}

func (w *witness) missed(e event) bool {
	for _, g := range w.gaps {
		if g.from <= e.Rev && e.Rev < g.to {
			return true
		}
	}
	return false
}
