package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// outputFlag says in which form a result is written.
type outputFlag struct {
	format string
	forms  []string
	given  func() bool
}

const (
	asTable = "table"
	asJSON  = "json"
	asHTML  = "html"
)

// register makes the flag one of table, json and what more there is.
func (o *outputFlag) register(cmd *cobra.Command, more ...string) {
	o.forms = append([]string{asTable, asJSON}, more...)
	cmd.Flags().StringVarP(&o.format, "write-out", "w", asTable, o.choice())
	complete(cmd, "write-out", o.forms...)
	o.given = func() bool { return cmd.Flags().Changed("write-out") }
}

// complete names the values of a flag for the completion of shells.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag, or it has its values already
	}
}

func (o *outputFlag) choice() string {
	last := len(o.forms) - 1
	return strings.Join(o.forms[:last], ", ") + " or " + o.forms[last]
}

// check settles the form. Of those that etcdctl's variable may name for etcdctl the ones
// that are not here are passed by.
func (o *outputFlag) check() error {
	if v := os.Getenv("ETCDCTL_WRITE_OUT"); !o.given() && slices.Contains(o.forms, v) {
		o.format = v
	}
	if !slices.Contains(o.forms, o.format) {
		return fmt.Errorf("--write-out %q: choose %s", o.format, o.choice())
	}
	return nil
}

// json checks the form and reports whether it is JSON.
func (o *outputFlag) json() (bool, error) {
	err := o.check()
	return o.format == asJSON, err
}

// writeJSON writes a document for programs, one line for each value so that people can
// read it, too.
func writeJSON(w io.Writer, document any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(document)
}
