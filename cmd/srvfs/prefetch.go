package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
)

func (p *program) prefetchCmd() *cobra.Command {
	var asJSON bool
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

` + archiveHelp + `

` + cli.Codes,
		Example: "  srvfs prefetch alpha/web\n  srvfs prefetch web",
		Args:    cli.Args(1, 1, "HOST[:PORT]/SERVICE, or the NAME of a service that runs here"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			call := control.Call{Prepare: prepareFlag(c)}
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
			var out control.Stream
			var b *bar
			if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil && !asJSON {
				b = &bar{}
				out = b
			}
			var r daemon.Prefetched
			err = p.do(c.Context(), "prefetch", call, out, &r)
			if b != nil {
				b.end()
			}
			if err != nil {
				return err
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), r)
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
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return c
}

// bar shows progress on a terminal: share, bytes, rate, time left, and which files
// are coming.
type bar struct {
	bars *mpb.Progress
	bar  *mpb.Bar
	last time.Time

	mu    sync.Mutex // the bar is drawn by a goroutine of its own
	stage string
}

func (b *bar) Step(string, time.Duration, string) {}

func (b *bar) Progress(p control.Progress) {
	now := time.Now()
	b.mu.Lock()
	b.stage = p.Stage
	b.mu.Unlock()
	if b.bar == nil {
		b.bars = mpb.New(mpb.WithWidth(40), mpb.WithOutput(os.Stderr))
		b.bar = b.bars.New(p.TotalBytes, mpb.BarStyle(),
			mpb.PrependDecorators(decor.CountersKiloByte("% .1f / % .1f")),
			mpb.AppendDecorators(decor.Percentage(), decor.Name("  "), decor.EwmaSpeed(decor.SizeB1000(0), "% .1f", 30), decor.Name("  left "), decor.EwmaETA(decor.ET_STYLE_GO, 30),
				decor.Any(func(decor.Statistics) string {
					b.mu.Lock()
					defer b.mu.Unlock()
					return "  " + b.stage
				})))
		b.last = now
	}
	b.bar.SetTotal(p.TotalBytes, false)
	b.bar.EwmaSetCurrent(p.Bytes, now.Sub(b.last))
	b.last = now
}

func (b *bar) end() {
	if b.bar == nil {
		return
	}
	b.bar.Abort(false)
	b.bars.Wait()
}
