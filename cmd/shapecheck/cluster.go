package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/format"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// clusterFlags say how to reach a cluster. They are named as those of etcdctl, and so are
// the variables of the environment that stand in for those that are not set.
type clusterFlags struct {
	endpoints                   []string
	cacert, cert, key           string
	user, password              string
	insecureSkipVerify          bool
	dialTimeout, commandTimeout time.Duration

	flags *pflag.FlagSet
}

func (f *clusterFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.endpoints, "endpoints", nil, "client addresses of the cluster, separated by commas")
	cmd.Flags().StringVar(&f.cacert, "cacert", "", "verify the servers' certificates with this CA bundle")
	cmd.Flags().StringVar(&f.cert, "cert", "", "identify with this TLS certificate")
	cmd.Flags().StringVar(&f.key, "key", "", "the TLS key of --cert")
	cmd.Flags().StringVar(&f.user, "user", "", "user[:password]")
	cmd.Flags().StringVar(&f.password, "password", "", "the password, where --user does not hold it")
	cmd.Flags().BoolVar(&f.insecureSkipVerify, "insecure-skip-tls-verify", false, "use TLS and trust whoever answers: for tests")
	cmd.Flags().DurationVar(&f.dialTimeout, "dial-timeout", 5*time.Second, "how long to wait for the cluster to answer")
	cmd.Flags().DurationVar(&f.commandTimeout, "command-timeout", 30*time.Second, "how long each request may take, but compactions and defragmentations")
	f.flags = cmd.Flags()
}

// clusterHelp ends the help of commands with clusterFlags.
const clusterHelp = `
Flags that say how to reach the cluster may be left out where the environment
has etcdctl's variables: ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, ETCDCTL_USER and so
on. A flag wins.`

// fromEnvironment sets the flags that are not set from etcdctl's variables.
func (f *clusterFlags) fromEnvironment(names ...string) error {
	given := make(map[string]bool) // on the command line
	f.flags.Visit(func(flag *pflag.Flag) { given[flag.Name] = true })
	for _, name := range names {
		variable := "ETCDCTL_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		value := os.Getenv(variable)
		if value == "" || given[name] {
			continue
		}
		if name == "password" && (f.user == "" || given["user"] && strings.Contains(f.user, ":")) {
			continue // whose it is nobody has said, or --user has its own
		}
		if err := f.flags.Set(name, value); err != nil {
			return fmt.Errorf("%s=%q: %w: correct it, or give --%s", variable, value, err, name)
		}
	}
	if given["password"] && !given["user"] { // the flag wins over what is behind the colon
		f.user, _, _ = strings.Cut(f.user, ":")
	}
	return nil
}

// config returns the configuration of a client, which may send requests of up to
// sendBytes.
func (f *clusterFlags) config(sendBytes int) (clientv3.Config, error) {
	err := f.fromEnvironment("cacert", "cert", "key", "user", "password", "insecure-skip-tls-verify", "dial-timeout", "command-timeout")
	cfg := clientv3.Config{
		Endpoints: f.endpoints, DialTimeout: f.dialTimeout, MaxCallSendMsgSize: sendBytes, Logger: zap.NewNop(),
		Username: f.user, Password: f.password,
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(f.bounded)},
	}
	switch {
	case err != nil:
		return cfg, err
	case f.dialTimeout <= 0:
		return cfg, fmt.Errorf("--dial-timeout %v: give a time above zero, as in 5s", f.dialTimeout)
	case f.commandTimeout <= 0:
		return cfg, fmt.Errorf("--command-timeout %v: give a time above zero, as in 30s", f.commandTimeout)
	}
	if f.password == "" {
		cfg.Username, cfg.Password, _ = strings.Cut(f.user, ":")
	}
	if f.password != "" && f.user == "" {
		return cfg, fmt.Errorf("--password without --user: say whose it is")
	}
	if f.user != "" && cfg.Password == "" {
		return cfg, fmt.Errorf("--user %s without a password: give --user %s:PASSWORD or --password", f.user, f.user)
	}
	if (f.cert == "") != (f.key == "") {
		return cfg, fmt.Errorf("--cert %q and --key %q: set both or neither", f.cert, f.key)
	}
	if f.cacert == "" && f.cert == "" && !f.insecureSkipVerify {
		for _, e := range f.endpoints {
			if !strings.HasPrefix(e, "https://") {
				return cfg, nil
			}
		}
	}
	secure, err := transport.TLSInfo{
		CertFile: f.cert, KeyFile: f.key, TrustedCAFile: f.cacert, InsecureSkipVerify: f.insecureSkipVerify,
	}.ClientConfig()
	if err != nil {
		return cfg, fmt.Errorf("TLS: %w", err)
	}
	secure.MinVersion = max(secure.MinVersion, tls.VersionTLS12)
	cfg.TLS = secure
	return cfg, nil
}

// bounded gives each request its time, but those that take as long as there is to do.
func (f *clusterFlags) bounded(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method == pb.KV_Compact_FullMethodName || method == pb.Maintenance_Defragment_FullMethodName {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	within, cancel := context.WithTimeout(ctx, f.commandTimeout)
	defer cancel()
	err := invoke(within, method, req, reply, cc, opts...)
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		// etcd's client sends a request again that a member has not answered in time, a hundred
		// times, unless the error is none of gRPC's.
		return fmt.Errorf("no answer in %v: %w", f.commandTimeout, context.DeadlineExceeded)
	}
	return err
}

// timedOut reports whether err says that a request took longer than it may.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}

// asking says what has failed with err, and what to do about it: where etcd has refused it,
// who may.
func asking(who, what string, err error) error {
	if timedOut(err) {
		return fmt.Errorf("%s: %w: the cluster is slow, or has no leader; raise --command-timeout where it is slow", what, err)
	}
	return onlyFor(who, what, err)
}

// connect returns a client of the cluster, a member of which has answered. It may
// send requests of up to sendBytes, 0 for the default.
func (f *clusterFlags) connect(ctx context.Context, sendBytes int) (*clientv3.Client, error) {
	if err := f.fromEnvironment("endpoints"); err != nil {
		return nil, err
	}
	if len(f.endpoints) == 0 || slices.Contains(f.endpoints, "") {
		return nil, fmt.Errorf("--endpoints %q: give the client addresses of the cluster", f.endpoints)
	}
	cfg, err := f.config(sendBytes)
	if err != nil {
		return nil, err
	}
	cli, err := newClient(cfg)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, f.dialTimeout)
		defer cancel()
		if _, err = cli.Get(ctx, "\x00", clientv3.WithCountOnly()); refused(err) {
			err = nil // it has answered
		}
		if err != nil {
			cli.Close()
		}
	}
	switch {
	case err == nil:
		return cli, nil
	case timedOut(err):
		err = fmt.Errorf("asking %v: %w: are these the client addresses of members, and is it http or https?%s", f.endpoints, err, whyUnreachable(ctx, cfg))
	case errors.Is(err, rpctypes.Error(rpctypes.ErrGRPCNotSupportedForLearner)):
		err = fmt.Errorf("asking %v: %w: give the client addresses of members that vote", f.endpoints, err)
	case errors.Is(err, rpctypes.ErrAuthFailed):
		err = fmt.Errorf("asking %v as %q: %w: correct --user or --password", f.endpoints, cfg.Username, err)
	}
	return nil, unreachable(ctx, err)
}

// unreachable is err of a cluster that does not answer, with its exit code, or the reason
// why ctx has ended.
func unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return exitError{err, exitUnreachable}
}

// whyUnreachable returns what stands in the way of a connection to each member, as far as
// there is anything: etcd's client says of all of it that there was no time.
func whyUnreachable(ctx context.Context, cfg clientv3.Config) (why string) {
	for _, endpoint := range cfg.Endpoints {
		scheme, address, ok := strings.Cut(endpoint, "://")
		if !ok {
			scheme, address = "", endpoint
		}
		if err := handshake(ctx, scheme, address, cfg); err != nil {
			why += fmt.Sprintf("\n  %s: %v", endpoint, err)
			var untrusted *tls.CertificateVerificationError
			if errors.As(err, &untrusted) {
				why += ": give the CA that has signed it as --cacert"
			}
		}
	}
	return why
}

func handshake(ctx context.Context, scheme, address string, cfg clientv3.Config) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()
	dial := (&net.Dialer{}).DialContext
	if scheme == "https" || scheme == "" && cfg.TLS != nil {
		secure := cfg.TLS.Clone()
		secure.NextProtos = []string{"h2"}
		dial = (&tls.Dialer{Config: secure}).DialContext
	}
	network := "tcp"
	if strings.HasPrefix(scheme, "unix") {
		network = "unix"
	}
	conn, err := dial(ctx, network, address)
	if err == nil {
		conn.Close()
	}
	return err
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
		return format.Keyspace{}, fmt.Errorf("--reserved-prefix %s: %w: write it as between the quotes of a Go string, as in %s", f.reservedPrefix, err, defaultPrefix)
	}
	space, err := format.NewKeyspace(prefix)
	if err != nil {
		return space, fmt.Errorf("--reserved-prefix: %w", err)
	}
	return space, nil
}
