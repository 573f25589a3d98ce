package main

import (
	"github.com/spf13/cobra"

	"srvfs/capture"
	"srvfs/cmd/internal/cli"
	"srvfs/manifest"
)

// find opens the library, and reads the name of a snapshot.
func (p *program) find(name string) (*capture.Library, manifest.Ref, error) {
	ref, err := manifest.ParseRef(name)
	if err != nil {
		return nil, ref, err
	}
	lib, err := capture.OpenLibrary(p.state)
	return lib, ref, err
}

func (p *program) diffCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "diff NAME@SNAPSHOT [NAME[@SNAPSHOT]]",
		Short: "list what differs between two snapshots",
		Long: `Diff lists the paths that were added (+), removed (-) or changed (~) from one
snapshot to another, or to the latest. "srvd list NAME" shows those that are kept.

` + cli.Codes,
		Example: "  srvd diff web@11 web@12\n  srvd diff web@2026-01-31",
		Args:    cli.Args(1, 2, "one snapshot or two"),
		RunE: func(c *cobra.Command, args []string) error {
			lib, before, err := p.find(args[0])
			if err != nil {
				return err
			}
			if before.Newest() && len(args) == 1 {
				return cli.UsageError(c, "%s is the newest snapshot: name the one that it is compared with, as %s@12; \"srvd list %s\" has their numbers", args[0], args[0], args[0])
			}
			after := manifest.Ref{Service: before.Service}
			if len(args) > 1 {
				if after, err = manifest.ParseRef(args[1]); err != nil {
					return err
				}
			}
			a, err := lib.Snapshot(before)
			if err != nil {
				return err
			}
			b, err := lib.Snapshot(after)
			if err != nil {
				return err
			}
			live := lib.Live()
			defer func() { _ = live.Close() }()
			changes, err := manifest.Compare(c.Context(), live, a, b)
			if err != nil {
				return err
			}
			rows := cli.Changes(changes)
			if asJSON {
				return cli.JSON(c.OutOrStdout(), rows)
			}
			return cli.PrintChanges(c.OutOrStdout(), rows)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
