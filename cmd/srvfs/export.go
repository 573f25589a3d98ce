package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
)

// dirScheme begins a destination that is a folder of plain files.
const dirScheme = "dir:"

func (p *program) exportCmd() *cobra.Command {
	var call control.Call
	var to string
	var asJSON bool
	c := &cobra.Command{
		Use:   "export [HOST[:PORT]/]SERVICE[@SNAPSHOT] -o dir:FOLDER",
		Short: "write a snapshot out of the store",
		Long: `Export writes a snapshot to somewhere else. What is missing of it is fetched first.

dir:FOLDER is a tree of plain files, with owners, modes, times, attributes, links and
devices as on the source, in a folder that is new or empty. The files share their
blocks with the store where the file system has reflinks (XFS, btrfs), and are copies
elsewhere. With --link they are hard links to the store's own files, where two files
of one content have the same attributes too, and where the file is not this host's:
then nobody may write to them. What does so is noticed, and fetched anew, but the
service that reads it meanwhile sees it. The folder appears when all is written; an
export that was killed is begun anew by the next.

` + cli.Codes,
		Example: "  srvfs export alpha/web -o dir:/srv/web\n  srvfs export web@12 -o dir:/srv/before --link",
		Args:    cli.Args(1, 1, "[HOST[:PORT]/]SERVICE[@SNAPSHOT]"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			folder, ok := strings.CutPrefix(to, dirScheme)
			if !ok || folder == "" {
				return cli.UsageError(c, "destination %q: -o dir:FOLDER is needed", to)
			}
			var err error
			if call.Snapshot, err = splitLocal(c, args[0]); err != nil {
				return err
			}
			if call.Dir, err = filepath.Abs(folder); err != nil {
				return err
			}
			var out control.Stream = steps{c.OutOrStdout()}
			if asJSON {
				out = nil
			}
			var r daemon.Materialised
			if err := p.do(c.Context(), "materialise", call, out, &r); err != nil {
				return err
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), r)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %s, %s, snapshot %d of %s; %s shared, %s linked, the rest copied\n", r.Dir, cli.Count(r.Files.Files, "file"), cli.Bytes(r.Files.Bytes), r.Sequence, r.Service, cli.Bytes(r.Shared.Bytes), cli.Bytes(r.Linked.Bytes))
			return err
		},
	}
	c.Flags().StringVarP(&to, "output", "o", "", "where to: dir:FOLDER")
	c.Flags().BoolVar(&call.Link, "link", false, "with dir: hard links to the store's files, which must not be written to")
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return c
}
