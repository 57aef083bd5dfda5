//go:build unix

package budget

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
)

func TestMain(m *testing.M) {
	etcdtest.Main(map[string]etcdtest.Role{clientRole: serveClient})
	testutil.MustTestMainWithLeakDetection(m)
}
