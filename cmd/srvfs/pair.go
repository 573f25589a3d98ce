package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
	"srvfs/manifest"
	"srvfs/rpc"
)

func (p *program) pairCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "pair TOKEN",
		Short: "pair this standby with a source, or with another standby",
		Long: `Pair uses the token that "srvd pair" printed on the source: this host remembers
the source's key, and the source this host's. A token that "srvfs peers token" printed
pairs it with another standby, which is then asked for what it has. "-" reads the token from standard
input, which keeps it out of the process list.

` + cli.Codes,
		Example: "  srvfs pair TOKEN\n  ssh alpha srvd pair | srvfs pair -",
		Args:    cli.Args(1, 1, "a token, or - to read it from standard input"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			token := args[0]
			if token == "-" {
				line, err := bufio.NewReader(io.LimitReader(c.InOrStdin(), 64<<10)).ReadString('\n')
				if err != nil && err != io.EOF {
					return fmt.Errorf("read the token: %w", err)
				}
				token = line
			}
			id, sources, err := daemon.OpenSources(p.state)
			if err != nil {
				return err
			}
			s, err := sources.Pair(c.Context(), id, strings.TrimSpace(token), rpc.ClientOptions{Deadline: p.deadline})
			if err != nil {
				return err
			}
			// A daemon that runs connects now, so that the first start need not.
			if err := control.Do(c.Context(), p.state, "connect", control.Call{}, nil, nil); err != nil && !errors.Is(err, control.ErrNoDaemon) {
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "srvfs: the running daemon does not connect yet, and will when a command needs it: %v\n", err)
			}
			_, _ = fmt.Fprintf(c.OutOrStdout(), "paired with %s (%s)\n", s.Name, s.Fingerprint.ID())
			return nil
		},
	}
}

// offerRow is one service in `srvfs list`.
type offerRow struct {
	Service  string          `json:"service"`
	Sequence uint64          `json:"sequence"`
	Created  time.Time       `json:"created"`
	Totals   manifest.Totals `json:"totals"`
	// Of another standby: where it has the service from.
	Source     string `json:"source,omitempty"` // an ID
	SourceName string `json:"source_name,omitempty"`
}

func (p *program) listCmd() *cobra.Command {
	var asJSON bool
	var from archiveFlags
	c := &cobra.Command{
		Use:   "list (HOST[:PORT][/SERVICE] | ARCHIVE)",
		Short: "list the services that a source offers, or the snapshots of one",
		Long: `List the services of a source, or of another standby, that this host may read; or all
snapshots of one, or of an archive, that are kept: each can be mounted, as
HOST/SERVICE@NUMBER or ARCHIVE@NUMBER.

` + cli.Codes,
		Example: "  srvfs list alpha\n  srvfs list alpha/web\n  srvfs list alpha --json\n  srvfs list web.tar",
		Args:    cli.Args(1, 1, "HOST[:PORT], HOST[:PORT]/SERVICE or an archive"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			var rows []offerRow
			var standby bool
			var err error
			if isArchive(args[0]) {
				rows, err = from.list(c.Context(), args[0])
			} else {
				rows, standby, err = p.list(c.Context(), args[0])
			}
			if err != nil {
				return err
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), rows)
			}
			if len(rows) == 0 {
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "srvfs: %s offers no service to this host; `srvd capture` on the source makes one\n", args[0])
				return nil
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			from, of := "", ""
			if standby {
				from = "\tSOURCE"
			}
			_, _ = fmt.Fprintln(w, "SERVICE\tSNAPSHOT\tCAPTURED\tFILES\tSIZE"+from)
			for _, r := range rows {
				if standby {
					of = "\t" + r.SourceName + " (" + r.Source + ")"
				}
				_, _ = fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s%s\n", r.Service, r.Sequence, r.Created.Local().Format(time.DateTime), r.Totals.Files, cli.Bytes(r.Totals.Bytes), of)
			}
			return w.Flush()
		},
	}
	from.addReading(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// list asks a host what it offers, and says whether it is another standby.
func (p *program) list(ctx context.Context, word string) ([]offerRow, bool, error) {
	id, sources, err := daemon.OpenSources(p.state)
	if err != nil {
		return nil, false, err
	}
	source, service, history := strings.Cut(word, "/")
	s, err := sources.Find(ctx, source)
	if err != nil {
		return nil, false, err
	}
	client, err := rpc.Dial(s, id, rpc.ClientOptions{Deadline: p.deadline})
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = client.Close() }()
	var list []rpc.ServiceInfo
	if history {
		list, err = client.History(ctx, service)
	} else {
		list, err = client.List(ctx)
	}
	rows := []offerRow{}
	for _, i := range list {
		rows = append(rows, offerRow{i.Name, i.Sequence, i.Created, i.Totals, i.Source, i.SourceName})
	}
	return rows, s.Standby, err
}

// list reads what an archive has.
func (f *archiveFlags) list(ctx context.Context, word string) ([]offerRow, error) {
	a, err := f.open(ctx, word)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Close() }()
	rows := []offerRow{}
	for _, e := range a.Snapshots() {
		s, err := a.Snapshot(ctx, manifest.Ref{Sequence: e.Sequence})
		if err != nil {
			return nil, err
		}
		rows = append(rows, offerRow{Service: e.Service, Sequence: e.Sequence, Created: time.Unix(0, e.Created), Totals: s.Totals, SourceName: e.Source})
	}
	return rows, nil
}
