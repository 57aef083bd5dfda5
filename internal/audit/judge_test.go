package audit

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap/shaper"
	"github.com/stretchr/testify/require"
)

// healthy is a report that nothing is wrong with.
func healthy() *Report {
	return &Report{
		Schema:  Schema,
		Source:  Source{Kind: "db", Revision: 1000},
		Backend: Backend{Size: 100 << 20, InUse: 90 << 20, Bloat: 1.11},
		Totals:  Totals{Keys: 1000, KeyBytes: 20_000, LiveRecords: 1000, LiveBytes: 80 << 20, HistoryRecords: 10, HistoryBytes: 1 << 20},
		Values:  Distribution{Count: 1000, Max: 1000, P99: 900},
	}
}

// TestJudge has one thing wrong in each report.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		spoil  func(r *Report)
		assume Assume
		level  Level // of the verdict
		says   string
		do     string
	}{
		{"nothing", func(*Report) {}, Assume{}, OK, "", ""},
		{"bloat", func(r *Report) { r.Backend.Bloat, r.Backend.InUse = 2, 10<<20 }, Assume{}, Warning, "2.0 times what is in use", "shapecheck reclaim --endpoints ENDPOINTS"},
		{"much bloat", func(r *Report) { r.Backend.Bloat, r.Backend.InUse = 10, 10<<20 }, Assume{}, Critical, "10.0 times what is in use", "shapecheck reclaim"},
		{"little bloat", func(r *Report) { r.Backend = Backend{Size: 1 << 20, InUse: 1 << 17, Bloat: 8} }, Assume{}, OK, "", ""},
		{"near the quota", func(*Report) {}, Assume{Quota: 120 << 20}, Warning, "83 % of the quota", "--quota-backend-bytes=251658240"},
		{"at the quota", func(*Report) {}, Assume{Quota: 101 << 20}, Critical, "99 % of the quota", "--quota-backend-bytes="},
		{"grows", func(*Report) {}, Assume{RevisionsPerSecond: 100}, Critical, "the quota is reached in", "--auto-compaction-mode=periodic"},
		{"grows slowly", func(*Report) {}, Assume{RevisionsPerSecond: .001}, OK, "", ""},
		{"compacts often", func(r *Report) { r.Source.Compacted = 995 }, Assume{RevisionsPerSecond: 100}, OK, "", ""},
		{"has compacted long ago", func(r *Report) { r.Source.Compacted = 1 }, Assume{RevisionsPerSecond: .1}, Warning, "with nothing compacted", "--auto-compaction-retention=1h"},
		{"compacts too little", func(r *Report) { r.Source.Compacted = 1 }, Assume{RevisionsPerSecond: 10, Compaction: &shaper.Compaction{Mode: shaper.CompactPeriodic, Retention: 2 * time.Hour}}, Critical, "with old revisions kept for 2.0 hours", "--auto-compaction-mode=periodic --auto-compaction-retention=10m"},
		{"keeps too many", func(r *Report) {}, Assume{RevisionsPerSecond: 10, Compaction: &shaper.Compaction{Mode: shaper.CompactRevision, Revisions: 100_000}}, Critical, "with 100 000 old revisions kept", "--auto-compaction-retention=10m"},
		{"writes too much", func(r *Report) {}, Assume{RevisionsPerSecond: 10_000}, Critical, "with nothing compacted", "write less"},
		{"does not compact", func(r *Report) { r.Source.Compacted = 995 }, Assume{RevisionsPerSecond: 100, Compaction: &shaper.Compaction{}}, Critical, "with nothing compacted", "--auto-compaction-mode=periodic"},
		{"history", func(r *Report) { r.Totals.HistoryBytes = 90 << 20 }, Assume{}, Warning, "53 % of the data are old revisions", "shapecheck reclaim --endpoints ENDPOINTS, and --auto-compaction-mode"},
		{"alarm", func(r *Report) { r.Members = []Member{{Name: "m0", Alarms: []string{"NOSPACE"}}} }, Assume{}, Critical, "m0 has raised the alarm NOSPACE", "shapecheck reclaim --endpoints ENDPOINTS, which disarms it"},
		{"corrupt", func(r *Report) { r.Members = []Member{{Name: "m0", Alarms: []string{"CORRUPT"}}} }, Assume{}, Critical, "CORRUPT", "empty data directory"},
		{"lost", func(r *Report) { r.Members = []Member{{ID: "8e", Name: "m0", Error: "refused"}} }, Assume{}, Critical, "m0 does not answer: refused", "etcdctl member remove 8e"},
		{"lag", func(r *Report) { r.Members = []Member{{Name: "m0", Lag: 6000}} }, Assume{}, Warning, "6000 entries behind", "disk"},
		{"large", func(r *Report) { r.BySize = []KeyReport{{Key: "/k", ValueBytes: 600 << 10}} }, Assume{}, OK, "/k: its value has 614 KB", "kvwrap"},
		{"too large", func(r *Report) { r.BySize = []KeyReport{{Key: "/k", ValueBytes: 1200 << 10}} }, Assume{}, Warning, "/k: its value has 1.23 MB", "kvwrap"},
		{"chunked", func(r *Report) { r.BySize = []KeyReport{{Key: "/k", ValueBytes: 9 << 20, StoredBytes: 1}} }, Assume{}, OK, "", ""},
		{"churn", func(r *Report) {
			r.Prefixes = []Prefix{{Prefix: "/h/", Keys: 10, Revisions: 20_000, PerKey: 2000, HistoryBytes: 1000}}
		}, Assume{}, OK, "/h/: its keys have 2000 revisions each", `kvwrap.Rule{Prefix: "/h/", Coalesce: coalesce.LastWriteWins`},
		{"leases", func(r *Report) { r.Leases = Leases{WithKeys: 20_000, PerLease: 1} }, Assume{}, OK, "20000 leases have 1.0 keys", "share leases"},
		{"unreadable", func(r *Report) { r.Chunked.Unreadable = 2 }, Assume{}, Warning, "2 values look like manifests", "newer"},
		{"staging", func(r *Report) { r.Staging = []Staging{{Key: "k", Host: "h1", PID: 42}} }, Assume{}, OK, "h1, process 42", "shapecheck sweep"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := healthy()
			c.spoil(r)
			r.Judge(c.assume)
			require.Equal(t, c.level, r.Verdict, "%+v", r.Findings)
			if c.says == "" {
				require.Empty(t, r.Findings)
				return
			}
			require.Len(t, r.Findings, 1)
			require.Contains(t, aboutText(r.Findings[0])+r.Findings[0].Reason, c.says)
			require.Contains(t, r.Findings[0].Do, c.do)
			var text strings.Builder
			require.NoError(t, r.Text(&text))
			require.Contains(t, text.String(), c.says)
		})
	}
}

// TestSaves holds what findings promise to what it follows from.
func TestSaves(t *testing.T) {
	saves := func(r *Report, a Assume) (uint64, string) {
		r.Judge(a)
		require.Len(t, r.Findings, 1)
		return r.Findings[0].Saves, r.Findings[0].SavesOf
	}
	// Half of all puts are of 1 MiB, which 5,000 entries hold 2,500 of. Of 256 chunks of 4 KiB
	// with objects of 2 KiB a tenth of which changes, 1-0.9^4 are written again, compressed.
	large := healthy()
	large.BySize = []KeyReport{{Key: "/k", ValueBytes: 1 << 20, Revisions: 505}}
	n, of := saves(large, Assume{})
	require.Equal(t, ofRaftLog, of)
	require.InEpsilon(t, 2500*(1<<20)*(1-(1-math.Pow(.9, 4))/2.8), n, .02)
	require.Contains(t, strings.Join(large.Estimates, "\n"), "5000 entries")

	rare := healthy()
	rare.BySize = []KeyReport{{Key: "/k", ValueBytes: 1 << 20}}
	n, of = saves(rare, Assume{})
	require.Zero(t, n)
	require.Empty(t, of)

	// Ten keys with all puts, 100 a second: each has ten in a second, and keeps one.
	churn := healthy()
	churn.Totals = Totals{Keys: 10, LiveRecords: 10, LiveBytes: 1000, HistoryRecords: 19_990, HistoryBytes: 1_999_000, KeyBytes: 100}
	churn.Prefixes = []Prefix{{Prefix: "/h/", Keys: 10, Revisions: 20_000, PerKey: 2000, LiveBytes: 1000, HistoryBytes: 1_999_000}}
	n, of = saves(churn, Assume{RevisionsPerSecond: 100, Compaction: &shaper.Compaction{Mode: shaper.CompactPeriodic, Retention: time.Minute}})
	require.Equal(t, ofWrites, of)
	require.InEpsilon(t, 100*.9*100*dayOfSeconds, n, .001)
}

func TestConditions(t *testing.T) {
	r := healthy()
	r.Judge(Assume{Quota: 1 << 30})
	for _, c := range []struct {
		text            string
		broken, unknown int
	}{
		{"max-value>999B,max-value>1000B", 1, 0},
		{"max-value<1KB", 0, 0},
		{"max-value < 1KiB", 1, 0},
		{"bloat>1.1,bloat>1.2", 1, 0},
		{"time-to-quota<24h", 0, 1},
		{"warning,critical", 0, 0},
		{"quota-use>5%,quota-use > 0.05,quota-use>15 %", 2, 0},
		{"history>1MB,keys>999,quota-use>0.5,alarms>0,leases>0,staging>0", 2, 0},
		{"max-revisions>0,max-revisions>1,p99-value>1B,live>1GiB,db>50MiB", 3, 0},
		{"", 0, 0},
	} {
		conditions, err := ParseConditions(c.text)
		require.NoError(t, err)
		broken, unknown := r.Broken(conditions)
		require.Len(t, broken, c.broken, c.text)
		require.Len(t, unknown, c.unknown, c.text)
	}
	r.Judge(Assume{Quota: 1 << 30, Measured: 5})
	never, err := ParseConditions("time-to-quota<24h,time-to-quota>24h")
	require.NoError(t, err)
	broken, unknown := r.Broken(never)
	require.Equal(t, []string{"time-to-quota>24h: it is never"}, broken)
	require.Empty(t, unknown)
	r.Source.Kind = "live"
	history, err := ParseConditions("history>1B")
	require.NoError(t, err)
	_, unknown = r.Broken(history)
	require.Equal(t, []string{"history>1B"}, unknown)
	r.Verdict = Warning
	words, err := ParseConditions("warning, critical")
	require.NoError(t, err)
	broken, _ = r.Broken(words)
	require.Equal(t, []string{"warning: the verdict is warning"}, broken)

	for text, says := range map[string]string{
		"bloat":              "is no condition: write a name, < or >",
		"bloat>":             `"" is no number`,
		"bloat>NaN":          "is no number",
		"keys>Inf":           "is no number",
		"keys<-1":            "is no number",
		"quota-use>80":       `for 80 % write 80%`,
		"quota-use>-1%":      "is no share",
		"weight>3":           `there is no figure "weight"`,
		"max-value>12QB":     "is no size: write it as in",
		"max-value>-1B":      "is no size",
		"time-to-quota<soon": "write a time as in 24h",
		"bloat>1,":           "is no condition",
	} {
		_, err := ParseConditions(text)
		require.ErrorContains(t, err, says, text)
	}
}

func TestCompare(t *testing.T) {
	old, now := healthy(), healthy()
	old.At = time.Unix(1e9, 0)
	old.Prefixes = []Prefix{{Prefix: "/a/", Keys: 5, LiveBytes: 500}, {Prefix: "/gone/", Keys: 1, LiveBytes: 10}, {Prefix: "/same/", Keys: 1}}
	old.Backend.Bloat, old.Backend.InUse = 2, 10<<20
	old.Judge(Assume{})
	now.Source.Revision, now.Totals.Keys, now.Values.Max = 1500, 900, 2000
	now.Prefixes = []Prefix{{Prefix: "/a/", Keys: 9, LiveBytes: 100}, {Prefix: "/new/", Keys: 2, LiveBytes: 20, Revisions: 3}, {Prefix: "/same/", Keys: 1}}
	now.Members = []Member{{Name: "m0", Alarms: []string{"NOSPACE"}}}
	now.Judge(Assume{})
	now.Compare(old)
	c := now.Changes
	require.Equal(t, int64(500), c.Revisions)
	require.Equal(t, int64(-100), c.Keys)
	require.Equal(t, int64(1000), c.MaxValue)
	require.Equal(t, []PrefixChange{{Prefix: "/a/", Keys: 4, LiveBytes: -400}, {Prefix: "/new/", Keys: 2, LiveBytes: 20, Revisions: 3}, {Prefix: "/gone/", Keys: -1, LiveBytes: -10}}, c.Prefixes)
	require.Len(t, c.New, 1)
	require.Contains(t, c.New[0].Reason, "NOSPACE")
	require.Len(t, c.Gone, 1)
	require.Contains(t, c.Gone[0].Do, "reclaim")
	var text strings.Builder
	require.NoError(t, now.Text(&text))
	require.Contains(t, text.String(), "Keys -100, live +0 B,")

	old.Source.Kind, old.Source.Cluster, old.Source.Depth, old.Source.Revision, old.Partial = "live", "1", 3, 2000, true
	now.Source.Cluster = "2"
	now.Compare(old)
	notes := strings.Join(now.Notes, "\n")
	for _, says := range []string{"not comparable", "of another cluster, 1", "had --depth 3", "an audit is partial", "has a later revision, 2000"} {
		require.Contains(t, notes, says)
	}
	require.Empty(t, now.Changes.Prefixes)
}

// TestHTML is a page whose keys try to be more than text.
func TestHTML(t *testing.T) {
	r, err := open(t, churned(t, 8).Close()).Audit(t.Context(), Config{Space: testSpace(t)}, nil)
	require.NoError(t, err)
	const hostile = `</title></code></svg><script src="//x">alert(1)</script>`
	r.Prefixes[0].Prefix, r.BySize[0].Key, r.ByChurn[0].Key = hostile, hostile, hostile
	r.Members = []Member{{ID: "1", Name: hostile, Error: hostile}}
	r.Staging = []Staging{{Key: hostile, Host: hostile, Version: hostile}}
	r.Notes = []string{hostile}
	r.Partial = true
	r.SetRaftLog(&RaftLog{Prefixes: []EntryKind{{Name: hostile}}})
	r.Judge(Assume{RevisionsPerSecond: 10})
	r.Compare(healthy())
	var b bytes.Buffer
	require.NoError(t, r.HTML(&b))
	require.NotContains(t, b.String(), "<script")
	require.NotContains(t, b.String(), "NaN")
	require.NotRegexp(t, `(src|href|xlink)=["a-z]`, b.String())

	// Every element is closed, in order.
	d := xml.NewDecoder(&b)
	d.Strict, d.AutoClose, d.Entity = false, []string{"meta", "br"}, xml.HTMLEntity
	depth, bars := 0, 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		switch token := token.(type) {
		case xml.StartElement:
			depth++
			if token.Name.Local == "rect" {
				bars++
			}
		case xml.EndElement:
			depth--
		}
	}
	require.Zero(t, depth)
	require.Equal(t, 2*min(len(r.Prefixes), 15)+len(r.sizeColumns().Columns), bars)
}

// TestHTMLInABrowser opens the page in Chromium, with the policy in it that forbids whatever
// is not in the page. KVWRAP_CHROMIUM is its path; where it is set, the test is not skipped.
func TestHTMLInABrowser(t *testing.T) {
	chromium := os.Getenv("KVWRAP_CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil && chromium == "" {
			chromium = path
		}
	}
	if chromium == "" {
		t.Skip("there is no chromium: install Debian's package, or set KVWRAP_CHROMIUM to its path")
	}
	r, err := open(t, churned(t, 8).Close()).Audit(t.Context(), Config{Space: testSpace(t)}, nil)
	require.NoError(t, err)
	r.Judge(Assume{RevisionsPerSecond: 1})
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "report.html"))
	require.NoError(t, err)
	require.NoError(t, r.HTML(f))
	require.NoError(t, f.Close())
	cmd := exec.CommandContext(t.Context(), chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
		"--user-data-dir="+filepath.Join(dir, "profile"), "--dump-dom", "file://"+f.Name())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), stderr.String())
	require.NotContains(t, stderr.String(), "CONSOLE", stderr.String()) // a script, or something refused
	require.Contains(t, stdout.String(), "<title>etcd audit: ")
	require.Equal(t, 2*min(len(r.Prefixes), 15)+len(r.sizeColumns().Columns), strings.Count(stdout.String(), "<rect "))
	require.Contains(t, stdout.String(), "</html>")
}

// TestSizeColumns has a place for sizes that do not occur, between those that do.
func TestSizeColumns(t *testing.T) {
	var s sizes
	for _, n := range []uint64{0, 3, 1000, 1000, 5} {
		s.add(n)
	}
	r := &Report{Values: s.distribution()}
	var names []string
	for _, c := range r.sizeColumns().Columns {
		names = append(names, c.Name+" "+c.Label)
	}
	require.Equal(t, []string{"1 B 1", "2 B ", "4 B 1", "8 B 1", "16 B ", "32 B ", "64 B ", "128 B ", "256 B ", "512 B ", "1 KiB 2"}, names)
}
