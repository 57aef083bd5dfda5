package faults

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// register is the state of one key: what is there, since which revision.
type register struct {
	found
	since int64
}

// operation is a record, and of a write the revision of the one before it.
type operation struct {
	*record
	after int64
}

// model is one key of etcd's as a register. Revisions are part of it: a register
// holds not only a value, but says which write it is from, and writes have
// increasing ones. So only one write can be next, and a search need not try the orders
// of those that overlap.
var model = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		s, r := state.(register), input.(operation)
		switch {
		case r.Observed && r.Found != s.found:
			return false, s
		case !r.Wrote:
			return r.Revision >= s.since, s
		case s.since != r.after || r.Revision <= s.since:
			return false, s
		case r.ID == "":
			return s.ID != "", register{since: r.Revision}
		}
		return true, register{s.put(r.ID, r.Revision, r.Lease), r.Revision}
	},
	DescribeOperation: func(input, _ any) string { return input.(operation).String() },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

// linearizable asks porcupine about each key, once check has settled what has
// become of writes with an unknown outcome. Those that were never applied do not
// change what others may see, and are left out; the others never return, so that
// they may take effect at any time after their call. Without that a search would
// have to try every subset of them.
//
// It returns what it cannot explain. A picture of it is drawn into dir.
func (h *history) linearizable(dir func() string) (violations []string) {
	keys := make(map[string][]porcupine.Operation)
	for _, r := range h.records {
		if r.ordered() && !r.Merged {
			keys[r.Key] = append(keys[r.Key], porcupine.Operation{ClientId: r.Client, Input: operation{record: r}, Call: int64(r.Call), Return: int64(r.Return)})
		}
	}
	for key, ops := range keys {
		chain(ops)
		if porcupine.CheckOperationsTimeout(model, ops, time.Minute) == porcupine.Ok {
			continue
		}
		result, info := porcupine.CheckOperationsVerbose(model, ops, time.Minute) // takes long, and gigabytes
		picture := filepath.Join(dir(), fmt.Sprintf("%x.html", key))
		if err := porcupine.VisualizePath(model, info, picture); err != nil {
			picture = err.Error()
		}
		violations = append(violations, fmt.Sprintf("%q is not linearizable: porcupine says %s: %s", key, result, picture))
	}
	return violations
}

// chain tells each write of a key which one it comes after.
func chain(ops []porcupine.Operation) {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int {
		return cmp.Compare(a.Input.(operation).Revision, b.Input.(operation).Revision)
	})
	before := int64(0)
	for i, op := range ops {
		o := op.Input.(operation)
		if !o.Wrote {
			continue
		}
		o.after, before = before, o.Revision
		ops[i].Input = o
	}
}

// dump writes what is known of each key into files.
func (h *history) dump(dir string, events []event) error {
	lines := make(map[string][]string)
	slices.SortFunc(h.records, func(a, b *record) int { return int(a.Call - b.Call) })
	for _, r := range h.records {
		lines[r.Key] = append(lines[r.Key], r.String())
	}
	for _, e := range events {
		lines[e.Key] = append(lines[e.Key], "event: "+e.String())
	}
	for key, lines := range lines {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%x.txt", key)))
		if err != nil {
			return err
		}
		for _, l := range lines {
			fmt.Fprintln(f, l)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
