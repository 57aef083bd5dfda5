package shaper

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// MeterConfig configures a [Meter]. The meaning of a zero field is its default; a
// MeterConfig is copied and never changed. With the defaults a meter takes 0.5 MB of memory on
// two cores and 1.2 MB on eight or more, whatever it counts.
type MeterConfig struct {
	// Rules are prefixes of keys that are counted apart, in [Traffic].ByRule. A key counts
	// for the longest one that it begins with. They are looked at one after the other, so
	// there should be a few dozen at the most.
	Rules []string
	// ChunkPrefix, if it is not nil, returns the prefix of the chunks of keys with a prefix:
	// they count for its rule, too.
	ChunkPrefix func(prefix string) string

	// Window is the time that [Traffic].Window is about: what the traffic is now. It is cut
	// into Slots and moves on by one of them at a time, so that it covers between
	// Window - Window/Slots and Window. Each slot takes 18 KB of memory, and 32 bytes a rule.
	// The defaults are a minute and 12; a slot is a millisecond or more.
	Window time.Duration
	Slots  int

	// Separator ends the components of a key. The default is '/'. A separator at the very
	// beginning belongs to the first component.
	Separator byte
	// Depth is of how many components the prefixes in [Traffic].Heaviest are. The last
	// component, which no separator ends, is never one of them: a key with fewer separators
	// counts up to its last one. So a Depth larger than any key has makes it the key's
	// directory. The default is 2: "/registry/pods/" of "/registry/pods/default/web-0".
	Depth int
	// Heaviest is how many prefixes are reported, the heaviest first. 16 times as many are
	// followed, in at most 250 bytes each and for each core up to 8; what may be missing of
	// one is at most 1/(16 Heaviest) of the weight of everything. The default is 20, the most
	// 4096.
	Heaviest int
}

const (
	maxSlots    = 3600
	maxHeaviest = 4096
	minSlot     = time.Millisecond
)

// Validate returns what is wrong with c, joined.
func (c MeterConfig) Validate() error {
	var errs []error
	wrong := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	within := func(name string, n, most int) {
		if n < 0 || n > most {
			wrong("%s is %d: it is to be from 1 to %d, or zero for its default", name, n, most)
		}
	}
	seen := map[string]bool{}
	for _, prefix := range c.Rules {
		if seen[prefix] {
			wrong("Rules has the prefix %q twice: leave one", prefix)
		}
		seen[prefix] = true
	}
	within("Slots", c.Slots, maxSlots)
	within("Heaviest", c.Heaviest, maxHeaviest)
	if c.Depth < 0 {
		wrong("Depth is %d: it is to be positive, or zero for its default", c.Depth)
	}
	if c.Window < 0 {
		wrong("Window is %v: it is to be positive, or zero for its default", c.Window)
	} else if d := c.withDefaults(); c.Slots >= 0 && c.Slots <= maxSlots && d.Window/time.Duration(d.Slots) < minSlot {
		wrong("Window is %v, Slots is %d: a slot is to take %v or more: set Window to %v or more, or fewer Slots",
			d.Window, d.Slots, minSlot, minSlot*time.Duration(d.Slots))
	}
	return errors.Join(errs...)
}

func (c MeterConfig) withDefaults() MeterConfig {
	c.Rules = append([]string(nil), c.Rules...)
	c.Window = cmp.Or(c.Window, time.Minute)
	c.Slots = cmp.Or(c.Slots, 12)
	c.Separator = cmp.Or(c.Separator, '/')
	c.Depth = cmp.Or(c.Depth, 2)
	c.Heaviest = cmp.Or(c.Heaviest, 20)
	return c
}
