package main

import (
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/authpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestMissingGrants(t *testing.T) {
	const (
		r, w, rw = authpb.READ, authpb.WRITE, authpb.READWRITE
		all      = "\x00"
	)
	type permission struct {
		key, rangeEnd string
		typ           authpb.Permission_Type
	}
	for name, c := range map[string]struct{ has, missing []permission }{
		"nothing":                 {},
		"a range":                 {[]permission{{"a", "c", r}}, []permission{{"/a", "/c", r}}},
		"one key":                 {[]permission{{"a", "", w}}, []permission{{"/a", "/a\x00\xff", w}}},
		"from a key on":           {[]permission{{"a", all, rw}}, []permission{{"/a", "0", rw}}},
		"all keys":                {[]permission{{"\x00", all, rw}}, nil},
		"granted":                 {[]permission{{"a", "c", rw}, {"/a", "/c", rw}}, nil},
		"granted more":            {[]permission{{"a", "c", r}, {"/", "0", rw}}, nil},
		"granted in parts":        {[]permission{{"a", "c", r}, {"/a", "/b", r}, {"/b", "/c", rw}}, nil},
		"granted in part":         {[]permission{{"a", "c", r}, {"/a", "/b", r}, {"/b\x00", "/c", r}}, []permission{{"/a", "/c", r}}},
		"granted a key":           {[]permission{{"a", "c", r}, {"/a", "/a\x01", r}, {"/a\x01", "", r}, {"/a\x01\x00", "/d", r}}, nil},
		"granted from a key on":   {[]permission{{"a", all, r}, {"/", all, r}}, nil},
		"granted to read":         {[]permission{{"a", "c", rw}, {"/a", "/c", r}}, []permission{{"/a", "/c", rw}}},
		"granted the other kind":  {[]permission{{"a", "c", r}, {"/a", "/c", w}}, []permission{{"/a", "/c", rw}}},
		"granted in both":         {[]permission{{"a", "c", rw}, {"/a", "/c", r}, {"/", "0", w}}, nil},
		"inside one another":      {[]permission{{"a", "d", r}, {"b", "c", r}, {"b", "c\x00", w}}, []permission{{"/a", "/d", r}, {"/b", "/c\x00\xff", w}}},
		"a key twice":             {[]permission{{"a", "", r}, {"a", "a\x00", w}}, []permission{{"/a", "/a\x00\xff", r}, {"/a", "/a\x00\xff", rw}}},
		"chunks alone":            {[]permission{{"/a", "/b", r}}, nil},
		"across the reserved":     {[]permission{{"-", "1", r}}, nil},
		"from the reserved part":  {[]permission{{"/z", "b", r}}, []permission{{"/0", "/b", r}}},
		"what etcd refuses today": {[]permission{{"", "", r}, {"b", "a", r}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			space, err := format.NewKeyspace("/")
			require.NoError(t, err)
			var has []*authpb.Permission
			for _, p := range c.has {
				has = append(has, &authpb.Permission{Key: []byte(p.key), RangeEnd: []byte(p.rangeEnd), PermType: p.typ})
			}
			var missing []permission
			for _, g := range missingGrants(space, has) {
				missing = append(missing, permission{string(g.chunks.Key), string(g.chunks.End), g.typ})
			}
			require.Equal(t, c.missing, missing)
		})
	}
}

// TestRoles grants what users are missing, and sees that they have it.
func TestRoles(t *testing.T) {
	cluster, root := etcdtest.StartAuth(t)
	readWrite := clientv3.PermissionType(clientv3.PermReadWrite)
	cluster.AddUser(t, root, "gateway", etcdtest.Permission{Key: "stats/", RangeEnd: "stats0", Type: readWrite})
	cluster.AddUser(t, root, "other", etcdtest.Permission{Key: "other", Type: readWrite})
	cli := cluster.ClientAs(t, "gateway")
	kv, err := kvwrap.Install(cli, kvwrap.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kv.Close()) })
	put := func() error {
		_, err := cli.Put(t.Context(), "stats/k", workload.Incompressible(300<<10, "v"))
		return err
	}
	var missing *chunker.PermissionError
	require.ErrorAs(t, put(), &missing)

	flags := []string{"--endpoints", strings.Join(cluster.Endpoints(), ","), "--user", "root:root"}
	roles := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := shapecheck(t, append(append([]string{"roles"}, flags...), args...)...)
		require.Equal(t, exitOK, code, stderr)
		return stdout
	}
	require.Equal(t, `role      permission   on keys                on their chunks
gateway   readwrite    ["stats/", "stats0")   ["\x00kvw/stats/", "\x00kvw/stats0")
other     readwrite    "other"                ["\x00kvw/other", "\x00kvw/other\x00\xff")

Missing permissions: 2. Run again with --apply to grant them.
`, roles())
	require.ErrorAs(t, put(), &missing)
	require.Contains(t, roles("--apply", "--role", "gateway"), "\nGranted. Permissions: 1.\n")
	require.NoError(t, put())
	require.Equal(t, "No permission on chunks is missing. Roles: 1.\n", roles("--role", "gateway"))
	require.Contains(t, roles("--reserved-prefix", "chunks/", "--role", "other"), `["chunks/other", "chunks/other\x00\xff")`)
	require.Contains(t, roles("--apply"), "\nGranted. Permissions: 1.\n")
	require.Equal(t, "No permission on chunks is missing. Roles: 3.\n", roles("--apply"))

	// What is written behind takes one more.
	behind := func() error {
		kv, err := kvwrap.New(cluster.ClientAs(t, "gateway"), kvwrap.Config{})
		require.NoError(t, err)
		defer kv.Close()
		told := make(chan error, 1)
		kv.PutAsync(t.Context(), "stats/small", "v", func(_ *clientv3.PutResponse, err error) { told <- err })
		return <-told
	}
	require.ErrorContains(t, behind(), "shapecheck roles --sequences --apply")
	require.Contains(t, roles("--sequences", "--role", "gateway"), `gateway   readwrite    for batches   ["\x00kvw/\x00\x02sequence/", "\x00kvw/\x00\x02sequence0")`)
	require.Contains(t, roles("--sequences", "--apply"), "\nGranted. Permissions: 2.\n")
	require.NoError(t, behind())
	require.Contains(t, roles("--sequences"), "No permission")

	for _, c := range []struct {
		code int
		args []string
		says string
	}{
		{exitFailed, []string{"--user", "gateway:gateway"}, `listing the roles: etcdserver: permission denied: give a --user with the role root`},
		{exitFailed, []string{"--user", ""}, `listing the roles: etcdserver: user name is empty: give a --user with the role root`},
		{exitUnreachable, []string{"--user", "root:wrong"}, `authentication failed`},
		{exitFailed, []string{"--role", "none"}, `role "none": etcdserver: role name not found`},
	} {
		code, _, stderr := shapecheck(t, append(append([]string{"roles"}, flags...), c.args...)...)
		require.Equal(t, c.code, code)
		require.Contains(t, stderr, c.says)
	}
}
