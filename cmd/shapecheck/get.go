package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
)

// get shows one key.
type get struct {
	raw, chunks bool
	revision    int64
	namespace   string
	output      outputFlag
	space       spaceFlags
	cluster     clusterFlags
}

func getCommand() *cobra.Command {
	var g get
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Writes the value of a key, put together from its chunks",
		Long: `Writes the value of a key to standard output, byte for byte and with nothing
after it, as a client with kvwrap reads it. With --raw it is what is stored at
the key, as a client without kvwrap reads it. With --chunks it is a list of the
chunks in the order of the value. With -w json keys and values are in base64,
as etcdctl's are.
` + clusterHelp + `

Exit codes: 0 there is such a key; 1 there is none, or it cannot be read, or the
command line is wrong; 2 the cluster cannot be reached; 130 interrupted.`,
		Example: `  shapecheck get gateway/statistics --endpoints 10.0.0.1:2379 | jq .
  shapecheck get gateway/statistics --endpoints 10.0.0.1:2379 --raw | xxd
  shapecheck get gateway/statistics --endpoints 10.0.0.1:2379 --chunks`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return fmt.Errorf("get takes one key, got %q: see %s --help", args, cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.run(cmd.Context(), args[0], cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&g.raw, "raw", false, "write what is stored at the key, a manifest for instance")
	cmd.Flags().BoolVar(&g.chunks, "chunks", false, "list the chunks")
	cmd.Flags().Int64Var(&g.revision, "rev", 0, "the revision to read at; 0 is the newest")
	cmd.Flags().StringVar(&g.namespace, "namespace", "", "of the applications' clients, where they have one (namespace.NewKV)")
	g.output.register(cmd)
	g.space.register(cmd)
	g.cluster.register(cmd)
	return cmd
}

func (g *get) run(ctx context.Context, key string, stdout io.Writer) error {
	switch {
	case g.raw && g.chunks:
		return fmt.Errorf("--raw and --chunks: choose one of them")
	case g.revision < 0:
		return fmt.Errorf("--rev %d: give a revision, or 0 for the newest", g.revision)
	}
	json, err := g.output.json()
	if err != nil {
		return err
	}
	space, err := g.space.keyspace()
	if err != nil {
		return err
	}
	cli, err := g.cluster.connect(ctx, 0)
	if err != nil {
		return err
	}
	defer cli.Close()
	stored := namespace.NewKV(cli.KV, g.namespace)
	if g.chunks {
		return g.list(ctx, stored, space, key, json, stdout)
	}
	kv := stored
	if !g.raw {
		whole, err := chunker.NewKV(stored, chunker.Config{ReadOnly: true, ReservedPrefix: space.Prefix(), MaxValueBytes: maxValueBytes})
		if err != nil {
			return err
		}
		defer whole.Close()
		kv = whole
	}
	found, _, err := g.read(ctx, kv, key)
	if unreadable(err) {
		return cmp.Or(g.misplaced(ctx, stored, space, key), err)
	}
	if err != nil {
		return err
	}
	if json {
		return writeJSON(stdout, keyDocument{found.Key, found.Value, found.CreateRevision, found.ModRevision, found.Version, found.Lease})
	}
	_, err = stdout.Write(found.Value)
	return err
}

// misplaced returns an error with the flags by which a value can be read that could not be,
// nil where there are none.
func (g *get) misplaced(ctx context.Context, stored clientv3.KV, space format.Keyspace, key string) error {
	kv, _, err := g.read(ctx, stored, key)
	if err != nil {
		return nil // the value could not be read, which is said
	}
	if _, m, err := format.Parse(kv.Value, maxValueBytes); err == nil && m != nil {
		return g.wrongPlace(space, kv.Key, m)
	}
	return nil
}

func (g *get) wrongPlace(space format.Keyspace, key []byte, m *format.Manifest) error {
	if flags := elsewhere(g.namespace, space, key, m); flags != "" {
		return fmt.Errorf("%q is of a client with another reserved prefix or namespace: get it %s", key, flags)
	}
	return nil
}

// read reads the key, and says so where there is none. It returns the cluster's revision,
// too.
func (g *get) read(ctx context.Context, kv clientv3.KV, key string) (*mvccpb.KeyValue, int64, error) {
	resp, err := kv.Get(ctx, key, clientv3.WithRev(g.revision))
	switch {
	case errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, rpctypes.ErrFutureRev):
		return nil, 0, fmt.Errorf("reading %q at revision %d: %w: choose a newer one that there is, or leave --rev out", key, g.revision, err)
	case err != nil:
		return nil, 0, asking("who may read it", fmt.Sprintf("reading %q", key), err)
	case len(resp.Kvs) == 0:
		return nil, 0, fmt.Errorf("there is no key %q%s: is it in a --namespace?", key, at(g.revision))
	}
	return resp.Kvs[0], resp.Header.Revision, nil
}

func at(revision int64) string {
	if revision == 0 {
		return ""
	}
	return fmt.Sprintf(" at revision %d", revision)
}

// keyDocument is a key, for programs.
type keyDocument struct {
	Key            []byte `json:"key"`
	Value          []byte `json:"value"`
	CreateRevision int64  `json:"create_revision"`
	ModRevision    int64  `json:"mod_revision"`
	Version        int64  `json:"version"`
	Lease          int64  `json:"lease,omitempty"`
}

// chunkList is what --chunks shows.
type chunkList struct {
	Key         []byte `json:"key"`
	ModRevision int64  `json:"mod_revision"`
	Kind        string `json:"kind"` // plain, envelope or manifest
	StoredBytes int    `json:"stored_bytes"`
	ValueBytes  int    `json:"value_bytes"`
	Token       string `json:"token,omitempty"` // of the write
	Lease       int64  `json:"lease,omitempty"`
	Depth       int    `json:"depth,omitempty"` // of lists, whose chunks are not listed

	Chunks []chunkLine `json:"chunks,omitempty"`
}

type chunkLine struct {
	ID          string `json:"id"`
	Offset      int    `json:"offset"`
	Bytes       int    `json:"bytes"`
	StoredBytes int    `json:"stored_bytes"` // 0 where it is missing
	Lease       int64  `json:"lease,omitempty"`
	Own         bool   `json:"own"` // stored by the write that made this value
}

// list shows the chunks of a key.
func (g *get) list(ctx context.Context, stored clientv3.KV, space format.Keyspace, key string, json bool, stdout io.Writer) error {
	kv, revision, err := g.read(ctx, stored, key)
	if err != nil {
		return err
	}
	l := chunkList{Key: kv.Key, ModRevision: kv.ModRevision, Kind: "plain", StoredBytes: len(kv.Value), ValueBytes: len(kv.Value), Lease: kv.Lease}
	if !format.Plain(kv.Value) {
		literal, m, err := format.Parse(kv.Value, maxValueBytes)
		switch {
		case err != nil:
			return fmt.Errorf("what is stored at %q: %w: --raw writes it as it is", key, err)
		case m == nil:
			l.Kind, l.ValueBytes = "envelope", len(literal)
		default:
			if err := g.wrongPlace(space, kv.Key, m); err != nil {
				return err
			}
			if l.Chunks, err = lineUp(ctx, pinned{stored, cmp.Or(g.revision, revision), "who may read the key's chunks, too; shapecheck roles says what is missing"}, space, kv, m); err != nil {
				return err
			}
			l.Kind, l.ValueBytes, l.Token, l.Depth = "manifest", m.Length, m.Token.String(), m.Depth
		}
	}
	if json {
		return writeJSON(stdout, l)
	}
	return l.print(stdout)
}

// lineUp returns the chunks of the value that m stands for, in order.
func lineUp(ctx context.Context, p pager, space format.Keyspace, kv *mvccpb.KeyValue, m *format.Manifest) (lines []chunkLine, err error) {
	layout, leases := format.NewLayout(m), make(map[format.ID]int64)
	src := format.Source{Stored: make(map[format.ID][]byte)}
	for {
		err := eachChunk(ctx, p, space, kv.Key, layout.Missing(src), func(id format.ID, chunk *mvccpb.KeyValue) {
			src.Stored[id], leases[id] = chunk.Value, chunk.Lease
		})
		if err != nil {
			return nil, err
		}
		if layout.Complete() {
			break
		}
		if err := layout.Read(src); err != nil {
			return nil, fmt.Errorf("the list of chunks of %q: %w: shapecheck verify finds out what else is", kv.Key, err)
		}
	}
	offset := 0
	for _, r := range layout.Last() {
		lines = append(lines, chunkLine{
			ID: r.ID.String(), Offset: offset, Bytes: int(r.Length), StoredBytes: len(src.Stored[r.ID]),
			Lease: leases[r.ID], Own: r.Token == m.Token,
		})
		offset += int(r.Length)
	}
	return lines, nil
}

func (l *chunkList) print(w io.Writer) error {
	fmt.Fprintf(w, "%q, revision %d: %s of %s", l.Key, l.ModRevision, l.Kind, bytesOf(l.StoredBytes))
	if l.Kind == "plain" {
		_, err := fmt.Fprintln(w, ", not in chunks.")
		return err
	}
	fmt.Fprintf(w, " for a value of %s.\n", bytesOf(l.ValueBytes))
	if l.Kind == "envelope" {
		return nil
	}
	stored, missing, reused := 0, 0, 0
	seen := make(map[string]bool) // one chunk may stand in several places
	for _, c := range l.Chunks {
		if seen[c.ID] {
			continue
		}
		seen[c.ID] = true
		stored += c.StoredBytes
		if c.StoredBytes == 0 {
			missing++
		}
		if !c.Own {
			reused++
		}
	}
	fmt.Fprintf(w, "Chunks: %d, in %d places, stored in %s, %d of them from writes before, %d missing. Write: %s.\n\n", len(seen), len(l.Chunks), bytesOf(stored), reused, missing, l.Token)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "offset\tbytes\tstored\t  chunk\t\n")
	for _, c := range l.Chunks {
		note := ""
		switch {
		case c.StoredBytes == 0:
			note = "  missing"
		case c.Lease != l.Lease:
			note = fmt.Sprintf("  on lease %x, the key on %x", c.Lease, l.Lease)
		}
		fmt.Fprintf(t, "%d\t%d\t%d\t  %s%s\t\n", c.Offset, c.Bytes, c.StoredBytes, c.ID, note)
	}
	return t.Flush()
}
