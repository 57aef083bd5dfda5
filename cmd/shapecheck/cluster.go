package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// clusterFlags say how to reach a cluster. They are named as those of etcdctl.
type clusterFlags struct {
	endpoints         []string
	cacert, cert, key string
	user, password    string
	dialTimeout       time.Duration
}

func (f *clusterFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.endpoints, "endpoints", nil, "client addresses of the cluster, separated by commas")
	cmd.Flags().StringVar(&f.cacert, "cacert", "", "verify the servers' certificates with this CA bundle")
	cmd.Flags().StringVar(&f.cert, "cert", "", "identify with this TLS certificate")
	cmd.Flags().StringVar(&f.key, "key", "", "the TLS key of --cert")
	cmd.Flags().StringVar(&f.user, "user", "", "user[:password]")
	cmd.Flags().StringVar(&f.password, "password", "", "the password, where --user does not hold it")
	cmd.Flags().DurationVar(&f.dialTimeout, "dial-timeout", 5*time.Second, "how long to wait for the cluster to answer")
}

// config returns the configuration of a client, which may send requests of up to
// sendBytes.
func (f *clusterFlags) config(sendBytes int) (clientv3.Config, error) {
	cfg := clientv3.Config{
		Endpoints: f.endpoints, DialTimeout: f.dialTimeout, MaxCallSendMsgSize: sendBytes, Logger: zap.NewNop(),
		Username: f.user, Password: f.password,
	}
	if f.password == "" {
		cfg.Username, cfg.Password, _ = strings.Cut(f.user, ":")
	}
	if f.password != "" && f.user == "" {
		return cfg, usagef("--password without --user: say whose it is")
	}
	if (f.cert == "") != (f.key == "") {
		return cfg, usagef("--cert %q and --key %q: set both or neither", f.cert, f.key)
	}
	if f.cacert == "" && f.cert == "" {
		for _, e := range f.endpoints {
			if !strings.HasPrefix(e, "https://") {
				return cfg, nil
			}
		}
	}
	tls, err := transport.TLSInfo{CertFile: f.cert, KeyFile: f.key, TrustedCAFile: f.cacert}.ClientConfig()
	if err != nil {
		return cfg, fmt.Errorf("TLS: %w", err)
	}
	cfg.TLS = tls
	return cfg, nil
}
