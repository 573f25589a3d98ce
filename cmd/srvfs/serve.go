package main

import (
	"fmt"
	"net"
	"strconv"

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

func (p *program) peersCmd() *cobra.Command {
	c := cli.Peers("srvfs", "List the standbys that are paired with this one (see \"srvfs serve\"), and the tokens that\ncan still be used.",
		"no other standby is paired with this one; see `srvfs peers token --help`",
		func(c *cobra.Command) (*rpc.Peers, error) {
			if err := needRoot(c); err != nil {
				return nil, err
			}
			return daemon.OpenPeers(p.state)
		})
	c.PostRun = func(c *cobra.Command, _ []string) { p.warnSilent(c) }
	c.AddCommand(p.peersTokenCmd())
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
