package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"srvfs/capture"
	"srvfs/cmd/internal/cli"
	"srvfs/rpc"
)

func (p *program) pairCmd() *cobra.Command {
	var g rpc.Grant
	c := &cobra.Command{
		Use:   "pair",
		Short: "print a one-time token that pairs a standby with this source",
		Long: `Pair prints a token, alone on standard output. On the standby, give it to
` + "`srvfs pair`" + `. It works once, until it expires; whoever uses it first may read the
services that it names. Send it as you would send a password.

` + cli.Codes,
		Example: "  srvd pair\n  srvd pair --expires 1h --service web --service dns\n  srvd pair | ssh standby srvfs pair -",
		Args:    cli.Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := cli.NeedRoot("pair"); err != nil {
				return err
			}
			id, peers, err := p.open()
			if err != nil {
				return err
			}
			if len(g.Services) > 0 {
				p.warnUnknown(c, g.Services)
			}
			token, err := peers.NewToken(id.Fingerprint(), g)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), token)
			return err
		},
	}
	c.Flags().DurationVar(&g.Expires, "expires", rpc.DefaultExpiry, "how long the token can be used")
	c.Flags().StringArrayVar(&g.Services, "service", nil, "a service that the standby may read; repeatable (default: all)")
	c.Flags().StringArrayVar(&g.Addresses, "address", nil, "HOST:PORT where the standby reaches this host; repeatable (default: this host's name and addresses)")
	return c
}

// warnUnknown warns of services that have not been captured: they may be later,
// but a typing mistake is more likely.
func (p *program) warnUnknown(c *cobra.Command, services []string) {
	lib, err := capture.OpenLibrary(p.state)
	if err != nil {
		return
	}
	known, err := lib.List()
	if err != nil {
		return
	}
	for _, s := range services {
		if !slices.ContainsFunc(known, func(k capture.Published) bool { return k.Service == s }) {
			_, _ = fmt.Fprintf(c.ErrOrStderr(), "srvd: warning: there is no snapshot of a service %q yet\n", s)
		}
	}
}

// peerRow is one peer, or one unused token, in `srvd peers`.
type peerRow struct {
	ID       string    `json:"id"`
	State    string    `json:"state"` // "paired" or "token"
	Name     string    `json:"name,omitempty"`
	Address  string    `json:"address,omitempty"`
	Services []string  `json:"services"` // empty: all
	Since    time.Time `json:"since"`
	Expires  time.Time `json:"expires,omitzero"`
}

func (p *program) peersCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "peers",
		Short:   "list the paired standbys and unused tokens, or revoke one",
		Long:    "List the standbys that are paired with this source, and the tokens that can still be used.\n\n" + cli.Codes,
		Example: "  srvd peers\n  srvd peers --json\n  srvd peers revoke k3v5",
		Args:    cli.Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			_, peers, err := p.open()
			if err != nil {
				return err
			}
			list, err := peers.List()
			if err != nil {
				return err
			}
			pending, err := peers.Pending()
			if err != nil {
				return err
			}
			rows := []peerRow{}
			for _, v := range list {
				rows = append(rows, peerRow{ID: v.ID(), State: "paired", Name: v.Name, Address: v.Address, Services: v.Services, Since: v.Paired})
			}
			for _, t := range pending {
				rows = append(rows, peerRow{ID: t.ID, State: "token", Services: t.Services, Since: t.Created, Expires: t.Expires})
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), rows)
			}
			if len(rows) == 0 {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "srvd: no standby is paired with this source; see `srvd pair --help`")
				return nil
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ID\tSTATE\tNAME\tADDRESS\tSERVICES\tSINCE")
			for _, r := range rows {
				services := strings.Join(r.Services, ",")
				if services == "" {
					services = "(all)"
				}
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.State, r.Name, r.Address, services, r.Since.Local().Format(time.DateTime))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(&cobra.Command{
		Use:     "revoke ID",
		Short:   "end a pairing, or a token that was not used yet",
		Long:    "Revoke ends what a standby may read, at once, transfers under way included.\nID is what `srvd peers` lists; its first four characters are enough if they mean one thing only.\n\n" + cli.Codes,
		Example: "  srvd peers revoke k3v5",
		Args:    cli.Args(1, 1, "the ID of a peer or token"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := cli.NeedRoot("peers revoke"); err != nil {
				return err
			}
			_, peers, err := p.open()
			if err != nil {
				return err
			}
			what, err := peers.Revoke(args[0])
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintf(c.OutOrStdout(), "revoked %s\n", what)
			return nil
		},
	})
	return c
}
