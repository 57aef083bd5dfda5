package wire

import (
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Is reports whether err is etcd's error target, as the client returns it or as it
// came over the wire.
func Is(err, target error) bool {
	return err != nil && errors.Is(rpctypes.Error(err), target)
}
