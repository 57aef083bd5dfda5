package budget

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// membersTimeout bounds the wait for a member: what it would say is late then.
const membersTimeout = 1500 * time.Millisecond

// Members returns a function for Config.Backend that asks all members of the cluster of
// cli, with its TLS and user. Members that do not answer are left out; it is an error if
// that is all of them. Members of etcd 3.5 do not
// say what their quota is: it is taken for that of the others, or else is Config.Quota.
func Members(cli *clientv3.Client) func(context.Context) (Backend, error) {
	return func(ctx context.Context) (Backend, error) {
		answers, err := askMembers(ctx, cli, membersTimeout, clientv3.WithSerializable())
		if err != nil {
			return Backend{}, err
		}
		return newHealth(time.Now(), answers, nil, nil, healthBounds{}).backend()
	}
}

// isNoSpace reports whether an error of a member's is that the alarm is armed.
func isNoSpace(e string) bool { return strings.Contains(e, "alarm:"+alarmNoSpace) }

// room returns what is left of a quota; of what has none, the less the larger it is.
func room(quota, size int64) int64 {
	if quota == 0 {
		return math.MaxInt64 - size
	}
	return quota - size
}

// backend returns the state of the member with the least room.
func (h Health) backend() (b Backend, err error) {
	var errs []error
	answered := false
	said := int64(0) // the least quota, which is taken for that of those which do not say
	for _, m := range h.Members {
		if m.Quota > 0 && (said == 0 || m.Quota < said) {
			said = m.Quota
		}
	}
	for _, m := range h.Members {
		if m.Error != "" {
			errs = append(errs, m.err)
			continue
		}
		quota := m.Quota
		if m.QuotaAssumed {
			quota = said
		}
		if !answered || room(quota, m.DbSize) < room(b.Quota, b.Size) {
			b.Size, b.InUse, b.Quota = m.DbSize, m.DbSizeInUse, quota
		}
		answered = true
		b.Lag = max(b.Lag, m.Lag)
		// Members tell of alarms; to ask for the alarms themselves would be a proposal.
		b.NoSpace = b.NoSpace || slices.ContainsFunc(m.Errors, isNoSpace)
	}
	if !answered {
		return b, errors.Join(errs...)
	}
	return b, nil
}
