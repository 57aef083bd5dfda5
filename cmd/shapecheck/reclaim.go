package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/internal/size"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// reclaim gives space back.
type reclaim struct {
	yes, dryRun    bool
	every          time.Duration
	when           []string
	opts           budget.ReclaimOptions
	minFree, quota size.Value
	output         outputFlag
	cluster        clusterFlags

	rules          []*rule
	json           bool
	settled        int64 // the revision after the last round that has done something, where nobody else writes
	stdin          io.Reader
	stdout, stderr io.Writer
}

func reclaimCommand() *cobra.Command {
	var r reclaim
	cmd := &cobra.Command{
		Use:   "reclaim",
		Short: "Compacts, defragments one member after the other, and disarms NOSPACE",
		Long: `Gives space of the database files back: compacts old revisions, defragments the
members that are worth it, one at a time and the leader last, and disarms the
alarm NOSPACE where enough was freed. A member stands still while it is
defragmented, about 5 to 20 seconds for each GiB in use. At the first doubt it
stops. One runs at a time in a cluster.

The plan is printed first, and nothing is done before it is agreed to: by
--yes, or by an answer on standard input. --dry-run asks the members, prints
the plan and writes nothing; it fails where reclaim would not begin, with the
reason, such as a member that does not answer, another reclaim, or a user
without the role root.

With --when it does something only where a rule holds for some member.
--min-bloat and --min-free then say which members are defragmented. A rule
compares bloat (size over what is in use), free, size, in-use and quota-use, as
in "bloat>2 && free>100MiB" or "quota-use>80%"; of several rules one is enough.
What nobody has compacted counts as in use. With --every it looks again and
again until it is interrupted; after an error, too, and where no member answers
at first.

With authentication it takes a user with the role root.
` + clusterHelp + `

Exit codes: 0 done, or there is nothing to do; 1 stopped, or not agreed to, or
the command line is wrong; 2 the cluster cannot be reached; 130 interrupted.`,
		Example: `  shapecheck reclaim --endpoints 10.0.0.1:2379 --dry-run
  shapecheck reclaim --endpoints 10.0.0.1:2379 --keep-revisions 10000
  shapecheck reclaim --endpoints 10.0.0.1:2379 --yes --every 5m \
      --when "bloat>2 && free>100MiB" --when "quota-use>80%"`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.stdin, r.stdout, r.stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			return r.run(cmd.Context())
		},
	}
	r.minFree = 100 << 20
	f := cmd.Flags()
	f.BoolVar(&r.yes, "yes", false, "do it, without asking")
	f.BoolVar(&r.dryRun, "dry-run", false, "only print the plan")
	f.DurationVar(&r.every, "every", 0, "look again after so long, until interrupted; takes --yes or --dry-run")
	f.StringArrayVar(&r.when, "when", nil, `only where this holds for a member, as in "bloat>2 && free>100MiB"; may be given again`)
	f.Int64Var(&r.opts.KeepRevisions, "keep-revisions", 1000, "the newest revisions, which stay readable")
	f.Float64Var(&r.opts.MinBloat, "min-bloat", 1.5, "defragment members with this bloat or more")
	f.Var(&r.minFree, "min-free", "and with this to be had or more: 100MiB")
	f.Lookup("min-free").DefValue = ""
	f.Var(&r.quota, "quota-backend-bytes", "of members that do not say, those of etcd 3.5; without it 2GiB; below 0 none")
	f.Uint64Var(&r.opts.MaxLag, "max-lag", 1000, "entries that a member may be behind when another one is defragmented")
	f.DurationVar(&r.opts.CatchUpTimeout, "catch-up-timeout", 2*time.Minute, "how long to wait, before each step, until all members have caught up")
	r.output.register(cmd)
	r.cluster.register(cmd)
	return cmd
}

func (r *reclaim) check() (err error) {
	if r.json, err = r.output.json(); err != nil {
		return err
	}
	switch {
	case r.yes && r.dryRun:
		return fmt.Errorf("--yes and --dry-run: choose one of them")
	case r.every != 0 && r.every < time.Second:
		return fmt.Errorf("--every %v: choose 1s or more", r.every)
	case r.every > 0 && !r.yes && !r.dryRun:
		return fmt.Errorf("--every %v asks nobody: give --yes, or --dry-run", r.every)
	case r.opts.KeepRevisions < 1:
		return fmt.Errorf("--keep-revisions %d: choose 1 or more", r.opts.KeepRevisions)
	case !(r.opts.MinBloat >= 1):
		return fmt.Errorf("--min-bloat %v: choose 1 or more", r.opts.MinBloat)
	case r.minFree < 1:
		return fmt.Errorf("--min-free %d: choose 1 byte or more", r.minFree)
	case r.opts.MaxLag < 1:
		return fmt.Errorf("--max-lag 0: choose 1 or more")
	case r.opts.CatchUpTimeout <= 0:
		return fmt.Errorf("--catch-up-timeout %v: give a time above zero, as in 2m", r.opts.CatchUpTimeout)
	}
	for _, text := range r.when {
		one, err := parseRule(text)
		if err != nil {
			return err
		}
		r.rules = append(r.rules, one)
	}
	r.opts.MinFree, r.opts.Quota = int64(r.minFree), int64(r.quota)
	r.opts.Logger = slog.New(slog.DiscardHandler) // what is done is said here
	r.opts.OnStep = func(s budget.ReclaimStep) {
		if s.Defragment {
			fmt.Fprintf(r.stderr, "defragmenting %s (%s), %s: %s\n", s.Member.Name, s.Member.ID, s.Member.Role, s.Reason)
		}
	}
	return nil
}

func (r *reclaim) run(ctx context.Context) error {
	if err := r.check(); err != nil {
		return err
	}
	var cli *clientv3.Client // nil until a member has answered
	round := func() error {
		if cli == nil {
			first, err := r.cluster.connect(ctx, 0)
			if err != nil {
				return r.failed(err)
			}
			cli = first
		}
		return r.round(ctx, cli)
	}
	defer func() {
		if cli != nil {
			cli.Close()
		}
	}()
	if r.every == 0 {
		return round()
	}
	ticker := time.NewTicker(r.every)
	defer ticker.Stop()
	return repeat(ctx, ticker.C, round, func(err error) error {
		var exit exitError
		if cli == nil && (!errors.As(err, &exit) || exit.code != exitUnreachable || errors.Is(err, rpctypes.ErrAuthFailed)) {
			return err // the command line is wrong, which does not pass
		}
		fmt.Fprintf(r.stderr, "shapecheck: %v\nshapecheck: going on: it looks again every %v\n", err, r.every)
		return nil
	})
}

// repeat calls round at once and at each tick, and hands its errors on. It ends with ctx, or
// when that returns an error.
func repeat(ctx context.Context, tick <-chan time.Time, round func() error, failed func(error) error) error {
	for {
		if err := round(); ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		} else if err != nil {
			if err := failed(err); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick:
		}
	}
}

// reclaimRound is what one round has found and done, for programs.
type reclaimRound struct {
	Health  budget.Health        `json:"health"`
	Rule    string               `json:"rule,omitempty"` // that holds
	Idle    bool                 `json:"idle"`           // there was nothing to do
	Doubt   string               `json:"doubt,omitempty"`
	Compact int64                `json:"compact"` // the revision to compact to; 0 for none
	Steps   []reclaimStep        `json:"steps"`
	Disarm  []budget.HealthAlarm `json:"disarm,omitempty"`
	Result  *reclaimDone         `json:"result,omitempty"` // of what was done
	Error   string               `json:"error,omitempty"`
}

type reclaimStep struct {
	Member     budget.HealthID `json:"member"`
	Name       string          `json:"name"`
	Defragment bool            `json:"defragment"`
	Reason     string          `json:"reason"`
}

// reclaimDone is what was done, also before an error.
type reclaimDone struct {
	Compacted int64                `json:"compacted"` // the revision; 0 for none
	Members   []reclaimedMember    `json:"members"`
	Disarmed  []budget.HealthAlarm `json:"disarmed,omitempty"`
	Revisions int64                `json:"revisions"` // that it has made itself
}

type reclaimedMember struct {
	reclaimStep
	Before  int64   `json:"beforeBytes"`
	After   int64   `json:"afterBytes,omitempty"` // where it was defragmented
	Seconds float64 `json:"seconds,omitempty"`
}

func doneOf(r budget.ReclaimResult) *reclaimDone {
	done := &reclaimDone{Compacted: r.Compacted, Members: []reclaimedMember{}, Disarmed: r.Disarmed, Revisions: r.Revisions}
	for _, m := range r.Members {
		done.Members = append(done.Members, reclaimedMember{
			reclaimStep{m.Member.ID, m.Member.Name, m.Defragment, m.Reason}, m.Member.DbSize, m.After.DbSize, m.Took.Seconds(),
		})
	}
	return done
}

// failed is the round of which nothing is known but err.
func (r *reclaim) failed(err error) error {
	if !r.json {
		return err
	}
	return errors.Join(err, writeJSON(r.stdout, struct {
		Error string `json:"error"`
	}{err.Error()}))
}

// round plans, and does what was agreed to.
func (r *reclaim) round(ctx context.Context, cli *clientv3.Client) (err error) {
	plan, err := budget.PlanReclaim(ctx, cli, r.opts)
	if err != nil {
		return r.failed(asking("with the role root", "asking for the members", err))
	}
	revision := newest(plan.Health)
	if revision == r.settled { // to compact what the lock has written would make as much again
		plan.Compact = 0
	}
	doc := reclaimRound{Health: plan.Health, Compact: plan.Compact, Disarm: plan.Disarm, Steps: []reclaimStep{}}
	if plan.Doubt != nil {
		doc.Doubt = plan.Doubt.Error()
	}
	for _, s := range plan.Steps {
		doc.Steps = append(doc.Steps, reclaimStep{s.Member.ID, s.Member.Name, s.Defragment, s.Reason})
	}
	if r.json {
		defer func() {
			if err != nil {
				doc.Error = err.Error()
			}
			err = errors.Join(err, writeJSON(r.stdout, doc))
		}()
	}
	if len(r.rules) > 0 {
		m, held := meets(plan.Health, r.rules)
		if held == nil {
			doc.Idle = true
			r.tell("%s: nothing to do: no member has %s.\n", plan.Health.At.Format(time.TimeOnly), strings.Join(r.when, ", or "))
			return nil
		}
		doc.Rule = held.text
		r.tell("%s: member %s (%s) has %s.\n", plan.Health.At.Format(time.TimeOnly), m.Name, m.ID, held.text)
	}
	r.tell("%s", plan)
	if idle(plan) && plan.Doubt == nil {
		doc.Idle = true
		r.tell("Nothing to do.\n")
		return nil
	}
	if r.dryRun {
		r.tell("Nothing was written: --dry-run.\n")
		return plan.Doubt
	}
	if !r.yes {
		if err := r.agree(ctx); err != nil {
			return err
		}
	}
	result, err := plan.Run(ctx)
	if r.settled = 0; err == nil {
		r.settled = revision + result.Revisions
	}
	doc.Result = doneOf(result)
	r.tell("\n%s", result)
	return err
}

// idle reports whether a plan does nothing.
func idle(p *budget.ReclaimPlan) bool {
	for _, s := range p.Steps {
		if s.Defragment {
			return false
		}
	}
	return p.Compact == 0 && len(p.Disarm) == 0
}

// agree asks.
func (r *reclaim) agree(ctx context.Context) error {
	fmt.Fprint(r.stderr, "Go on? [y/N] ")
	answered := make(chan string, 1)
	go func() { // which stays behind after an interrupt, until the process ends
		line, _ := bufio.NewReader(r.stdin).ReadString('\n')
		answered <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(r.stderr)
		return ctx.Err()
	case answer := <-answered:
		if answer == "y" || answer == "yes" {
			return nil
		}
		if answer == "" {
			fmt.Fprintln(r.stderr)
		}
	}
	return errors.New("nothing was done: it was not agreed to; answer y, or give --yes")
}

func (r *reclaim) tell(format string, args ...any) {
	if !r.json {
		fmt.Fprintf(r.stdout, format, args...)
	}
}
