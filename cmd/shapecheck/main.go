package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes, the same for all commands.
const (
	exitOK          = 0
	exitFailed      = 1   // or the command line is wrong, or the output could not be written
	exitUnreachable = 2   // no member of the cluster has answered, or it does not know the user
	exitWarning     = 10  // what was found wants to be looked at
	exitCritical    = 20  // what was found is bad
	exitInterrupted = 130 // what was known until then is written
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// exitError is an error that has an exit code of its own.
type exitError struct {
	error
	code int
}

func (e exitError) Unwrap() error { return e.error }

// errInterrupted is the end of a command whose user has interrupted it without a signal.
var errInterrupted = errors.New("interrupted")

// run runs the command that args name and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "shapecheck",
		Short:         "Shows what an application's writes cost an etcd, and what kvwrap makes of them",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q: see %s --help", args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.Version = versions()
	root.SetVersionTemplate("{{.Version}}")
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages", "Flags.FlagUsagesWrapped 80"))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())
	})
	root.AddCommand(auditCommand(), benchCommand(), demoCommand(), getCommand(), manCommand(), projectCommand(), reclaimCommand(), rolesCommand(), serveCommand(), sweepCommand(), tuneCommand(), unwrapCommand(), verifyCommand(), watchCommand())
	out := &output{to: stdout, stderr: stderr}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var exit exitError
	switch {
	case errors.Is(err, errInterrupted), ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "shapecheck: interrupted")
		return exitInterrupted
	case err != nil:
		fmt.Fprintln(stderr, "shapecheck:", err)
	}
	switch {
	case errors.As(err, &exit) && (out.err == nil || exit.code != exitWarning):
		return exit.code
	case err != nil || out.err != nil:
		return exitFailed
	}
	return exitOK
}

// output is where a command writes what it has found. It takes everything: the first error
// is said at once, remembered, and makes the command one that has failed, so that no command
// need look at what writing returns, and none loses what it has found besides. It goes on
// writing, since a command that runs for long may have room again.
type output struct {
	to, stderr io.Writer
	err        error
}

func (o *output) Write(p []byte) (int, error) {
	if _, err := o.to.Write(p); err != nil && o.err == nil {
		o.err = err
		fmt.Fprintln(o.stderr, "shapecheck: writing the output:", err)
	}
	return len(p), nil
}

// noArgs refuses arguments that are no flags.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no arguments, got %q: see %s --help", cmd.Name(), args, cmd.CommandPath())
	}
	return nil
}
