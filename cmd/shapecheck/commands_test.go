package main

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvwrap/kvwrap/chunker"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/internal/workload"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// TestCommands runs the scripts of commands that read a cluster, which nobody changes
// while they do.
func TestCommands(t *testing.T) {
	auth, root := etcdtest.StartAuth(t)
	auth.AddUser(t, root, "gateway", etcdtest.Permission{Key: "stats/", RangeEnd: "stats0", Type: clientv3.PermissionType(clientv3.PermRead)})
	auth.AddUser(t, root, "reader", etcdtest.Permission{Key: "\x00", RangeEnd: "\x00", Type: clientv3.PermissionType(clientv3.PermRead)})

	w := newWrapped(t, chunker.Config{}, etcdtest.Advertise(t, 1))
	w.put("plain", "value")
	w.put("app/large", workload.Text(200e3, "v"))
	w.put("envelope", "\xffkvw is how this begins")

	var dir string
	secure := etcdtest.Start(t, 1, func(cfg *embed.Config) {
		dir = cfg.Dir
		cfg.ClientAutoTLS, cfg.SelfSignedCertValidity = true, 1
		cfg.ListenClientUrls[0].Scheme = "https"
		cfg.AdvertiseClientUrls = []url.URL{cfg.ListenClientUrls[0]}
	})
	certs, err := filepath.Glob(filepath.Join(dir, "fixtures", "client", "cert.pem"))
	require.NoError(t, err)
	require.Len(t, certs, 1)

	code, stdout, stderr := shapecheck(t, "get", "app/large", "--endpoints", w.cluster.Endpoints()[0])
	require.Zero(t, code, stderr)
	require.True(t, stdout == workload.Text(200e3, "v"))

	audited := auditEnvironment(t)
	testscript.Run(t, testscript.Params{Dir: filepath.Join("testdata", "commands"), Setup: func(env *testscript.Env) error {
		for name, value := range audited {
			env.Setenv(name, value)
		}
		env.Setenv("ENDPOINTS", strings.Join(w.cluster.Endpoints(), ","))
		env.Setenv("AUTH_ENDPOINTS", strings.Join(auth.Endpoints(), ","))
		env.Setenv("TLS_ENDPOINTS", strings.Join(secure.Endpoints(), ","))
		env.Setenv("CA", certs[0])
		return nil
	}})
}
