package main

import (
	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/store/archive"
)

func (p *program) archiveCmd() *cobra.Command {
	var e cli.Export
	var asJSON bool
	c := &cobra.Command{
		Use:   "archive NAME[@SNAPSHOT] -o DEST",
		Short: "write a snapshot into an archive that other tools understand",
		Long: `Archive writes a snapshot with all its content. The content is read from this host's
live files; if one has changed since it was captured, the archive is not written, and
the file is named: "srvd capture" the service again, or archive what "srvd serve
--follow" has just published.

` + cli.Destinations + `

` + cli.Codes,
		Example: "  srvd archive web -o /backup/web.tar\n  srvd archive web@12 -o docker://registry.example/house/web:stable",
		Args:    cli.Args(1, 1, "the name of a service"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := cli.NeedRoot("archive"); err != nil {
				return err
			}
			if err := e.Check(c); err != nil {
				return err
			}
			lib, ref, err := p.find(args[0])
			if err != nil {
				return err
			}
			snap, err := lib.Snapshot(ref)
			if err != nil {
				return err
			}
			live := lib.Live()
			defer func() { _ = live.Close() }()
			var b *cli.Bar
			if !asJSON {
				b = cli.NewBar()
			}
			e.Temp = p.state
			e.Progress = func(n archive.Progress) { b.Show(n.Bytes, n.TotalBytes, n.Stage) }
			w, err := archive.Write(c.Context(), e.Dest, snap, archive.FromOrigin(live), e.Options)
			b.End()
			if err != nil {
				return err
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), w)
			}
			return cli.PrintWritten(c.OutOrStdout(), w)
		},
	}
	e.Add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
