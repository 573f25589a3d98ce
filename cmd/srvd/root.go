package main

import (
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"srvfs/capture"
	"srvfs/cmd/internal/cli"
	"srvfs/rpc"
)

// program is what all commands of srvd share.
type program struct {
	state   string
	verbose bool
}

func newRoot() *cobra.Command {
	p := &program{}
	root := cli.Group(&cobra.Command{
		Use:   "srvd",
		Short: "capture services on this host and serve them to standbys",
		Long: `srvd runs on the source, the host whose services are to be stood up elsewhere.
It finds out by itself what a running service needs, keeps that as a snapshot,
and serves snapshots to hosts that were paired with this one.`,
		Example: `  srvd capture web --unit nginx --probe http://127.0.0.1/
  srvd serve &
  srvd pair`,
	})
	root.PersistentFlags().StringVar(&p.state, "state", capture.DefaultState, "folder of keys, peers and snapshots")
	root.PersistentFlags().BoolVarP(&p.verbose, "verbose", "v", false, "log what is done, on standard error")
	root.AddCommand(p.captureCmd(), p.listCmd(), p.showCmd(), p.whyCmd(), p.diffCmd(), p.missesCmd(), p.removeCmd(), p.archiveCmd(), p.serveCmd(), p.statusCmd(), p.pairCmd(), p.peersCmd())
	return root
}

func (p *program) log() *slog.Logger {
	return p.logFrom(slog.LevelInfo)
}

// logFrom returns a log of that level and above, or of all with --verbose.
func (p *program) logFrom(level slog.Level) *slog.Logger {
	if p.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// open makes the state folder, for root alone, and returns what is kept of
// peers and of this host's identity.
func (p *program) open() (*rpc.Identity, *rpc.Peers, error) {
	dir := filepath.Join(p.state, "identity")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	id, err := rpc.LoadIdentity(dir)
	if err != nil {
		return nil, nil, err
	}
	peers, err := rpc.OpenPeers(p.state)
	return id, peers, err
}
