package etcdtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/embed"
)

// AddLearner adds a learner to the cluster, which is stopped with it, and waits until it
// serves, and the others know where.
func (c *Cluster) AddLearner(t testing.TB) *embed.Etcd {
	t.Helper()
	cfg := config(t, len(c.Members))
	Advertise(t, 1)(cfg)
	cli := c.Client(t)
	added, err := cli.MemberAddAsLearner(t.Context(), []string{cfg.AdvertisePeerUrls[0].String()})
	require.NoError(t, err)
	var cluster string
	for _, m := range added.Members {
		name := m.Name
		if m.ID == added.Member.ID {
			name = cfg.Name
		}
		cluster += fmt.Sprintf(",%s=%s", name, m.PeerURLs[0])
	}
	cfg.InitialCluster, cfg.ClusterState = cluster[1:], embed.ClusterStateFlagExisting
	learner, err := embed.StartEtcd(cfg)
	require.NoError(t, err)
	c.Members = append(c.Members, learner)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for known := false; !known; {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the learner is not ready after a minute")
		}
		list, err := cli.MemberList(ctx)
		require.NoError(t, err)
		for _, m := range list.Members {
			known = known || m.ID == added.Member.ID && len(m.ClientURLs) > 0
		}
	}
	<-learner.Server.ReadyNotify()
	return learner
}
