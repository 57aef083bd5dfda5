package wire

import (
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// ErrNotSent is matched by the errors of a stage that has refused a request and sent nothing:
// another stage need not find out what has become of it, and may send it later.
var ErrNotSent = errors.New("kvwrap: the request was not sent")

// Is reports whether err is etcd's error target, as the client returns it or as it
// came over the wire.
func Is(err, target error) bool {
	return err != nil && errors.Is(rpctypes.Error(err), target)
}
