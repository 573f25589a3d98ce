package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
)

func (p *program) diffCmd() *cobra.Command {
	var asJSON bool
	var from archiveFlags
	c := &cobra.Command{
		Use:   "diff ([HOST[:PORT]/]SERVICE | ARCHIVE)@SNAPSHOT [([HOST[:PORT]/]SERVICE | ARCHIVE)[@SNAPSHOT]]",
		Short: "list what differs between two snapshots",
		Long: `Diff lists the paths that were added (+), removed (-) or changed (~) from one
snapshot to another, or to the newest. A service that was run here can be named as
it is called here. "srvfs list HOST/SERVICE" shows which snapshots the source keeps.
Only directories that differ are fetched, and no content.

` + cli.Codes,
		Example: "  srvfs diff alpha/web@11 alpha/web@12\n  srvfs diff web@2026-01-31\n  srvfs diff web.tar@1",
		Args:    cli.Args(1, 2, "one snapshot or two"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			var call control.Call
			var err error
			if call.Snapshot, err = from.splitLocal(c, args[0]); err != nil {
				return err
			}
			if call.Newest() && len(args) == 1 {
				return cli.UsageError(c, "%s is the newest snapshot: name the one that it is compared with, as %s@12; \"srvfs list\" has their numbers", args[0], args[0])
			}
			if len(args) > 1 {
				with, err := from.splitLocal(c, args[1])
				if err != nil {
					return err
				}
				if with.Source == "" && with.Service == call.Service {
					with.Source, with.Archive = call.Source, call.Archive // HOST/web@11 web@12
				}
				call.With = &with
			}
			var r daemon.Differences
			if err := p.do(c.Context(), "diff", call, nil, &r); err != nil {
				return err
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), r)
			}
			if err := cli.PrintChanges(c.OutOrStdout(), r.Changes); err != nil || r.More == 0 {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "and %d more\n", r.More)
			return err
		},
	}
	from.addReading(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
