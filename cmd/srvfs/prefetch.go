package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
	"srvfs/manifest"
)

func (p *program) prefetchCmd() *cobra.Command {
	var asJSON, verify bool
	var from archiveFlags
	c := &cobra.Command{
		Use:   "prefetch (HOST[:PORT]/SERVICE | ARCHIVE | NAME)",
		Short: "bring in all content, so that the source is needed no more",
		Long: `Prefetch brings everything that a snapshot holds into the store. Identical files of
this host are pinned (by hard link, reflink or copy), so that upgrading or removing
the host's own packages takes nothing away; the rest is fetched. Interrupted, it
goes on where it stopped when it is called again. Afterwards the service is
detached: it starts with no source and no network.

What the service touches when it starts comes first, in that order; then what else it
used, its packages, libraries, what rules ask for, and at last its data. So it can
start here, and need the source for data alone, long before everything is here.

Of the large files that the service is known to write to, private copies are
prepared, so that its first write does not wait for one: this takes their space a
second time, unless the state folder's file system has reflinks. --no-prepare
makes none and removes those there are; a service that runs here remembers it.

--verify first reads everything again that is here, from the disk, and compares it with
its digests: directories, files, and those of this host that are pinned. What is
damaged is removed and fetched anew. If no origin has it, each such file is named
and the exit code is 6.

` + archiveHelp + `

` + cli.Codes,
		Example: "  srvfs prefetch alpha/web\n  srvfs prefetch web\n  srvfs prefetch web --verify",
		Args:    cli.Args(1, 1, "HOST[:PORT]/SERVICE, or the NAME of a service that runs here"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			call := control.Call{Prepare: prepareFlag(c), Verify: verify}
			var err error
			if isArchive(args[0]) || strings.Contains(args[0], "/") {
				call.Snapshot, err = from.split(c, args[0])
			} else {
				call.Name = args[0]
				call.Archive, err = from.fallback(c)
			}
			if err != nil {
				return err
			}
			var b *cli.Bar
			if !asJSON {
				b = cli.NewBar()
			}
			var r daemon.Prefetched
			err = p.do(c.Context(), "prefetch", call, shown{b}, &r)
			b.End()
			if err != nil {
				return err
			}
			if asJSON {
				return errors.Join(cli.JSON(c.OutOrStdout(), r), lost(&r))
			}
			if v := r.Verified; v != nil {
				_, _ = fmt.Fprintf(c.OutOrStdout(), "verified: %s, %s, and %s\n", cli.Count(v.Files, "file"), cli.Bytes(v.Bytes), cli.Count(v.Pages, "page"))
				for _, d := range v.Damaged {
					state := "fetched anew"
					if slices.Contains(v.Lost, d) {
						state = "lost"
					}
					_, _ = fmt.Fprintf(c.OutOrStdout(), "damaged: %s: %s\n", d, state)
				}
			}
			if err := lost(&r); err != nil {
				return err
			}
			state := "detached: the source is needed no more"
			if !r.Content.Detached {
				state = "not detached; see `srvfs status`"
			}
			_, _ = fmt.Fprintf(c.OutOrStdout(), "%s/%s: %s fetched in %s; %s\n", r.Source, r.Service, cli.Bytes(r.Fetched), cli.Took(r.Took), state)
			if n := r.Prepared; n.Files > 0 || n.Note != "" {
				_, _ = fmt.Fprintf(c.OutOrStdout(), "prepared for writing: %s\n", n.Describe())
			}
			return nil
		},
	}
	addPrepareFlag(c)
	from.add(c)
	c.Flags().BoolVar(&verify, "verify", false, "read everything again that is here, and fetch anew what is damaged")
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return c
}

// lost is the error of a verification that found damage which nobody can mend.
func lost(r *daemon.Prefetched) error {
	if r.Verified == nil || len(r.Verified.Lost) == 0 {
		return nil
	}
	return fmt.Errorf("%s/%s: %s damaged here, and could not be fetched anew: %s: %w\n(%s)", r.Source, r.Service, cli.Count(len(r.Verified.Lost), "file"), r.Verified.Lost, manifest.ErrCorrupt, r.Verified.Reason)
}

// shown shows on a terminal how far a command is.
type shown struct{ *cli.Bar }

func (p shown) Step(string, time.Duration, string) {}
func (p shown) Progress(c control.Progress)        { p.Show(c.Bytes, c.TotalBytes, c.Stage) }
