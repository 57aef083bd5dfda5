package main

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

var most atomic.Uint64

// watch looks at the resident memory again and again from now on. It is to be called before
// the server starts, which may take more memory than it does when it has.
func watch() {
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			if now := rss(); now > most.Load() {
				most.Store(now)
			}
		}
	}()
}

// rss returns the resident anonymous memory of the process. Pages of the database, which
// is mapped into memory, are not in it. It is 0 where there is no /proc.
func rss() uint64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, _ := strconv.ParseUint(strings.Fields(value)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}
