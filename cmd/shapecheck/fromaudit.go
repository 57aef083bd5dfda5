package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/internal/audit"
	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/kvwrap/kvwrap/shaper"
)

// readReport reads what audit -w json has written, for a flag.
func readReport(flag, file string) (*audit.Report, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w: give a file that audit -w json has written", flag, err)
	}
	r := new(audit.Report)
	if err := json.Unmarshal(text, r); err != nil || r.Schema != audit.Schema {
		return nil, fmt.Errorf("--%s %s: it is no report of schema %d: give a file that audit -w json has written", flag, file, audit.Schema)
	}
	return r, nil
}

// audited is what a saved audit says of a workload: that of all keys, or of those with a
// prefix.
type audited struct {
	Of      string    `json:"of"` // the file, or the cluster, that was audited
	At      time.Time `json:"at"`
	Partial bool      `json:"partial,omitempty"` // there is more than this
	Prefix  string    `json:"prefix,omitempty"`  // as between the quotes of a Go string

	Keys       int  `json:"keys"`
	KeyBytes   int  `json:"keyBytes"`   // the mean, of all keys
	ValueBytes int  `json:"valueBytes"` // the mean, as applications know values
	Leased     bool `json:"leased,omitempty"`
	Chunked    int  `json:"chunked,omitempty"` // values in chunks, of all keys
	// RevisionsPerSecond is absent where it is not known, and Measured is over how many seconds
	// it was measured, 0 where it was given.
	RevisionsPerSecond *float64 `json:"revisionsPerSecond,omitempty"`
	Measured           float64  `json:"measuredSeconds,omitempty"`

	Version string      `json:"version,omitempty"`
	Quota   int64       `json:"quota,omitempty"` // 0 where it is not known, below 0 for none
	Live    shaper.Live `json:"live"`            // what other keys take
}

// readAudited reads the workload of the keys with a prefix, or of all keys.
func readAudited(file, prefix string) (*audited, error) {
	r, err := readReport("audit", file)
	if err != nil {
		return nil, err
	}
	if r.Totals.Keys == 0 {
		return nil, fmt.Errorf("--audit %s: there was no key: say what is written without it", file)
	}
	a := &audited{
		Of: r.Source.File, At: r.At, Partial: r.Partial, Keys: int(r.Totals.Keys), KeyBytes: int(r.Totals.KeyBytes / r.Totals.Keys),
		ValueBytes: int(r.Values.Mean), Leased: 2*r.Leases.Keys > r.Totals.Keys, Chunked: int(r.Chunked.Keys), Version: r.Source.Version,
	}
	if a.Of == "" {
		a.Of = strings.Join(r.Source.Endpoints, ",")
	}
	for _, m := range r.Members {
		if m.Version != "" {
			a.Version = m.Version
		}
	}
	if a.Quota = r.Backend.Quota; r.Backend.QuotaAssumed {
		a.Quota = 0
	} else if a.Quota == 0 {
		a.Quota = -1
	}
	own := r.Totals.LiveBytes
	if prefix != "" {
		p, err := prefixOf(r, file, prefix)
		if err != nil {
			return nil, err
		}
		key := audit.Key(prefix)
		a.Prefix, a.Keys, a.ValueBytes, a.Leased, own = key.String(), int(p.Keys), int(p.Mean), 2*p.Leased > p.Keys, p.LiveBytes
	}
	if g := r.Growth; g != nil && uint64(a.Keys) == r.Totals.Keys { // of part of the keys the rate is not known
		a.RevisionsPerSecond, a.Measured = &g.RevisionsPerSecond, g.Measured
	}
	a.Live = shaper.Live{
		Revision: r.Source.Revision, InUse: max(0, r.Backend.InUse-int64(own)), Keys: int(r.Totals.Keys) - a.Keys, DbSize: r.Backend.Size,
	}
	return a, nil
}

// prefixOf returns what a report has of a prefix.
func prefixOf(r *audit.Report, file, prefix string) (audit.Prefix, error) {
	var has []string
	for _, p := range r.Prefixes {
		switch {
		case p.Rest || p.Keys == 0:
		case string(p.Prefix) == prefix:
			return p, nil
		case len(has) < 5:
			has = append(has, fmt.Sprintf("%q", string(p.Prefix)))
		}
	}
	return audit.Prefix{}, fmt.Errorf("--prefix %q is none of --audit %s, which has %s: choose one that it has, or audit again with another --depth or --separator", prefix, file, strings.Join(has, ", "))
}

// noRate says that the audit lacks what a flag is to say.
func (a *audited) noRate(file, flag string) error {
	why := "audit a cluster, which measures it, or give it to the audit as --revisions-per-second"
	if a.Prefix != "" {
		why = "an audit measures that of all keys together"
	}
	return fmt.Errorf("--audit %s does not say how often these keys are written: give --%s; %s", file, flag, why)
}

// String says what is taken from the audit.
func (a *audited) String() string {
	below := ""
	if a.Prefix != "" {
		below = fmt.Sprintf(" below \"%s\"", a.Prefix)
	}
	line := fmt.Sprintf("Audit of %s, %s: %d keys%s of %s with values of %s on the average", a.Of, a.At.Format(time.RFC3339), a.Keys, below, bytesOf(a.KeyBytes), bytesOf(a.ValueBytes))
	switch {
	case a.RevisionsPerSecond == nil:
		line += "; how often they are written it does not say."
	case a.Measured > 0:
		line += fmt.Sprintf("; %.1f revisions/s, measured in %.1f s.", *a.RevisionsPerSecond, a.Measured)
	default:
		line += fmt.Sprintf("; %.1f revisions/s, as it was told.", *a.RevisionsPerSecond)
	}
	if a.Chunked > 0 {
		line += fmt.Sprintf("\nValues in chunks: %d, which count as a plain client would store them.", a.Chunked)
	}
	if a.Partial {
		line += "\nThe audit is partial: there is more than this."
	}
	return line
}

// fill takes for the load what flags do not say.
func (in *projectInput) fill(a *audited, file string) error {
	given := in.flags.Changed
	if !given("writes") {
		if a.RevisionsPerSecond == nil {
			return a.noRate(file, "writes")
		}
		in.writes = *a.RevisionsPerSecond
	}
	if !given("keys") {
		in.keys = a.Keys
	}
	if !given("key-bytes") {
		in.keyBytes = a.KeyBytes
	}
	if !given("value-bytes") {
		in.valueBytes = size.Value(a.ValueBytes)
	}
	if !given("leased") {
		in.leased = a.Leased
	}
	if !given("live-bytes") {
		in.liveBytes = size.Value(a.Live.InUse)
	}
	if !given("live-keys") {
		in.liveKeys = a.Live.Keys
	}
	in.revision, in.dbSize = a.Live.Revision, max(a.Live.DbSize, int64(in.liveBytes))
	return nil
}

// fill takes for the workload what flags do not say.
func (a *audited) fill(w *shaper.Workload, file string, set func(flag string) bool) error {
	if !set("keys") {
		w.Keys = max(1, a.Keys/max(1, w.Writers))
	}
	if !set("key-bytes") {
		w.KeyBytes = max(a.KeyBytes, len(w.Prefix))
	}
	if !set("value-bytes") {
		w.ValueBytes = max(1, a.ValueBytes)
	}
	switch rate := a.RevisionsPerSecond; {
	case set("interval"):
	case rate == nil:
		return a.noRate(file, "interval")
	case *rate <= 0:
		return fmt.Errorf("--audit %s: nobody wrote in the %.1f s in which it measured: give --interval, or audit when something is written", file, a.Measured)
	default: // each key in its turn
		every := float64(w.Keys) * float64(w.Writers) / *rate
		if every < 1e-9 || every > mostHours*3600 {
			return fmt.Errorf("--audit %s: with %d keys at %.3g revisions a second each is put once in %.3g s: give --interval", file, w.Keys, *rate, every)
		}
		w.Interval = time.Duration(every * float64(time.Second))
	}
	return nil
}

// server takes of a server what flags do not say.
func (a *audited) server(f *serverFlags, s *shaper.Server) {
	if !f.givenVersion() && a.Version != "" {
		s.Version = a.Version
	}
	if !f.givenMost() {
		s.Quota = a.Quota
	}
}
