package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
	if f.user != "" && cfg.Password == "" {
		return cfg, usagef("--user %s without a password: give --user %s:PASSWORD or --password", f.user, f.user)
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

// connect returns a client of the cluster, a member of which has answered. It may
// send requests of up to sendBytes, 0 for the default.
func (f *clusterFlags) connect(ctx context.Context, sendBytes int) (*clientv3.Client, error) {
	switch {
	case len(f.endpoints) == 0 || slices.Contains(f.endpoints, ""):
		return nil, usagef("--endpoints %q: give the client addresses of the cluster", f.endpoints)
	case f.dialTimeout <= 0:
		return nil, usagef("--dial-timeout %v: give a time above zero, as in 5s", f.dialTimeout)
	}
	cfg, err := f.config(sendBytes)
	if err != nil {
		return nil, err
	}
	cli, err := newClient(cfg)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, f.dialTimeout)
		defer cancel()
		if _, err = cli.Get(ctx, "\x00", clientv3.WithCountOnly()); errors.Is(err, rpctypes.ErrPermissionDenied) || errors.Is(err, rpctypes.ErrUserEmpty) {
			err = nil // it has answered
		}
		if err != nil {
			cli.Close()
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("asking %v: %w: are these the client addresses of members, and is it http or https?", f.endpoints, err)
	}
	return cli, err
}

const defaultPrefix = `\x00kvw/`

// spaceFlags say where chunks are stored.
type spaceFlags struct{ reservedPrefix string }

func (f *spaceFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.reservedPrefix, "reserved-prefix", defaultPrefix, `Config.ReservedPrefix of the cluster's clients, as between the quotes of a Go string (default `+defaultPrefix+`)`)
	cmd.Flags().Lookup("reserved-prefix").DefValue = "" // cobra would quote it once more
}

func (f *spaceFlags) keyspace() (format.Keyspace, error) {
	prefix, err := strconv.Unquote(`"` + f.reservedPrefix + `"`)
	if err != nil {
		return format.Keyspace{}, usagef("--reserved-prefix %s: %w: write it as between the quotes of a Go string, as in %s", f.reservedPrefix, err, defaultPrefix)
	}
	space, err := format.NewKeyspace(prefix)
	if err != nil {
		return space, usagef("--reserved-prefix: %w", err)
	}
	return space, nil
}
