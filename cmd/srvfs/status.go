package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
)

func (p *program) statusCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status [NAME]",
		Short: "tell how services and views stand",
		Long: `Status lists the services and views of this host: their state, and how much of
their content is local (this host's own files), in the store, or missing. With a
NAME (of a service, or a mountpoint) it tells more.

` + cli.Codes,
		Example: "  srvfs status\n  srvfs status web\n  srvfs status --json",
		Args:    cli.Args(0, 1, "a NAME at most"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			var call control.Call
			if len(args) == 1 {
				call.Name = args[0]
			}
			var all []daemon.Status
			if err := p.do(c.Context(), "status", call, nil, &all); err != nil {
				return err
			}
			switch {
			case asJSON:
				return cli.JSON(c.OutOrStdout(), all)
			case len(all) == 0:
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "srvfs: nothing is mounted or runs here")
				return nil
			case call.Name != "":
				for i := range all {
					printStatus(c.OutOrStdout(), &all[i])
				}
				return nil
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "NAME\tSTATE\tFROM\tSNAPSHOT\tLOCAL\tSTORED\tMISSING\tDETACHED\tPREPARED")
			for _, s := range all {
				name := s.Name
				if name == "" {
					name = s.Mountpoint
				}
				if name == "" {
					name = "-"
				}
				t := s.Content
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s/%s\t%d\t%s\t%s\t%s\t%s\t%s\n", name, s.State, s.Source, s.Service, s.Sequence,
					cli.Bytes(t.Local.Bytes), cli.Bytes(t.Stored.Bytes), cli.Bytes(t.Missing.Bytes), yes(t.Detached), cli.Bytes(s.Prepared.Bytes))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// progress says how far a follow is.
func progress(f *daemon.Following) string {
	text := "nothing is here yet"
	if f.Sequence > 0 {
		text = fmt.Sprintf("snapshot %d is here", f.Sequence)
	}
	if f.Newest > f.Sequence {
		text += fmt.Sprintf(", %d behind", f.Newest-f.Sequence)
	}
	if !f.Heard.IsZero() {
		text += fmt.Sprintf("; the source was heard %s ago", cli.Took(time.Since(f.Heard)))
	}
	return text
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
	case "view":
		line("reads", "served by the view")
	}
	line("local", "%s, %s: this host's own files", cli.Count(t.Local.Files, "file"), cli.Bytes(t.Local.Bytes))
	line("stored", "%s, %s", cli.Count(t.Stored.Files, "file"), cli.Bytes(t.Stored.Bytes))
	line("missing", "%s, %s", cli.Count(t.Missing.Files, "file"), cli.Bytes(t.Missing.Bytes))
	line("fetched", "%s, %s since the daemon started", cli.Count(t.Fetched.Files, "file"), cli.Bytes(t.Fetched.Bytes))
	line("detached", "%s", yes(t.Detached))
	line("prepared", "%s, %s: private copies of what it writes to", cli.Count(s.Prepared.Files, "file"), cli.Bytes(s.Prepared.Bytes))
	if s.Placed.Files > 0 {
		line("placed", "%s, %s, before its first start", cli.Count(s.Placed.Files, "file"), cli.Bytes(s.Placed.Bytes))
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
