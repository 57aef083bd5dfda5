package kvwrap

import (
	"errors"
	"fmt"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/internal/dial"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

var (
	errNotDialed = errors.New("kvwrap: the client was not made with DialOptions, or an interceptor before them refuses what it does not know: set clientv3.Config.DialOptions to them, before others")
	errNoMembers = fmt.Errorf("%w: Config.Budget.Retention is set and Backend is not: call Dialed with the client, whose members it asks, before anything else, or set Backend", budget.ErrConfig)
)

// DialOptions returns options for the connection of a client that have everything pass the
// stages that goes over it, whoever sends it: a KV and a Watcher that are made with
// clientv3.NewKV and clientv3.NewWatcher, a client that is made inside another one, as by
// the package kubernetes of etcd's client, or the generated client of etcd's protocol.
//
//	cli, err := clientv3.New(clientv3.Config{
//		Endpoints:   endpoints,
//		DialOptions: kvwrap.DialOptions(kvwrap.Config{}),
//	})
//
// It is the other way to what [Install] does, and takes its place: it stores the same, keys
// and chunks, and the two read each other's values. For a client that was made so, neither
// Install nor [New] is to be called; its first request then fails. What a KV has beside etcd's
// methods, PutAsync, Flush, Stats and Report, has the one that [Dialed] returns.
//
// Nothing is sent, and Config is looked at when a client first uses its connection: where it
// is not valid, that is the error of each request then, and of Dialed. Each client that is
// made with the options has stages of its own, whose limits and caches are its own, too. They
// outlast reconnects, and end with the client: within seconds its Close leaves nothing running; but writes
// that PutAsync has taken are lost, and leases expire by themselves, unless Close of the KV
// that Dialed returns was called before.
//
// The interceptors are added behind the client's own, which tries again and renews its tokens,
// and what the stages send goes through that, too. Requests of the application's to other
// parts of etcd, for users, members and maintenance, are not touched. Namespaces and other
// wrappers of a client are above the connection: the keys of Config.Rules are those that etcd
// has, prefix included. What was written by Install over a namespaced client cannot be read
// so, since its chunks are in the namespace; that of a namespace over an installed client can.
//
// Where a value in an event cannot be read, because it is damaged or the user may not, the
// watch ends, and etcd's watcher closes its channel and tells no reason; a Get does.
//
// Interceptors that stand before these options see requests of the application's and then
// those of the stages for them, ones behind them only the latter. A call of the generated
// client that asks for headers or trailers gets none, and a stream of watches takes what
// comes whether it is received or not, as etcd's own watcher does. Where the options are given
// twice the first ones count.
func DialOptions(cfg Config) []grpc.DialOption {
	return dial.New(func(below, above *clientv3.Client) (dial.Chain, error) {
		switch needed := cfg.Budget.Retention > 0 && cfg.Budget.Backend == nil; {
		case needed && above == nil:
			return nil, errNoMembers
		case needed:
			cfg := cfg
			cfg.Budget.Backend = budget.Members(above)
			return newDialed(below, cfg)
		}
		return newDialed(below, cfg)
	}).Options()
}

// Dialed returns the KV of a client that was made with [DialOptions]: its stages are those of
// the client's connection. It sends nothing. The KV's Close does not close the client, and is
// to be called before that is.
func Dialed(cli *clientv3.Client) (*KV, error) {
	chain, intercepted, err := dial.Of(cli)
	if err != nil {
		return nil, err
	}
	d, ok := chain.(*dialed)
	if !intercepted || !ok {
		return nil, errNotDialed
	}
	kv := *d.kv
	kv.cli = cli
	return &kv, nil
}

// dialed is the stages of a connection.
type dialed struct{ kv *KV }

func newDialed(below *clientv3.Client, cfg Config) (dial.Chain, error) {
	kv, err := New(below, cfg)
	if err != nil {
		return nil, err
	}
	return &dialed{kv}, nil
}

func (d *dialed) KV() pb.KVClient { return d.kv.first }

func (d *dialed) Watcher(w clientv3.Watcher) clientv3.Watcher { return d.kv.chunker.Watcher(w) }

func (d *dialed) Lease(l clientv3.Lease) clientv3.Lease { return d.kv.chunker.Lease(l) }

func (d *dialed) Close() error { return d.kv.Close() }
