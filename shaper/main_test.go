//go:build unix

package shaper

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
)

func TestMain(m *testing.M) {
	etcdtest.Main(nil)
	testutil.MustTestMainWithLeakDetection(m)
}
