package main

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"srvfs/capture"
	"srvfs/capture/unit"
	"srvfs/cmd/internal/cli"
	"srvfs/manifest"
)

func (p *program) captureCmd() *cobra.Command {
	var o capture.Options
	var command, scratch string
	var quiet bool
	c := &cobra.Command{
		Use:   "capture NAME [(--unit UNIT | --init SCRIPT | --exec 'CMD ...' | --pid PID) [flags]]",
		Short: "make a snapshot of a service, and prove that it works",
		Long: `Capture finds out what a service needs, and makes a snapshot of it named NAME.

It starts a second, disposable instance of the service in a sandbox of its own
(the running one is not touched), traces what that instance and the probes make
it execute and open, adds what its packages, libraries and programs need, and then
starts the service once more from the finished snapshot in an empty root. Only a
snapshot that answers its probes there is published.

A probe is a URL. The same probes exercise the trace, verify the capture, tell a
standby that the service has started, and later watch its health:
  http://HOST[:PORT]/PATH    https://...    tcp://HOST:PORT
  dns://SERVER[:PORT]/NAME?type=A           imap://[USER:PASSWORD@]HOST[:PORT]/
  smtp://HOST[:PORT]/?to=ADDRESS            exec:COMMAND (exit status 0)
Give one for each thing that the service must be able to do: what no probe
exercises, no trace sees. Repeat the capture after a change: unchanged files
are not read again. With the name alone, all is as it was asked for the last time.

` + cli.Codes,
		Example: `  srvd capture web --unit nginx --probe http://127.0.0.1/
  srvd capture dns --unit named --probe 'dns://127.0.0.1/example.org?type=A'
  srvd capture app --exec '/opt/app/bin/app --port 8080' --include /opt/app --probe http://127.0.0.1:8080/health
  srvd capture app --pid $(pidof app) --probe http://127.0.0.1:8080/health
  srvd capture app                         # once more, as before
  srvd capture old --init /etc/init.d/thttpd --root /mnt/dead-disk --probe http://127.0.0.1/`,
		Args: cli.Args(1, 1, "a name for the service"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := cli.NeedRoot("capture"); err != nil {
				return err
			}
			ways := 0
			for _, set := range []bool{len(o.Units) > 0, o.Init != "", command != "", o.PID != 0} {
				if set {
					ways++
				}
			}
			again := ways == 0
			c.Flags().Visit(func(f *pflag.Flag) {
				again = again && (f.Name == "quiet" || c.InheritedFlags().Lookup(f.Name) != nil)
			})
			if ways != 1 && !again {
				return cli.UsageError(c, "say how the service starts: one of --unit, --init, --exec and --pid; with none, and no other flag, it is captured as it was before")
			}
			if again {
				lib, err := capture.OpenLibrary(p.state)
				if err == nil {
					o, err = lib.Again(args[0])
				}
				if errors.Is(err, manifest.ErrNotFound) {
					return cli.UsageError(c, "say how the service starts: one of --unit, --init, --exec and --pid (with none it would be captured as before, but: %v)", err)
				}
				if err != nil {
					return err
				}
			}
			if o.Thaw != "" && o.Freeze == "" || o.NoFreeze && o.Freeze != "" {
				return cli.UsageError(c, "--thaw goes with --freeze, and neither with --no-freeze")
			}
			if scratch != "" {
				n, err := cli.ParseBytes(scratch)
				if err != nil || n == 0 {
					return cli.UsageError(c, "--scratch %q: want a size such as 512M or 8G", scratch)
				}
				o.Scratch = n
			}
			if command != "" {
				argv, err := unit.Split(command)
				if err != nil {
					return cli.UsageError(c, "--exec: %v", err)
				}
				o.Exec = argv
			}
			o.Name, o.StateDir, o.Log = args[0], p.state, p.logFrom(slog.LevelWarn)
			out := c.OutOrStdout()
			start := time.Now()
			if !quiet {
				o.Progress = func(step string, took time.Duration, detail string) {
					_, _ = fmt.Fprintf(out, "%-8s %8s  %s\n", step, cli.Took(took), detail)
				}
			}
			r, err := capture.Capture(c.Context(), o)
			if err != nil {
				return err
			}
			for _, w := range r.Warnings {
				_, _ = fmt.Fprintf(c.ErrOrStderr(), "srvd: warning: %s\n", w)
			}
			if r.Assumed {
				_, _ = fmt.Fprintln(c.ErrOrStderr(), "srvd: warning: without --probe nobody has asked the service whether it works")
			}
			if n := len(r.Healed); n > 0 && !quiet {
				_, _ = fmt.Fprintf(out, "learned  %s that standbys had looked for in vain; see `srvd why`\n", cli.Count(uint64(n), "file"))
			}
			if !quiet {
				t := r.Snapshot.Totals
				_, _ = fmt.Fprintf(out, "captured %s, snapshot %d: %s (%s, %s), in %s\n", o.Name, r.Sequence,
					cli.Count(t.Entries, "entry"), cli.Count(t.Files, "file"), cli.Bytes(t.Bytes), cli.Took(time.Since(start)))
			}
			return nil
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringArrayVar(&o.Units, "unit", nil, "systemd unit of the service, or the socket unit that starts it; repeat it if several belong together")
	f.StringVar(&o.Init, "init", "", "SysV script that starts it: a path, or a name in /etc/init.d")
	f.StringVar(&command, "exec", "", "command line that starts it; quotes and backslashes as in a shell, no variables")
	f.IntVar(&o.PID, "pid", 0, "main process of a running instance: its unit, or the command line, user and environment that it was started with")
	f.StringArrayVar(&o.Probes, "probe", nil, "URL that shows that the service works; repeatable")
	f.StringArrayVar(&o.Packages, "package", nil, "package, or package file (NAME.rpm), that belongs to it beside the owners of its program and unit; repeatable")
	f.StringArrayVar(&o.RPMs, "rpm", nil, "package file (NAME.rpm) to unpack: the service's root is made of these, for a server whose disk is lost; repeatable")
	f.StringArrayVar(&o.Include, "include", nil, "file or folder that belongs to it; repeatable")
	f.StringArrayVar(&o.Exclude, "exclude", nil, "pattern of paths that stay out, such as '/var/cache/**'; repeatable")
	f.StringVar(&o.Root, "root", "/", "root folder that holds the service: a container's, or a dead machine's disk")
	f.DurationVar(&o.Watch, "watch", 0, "also watch the running instance for so long: what it opens is in, however rarely it does")
	f.BoolVar(&o.Learn, "learn", false, "until the next capture learn what standbys look for in vain wherever it is, not only in its packages and folders; what was learned stays in")
	f.StringVar(&o.Freeze, "freeze", "", "shell command that makes the service write everything and hold still, run before what it writes to is copied")
	f.StringVar(&o.Thaw, "thaw", "", "shell command that lets it go on; run whatever happens")
	f.BoolVar(&o.NoFreeze, "no-freeze", false, "copy nothing: a standby gets what the service writes to only as long as it is unchanged")
	f.StringVar(&scratch, "scratch", "", "memory, such as 512M or 8G, that each disposable instance may fill with what it writes (default: half of this host's)")
	f.DurationVar(&o.StartTimeout, "timeout", 0, "how long a start may take (default: what the unit says, at most 90s)")
	f.BoolVarP(&quiet, "quiet", "q", false, "print warnings and errors only")
	return c
}
