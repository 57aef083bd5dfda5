package shaper

import (
	"errors"
	"strings"

	"github.com/kvwrap/kvwrap/internal/wire"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// outcome is what has become of a request that writes.
type outcome int

const (
	succeeded outcome = iota
	refused           // before it was proposed: there is no raft entry
	failed            // when it was applied: there is a raft entry, and nothing was written
	unknown           // it may have been proposed and applied
)

// outcomeOf tells it from the error. Where etcd may refuse a request before the proposal or
// after it, as with NOSPACE, that is unknown.
func outcomeOf(err error) outcome {
	if err == nil {
		return succeeded
	}
	for _, e := range []error{wire.ErrNotSent, wire.ErrUnknownRequest} {
		if errors.Is(err, e) {
			return refused
		}
	}
	for _, e := range []error{rpctypes.ErrTooManyRequests, rpctypes.ErrRequestTooLarge} {
		if wire.Is(err, e) {
			return refused
		}
	}
	for _, e := range []error{rpctypes.ErrKeyNotFound, rpctypes.ErrAuthOldRevision} { // their code says that the request is invalid
		if wire.Is(err, e) {
			return failed
		}
	}
	var e rpctypes.EtcdError
	if !errors.As(rpctypes.Error(err), &e) {
		if status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "trying to send message larger than max") {
			return refused // by gRPC
		}
		return unknown
	}
	switch e.Code() {
	case codes.InvalidArgument, codes.Unauthenticated:
		return refused
	case codes.NotFound, codes.FailedPrecondition, codes.PermissionDenied, codes.OutOfRange:
		return failed
	}
	return unknown
}
