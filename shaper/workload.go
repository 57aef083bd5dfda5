package shaper

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// Workload is what an application writes to keys of one kind: statistics, offsets, the
// states of entities. Zero fields have the defaults that they say.
type Workload struct {
	// Prefix begins the keys. "" is all keys of the application.
	Prefix string `json:"prefix"`
	// Keys is how many each writer writes, again and again; Writers how many processes do,
	// each to keys of its own. Default 1.
	Keys    int `json:"keys"`
	Writers int `json:"writers"`
	// KeyBytes is the length of a key, with Prefix. Default 64.
	KeyBytes int `json:"keyBytes"`
	// ValueBytes is the length of a value, on the average.
	ValueBytes int `json:"valueBytes"`
	// Interval is the time between two writes of a key.
	Interval time.Duration `json:"interval"` // nanoseconds

	// Changed is the part of a value that is not as it was at the write before, more than 0
	// to 1, in objects of ObjectBytes that change as a whole. Default 1, and 2 KiB.
	Changed     float64 `json:"changed"`
	ObjectBytes int     `json:"objectBytes"`
	// Compression is how many times smaller zstd makes a value. Default 2.8, as of JSON; 1
	// is that of what cannot be compressed.
	Compression float64 `json:"compression"`
	// Unchanged is the part of writes that write what is there already, 0 to less than 1.
	Unchanged float64 `json:"unchanged"`

	// Freshness is how much later than it is put a value may be in etcd. Zero has a put
	// return when it is there. With more the application calls PutAsync.
	Freshness time.Duration `json:"freshness"` // nanoseconds
	// Latest says that nobody needs the values in between: no watcher that counts, no
	// reader of old revisions.
	Latest bool `json:"latest"`
	// Increasing says that values are numbers, of which the largest counts, such as offsets.
	Increasing bool `json:"increasing"`
	// Polled says that keys are read all the time, and that such a read need not see what is
	// not yet written.
	Polled bool `json:"polled"`
}

func (w Workload) filled() (Workload, error) {
	var errs []error
	check := func(ok bool, field string, value any, remedy string) {
		if !ok {
			errs = append(errs, &InputError{Field: "Workload." + field, Value: value, Remedy: remedy})
		}
	}
	number := func(field string, v *int, standard, least, most int) {
		*v = cmp.Or(*v, standard)
		check(least <= *v && *v <= most, field, *v, fmt.Sprintf("choose %d to %d", least, most))
	}
	number("Keys", &w.Keys, 1, 1, maxTuned)
	number("Writers", &w.Writers, 1, 1, 1<<20)
	number("KeyBytes", &w.KeyBytes, max(64, len(w.Prefix)+1), max(1, len(w.Prefix)), 64<<10)
	number("ValueBytes", &w.ValueBytes, 0, 1, 256<<20)
	number("ObjectBytes", &w.ObjectBytes, 2<<10, 1, 256<<20)
	w.Changed, w.Compression = cmp.Or(w.Changed, 1), cmp.Or(w.Compression, 2.8)
	check(w.Changed > 0 && w.Changed <= 1, "Changed", w.Changed, "choose more than 0, to 1, or 0 for the default, 1")
	check(w.Compression >= 1 && w.Compression <= 1000, "Compression", w.Compression, "choose 1 to 1000, or 0 for the default, 2.8")
	check(w.Unchanged >= 0 && w.Unchanged < 1, "Unchanged", w.Unchanged, "choose 0 to less than 1")
	check(w.Interval > 0, "Interval", w.Interval, "give the time between two writes of a key")
	check(w.Freshness == 0 || w.Freshness >= time.Millisecond && w.Freshness <= time.Hour, "Freshness", w.Freshness, "choose 1ms to 1h, or 0 for none")
	if len(errs) == 0 {
		check(float64(w.Keys)*float64(w.Writers) <= maxTuned, "Writers", w.Writers, fmt.Sprintf("that is %.3g keys with Keys: choose Keys and Writers for %d at the most", float64(w.Keys)*float64(w.Writers), maxTuned))
		rate := w.writes() * float64(w.Writers)
		check(rate <= maxPerSecond, "Interval", w.Interval, fmt.Sprintf("that is %.3g writes a second: choose Keys, Writers and Interval for 10,000,000 at the most", rate))
	}
	return w, errors.Join(errs...)
}

// maxTuned bounds the keys of a workload.
const maxTuned = 100_000_000

// writes returns how often a second each writer puts.
func (w Workload) writes() float64 { return float64(w.Keys) / w.Interval.Seconds() }
