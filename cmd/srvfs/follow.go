package main

import (
	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
)

func (p *program) followCmd() *cobra.Command {
	var namesOnly bool
	var from archiveFlags
	c := &cobra.Command{
		Use:   "follow HOST[:PORT]/SERVICE",
		Short: "keep this host up to date with a service",
		Long: `Follow has the daemon bring each new snapshot of a service here, with all its content,
as soon as the source has published it ("srvd serve --follow" does, or "srvd capture").
So the service can be run here as it was a moment before the source was lost; if that
was while a snapshot came, the one before is used. It goes on until
"srvfs unfollow", also when the daemon is started anew; "srvfs status" tells how far
it is. What is needed no more is collected from time to time.

` + cli.Codes,
		Example: "  srvfs follow alpha/web\n  srvfs status web",
		Args:    cli.Args(1, 1, "HOST[:PORT]/SERVICE"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			snapshot, err := splitSpec(c, args[0])
			if err != nil {
				return err
			}
			if !snapshot.Newest() {
				return cli.UsageError(c, "%s: what is followed is the newest snapshot", args[0])
			}
			if snapshot.Archive, err = from.fallback(c); err != nil {
				return err
			}
			return p.do(c.Context(), "follow", control.Call{Snapshot: snapshot, Force: namesOnly}, steps{c.OutOrStdout()}, nil)
		},
	}
	from.add(c)
	c.Flags().BoolVar(&namesOnly, "no-prefetch", false, "bring the snapshots only, and no content")
	return c
}

func (p *program) unfollowCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "unfollow [HOST[:PORT]/]SERVICE",
		Short:   "follow a service no more",
		Long:    "Unfollow ends what \"srvfs follow\" began. What is stored stays.\n\n" + cli.Codes,
		Example: "  srvfs unfollow alpha/web",
		Args:    cli.Args(1, 1, "[HOST[:PORT]/]SERVICE"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			snapshot, err := splitLocal(c, args[0])
			if err != nil {
				return err
			}
			return p.do(c.Context(), "unfollow", control.Call{Snapshot: snapshot}, nil, nil)
		},
	}
}
