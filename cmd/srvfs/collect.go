package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
)

func (p *program) collectCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "collect",
		Short: "remove stored content that is needed no more",
		Long: `Collect removes from the store what no snapshot needs any more. Of each service the
last ten snapshots that are stored here are kept, the last one of each hour of a day
and of each day of a week, and those that are mounted or that a service stands on. "srvfs remove" collects too.

` + cli.Codes,
		Example: "  srvfs collect",
		Args:    cli.Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			var r daemon.Collected
			if err := p.do(c.Context(), "collect", control.Call{}, nil, &r); err != nil {
				return err
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), r)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s freed\n", cli.Bytes(r.Freed))
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
