package main

import (
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"srvfs/capture"
	"srvfs/cmd/internal/cli"
	"srvfs/manifest"
)

func (p *program) missesCmd() *cobra.Command {
	var asJSON, healed bool
	c := &cobra.Command{
		Use:   "misses NAME",
		Short: "list what standbys have looked for in vain",
		Long: `Misses lists the paths that the service looked for on a standby, that exist here, and
that are not in its snapshot. A standby reports them while the service runs there.

  noted    it will be in the next snapshot: capture the service again
  outside  it belongs to none of the service's packages and folders: capture it with
           --learn, or name it with --include
  denied   a secret, a log, or excluded: it goes in only if you --include it

Of a path with several names that are not there, the first is asked for and listed.
What came into a snapshot so is taken again by every later capture; --healed lists it.

` + cli.Codes,
		Example: "  srvd misses web",
		Args:    cli.Args(1, 1, "the name of a service"),
		RunE: func(c *cobra.Command, args []string) error {
			lib, err := capture.OpenLibrary(p.state)
			if err != nil {
				return err
			}
			if _, err := lib.Snapshot(manifest.Ref{Service: args[0]}); err != nil {
				return err
			}
			all, err := lib.Misses(args[0])
			if err != nil {
				return err
			}
			if !healed {
				all = slices.DeleteFunc(all, func(m capture.Miss) bool { return m.Since > 0 })
			}
			if asJSON {
				rows := []missRow{}
				for _, m := range all {
					rows = append(rows, missRow{m.Path, m.Standby, m.Time, m.Verdict.String(), m.Since})
				}
				return cli.JSON(c.OutOrStdout(), rows)
			}
			if len(all) == 0 {
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "srvd: no standby has missed anything of %s since it was captured\n", args[0])
				return nil
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "VERDICT\tSTANDBY\tWHEN\tPATH")
			for _, m := range all {
				_, _ = fmt.Fprintf(w, "%v\t%s\t%s\t%s\n", m.Verdict, cli.Quote(m.Standby), m.Time.Local().Format(time.DateTime), cli.Quote(m.Path))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&healed, "healed", false, "also list what is in the snapshot by now")
	return c
}

// missRow is one path in `srvd misses`.
type missRow struct {
	Path    string    `json:"path"`
	Standby string    `json:"standby"`
	Time    time.Time `json:"time"`
	Verdict string    `json:"verdict"`
	Since   uint64    `json:"since,omitempty"` // the first snapshot that has it
}

// noted counts the misses that the next capture of a service will take.
func noted(lib *capture.Library, service string) (int, error) {
	all, err := lib.Misses(service)
	n := 0
	for _, m := range all {
		if m.Verdict == manifest.VerdictNoted && m.Since == 0 {
			n++
		}
	}
	return n, err
}
