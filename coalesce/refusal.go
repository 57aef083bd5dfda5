package coalesce

import (
	"errors"
	"strings"

	"github.com/kvwrap/kvwrap/internal/wire"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// tooLarge reports whether a request was refused for its size: by the server's
// --max-request-bytes, or by gRPC's limit for messages, of which the client has one, too.
func tooLarge(err error) bool {
	return wire.Is(err, rpctypes.ErrRequestTooLarge) ||
		status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "message larger than max")
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
	if errors.Is(err, wire.ErrUnknownRequest) || wire.Is(err, rpctypes.ErrTooManyRequests) || tooLarge(err) {
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
	for _, e := range []error{rpctypes.ErrTooManyRequests, rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision} {
		if wire.Is(err, e) {
			return true
		}
	}
	return !unapplicable(err)
}
