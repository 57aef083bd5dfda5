package chunker

import (
	"context"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Lease returns inner with the keys that are attached to a lease shown as the
// application knows them: chunks are attached to the lease of their key, and do
// not show. Everything else is inner's, Close included.
func (s *Stage) Lease(inner clientv3.Lease) clientv3.Lease { return leases{inner, s} }

type leases struct {
	clientv3.Lease
	s *Stage
}

func (l leases) TimeToLive(ctx context.Context, id clientv3.LeaseID, opts ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	resp, err := l.Lease.TimeToLive(ctx, id, opts...)
	if err != nil {
		return nil, err
	}
	resp.Keys = slices.DeleteFunc(resp.Keys, l.s.space.Reserved)
	return resp, nil
}
