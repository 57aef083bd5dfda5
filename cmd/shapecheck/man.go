package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Writes the manual pages of all commands",
		Long: `Writes shapecheck.1, shapecheck-audit.1 and so on to a directory that is there.

Exit codes: 0 written; 1 failed, or the command line is wrong.`,
		Example: `  shapecheck man /usr/local/share/man/man1
  man shapecheck-audit`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("man takes one directory, got %q: see %s --help", args, cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if info, err := os.Stat(args[0]); err != nil {
				return err
			} else if !info.IsDir() {
				return fmt.Errorf("%s is no directory: give the one for the pages", args[0])
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // with it, pages would differ each day
			return doc.GenManTree(root, &doc.GenManHeader{Title: "SHAPECHECK", Section: "1", Source: "kvwrap", Manual: "kvwrap"}, args[0])
		},
	}
}
