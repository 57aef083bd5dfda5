package budget

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kvwrap/kvwrap/internal/session"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
)

// ReclaimBusyError says that another reclaim runs in the cluster, or was killed in the
// middle. This one has done nothing.
type ReclaimBusyError struct {
	Holder string // host, process and time, as the other one gives them; may be empty
	Role   string // that the other one has made as its lock; empty where its lock is a key
	Key    string // that is its lock; empty where its lock is a role
}

func (e *ReclaimBusyError) Error() string {
	holder := cmp.Or(e.Holder, "unknown")
	if e.Role != "" {
		return fmt.Sprintf("%v: %s has the role %q, its lock while NOSPACE is raised: wait for it; if that process has ended, \"etcdctl role delete %s\"", ErrReclaimBusy, holder, e.Role, e.Role)
	}
	return fmt.Sprintf("%v: %s has the key %q: wait for it; if that process has ended, for its lease to expire", ErrReclaimBusy, holder, e.Key)
}

func (e *ReclaimBusyError) Unwrap() error { return ErrReclaimBusy }

// reclaimLockRole is the role that is the lock while NOSPACE is raised. Nobody gets it.
const reclaimLockRole = "kvwrap-reclaim"

// reclaimLock sees to it that one reclaim at a time runs in a cluster.
//
// It is a key on a lease, so that it is gone when its holder is. But while NOSPACE is
// raised etcd grants no lease and puts no key. What it does then, atomically and in the
// raft log like a put, with authentication or without, is to add a role, which fails
// where the role is there. So the lock is a role then. It does not expire: a holder that
// is killed leaves it to somebody to delete, and the error says so. A permission of the
// role names the holder; no user has the role.
//
// Who takes one looks for the other one after that:
//
//	put the key if absent; is the role there?
//	add the role if absent; is the key there?
//
// Of two that do so at the same time, the one that takes last finds what the other has
// taken, and gives up. Both may.
//
// A lock that expires cannot keep its holder from going on, if that was paused for longer
// than the lease: etcd knows no condition on a defragmentation. What is left is the time
// between the last proof and the request, which is short; and a member that is in a
// defragmentation keeps every other reclaim waiting in settled.
type reclaimLock struct {
	cli     *clientv3.Client
	kv      clientv3.KV // past what is installed in cli
	key     string
	holder  string
	timeout time.Duration // of a request

	revisions int64 // that it has made

	role    bool  // the lock is the role, and what follows is of no use
	created int64 // CreateRevision of the key
	lease   clientv3.Lease
	id      clientv3.LeaseID
	end     context.CancelFunc // of its keep-alive
}

// takeReclaimLock takes the lock. Where it returns an error nothing is left, unless that
// says so, or etcd has not answered; then a lease expires.
func takeReclaimLock(ctx context.Context, cli *clientv3.Client, opts ReclaimOptions) (*reclaimLock, error) {
	host, _ := os.Hostname() // is for people
	l := &reclaimLock{
		cli: cli, kv: clientv3.NewKV(cli), key: opts.LockKey, timeout: opts.RequestTimeout,
		holder: fmt.Sprintf("%s, process %d, since %s, %s", host, os.Getpid(), time.Now().UTC().Format(time.RFC3339), rand.Text()),
	}
	taking, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err := l.takeKey(taking, opts.LockTTL)
	if errors.Is(err, rpctypes.ErrNoSpace) {
		l.role = true
		err = l.takeRole(taking)
	}
	if err != nil {
		return nil, lockDoubt(err)
	}
	return l, nil
}

// lockDoubt is the reason for which the lock cannot be had, nil for none.
func lockDoubt(err error) error {
	if err == nil || errors.Is(err, ErrReclaimBusy) {
		return err
	}
	doubt := &ReclaimDoubtError{Step: "lock", Reason: err.Error(), Err: err}
	if errors.Is(err, rpctypes.ErrPermissionDenied) || errors.Is(err, rpctypes.ErrUserEmpty) {
		doubt.Reason += ": reclaim as a user with the role root"
	}
	return doubt
}

// look says without a write why the lock could not be taken now: etcd lets nobody but root
// read a role that is not his, which is what a defragmentation takes, too.
func (l *reclaimLock) look(ctx context.Context) error {
	holder, err := l.roleHolder(ctx)
	switch {
	case err == nil:
		return &ReclaimBusyError{Holder: holder, Role: reclaimLockRole}
	case !errors.Is(err, rpctypes.ErrRoleNotFound):
		return err
	}
	return l.keyHeld(ctx)
}

// keyHeld returns an error where somebody has the key.
func (l *reclaimLock) keyHeld(ctx context.Context) error {
	found, err := l.kv.Get(ctx, l.key)
	if err == nil && len(found.Kvs) > 0 {
		err = &ReclaimBusyError{Holder: string(found.Kvs[0].Value), Key: l.key}
	}
	return err
}

func (l *reclaimLock) takeKey(ctx context.Context, ttl time.Duration) (err error) {
	l.lease = clientv3.NewLease(l.cli)
	kept, end := context.WithCancel(context.WithoutCancel(ctx))
	l.end = end
	defer func() {
		if err != nil {
			l.release(ctx)
		}
	}()
	granted, err := l.lease.Grant(ctx, session.Seconds(ttl))
	if err != nil {
		return err
	}
	l.id = granted.ID
	alive, err := l.lease.KeepAlive(kept, l.id)
	if err != nil {
		return err
	}
	go func() {
		for range alive {
		}
	}()
	resp, err := l.kv.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(l.key), "=", 0)).
		Then(clientv3.OpPut(l.key, l.holder, clientv3.WithLease(l.id))).Else(clientv3.OpGet(l.key)).Commit()
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return &ReclaimBusyError{Holder: string(resp.Responses[0].GetResponseRange().Kvs[0].Value), Key: l.key}
	}
	l.created = resp.Header.Revision
	l.revisions++
	holder, err := l.roleHolder(ctx)
	switch {
	case errors.Is(err, rpctypes.ErrRoleNotFound):
		return nil
	case err != nil:
		return err
	}
	return &ReclaimBusyError{Holder: holder, Role: reclaimLockRole}
}

func (l *reclaimLock) takeRole(ctx context.Context) (err error) {
	if _, err := l.cli.RoleAdd(ctx, reclaimLockRole); errors.Is(err, rpctypes.ErrRoleAlreadyExist) {
		holder, _ := l.roleHolder(ctx) // is for people
		return &ReclaimBusyError{Holder: holder, Role: reclaimLockRole}
	} else if refused := (rpctypes.EtcdError{}); errors.As(err, &refused) && refused.Code() != codes.Unavailable {
		return err
	} else if err != nil {
		return leftRole(err)
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
		defer cancel()
		if _, e := l.cli.RoleDelete(ctx, reclaimLockRole); e != nil {
			err = leftRole(errors.Join(err, e))
		}
	}()
	if _, err = l.cli.RoleGrantPermission(ctx, reclaimLockRole, l.holder, "", clientv3.PermissionType(clientv3.PermRead)); err != nil {
		return err
	}
	return l.keyHeld(ctx)
}

// leftRole says that the role may be there for nobody.
func leftRole(err error) error {
	return fmt.Errorf("the role %q, the lock while NOSPACE is raised, may have been left: if no reclaim runs, \"etcdctl role delete %s\": %w", reclaimLockRole, reclaimLockRole, err)
}

// roleHolder returns who has the role.
func (l *reclaimLock) roleHolder(ctx context.Context) (string, error) {
	role, err := l.cli.RoleGet(ctx, reclaimLockRole)
	if err != nil || len(role.Perm) != 1 {
		return "", err
	}
	return string(role.Perm[0].Key), nil
}

// prove returns an error unless the lock is held, and a revision that the cluster had
// when it was or later.
func (l *reclaimLock) prove(ctx context.Context) (int64, error) {
	lost := func(holder string) error {
		who := "nobody's any more, since its lease has expired or it was deleted"
		if holder != "" {
			who = "somebody else's, " + holder
		}
		return &ReclaimDoubtError{Step: "lock", Reason: "the lock is " + who + ": reclaim again", final: true}
	}
	if l.role {
		holder, err := l.roleHolder(ctx)
		if err != nil && !errors.Is(err, rpctypes.ErrRoleNotFound) {
			return 0, err
		}
		if holder != l.holder {
			return 0, lost(holder)
		}
		resp, err := l.kv.Get(ctx, l.key, clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		return resp.Header.Revision, nil
	}
	resp, err := l.kv.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.created)).Else(clientv3.OpGet(l.key)).Commit()
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		holder := ""
		for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
			holder = string(kv.Value)
		}
		return 0, lost(holder)
	}
	return resp.Header.Revision, nil
}

// touch writes what the lock is once more. While NOSPACE is raised that does nothing, if
// the lock is a key.
func (l *reclaimLock) touch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	if l.role {
		_, err := l.cli.RoleGrantPermission(ctx, reclaimLockRole, l.holder, "", clientv3.PermissionType(clientv3.PermRead))
		return err
	}
	resp, err := l.kv.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.created)).
		Then(clientv3.OpPut(l.key, l.holder, clientv3.WithLease(l.id))).Commit()
	if err == nil && resp.Succeeded {
		l.revisions++
	}
	if errors.Is(err, rpctypes.ErrNoSpace) {
		return nil
	}
	return err
}

// probe writes, and deletes that again.
func (l *reclaimLock) probe(ctx context.Context) (*clientv3.DeleteResponse, error) {
	key := l.key + "/probe"
	if _, err := l.kv.Put(ctx, key, l.holder); err != nil {
		return nil, err
	}
	l.revisions++
	resp, err := l.kv.Delete(ctx, key)
	if err == nil {
		l.revisions++
	}
	return resp, err
}

// release gives the lock back, also when ctx has ended. Its error says that a role was
// left.
func (l *reclaimLock) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
	defer cancel()
	if l.role {
		holder, err := l.roleHolder(ctx)
		if err == nil && holder == l.holder {
			_, err = l.cli.RoleDelete(ctx, reclaimLockRole)
		}
		if err == nil || errors.Is(err, rpctypes.ErrRoleNotFound) {
			return nil
		}
		err = leftRole(err)
		return &ReclaimDoubtError{Step: "lock", Reason: err.Error(), Err: err}
	}
	l.end()
	if l.id != clientv3.NoLease {
		if _, err := l.lease.Revoke(ctx, l.id); err == nil && l.created > 0 { // without an answer it expires by itself
			l.revisions++
		}
	}
	l.lease.Close()
	return nil
}
