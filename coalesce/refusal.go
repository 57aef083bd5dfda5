package coalesce

import (
	"errors"
	"fmt"
	"strings"

	"github.com/kvwrap/kvwrap/internal/wire"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// tooLarge reports whether t, or the one put that it is, was refused for its size: by the
// server's --max-request-bytes, by gRPC's limit for what the client sends, or for what the
// server receives. The client has a limit for what it receives, too, of which gRPC says the
// same: then t was applied, and is of another size than what was too large.
func tooLarge(err error, t *pb.TxnRequest) bool {
	if wire.Is(err, rpctypes.ErrRequestTooLarge) {
		return true
	}
	if status.Code(err) != codes.ResourceExhausted {
		return false
	}
	size := proto.Size(t)
	if p := t.Success[0].GetRequestPut(); p != nil && len(t.Success) == 1 && len(t.Compare) == 0 {
		size = proto.Size(p)
	}
	return strings.Contains(err.Error(), "trying to send message larger than max") ||
		strings.Contains(err.Error(), fmt.Sprintf("received message larger than max (%d vs.", size))
}

// blames reports whether etcd has refused a transaction because of one of its
// operations.
func blames(err error) bool {
	for _, e := range []error{rpctypes.ErrLeaseNotFound, rpctypes.ErrKeyNotFound, rpctypes.ErrPermissionDenied} {
		if wire.Is(err, e) {
			return true
		}
	}
	return false
}

// unapplicable reports whether what was answered with err was not applied and will not
// be. Of NOSPACE that is not known: it may follow a write that was.
func unapplicable(err error) bool {
	if errors.Is(err, wire.ErrNotSent) || errors.Is(err, wire.ErrUnknownRequest) || wire.Is(err, rpctypes.ErrTooManyRequests) {
		return true
	}
	var e rpctypes.EtcdError
	if !errors.As(rpctypes.Error(err), &e) {
		return false
	}
	switch e.Code() {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.OutOfRange:
		return true
	}
	return false
}

// passes reports whether a request that was answered with err may succeed later.
func passes(err error) bool {
	if errors.Is(err, wire.ErrNotSent) {
		return true
	}
	for _, e := range []error{rpctypes.ErrTooManyRequests, rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision} {
		if wire.Is(err, e) {
			return true
		}
	}
	return !unapplicable(err)
}
