package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
	"srvfs/manifest"
)

// steps prints each step of a command on a line of its own.
type steps struct{ w io.Writer }

func (s steps) Step(name string, took time.Duration, detail string) {
	_, _ = fmt.Fprintln(s.w, strings.TrimRight(fmt.Sprintf("%-22s %8s  %s", name, cli.Took(took), detail), " "))
}
func (s steps) Progress(control.Progress) {}

func (p *program) runCmd() *cobra.Command {
	var call control.Call
	var asJSON bool
	var from archiveFlags
	c := &cobra.Command{
		Use:   "run ((HOST[:PORT]/SERVICE | ARCHIVE)[@SNAPSHOT] [--name NAME] | NAME[@SNAPSHOT])",
		Short: "start a service on this host",
		Long: `Run mounts a service's snapshot, builds a writable root on it, starts the service
in that root, and returns when its probes answer. It prints how long each step
took. The service has mount, pid, uts and ipc namespaces of its own, and this
host's network.

A service that ran here before goes on with its snapshot and with what it wrote;
--update --discard gives that up and starts from the newest snapshot, or from the one
that is named: @12, @2026-01-31T12:00. A NAME alone starts such a service again. If the source can't be asked, what is stored here is used.

` + archiveHelp + ` What is named
is remembered.

Files that the service is known to write to, and that srvfs prefetch has prepared
private copies of, become the service's: its first write waits for no copy.
--no-prepare leaves them, and is remembered; --no-prepare=false takes it back.

--no-fuse starts a service whose snapshot is detached on a root of plain files: names and
attributes in a tree on the disk, content in the store, which the kernel joins. No part
of that needs srvfs any more: should its daemon be killed the service goes on, and the
next daemon takes it over. What is not detached is refused.

` + cli.Codes,
		Example: "  srvfs run alpha/web\n  srvfs run alpha/web --name web2\n  srvfs run web\n  srvfs run alpha/web@12 --name web12\n  srvfs run docker://registry.example/web:latest\n  srvfs run alpha/web --archive /backup/web.tar",
		Args:    cli.Args(1, 1, "HOST[:PORT]/SERVICE, or the NAME of a service that ran here before"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			if isArchive(args[0]) || strings.Contains(args[0], "/") {
				var err error
				if call.Snapshot, err = from.split(c, args[0]); err != nil {
					return err
				}
			} else if call.Name == "" {
				ref, err := manifest.ParseRef(args[0])
				if err != nil {
					return err
				}
				call.Name, call.Sequence, call.By = ref.Service, ref.Sequence, ref.By
				if call.Archive, err = from.fallback(c); err != nil {
					return err
				}
			} else {
				return cli.UsageError(c, "--name is for HOST/SERVICE; %q has its name already", args[0])
			}
			call.Prepare = prepareFlag(c)
			var out control.Stream = steps{c.OutOrStdout()}
			if asJSON {
				out = nil
			}
			var r daemon.Ran
			if err := p.do(c.Context(), "run", call, out, &r); err != nil {
				return err
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), r)
			}
			_, _ = fmt.Fprintf(c.OutOrStdout(), "%s answers, %s after the command; %s fetched; its output is in %s\n", r.Name, cli.Took(r.Ready), cli.Bytes(r.Fetched), r.LogFile)
			return nil
		},
	}
	c.Flags().StringVar(&call.Name, "name", "", "the service's name here (default: its name on the source)")
	c.Flags().BoolVar(&call.Update, "update", false, "move a service that ran here before to the source's newest snapshot; needs --discard")
	c.Flags().BoolVar(&call.Force, "discard", false, "with --update: give up what the service wrote here")
	c.Flags().DurationVar(&call.Timeout, "timeout", 30*time.Second, "how long the probes may take to answer")
	c.Flags().BoolVar(&call.NoFuse, "no-fuse", false, "without FUSE, for a snapshot that is detached")
	addPrepareFlag(c)
	from.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return c
}

func addPrepareFlag(c *cobra.Command) {
	c.Flags().Bool("no-prepare", false, "make no private copies of the files that the service writes to (remembered)")
}

// prepareFlag returns what --no-prepare says, or nil if it was not given.
func prepareFlag(c *cobra.Command) *bool {
	if !c.Flags().Changed("no-prepare") {
		return nil
	}
	off, _ := c.Flags().GetBool("no-prepare")
	on := !off
	return &on
}

func (p *program) stopCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "stop NAME",
		Short:   "stop a service",
		Long:    "Stop ends a service: its own stop command or SIGTERM first, SIGKILL for what is left\nwhen its time is up. What it wrote stays; `srvfs run NAME` goes on with it.\n\n" + cli.Codes,
		Example: "  srvfs stop web",
		Args:    cli.Args(1, 1, "the name of a service"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			return p.do(c.Context(), "stop", control.Call{Name: args[0]}, nil, nil)
		},
	}
}

func (p *program) removeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a service and all that it left here",
		Long: `Remove stops a service if it runs, and removes its folder, with everything that
it wrote here, and the stored content that no other service or view needs.

` + cli.Codes,
		Example: "  srvfs remove web",
		Args:    cli.Args(1, 1, "the name of a service"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			return p.do(c.Context(), "remove", control.Call{Name: args[0]}, nil, nil)
		},
	}
}
