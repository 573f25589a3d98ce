package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"srvfs/capture"
	"srvfs/cmd/internal/cli"
)

func (p *program) removeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "forget a captured service",
		Long: `Remove takes a service's snapshots away, and what was unpacked for them. The
service itself is not touched. Standbys keep what they have already, and get no more.

` + cli.Codes,
		Example: "  srvd remove web",
		Args:    cli.Args(1, 1, "the name of a service"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := cli.NeedRoot("remove"); err != nil {
				return err
			}
			lib, err := capture.OpenLibrary(p.state)
			if err != nil {
				return err
			}
			if err := lib.Remove(args[0]); err != nil {
				return err
			}
			_, _ = fmt.Fprintf(c.OutOrStdout(), "removed %s\n", args[0])
			return nil
		},
	}
}
