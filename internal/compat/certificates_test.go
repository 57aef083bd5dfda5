//go:build unix

package compat

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/internal/servers"
	"github.com/stretchr/testify/require"
)

// certificates returns what a server is started with and what a client connects with: each has
// a certificate that one authority has signed, and asks the other for one.
func certificates(t testing.TB) (*servers.TLS, *tls.Config) {
	dir := t.TempDir()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	file := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name+".pem")
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	sign := func(serial int64, name string) (certFile, keyFile string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, authority, key.Public(), authorityKey)
		require.NoError(t, err)
		bytes, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		return file(name, "CERTIFICATE", der), file(name+"-key", "PRIVATE KEY", bytes)
	}
	own, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	require.NoError(t, err)
	server := &servers.TLS{ClientCAFile: file("authority", "CERTIFICATE", own)}
	server.CertFile, server.KeyFile = sign(2, "server")
	pair, err := tls.LoadX509KeyPair(sign(3, "client"))
	require.NoError(t, err)
	pool := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(own)
	require.NoError(t, err)
	pool.AddCert(parsed)
	return server, &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}
}
