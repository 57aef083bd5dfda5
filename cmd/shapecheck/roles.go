package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// roles compares what roles may do on keys with what they may do on the chunks of
// these.
type roles struct {
	role      string // the only one to look at; empty for all
	apply     bool
	sequences bool // the keys of batches, too
	space     spaceFlags
	cluster   clusterFlags
}

func rolesCommand() *cobra.Command {
	var r roles
	cmd := &cobra.Command{
		Use:   "roles",
		Short: "Shows which permissions on chunks the roles of a cluster lack, and grants them",
		Long: `A role that has a permission on a range of keys needs the same permission on the
range of their chunks. This shows which of these are missing, for all roles or
one, and grants them with --apply. It takes away none. It takes a user with the
role root.

With --sequences it looks for one permission more in each role that may write:
on the keys below the reserved prefix by which processes know what has become of
a batch.

The ranges of chunks hold bytes 00, unless the reserved prefix and the keys are
chosen for it. No argument of a command can hold one, so etcdctl cannot grant
them.
` + clusterHelp + `

Exit codes: 0 listed, or granted; 1 failed, or the command line is wrong; 2 the
cluster cannot be reached; 130 interrupted, and what was granted stays.`,
		Example: `  shapecheck roles --endpoints 10.0.0.1:2379 --user root:PASSWORD
  shapecheck roles --endpoints 10.0.0.1:2379 --user root:PASSWORD \
      --role gateway --apply`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&r.role, "role", "", "look at this role only")
	cmd.Flags().BoolVar(&r.apply, "apply", false, "grant what is missing")
	cmd.Flags().BoolVar(&r.sequences, "sequences", false, "also what processes need that write behind, or have rules with Retry or SkipUnchanged")
	r.space.register(cmd)
	r.cluster.register(cmd)
	return cmd
}

func (r *roles) run(ctx context.Context, stdout io.Writer) error {
	space, err := r.space.keyspace()
	if err != nil {
		return err
	}
	cli, err := r.cluster.connect(ctx, 0)
	if err != nil {
		return err
	}
	defer cli.Close()
	names := []string{r.role}
	if r.role == "" {
		list, err := cli.RoleList(ctx)
		if err != nil {
			return rootOnly("listing the roles", err)
		}
		names = list.Roles
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "role\tpermission\ton keys\ton their chunks")
	missing := 0
	for _, name := range names {
		role, err := cli.RoleGet(ctx, name)
		if err != nil {
			return rootOnly(fmt.Sprintf("role %q", name), err)
		}
		missingOf := missingGrants(space, role.Perm)
		if r.sequences {
			missingOf = append(missingOf, missingSequences(space, role.Perm)...)
		}
		for _, g := range missingOf {
			if r.apply {
				if _, err := cli.RoleGrantPermission(ctx, name, string(g.chunks.Key), string(g.chunks.End), clientv3.PermissionType(g.typ)); err != nil {
					return rootOnly(fmt.Sprintf("granting role %q %s on %s, after %d other permissions", name, permissionName(g.typ), rangeName(g.chunks), missing), err)
				}
			}
			keys := "for batches"
			if g.keys.Key != nil {
				keys = rangeName(g.keys)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name, permissionName(g.typ), keys, rangeName(g.chunks))
			missing++
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	switch {
	case missing == 0:
		_, err = fmt.Fprintf(stdout, "No permission on chunks is missing. Roles: %d.\n", len(names))
	case r.apply:
		_, err = fmt.Fprintf(stdout, "%s\nGranted. Permissions: %d.\n", b.String(), missing)
	default:
		_, err = fmt.Fprintf(stdout, "%s\nMissing permissions: %d. Run again with --apply to grant them.\n", b.String(), missing)
	}
	return err
}

// refused reports whether etcd lets this user, or nobody without a name, not do something. Of
// a watch it says so in words only.
func refused(err error) bool {
	if err == nil {
		return false
	}
	for _, e := range []error{rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty} {
		if errors.Is(err, e) || strings.Contains(err.Error(), rpctypes.ErrorDesc(e)) {
			return true
		}
	}
	return false
}

// onlyFor says what has failed with err, and where etcd has refused it, who may.
func onlyFor(who, what string, err error) error {
	if refused(err) {
		return fmt.Errorf("%s: %w: give a --user %s", what, err, who)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// rootOnly is onlyFor the role root.
func rootOnly(what string, err error) error { return onlyFor("with the role root", what, err) }

func permissionName(t authpb.Permission_Type) string { return strings.ToLower(t.String()) }

func rangeName(r format.Range) string {
	switch {
	case r.Single():
		return fmt.Sprintf("%q", r.Key)
	case string(r.End) == "\x00":
		return fmt.Sprintf("from %q on", r.Key)
	}
	return fmt.Sprintf("[%q, %q)", r.Key, r.End)
}

// grant is a permission on the chunks of keys, or where there are no keys on something
// else below the reserved prefix.
type grant struct {
	keys, chunks format.Range
	typ          authpb.Permission_Type
}

// missingGrants returns what a role with the permissions lacks, so that it has the
// permission on each range of keys on the range of their chunks as well.
func missingGrants(space format.Keyspace, has []*authpb.Permission) (missing []grant) {
	cfg := chunker.Config{ReservedPrefix: space.Prefix()}
	for _, p := range has {
		for _, keys := range space.Logical(permitted(p)) {
			from, to, err := cfg.ChunkRange(string(keys.Key), string(keys.End))
			if err != nil {
				continue // no keys are in it
			}
			g := grant{keys: keys, chunks: format.Range{Key: []byte(from), End: []byte(to)}, typ: p.PermType}
			if (!reads(p) || covered(has, g.chunks, reads)) && (!writes(p) || covered(has, g.chunks, writes)) {
				continue
			}
			for _, old := range has {
				// etcd puts the new permission in the place of one on the same range.
				if o := permitted(old); string(o.Key) == from && string(o.End) == to && old.PermType != g.typ {
					g.typ = authpb.READWRITE
				}
			}
			missing = append(missing, g)
			has = append(has, &authpb.Permission{Key: g.chunks.Key, RangeEnd: g.chunks.End, PermType: g.typ})
		}
	}
	return missing
}

// missingSequences returns the permission on the keys of batches, where a role that may
// write lacks it.
func missingSequences(space format.Keyspace, has []*authpb.Permission) []grant {
	prefix := chunker.Config{ReservedPrefix: space.Prefix()}.OwnPrefix("sequence")
	g := grant{chunks: format.Range{Key: []byte(prefix), End: []byte(clientv3.GetPrefixRangeEnd(prefix))}, typ: authpb.READWRITE}
	for _, p := range has {
		if writes(p) && !(covered(has, g.chunks, reads) && covered(has, g.chunks, writes)) {
			return []grant{g}
		}
	}
	return nil
}

func permitted(p *authpb.Permission) format.Range { return format.Range{Key: p.Key, End: p.RangeEnd} }

func reads(p *authpb.Permission) bool  { return p.PermType != authpb.WRITE }
func writes(p *authpb.Permission) bool { return p.PermType != authpb.READ }

// covered reports whether permissions of the kind cover r together, as etcd asks.
func covered(has []*authpb.Permission, r format.Range, kind func(*authpb.Permission) bool) bool {
	at, end := string(r.Key), string(r.End)
	for moved := true; moved; {
		moved = false
		for _, p := range has {
			if !kind(p) || !permitted(p).Contains([]byte(at)) {
				continue
			}
			switch next := string(p.RangeEnd); next {
			case "":
				at += "\x00"
			case "\x00":
				return true
			default:
				at = next
			}
			if moved = true; at >= end {
				return true
			}
		}
	}
	return false
}
