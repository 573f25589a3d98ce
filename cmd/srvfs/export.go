package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
	"srvfs/store/archive"
)

// dirScheme begins a destination that is a folder of plain files.
const dirScheme = "dir:"

func (p *program) exportCmd() *cobra.Command {
	var e cli.Export
	var link, asJSON bool
	c := &cobra.Command{
		Use:   "export (HOST[:PORT]/SERVICE[@SNAPSHOT] | NAME[@SNAPSHOT]) -o DEST",
		Short: "write a snapshot as plain files, or into an archive that other tools understand",
		Long: `Export writes a snapshot with all its content. What is not in the store yet is fetched
first, as by prefetch; a service that is detached needs no source. NAME is a service that
was run here, and stands for the snapshot that it runs from; or one that is followed.

` + cli.Destinations + `

  dir:FOLDER                           a tree of plain files, and no archive

That has owners, modes, times, attributes, links and devices as on the source, and the
folder is new or empty. The files share their blocks with the store where the file system
has reflinks (XFS, btrfs), and are copies elsewhere. With --link they are hard links to
the store's own files, where two files of one content have the same attributes too, and
where the file is not this host's: then nobody may write to them. What does so is noticed,
and fetched anew, but the service that reads it meanwhile sees it. The folder appears when
all is written; an export that was killed is begun anew by the next.

` + cli.Codes,
		Example: "  srvfs export web -o /backup/web.tar\n  srvfs export alpha/web@12 -o docker://registry.example/house/web:stable\n" +
			"  srvfs export alpha/web -o dir:/srv/web\n  srvfs export web@12 -o dir:/srv/before --link",
		Args: cli.Args(1, 1, "HOST[:PORT]/SERVICE, or the NAME of a service that is known here"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			of, err := splitLocal(c, args[0])
			if err != nil {
				return err
			}
			folder, plain := strings.CutPrefix(e.Dest, dirScheme)
			switch {
			case plain && (folder == "" || e.Compact || e.Insecure || e.Identity != "" || len(e.Recipients) > 0):
				return cli.UsageError(c, "-o dir:FOLDER names a folder, and takes --link alone")
			case link && !plain:
				return cli.UsageError(c, "--link goes with -o dir:FOLDER")
			case plain:
				err = p.materialise(c.Context(), control.Call{Snapshot: of, Link: link}, folder, c.OutOrStdout(), asJSON)
			default:
				if err = e.Check(c); err == nil {
					err = p.archive(c.Context(), of, &e, c.OutOrStdout(), asJSON)
				}
			}
			return err
		},
	}
	e.Add(c)
	c.Flags().Lookup("output").Usage = "where to: DIR, FILE.tar, docker://REGISTRY/REPOSITORY:TAG, or dir:FOLDER"
	c.Flags().BoolVar(&link, "link", false, "with dir: hard links to the store's files, which must not be written to")
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return c
}

// archive has the daemon write a snapshot into an archive.
func (p *program) archive(ctx context.Context, of control.Snapshot, e *cli.Export, out io.Writer, asJSON bool) error {
	var b *cli.Bar
	if !asJSON {
		b = cli.NewBar()
	}
	call := control.Call{Snapshot: of, Export: &control.Export{Dest: e.Dest, Compact: e.Compact, Recipients: e.Recipients, Identity: e.Identity, Insecure: e.Insecure}}
	var w archive.Written
	err := p.do(ctx, "export", call, shown{b}, &w)
	b.End()
	switch {
	case err != nil:
		return err
	case asJSON:
		return cli.JSON(out, w)
	}
	return cli.PrintWritten(out, &w)
}

// materialise has the daemon write a snapshot as plain files.
func (p *program) materialise(ctx context.Context, call control.Call, folder string, out io.Writer, asJSON bool) (err error) {
	if call.Dir, err = filepath.Abs(folder); err != nil {
		return err
	}
	var told control.Stream
	if !asJSON {
		told = steps{out}
	}
	var r daemon.Materialised
	if err := p.do(ctx, "materialise", call, told, &r); err != nil {
		return err
	}
	if asJSON {
		return cli.JSON(out, r)
	}
	_, err = fmt.Fprintf(out, "%s: %s, %s, snapshot %d of %s; %s shared, %s linked, the rest copied\n", r.Dir, cli.Count(r.Files.Files, "file"), cli.Bytes(r.Files.Bytes), r.Sequence, r.Service, cli.Bytes(r.Shared.Bytes), cli.Bytes(r.Linked.Bytes))
	return err
}
