package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"go.etcd.io/etcd/api/v3/version"
)

// versions says what this was built from.
func versions() string {
	own := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		own = info.Main.Version
	}
	return fmt.Sprintf("shapecheck %s\netcd client %s\n%s\n", own, version.Version, runtime.Version())
}
