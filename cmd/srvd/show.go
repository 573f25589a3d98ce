package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"srvfs/capture"
	"srvfs/cmd/internal/cli"
	"srvfs/manifest"
)

// serviceRow is one service in `srvd list`.
type serviceRow struct {
	Service  string          `json:"service"`
	Sequence uint64          `json:"sequence"`
	Created  time.Time       `json:"created"`
	Entries  uint64          `json:"entries"`
	Files    uint64          `json:"files"`
	Bytes    uint64          `json:"bytes"`
	Root     string          `json:"root"`
	Digest   manifest.Digest `json:"root_digest"`
	Probes   []string        `json:"probes"`
	// Missed counts the paths that standbys have missed and the next snapshot will have.
	Missed int `json:"missed"`
}

func (p *program) listCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list [NAME]",
		Short:   "list the captured services, or the snapshots of one",
		Long:    "List the services of which there is a snapshot, or with a NAME all snapshots of\nit that are kept: the last ten, the last one of each hour of a day, and of each day\nof a week. MISSED counts what standbys have\nlooked for in vain and the next capture will take; see `srvd misses`.\n\n" + cli.Codes,
		Example: "  srvd list\n  srvd list web\n  srvd list --json",
		Args:    cli.Args(0, 1, "at most the name of a service"),
		RunE: func(c *cobra.Command, args []string) error {
			lib, err := capture.OpenLibrary(p.state)
			if err != nil {
				return err
			}
			list := lib.List
			if len(args) > 0 {
				list = func() ([]capture.Published, error) { return lib.History(args[0]) }
			}
			published, err := list()
			if err != nil {
				return err
			}
			rows := []serviceRow{}
			for _, pub := range published {
				s, err := lib.Snapshot(manifest.Ref{Service: pub.Service, Sequence: pub.Sequence})
				if err != nil {
					return err
				}
				root, err := lib.Root(pub.Service)
				if err != nil {
					return err
				}
				missed, err := noted(lib, pub.Service)
				if err != nil {
					return err
				}
				rows = append(rows, serviceRow{s.Service, s.Sequence, time.Unix(0, s.Created), s.Totals.Entries, s.Totals.Files, s.Totals.Bytes, root, s.Root.Digest, s.Probes, missed})
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), rows)
			}
			if len(rows) == 0 {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "srvd: no service has been captured yet; see `srvd capture --help`")
				return nil
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "SERVICE\tSNAPSHOT\tCAPTURED\tFILES\tSIZE\tMISSED\tROOT")
			for _, r := range rows {
				_, _ = fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%d\t%s\n", r.Service, r.Sequence, r.Created.Format(time.DateTime), r.Files, cli.Bytes(r.Bytes), r.Missed, r.Root)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// entryRow is one path in `srvd show`.
type entryRow struct {
	Path     string           `json:"path"`
	Type     string           `json:"type"`
	Class    string           `json:"class"`
	Size     int64            `json:"size"`
	Digest   string           `json:"digest,omitempty"`
	Secret   bool             `json:"secret,omitempty"`
	Modified bool             `json:"modified,omitempty"` // not what its package shipped
	Frozen   bool             `json:"frozen,omitempty"`   // srvd has a copy as of the snapshot's moment
	Reasons  []capture.Reason `json:"reasons"`
}

type classTotal struct {
	Class   string `json:"class"`
	Entries int    `json:"entries"`
	Files   int    `json:"files"`
	Bytes   int64  `json:"bytes"`
}

func (p *program) showCmd() *cobra.Command {
	var asJSON, summary bool
	var class string
	c := &cobra.Command{
		Use:   "show NAME[@SNAPSHOT]",
		Short: "list what a snapshot holds: class, size and path",
		Long: `Show lists the entries of a service's latest snapshot with their class, and totals;
with @12 or @2026-01-31T12:00 those of an earlier one.

  user     the administrator named it (--include)
  traced   the service used it while it started and answered its probes
  library  a program or library that is in needs it
  rule     a rule asks for it (users, name service, locale, certificates, ...)
  package  it belongs to a package that the service needs
  data     it lies in a data folder of the service

What was used comes to a standby first, then packages, libraries, rules and data.
A file that is not what its package shipped is marked as modified, one that was copied
as it was at the moment of the snapshot as frozen.

` + cli.Codes,
		Example: "  srvd show web\n  srvd show web --class traced\n  srvd show web --summary",
		Args:    cli.Args(1, 1, "the name of a service"),
		RunE: func(c *cobra.Command, args []string) error {
			lib, ref, err := p.find(args[0])
			if err != nil {
				return err
			}
			s, err := lib.Snapshot(ref)
			if err != nil {
				return err
			}
			ref.Sequence = s.Sequence
			rows := []entryRow{}
			totals := map[string]*classTotal{}
			for e, err := range lib.Entries(ref) {
				if err != nil {
					return err
				}
				name := e.Class().String()
				t := totals[name]
				if t == nil {
					t = &classTotal{Class: name}
					totals[name] = t
				}
				t.Entries++
				if e.Type == manifest.File {
					t.Files++
					t.Bytes += e.Size
				}
				if class != "" && class != name {
					continue
				}
				row := entryRow{Path: e.Path, Type: e.Type.String(), Class: name, Size: e.Size, Secret: e.Secret, Modified: e.Modified, Frozen: e.Frozen, Reasons: e.Reasons}
				if e.Type == manifest.File {
					row.Digest = e.Digest.String()
				}
				rows = append(rows, row)
			}
			if class != "" && totals[class] == nil {
				return fmt.Errorf("service %s has no entries of class %q; classes are user, traced, library, rule, package and data: %w", args[0], class, manifest.ErrNotFound)
			}
			sums := make([]classTotal, 0, len(totals))
			for _, t := range totals {
				sums = append(sums, *t)
			}
			slices.SortFunc(sums, func(a, b classTotal) int { return cmp.Compare(b.Bytes, a.Bytes) })
			if asJSON {
				return cli.JSON(c.OutOrStdout(), map[string]any{"service": s.Service, "sequence": s.Sequence, "root_digest": s.Root.Digest, "totals": s.Totals, "classes": sums, "units": s.Units, "probes": s.Probes, "entries": rows})
			}
			return printEntries(c.OutOrStdout(), s, rows, sums, summary)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&summary, "summary", false, "print the totals only")
	c.Flags().StringVar(&class, "class", "", "only entries of this class")
	return c
}

func printEntries(out io.Writer, s *manifest.Snapshot, rows []entryRow, sums []classTotal, summary bool) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if !summary {
		var secrets []entryRow
		for _, r := range rows {
			if r.Secret {
				secrets = append(secrets, r)
				continue
			}
			printEntry(w, r)
		}
		if len(secrets) > 0 {
			_, _ = fmt.Fprintf(w, "\nsecrets, in because the service read them:\n")
		}
		for _, r := range secrets {
			printEntry(w, r)
		}
		_, _ = fmt.Fprintln(w)
	}
	for _, t := range sums {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s in %s\n", t.Class, cli.Bytes(t.Bytes), cli.Count(t.Entries, "entry"), cli.Count(t.Files, "file"))
	}
	for _, u := range s.Units {
		for _, l := range u.Sockets {
			_, _ = fmt.Fprintf(w, "socket\t%s\t%s, open before %s starts\n", l.Network, cli.Quote(l.Address), u.Name)
		}
	}
	_, _ = fmt.Fprintf(w, "total\t%s\t%s in %s; snapshot %d of %s\n", cli.Bytes(s.Totals.Bytes), cli.Count(s.Totals.Entries, "entry"), cli.Count(s.Totals.Files, "file"), s.Sequence, time.Unix(0, s.Created).Format(time.DateTime))
	return w.Flush()
}

// printEntry prints one line, whose last word is the path.
func printEntry(w io.Writer, r entryRow) {
	mark := ""
	if r.Modified {
		mark = "modified"
	} else if r.Frozen {
		mark = "frozen"
	}
	_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Class, size(r), mark, cli.Quote(r.Path))
}

func size(r entryRow) string {
	if r.Type == manifest.File.String() {
		return cli.Bytes(r.Size)
	}
	return r.Type
}

func (p *program) whyCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "why NAME[@SNAPSHOT] PATH",
		Short:   "say why a path is in a snapshot",
		Long:    "Why says which rules brought a path into a service's latest snapshot, or into an\nearlier one.\n\n" + cli.Codes,
		Example: "  srvd why web /etc/nginx/mime.types",
		Args:    cli.Args(2, 2, "the name of a service and a path"),
		RunE: func(c *cobra.Command, args []string) error {
			lib, ref, err := p.find(args[0])
			if err != nil {
				return err
			}
			reasons, err := lib.Why(ref, args[1])
			if err != nil {
				return err
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), reasons)
			}
			for _, r := range reasons {
				_, _ = fmt.Fprintln(c.OutOrStdout(), r)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
