package shaper

import "errors"

// ErrConfig is matched by every error about a configuration of this package.
var ErrConfig = errors.New("shaper: invalid config")
