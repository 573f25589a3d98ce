package main

import (
	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/store/archive"
)

func (p *program) exportCmd() *cobra.Command {
	var e cli.Export
	var asJSON bool
	c := &cobra.Command{
		Use:   "export (HOST[:PORT]/SERVICE[@SNAPSHOT] | NAME[@SNAPSHOT]) -o DEST",
		Short: "write a snapshot into an archive that other tools understand",
		Long: `Export writes a snapshot with all its content. What is not in the store yet is fetched
first, as by prefetch; a service that is detached needs no source. NAME is a service that
was run here, and stands for the snapshot that it runs from; or one that is followed.

` + cli.Destinations + `

` + cli.Codes,
		Example: "  srvfs export web -o /backup/web.tar\n  srvfs export alpha/web@12 -o docker://registry.example/house/web:stable",
		Args:    cli.Args(1, 1, "HOST[:PORT]/SERVICE, or the NAME of a service that is known here"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			of, err := splitLocal(c, args[0])
			if err != nil {
				return err
			}
			if err := e.Check(c); err != nil {
				return err
			}
			var b *cli.Bar
			if !asJSON {
				b = cli.NewBar()
			}
			call := control.Call{Snapshot: of, Export: &control.Export{Dest: e.Dest, Compact: e.Compact, Recipients: e.Recipients, Identity: e.Identity, Insecure: e.Insecure}}
			var w archive.Written
			err = p.do(c.Context(), "export", call, shown{b}, &w)
			b.End()
			if err != nil {
				return err
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), w)
			}
			return cli.PrintWritten(c.OutOrStdout(), &w)
		},
	}
	e.Add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return c
}
