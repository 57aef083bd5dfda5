package main

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestTLSVersions has a server that knows none of today's.
func TestTLSVersions(t *testing.T) {
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	old.Config.ErrorLog = nil
	old.StartTLS()
	defer old.Close()
	code, _, stderr := shapecheck(t, "get", "k", "--endpoints", old.URL, "--insecure-skip-tls-verify", "--dial-timeout", "300ms")
	require.Equal(t, exitUnreachable, code)
	require.Regexp(t, `https://127\.0\.0\.1:\d+: .*(protocol version not supported|no supported versions)`, strings.TrimSpace(stderr))
}

// TestRequestsHaveTheirTime but those that take as long as there is to do.
func TestRequestsHaveTheirTime(t *testing.T) {
	f := &clusterFlags{commandTimeout: time.Minute}
	for method, bounded := range map[string]bool{
		"/etcdserverpb.KV/Range":               true,
		"/etcdserverpb.Maintenance/Status":     true,
		"/etcdserverpb.KV/Compact":             false,
		"/etcdserverpb.Maintenance/Defragment": false,
	} {
		err := f.bounded(t.Context(), method, nil, nil, nil, func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			_, has := ctx.Deadline()
			require.Equal(t, bounded, has, method)
			return context.Canceled
		})
		require.Equal(t, context.Canceled, err)
	}
}

// TestARequestThatHasNoAnswer is not sent again: etcd's client would, a hundred times, after an
// error of gRPC's.
func TestARequestThatHasNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &clusterFlags{commandTimeout: 7 * time.Second}
		begin := time.Now()
		err := f.bounded(t.Context(), "/etcdserverpb.KV/Range", nil, nil, nil, func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		})
		require.Equal(t, 7*time.Second, time.Since(begin))
		require.True(t, timedOut(err))
		require.Equal(t, codes.Unknown, status.Code(err))
	})
}
