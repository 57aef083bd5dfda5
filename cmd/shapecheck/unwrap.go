package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// unwrap is the way back: it stores whole what is stored in chunks.
type unwrap struct {
	dryRun    bool
	namespace string
	space     spaceFlags
	cluster   clusterFlags
}

func unwrapCommand() *cobra.Command {
	var u unwrap
	cmd := &cobra.Command{
		Use:   "unwrap",
		Short: "Stores every chunked value of a cluster whole, so that clients without kvwrap can read it",
		Long: `Reads every value that is stored in chunks, or in an envelope, and stores it
whole in their place. That is a put of the key: one version, one revision, one
event; the lease stays. It is made only while the key is as it was read, so that
applications may go on. Run it when all of them have Chunk.ReadOnly set, and
before the first of them goes on without kvwrap.

It may be interrupted and run again. Values that the server does not take whole,
or that cannot be read, stay as they are and are listed at the end.

With authentication it takes a user with the role root.
` + clusterHelp + `

Exit codes: 0 all values are whole; 1 failed, or some of them are not, or the
command line is wrong; 2 the cluster cannot be reached; 130 interrupted, and
what was stored whole stays so.`,
		Example: `  shapecheck unwrap --endpoints 10.0.0.1:2379 --dry-run
  shapecheck unwrap --endpoints 10.0.0.1:2379`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return u.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().BoolVar(&u.dryRun, "dry-run", false, "only say how many values there are, and how large; it does not read them, and so not find those that are damaged or that the server refuses")
	cmd.Flags().StringVar(&u.namespace, "namespace", "", "of the applications' clients, where they have one (namespace.NewKV)")
	u.space.register(cmd)
	u.cluster.register(cmd)
	return cmd
}

// maxValueBytes is the length of the largest value that chunker.Config allows.
const maxValueBytes = 256 << 20

func (u *unwrap) run(ctx context.Context, stdout, stderr io.Writer) error {
	space, err := u.space.keyspace()
	if err != nil {
		return err
	}
	cli, err := u.cluster.connect(ctx, maxValueBytes+1<<20)
	if err != nil {
		return err
	}
	defer cli.Close()
	stored := namespace.NewKV(cli.KV, u.namespace)
	whole, err := chunker.NewKV(stored, chunker.Config{ReadOnly: true, ReservedPrefix: space.Prefix(), MaxValueBytes: maxValueBytes})
	if err != nil {
		return err
	}
	defer whole.Close()
	w := &unwrapping{space: space, stored: stored, whole: whole, stdout: stdout, progress: newProgress(stderr)}
	defer w.progress.end()

	w.progress.say("looking for values in chunks")
	var found tally
	err = w.scan(ctx, func(kv *mvccpb.KeyValue) error {
		found.add(lengthOf(kv.Value))
		return nil
	})
	if err != nil {
		return err
	}
	w.tell("In chunks or envelopes: %v.\n", found)
	if u.dryRun || found.values == 0 {
		return w.below(ctx)
	}
	if err := room(ctx, cli, u.cluster.dialTimeout, found.bytes, "compact and defragment it, or raise its --quota-backend-bytes"); err != nil {
		return err
	}
	err = w.scan(ctx, func(kv *mvccpb.KeyValue) error {
		w.progress.count("unwrapping", min(w.done.values+len(w.refused), found.values), found.values)
		return w.unwrap(ctx, kv)
	})
	w.tell("Unwrapped: %v.\n", w.done)
	if err != nil {
		return err
	}
	return w.outcome(ctx)
}

// tally counts values.
type tally struct {
	values         int
	bytes, largest int
}

func (t *tally) add(bytes int) {
	t.values++
	t.bytes += bytes
	t.largest = max(t.largest, bytes)
}

func (t tally) String() string {
	if t.values == 0 {
		return "no values"
	}
	return fmt.Sprintf("values: %d, together %s, the largest %s", t.values, bytesOf(t.bytes), bytesOf(t.largest))
}

// lengthOf returns the length of the value that what is stored stands for, as far
// as it says.
func lengthOf(stored []byte) int {
	literal, m, err := format.Parse(stored, maxValueBytes)
	switch {
	case err != nil:
		return 0
	case m == nil:
		return len(literal)
	}
	return m.Length
}

// unwrapping is a run of unwrap.
type unwrapping struct {
	space    format.Keyspace
	stored   clientv3.KV // as plain clients see it
	whole    clientv3.KV // as kvwrap shows it
	stdout   io.Writer
	progress *progress

	done    tally
	refused []refusal
}

// refusal is a value that stays as it is.
type refusal struct {
	key   []byte
	bytes int
	why   error
}

// pageKeys is how many keys are read at a time, with their values: what a plain
// client could store under so many is what it takes in memory.
const pageKeys = 64

// scan visits the keys whose stored value is not the application's, in order.
func (w *unwrapping) scan(ctx context.Context, visit func(*mvccpb.KeyValue) error) error {
	for _, r := range w.space.Logical(format.Range{Key: []byte{0}, End: []byte{0}}) {
		for from, more := string(r.Key), true; more; {
			page, err := w.stored.Get(ctx, from, clientv3.WithRange(string(r.End)), clientv3.WithLimit(pageKeys))
			if err != nil {
				return rootOnly(fmt.Sprintf("reading keys from %q on", from), err)
			}
			for _, kv := range page.Kvs {
				from = string(kv.Key) + "\x00"
				if format.Plain(kv.Value) {
					continue
				}
				if err := visit(kv); err != nil {
					return err
				}
			}
			more = page.More
		}
	}
	return nil
}

// unwrap stores the value of a key whole, which was found stored as it is in kv. It
// returns an error where it is no use to go on with other keys.
func (w *unwrapping) unwrap(ctx context.Context, kv *mvccpb.KeyValue) error {
	for !format.Plain(kv.Value) {
		read, err := w.whole.Get(ctx, string(kv.Key))
		switch {
		case unreadable(err):
			w.refused = append(w.refused, refusal{kv.Key, lengthOf(kv.Value), err})
			return nil
		case err != nil:
			return rootOnly(fmt.Sprintf("reading %q", kv.Key), err)
		}
		if len(read.Kvs) == 1 && read.Kvs[0].ModRevision == kv.ModRevision {
			value := read.Kvs[0].Value
			if _, _, err := format.Parse(value, maxValueBytes); err == nil && !format.Plain(value) {
				w.refused = append(w.refused, refusal{kv.Key, len(value), errors.New("the value is an envelope itself: kvwrap would take it for its own")})
				return nil
			}
			switch done, err := w.replace(ctx, kv, value); {
			case tooLarge(err):
				w.refused = append(w.refused, refusal{kv.Key, len(value), fmt.Errorf("%w: raise the server's --max-request-bytes", err)})
				return nil
			case err != nil:
				return rootOnly(fmt.Sprintf("putting %q", kv.Key), err)
			case done:
				w.done.add(len(value))
				return nil
			}
		}
		// Somebody has written to it meanwhile.
		again, err := w.stored.Get(ctx, string(kv.Key))
		if err != nil {
			return rootOnly(fmt.Sprintf("reading %q", kv.Key), err)
		}
		if len(again.Kvs) == 0 {
			return nil
		}
		kv = again.Kvs[0]
	}
	return nil
}

// replace puts value in the place of what is stored in kv and of its chunks, and
// reports whether it did: not, where the key has been written since.
func (w *unwrapping) replace(ctx context.Context, kv *mvccpb.KeyValue, value []byte) (bool, error) {
	key, chunks := string(kv.Key), w.space.Chunks(format.Range{Key: kv.Key})
	resp, err := w.stored.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).
		Then(clientv3.OpPut(key, string(value), clientv3.WithIgnoreLease()),
			clientv3.OpDelete(string(chunks.Key), clientv3.WithRange(string(chunks.End)))).
		Commit()
	return err == nil && resp.Succeeded, err
}

// unreadable reports whether err says that a value cannot be read.
func unreadable(err error) bool {
	for _, e := range []error{chunker.ErrDamaged, chunker.ErrUnknownFormat, chunker.ErrPrefixMismatch, chunker.ErrValueTooLarge} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// tooLarge reports whether err is the server's word that a request is too large, or
// that of its transport.
func tooLarge(err error) bool {
	return errors.Is(err, rpctypes.ErrRequestTooLarge) || status.Code(err) == codes.ResourceExhausted
}

// outcome says what was refused and what is left, and returns an error where that is
// a value.
func (w *unwrapping) outcome(ctx context.Context) error {
	w.progress.say("looking for values that are left")
	refused := make(map[string]bool)
	for _, r := range w.refused {
		refused[string(r.key)] = true
	}
	var left tally
	err := w.scan(ctx, func(kv *mvccpb.KeyValue) error {
		// What was in an envelope is not any more, although it looks like one.
		if _, _, err := format.Parse(kv.Value, maxValueBytes); err == nil && !refused[string(kv.Key)] {
			left.add(lengthOf(kv.Value))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.below(ctx); err != nil {
		return err
	}
	if len(w.refused) > 0 {
		w.tell("Not unwrapped:\n")
		for _, r := range w.refused {
			w.tell("  %q, %s: %v\n", r.key, bytesOf(r.bytes), r.why)
		}
		err = fmt.Errorf("%d of the values could not be unwrapped", len(w.refused))
	}
	if left.values > 0 {
		err = errors.Join(err, fmt.Errorf("somebody has written chunks meanwhile: %v: set Chunk.ReadOnly in every client and run this again", left))
	}
	return err
}

// below says how many keys there are below the reserved prefix.
func (w *unwrapping) below(ctx context.Context) error {
	resp, err := w.stored.Get(ctx, w.space.Prefix(), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return rootOnly("counting keys", err)
	}
	w.tell("Keys below %q: %d.\n", w.space.Prefix(), resp.Count)
	return nil
}

func (w *unwrapping) tell(format string, args ...any) {
	w.progress.end()
	fmt.Fprintf(w.stdout, format, args...)
}
