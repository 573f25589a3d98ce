package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/internal/metrics"
	"srvfs/cmd/srvfs/internal/daemon"
)

// alreadyRunning is what a daemon says to the command that started it when
// another one holds the state folder.
const alreadyRunning = "another daemon runs"

func (p *program) daemonCmd() *cobra.Command {
	var onDemand, clean, verbose bool
	var monitor string
	c := &cobra.Command{
		Use:   "daemon",
		Short: "hold the store, the views and the services",
		Long: `Daemon holds a state folder: the store, the views and the services. The other
commands start one when none runs, which ends with the last view and service;
run it from a service manager to have it there always. It ends on SIGTERM,
after it has stopped the services and unmounted the views.

` + cli.Codes,
		Example: "  srvfs daemon\n  systemctl enable --now srvfs",
		Args:    cli.Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			if monitor != "" {
				if err := metrics.Check(monitor); err != nil {
					return cli.UsageError(c, "--metrics %v", err)
				}
			}
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			if clean {
				free, err := lockIsFree(p.state)
				if err != nil || !free {
					return err
				}
				return daemon.Clean(c.Context(), p.state, log)
			}
			var pipe *os.File
			if onDemand {
				pipe = os.NewFile(3, "ready")
			}
			err := daemon.Run(c.Context(), daemon.Options{
				State: p.state, HostRoot: p.hostRoot, Deadline: p.deadline, Reads: p.reads, Stay: !onDemand, Metrics: monitor, Log: log,
				Ready: func() { daemon.NotifyReady(p.state, pipe, log) },
			})
			if pipe != nil && err != nil {
				text := err.Error()
				if errors.Is(err, daemon.ErrRunning) {
					text = alreadyRunning
				}
				_, _ = fmt.Fprintln(pipe, text) // fails, with no harm, once Ready has been called
			}
			return err
		},
	}
	c.Flags().BoolVar(&onDemand, "on-demand", false, "tell the parent through descriptor 3, and end when nothing is held")
	c.Flags().BoolVar(&clean, "clean", false, "detach what a killed daemon left mounted, and end")
	c.Flags().StringVar(&monitor, "metrics", "", "answer Prometheus at this [HOST]:PORT, /metrics; without a host on this one alone (default: nowhere)")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "log more")
	if err := c.Flags().MarkHidden("on-demand"); err != nil {
		panic(err) // the flag is declared three lines above
	}
	return c
}

// lockIsFree reports whether no daemon holds the state folder at this moment.
func lockIsFree(state string) (bool, error) {
	f, err := os.Open(filepath.Join(state, "daemon.lock"))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
