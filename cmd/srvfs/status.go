package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
	"srvfs/store"
)

func (p *program) statusCmd() *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use:   "status [NAME]",
		Short: "tell how services and views stand",
		Long: `Status lists the services and views of this host: their state, and how much of
their content is local (this host's own files), in the store, or missing. With a
NAME (of a service, or a mountpoint) it tells more.

` + cli.Codes,
		Example: "  srvfs status\n  srvfs status web\n  srvfs status web --watch\n  srvfs status --json",
		Args:    cli.Args(0, 1, "a NAME at most"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			var call control.Call
			if len(args) == 1 {
				call.Name = args[0]
			}
			show := func(out io.Writer) error {
				var all []daemon.Status
				if err := p.do(c.Context(), "status", call, nil, &all); err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(out, all)
				}
				return printAll(out, c.ErrOrStderr(), all, call.Name != "")
			}
			if !watch {
				return show(c.OutOrStdout())
			}
			return repeat(c.Context(), c.OutOrStdout(), show)
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "show it anew each second, until interrupted")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// progress says how far a follow is.
func progress(f *daemon.Following) string {
	text := "nothing is here yet"
	switch {
	case f.Sequence == 0 && f.Newest > 0:
		text = fmt.Sprintf("snapshot %d is on its way", f.Newest)
	case f.Newest > f.Sequence:
		text = fmt.Sprintf("snapshot %d is here, %d behind", f.Sequence, f.Newest-f.Sequence)
		if !f.Behind.IsZero() {
			text += fmt.Sprintf(" for %s", cli.Took(time.Since(f.Behind)))
		}
	case f.Sequence > 0:
		text = fmt.Sprintf("snapshot %d is here", f.Sequence)
	}
	if f.Coming > 0 && f.Prefetch {
		text += fmt.Sprintf("; of snapshot %d %s are missing", f.Coming, count(f.Missing))
	}
	if !f.Heard.IsZero() {
		text += fmt.Sprintf("; the source was heard %s ago", cli.Took(time.Since(f.Heard)))
	}
	return text
}

// printAll prints a table, or all that is known of each.
func printAll(out, errs io.Writer, all []daemon.Status, whole bool) error {
	if len(all) == 0 {
		_, _ = fmt.Fprintln(errs, "srvfs: nothing is mounted or runs here")
		return nil
	}
	if whole {
		for i := range all {
			printStatus(out, &all[i])
		}
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tSTATE\tFROM\tSNAPSHOT\tLOCAL\tSTORED\tMISSING\tRATE\tDETACHED\tPREPARED")
	for _, s := range all {
		t := s.Content
		state := s.State
		if f := s.Following; f != nil && f.Sequence > 0 && f.Newest > f.Sequence {
			state = fmt.Sprintf("%s, %d behind", state, f.Newest-f.Sequence)
			if !f.Behind.IsZero() {
				state += fmt.Sprintf(" for %s", cli.Took(time.Since(f.Behind).Truncate(time.Second)))
			}
		}
		missing := missingOf(&s)
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s/%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(s.Name, s.Mountpoint, "-"), state, s.Source, s.Service, s.Sequence,
			cli.Bytes(t.Local.Bytes), cli.Bytes(t.Stored.Bytes), count(missing), rate(s.Rate), yes(t.Detached), cli.Bytes(s.Prepared.Bytes))
	}
	return w.Flush()
}

// repeat shows something each second, on a terminal in the same place, until ctx ends.
func repeat(ctx context.Context, out io.Writer, show func(io.Writer) error) error {
	place := ""
	if f, ok := out.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			place = "\x1b[H\x1b[J" // to the corner, and clear
		}
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var b bytes.Buffer
		err := show(&b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%s%s\n%s", place, time.Now().Format(time.TimeOnly), b.Bytes()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// missingOf is what is on its way, or will have to be: of a follow, of the snapshot that
// is coming.
func missingOf(s *daemon.Status) store.Count {
	if s.Following != nil && s.Following.Coming > 0 {
		return s.Following.Missing
	}
	return store.Count{Files: s.Content.Missing.Files + s.Content.Partial.Files, Bytes: s.Content.Missing.Bytes}
}

// count says a number of files and their bytes.
func count(c store.Count) string {
	if c == (store.Count{}) {
		return "-"
	}
	return cli.Count(c.Files, "file") + ", " + cli.Bytes(c.Bytes)
}

// rate says how fast something comes.
func rate(r float64) string {
	if r < 1 {
		return "-"
	}
	return cli.Bytes(int64(r)) + "/s"
}

// mostMissed bounds the missed paths that are printed.
const mostMissed = 10

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func printStatus(out io.Writer, s *daemon.Status) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(key, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", key, fmt.Sprintf(format, args...))
	}
	t := s.Content
	switch {
	case s.Name != "":
		line("service", "%s, %s", s.Name, s.State)
	case s.Following != nil:
		line("followed", "%s", progress(s.Following))
	case s.Mountpoint == "":
		line("prefetch", "%s", s.State)
	default:
		line("view", "%s", s.Mountpoint)
	}
	if s.Reason != "" {
		line("reason", "%s", s.Reason)
	}
	line("from", "%s/%s, snapshot %d", s.Source, s.Service, s.Sequence)
	if !s.Since.IsZero() {
		line("since", "%s", s.Since.Local().Format(time.DateTime))
	}
	switch s.Reads {
	case "kernel":
		line("reads", "served by the kernel from the store")
	case "disk":
		line("reads", "served by the kernel from copies")
	case "view":
		line("reads", "served by the view")
	}
	if s.Instance != nil && s.Instance.Outlives {
		line("fuse", "not used: the service goes on if the daemon is killed")
	}
	line("local", "%s, %s: this host's own files", cli.Count(t.Local.Files, "file"), cli.Bytes(t.Local.Bytes))
	line("stored", "%s, %s", cli.Count(t.Stored.Files, "file"), cli.Bytes(t.Stored.Bytes))
	line("missing", "%s, %s", cli.Count(t.Missing.Files+t.Partial.Files, "file"), cli.Bytes(t.Missing.Bytes))
	if s.Rate >= 1 || s.Stage != "" {
		line("coming", "%s%s", rate(s.Rate), strings.TrimSuffix("; files of: "+s.Stage, "; files of: "))
	}
	line("fetched", "%s, %s since the daemon started", cli.Count(t.Fetched.Files, "file"), cli.Bytes(t.Fetched.Bytes))
	line("detached", "%s", yes(t.Detached))
	line("prepared", "%s, %s: private copies of what it writes to", cli.Count(s.Prepared.Files, "file"), cli.Bytes(s.Prepared.Bytes))
	if s.Placed.Files > 0 {
		line("placed", "%s, %s, before its first start", cli.Count(s.Placed.Files, "file"), cli.Bytes(s.Placed.Bytes))
	}
	for _, o := range s.Origins {
		line("origin", "%s", o.Describe())
	}
	for i, p := range s.Missed {
		if i == mostMissed {
			line("missed", "and %d more", len(s.Missed)-i)
			break
		}
		line("missed", "%s: the source has it, and will have it in its next snapshot", p)
	}
	for _, u := range s.Units {
		line("unit", "%s, main process %d", u.Name, u.PID)
	}
	if s.Instance != nil {
		line("written", "%s in %s", cli.Bytes(s.Instance.UpperUse), s.Instance.Upper)
	}
	if s.LogFile != "" {
		line("log", "%s", s.LogFile)
	}
	_ = w.Flush()
}
