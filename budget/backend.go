package budget

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Members returns a function for Config.Backend that asks all members of the cluster of
// cli, with its TLS and user. Members that do not answer are left out; it is an error if
// that is all of them. Members of etcd 3.5 do not say what their quota is: see Config.Quota.
func Members(cli *clientv3.Client) func(context.Context) (Backend, error) {
	return func(ctx context.Context) (Backend, error) {
		h, err := lookHealth(ctx, cli, 5*time.Second, healthBounds{}, clientv3.WithSerializable())
		if err != nil {
			return Backend{}, err
		}
		return h.backend()
	}
}

// backend returns the state of the member with the least room.
func (h Health) backend() (b Backend, err error) {
	var errs []error
	answered := false
	for _, m := range h.Members {
		if m.Error != "" {
			errs = append(errs, m.err)
			continue
		}
		room := func(quota, size int64) int64 { // of what has none, or does not say: by size
			if quota == 0 {
				return math.MaxInt64 - size
			}
			return quota - size
		}
		if !answered || room(m.Quota, m.DbSize) < room(b.Quota, b.Size) {
			b.Size, b.InUse, b.Quota = m.DbSize, m.DbSizeInUse, m.Quota
		}
		answered = true
		b.Lag = max(b.Lag, m.Lag)
	}
	if !answered {
		return b, errors.Join(errs...)
	}
	b.NoSpace = slices.ContainsFunc(h.Alarms, func(a HealthAlarm) bool { return a.Alarm == alarmNoSpace })
	return b, nil
}
