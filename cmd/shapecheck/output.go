package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// outputFlag says in which form a result is written.
type outputFlag struct {
	format string
	given  func() bool
}

const (
	asTable = "table"
	asJSON  = "json"
)

func (o *outputFlag) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "write-out", "w", asTable, "table or json")
	complete(cmd, "write-out", asTable, asJSON)
	o.given = func() bool { return cmd.Flags().Changed("write-out") }
}

// complete names the values of a flag for the completion of shells.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag, or it has its values already
	}
}

// json reports whether it is JSON. Of the forms that etcdctl's variable may name for
// etcdctl those that are not here are passed by.
func (o *outputFlag) json() (bool, error) {
	if v := os.Getenv("ETCDCTL_WRITE_OUT"); !o.given() && (v == asTable || v == asJSON) {
		o.format = v
	}
	if o.format != asTable && o.format != asJSON {
		return false, fmt.Errorf("--write-out %q: choose table or json", o.format)
	}
	return o.format == asJSON, nil
}

// writeJSON writes a document for programs, one line for each value so that people can
// read it, too.
func writeJSON(w io.Writer, document any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(document)
}
