package main

import (
	"fmt"
	"slices"

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

func (p *program) peersCmd() *cobra.Command {
	return cli.Peers("srvd", "List the standbys that are paired with this source, and the tokens that can still be used.",
		"no standby is paired with this source; see `srvd pair --help`",
		func(*cobra.Command) (*rpc.Peers, error) {
			_, peers, err := p.open()
			return peers, err
		})
}
