package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
	"srvfs/rpc"
)

func (p *program) serveCmd() *cobra.Command {
	var listen string
	var stop bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "let other standbys have what is stored here",
		Long: `Serve has the daemon offer the snapshots that are stored here, and what of their
content is, to other standbys that were paired with this one: "srvfs peers token" makes
a token, for "srvfs pair" there. They ask this host before the source, and when the
source is lost, they can mount and run from here what they have never seen.

It goes on until "srvfs serve --stop", also when the daemon is started anew.

` + cli.Codes,
		Example: "  srvfs serve\n  srvfs peers token | ssh gamma srvfs pair -\n  srvfs serve --listen 192.0.2.11:7077\n  srvfs serve --stop",
		Args:    cli.Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			if _, _, err := net.SplitHostPort(listen); err != nil {
				return cli.UsageError(c, "--listen %q is not of the form [ADDR]:PORT", listen)
			}
			return p.do(c.Context(), "serve", control.Call{Listen: listen, Force: stop}, nil, nil)
		},
	}
	c.Flags().StringVar(&listen, "listen", ":"+strconv.Itoa(rpc.DefaultPort), "address and port to listen on")
	c.Flags().BoolVar(&stop, "stop", false, "serve no more")
	return c
}

// peerRow is one peer, or one unused token, in `srvfs peers`.
type peerRow struct {
	ID      string    `json:"id"`
	State   string    `json:"state"` // "paired" or "token"
	Name    string    `json:"name,omitempty"`
	Address string    `json:"address,omitempty"`
	Since   time.Time `json:"since"`
	Expires time.Time `json:"expires,omitzero"`
}

func (p *program) peersCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "peers",
		Short:   "list the standbys that may read from this one, make a token, or revoke one",
		Long:    "List the standbys that are paired with this one (see \"srvfs serve\"), and the tokens that\ncan still be used.\n\n" + cli.Codes,
		Example: "  srvfs peers\n  srvfs peers token\n  srvfs peers revoke k3v5",
		Args:    cli.Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			peers, err := daemon.OpenPeers(p.state)
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
				rows = append(rows, peerRow{ID: v.ID(), State: "paired", Name: v.Name, Address: v.Address, Since: v.Paired})
			}
			for _, t := range pending {
				rows = append(rows, peerRow{ID: t.ID, State: "token", Since: t.Created, Expires: t.Expires})
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), rows)
			}
			p.warnSilent(c)
			if len(rows) == 0 {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "srvfs: no other standby is paired with this one; see `srvfs peers token --help`")
				return nil
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ID\tSTATE\tNAME\tADDRESS\tSINCE")
			for _, r := range rows {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.ID, r.State, r.Name, r.Address, r.Since.Local().Format(time.DateTime))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(p.peersTokenCmd(), p.peersRevokeCmd())
	return c
}

// warnSilent says that peers are of no use while nobody answers them.
func (p *program) warnSilent(c *cobra.Command) {
	if !daemon.Serves(p.state) {
		_, _ = fmt.Fprintln(c.ErrOrStderr(), "srvfs: this host does not serve other standbys now: `srvfs serve` has it do so")
	}
}

func (p *program) peersTokenCmd() *cobra.Command {
	var g rpc.Grant
	c := &cobra.Command{
		Use:   "token",
		Short: "print a one-time token that pairs another standby with this one",
		Long: `Token prints a token, alone on standard output. On the other standby, give it to
` + "`srvfs pair`" + `. It works once, until it expires; whoever uses it first may read all
that is stored here, of all services, while "srvfs serve" is on. Send it as you would
send a password.

` + cli.Codes,
		Example: "  srvfs peers token\n  srvfs peers token | ssh gamma srvfs pair -",
		Args:    cli.Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			id, _, err := daemon.OpenSources(p.state)
			if err != nil {
				return err
			}
			peers, err := daemon.OpenPeers(p.state)
			if err != nil {
				return err
			}
			p.warnSilent(c)
			token, err := peers.NewToken(id.Fingerprint(), g)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), token)
			return err
		},
	}
	c.Flags().DurationVar(&g.Expires, "expires", rpc.DefaultExpiry, "how long the token can be used")
	c.Flags().StringArrayVar(&g.Addresses, "address", nil, "HOST:PORT where the other standby reaches this host; repeatable (default: this host's name and addresses)")
	return c
}

func (p *program) peersRevokeCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "end a pairing, or a token that was not used yet",
		Long:    "Revoke ends what another standby may read, at once, transfers under way included.\nID is what `srvfs peers` lists; its first four characters are enough if they mean one\nthing only.\n\n" + cli.Codes,
		Example: "  srvfs peers revoke k3v5",
		Args:    cli.Args(1, 1, "the ID of a peer or token"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			peers, err := daemon.OpenPeers(p.state)
			if err != nil {
				return err
			}
			what, err := peers.Revoke(strings.TrimSpace(args[0]))
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintf(c.OutOrStdout(), "revoked %s\n", what)
			return nil
		},
	}
}
