package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/internal/paired"
	"github.com/kvwrap/kvwrap/internal/record"
	"github.com/kvwrap/kvwrap/internal/wire"
	"github.com/kvwrap/kvwrap/internal/workload"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// side is one of the two clients that are compared, and what was measured of it.
type side struct {
	key            string           // that is published to
	writer, reader *clientv3.Client // two members of the gateway
	server         *server          // nil on a cluster that is not the demo's own

	sent          record.Counts // of all publishes
	publish, read paired.Durations
	before, after state // of the server: an empty log, a full one
}

// state is what a server says of itself.
type state struct {
	version  string
	database int64  // bytes
	applied  uint64 // the index of the newest raft entry

	// What lives on the heap, in bytes, as it is and after a compaction, when
	// nothing is left of old revisions and their index. 0 where the server is not
	// the demo's own.
	liveHeap, compacted uint64
}

func newClient(cfg clientv3.Config) (*clientv3.Client, error) {
	cfg.Logger = zap.NewNop()
	return clientv3.New(cfg)
}

// scratchName is a name that nobody else has.
func scratchName() string { return rand.Text()[:12] }

// play publishes on both sides in turns, and measures.
func (d *demo) play(ctx context.Context, p *progress, r *result) error {
	recorders := make(map[*side]*record.Stage)
	for _, s := range []*side{&r.plain, &r.wrapped} {
		recorders[s] = record.Over(wire.Client(s.writer.KV))
		s.writer.KV = clientv3.NewKVFromKVClient(recorders[s], nil)
	}
	for _, cli := range []*clientv3.Client{r.wrapped.writer, r.wrapped.reader} {
		if _, err := kvwrap.Install(cli, kvwrap.Config{}); err != nil {
			return err
		}
	}
	gateway := workload.NewGateway(d.pipelines, 1)
	value := string(gateway.Publish(0))
	r.valueBytes = len(value)
	sides := []*side{&r.plain, &r.wrapped}
	for _, s := range sides {
		// The first turn counts for nothing: it connects, and fills caches.
		if err := s.turn(ctx, value); err != nil {
			return err
		}
		var err error
		if s.before, err = s.state(ctx); err != nil {
			return err
		}
		s.publish, s.read = nil, nil
		recorders[s].Take()
	}
	for i := range d.publishes {
		p.count("publishing", i, d.publishes)
		value = string(gateway.Publish(d.changed / 100))
		for j := range sides { // each goes first every other time
			if err := sides[(i+j)%2].turn(ctx, value); err != nil {
				return err
			}
		}
	}
	p.say("measuring")
	for _, s := range sides {
		s.sent = recorders[s].Take()
		var err error
		if s.after, err = s.state(ctx); err != nil {
			return err
		}
	}
	return nil
}

// turn publishes value and reads it back through the other client.
func (s *side) turn(ctx context.Context, value string) error {
	var (
		err  error
		resp *clientv3.GetResponse
	)
	s.publish.Time(func() { _, err = s.writer.Put(ctx, s.key, value) })
	// The first is the server's word, the second that of its transport.
	if errors.Is(err, rpctypes.ErrRequestTooLarge) || status.Code(err) == codes.ResourceExhausted {
		return fmt.Errorf("putting %s: %w: choose less --pipelines, or raise the server's --max-request-bytes", bytesOf(len(value)), err)
	}
	if err != nil {
		return fmt.Errorf("putting %s: %w", bytesOf(len(value)), err)
	}
	s.read.Time(func() { resp, err = s.reader.Get(ctx, s.key) })
	if err != nil {
		return fmt.Errorf("reading %s: %w", bytesOf(len(value)), err)
	}
	if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != value {
		return fmt.Errorf("key %q does not hold what was put there: does somebody else write to it?", s.key)
	}
	return nil
}

// state asks the server for its state.
func (s *side) state(ctx context.Context) (st state, err error) {
	if s.server != nil {
		if st.liveHeap, err = s.server.liveHeap(); err != nil {
			return st, err
		}
		now, err := s.reader.Get(ctx, "now", clientv3.WithCountOnly())
		if err != nil {
			return st, err
		}
		if _, err := s.reader.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
			return st, err
		}
		if st.compacted, err = s.server.liveHeap(); err != nil {
			return st, err
		}
	}
	resp, err := s.writer.Status(ctx, s.writer.Endpoints()[0])
	if err != nil {
		return st, err
	}
	st.version, st.database, st.applied = resp.Version, resp.DbSize, resp.RaftAppliedIndex
	return st, nil
}

// defaultQuota is --quota-backend-bytes of etcd where it is not set.
const defaultQuota = 2 << 30

// room returns an error, with a remedy, where so many bytes more could take a member
// of the cluster near its quota, or where none answers within the time.
func room(ctx context.Context, cli *clientv3.Client, timeout time.Duration, bytes int, remedy string) error {
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for _, endpoint := range cli.Endpoints() {
		st, err := cli.Status(asking, endpoint)
		if err != nil {
			return unreachable(ctx, fmt.Errorf("asking %s for its state: %w: is it the client address of a member, and is it http or https?", endpoint, err))
		}
		quota := st.DbSizeQuota
		if quota == 0 { // etcd 3.5 does not say
			quota = defaultQuota
		}
		if st.DbSize+int64(bytes) > quota*8/10 {
			return fmt.Errorf("%s has a database of %s and a quota of %s, and up to %s would be written: %s",
				endpoint, bytesOf(int(st.DbSize)), bytesOf(int(quota)), bytesOf(bytes), remedy)
		}
	}
	return nil
}
