package main

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTLSVersions has a server that knows none of today's.
func TestTLSVersions(t *testing.T) {
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	old.Config.ErrorLog = nil
	old.StartTLS()
	defer old.Close()
	code, _, stderr := shapecheck(t, "get", "k", "--endpoints", old.URL, "--insecure-skip-tls-verify", "--dial-timeout", "300ms")
	require.Equal(t, exitFailed, code)
	require.Regexp(t, `https://127\.0\.0\.1:\d+: .*(protocol version not supported|no supported versions)`, strings.TrimSpace(stderr))
}
