package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"srvfs/rpc"
)

// peerRow is one peer, or one unused token.
type peerRow struct {
	ID       string    `json:"id"`
	State    string    `json:"state"` // "paired" or "token"
	Name     string    `json:"name,omitempty"`
	Address  string    `json:"address,omitempty"`
	Services []string  `json:"services"` // empty: all
	Since    time.Time `json:"since"`
	Expires  time.Time `json:"expires,omitzero"`
}

// Peers returns the command "peers" of a program that serves, with "peers revoke". Open
// opens its peers; empty is what is said when there are none.
func Peers(program, long, empty string, open func(*cobra.Command) (*rpc.Peers, error)) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "peers",
		Short:   "list the paired standbys and unused tokens, or revoke one",
		Long:    long + "\n\n" + Codes,
		Example: fmt.Sprintf("  %[1]s peers\n  %[1]s peers --json\n  %[1]s peers revoke k3v5", program),
		Args:    Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			peers, err := open(c)
			if err != nil {
				return err
			}
			rows, err := peerRows(peers)
			switch {
			case err != nil:
				return err
			case asJSON:
				return JSON(c.OutOrStdout(), rows)
			case len(rows) == 0:
				_, err := fmt.Fprintln(c.ErrOrStderr(), program+": "+empty)
				return err
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
		Long:    "Revoke ends what a standby may read, at once, transfers under way included.\nID is what `" + program + " peers` lists; its first four characters are enough if they mean one thing only.\n\n" + Codes,
		Example: "  " + program + " peers revoke k3v5",
		Args:    Args(1, 1, "the ID of a peer or token"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := NeedRoot("peers revoke"); err != nil {
				return err
			}
			peers, err := open(c)
			if err != nil {
				return err
			}
			what, err := peers.Revoke(strings.TrimSpace(args[0]))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "revoked %s\n", what)
			return err
		},
	})
	return c
}

func peerRows(peers *rpc.Peers) ([]peerRow, error) {
	list, err := peers.List()
	if err != nil {
		return nil, err
	}
	pending, err := peers.Pending()
	if err != nil {
		return nil, err
	}
	rows := []peerRow{}
	for _, v := range list {
		rows = append(rows, peerRow{ID: v.ID(), State: "paired", Name: v.Name, Address: v.Address, Services: v.Services, Since: v.Paired})
	}
	for _, t := range pending {
		rows = append(rows, peerRow{ID: t.ID, State: "token", Services: t.Services, Since: t.Created, Expires: t.Expires})
	}
	return rows, nil
}
