package main

import (
	"context"
	"net"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// gatherFor is how long what is read is gathered: the most by which a display is late.
const gatherFor = 50 * time.Millisecond

// gatherWindow is how much a server may send in that time before it has to wait, and what is
// buffered at the most.
const gatherWindow = 8 << 20

// gathered is a connection that is read when something has gathered: after a read that has
// emptied it, the next one waits. etcd sends a watcher each revision in a message of its own.
// Who wakes up for each of ten thousand a second takes a fifth of a core, and as much again of
// a writer's on the same machine; who reads them together takes less than half of that.
//
// It is a connection for streams. Answers that somebody waits for are late by as much.
type gathered struct {
	net.Conn
	emptied time.Time // when a read has left nothing; zero where there may be more

	once   sync.Once
	closed chan struct{}
}

func (g *gathered) Read(b []byte) (int, error) {
	if !g.emptied.IsZero() {
		t := time.NewTimer(time.Until(g.emptied.Add(gatherFor)))
		select {
		case <-t.C:
		case <-g.closed:
			t.Stop()
		}
	}
	n, err := g.Conn.Read(b)
	if g.emptied = (time.Time{}); n < len(b) {
		g.emptied = time.Now()
	}
	return n, err
}

func (g *gathered) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Conn.Close()
}

// gather has the connections of a client gather what they read.
func gather(cfg *clientv3.Config) {
	cfg.DialOptions = append(cfg.DialOptions,
		grpc.WithInitialWindowSize(gatherWindow), grpc.WithInitialConnWindowSize(gatherWindow),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			network := "tcp"
			if path, ok := strings.CutPrefix(address, "unix:"); ok {
				network, address = "unix", strings.TrimPrefix(path, "//")
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &gathered{Conn: conn, closed: make(chan struct{})}, nil
		}))
}
