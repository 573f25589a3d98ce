package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
	"srvfs/manifest"
)

// DefaultState is the standby's state folder.
const defaultState = "/var/lib/srvfs"

// program is what all commands of srvfs share.
type program struct {
	state    string
	hostRoot string
	deadline time.Duration
	reads    string
}

func newRoot() *cobra.Command {
	p := &program{}
	root := cli.Group(&cobra.Command{
		Use:   "srvfs",
		Short: "mount other hosts' services, and stand in for them",
		Long: `srvfs runs on the standby, the host that stands in for a source. It mounts the
snapshot of a service at once: files that this host has too are used from its own
disk, the rest is fetched when it is first read. It starts the service on that
mount, and with prefetch it needs the source no more.`,
		Example: `  srvfs pair TOKEN                  # the token that "srvd pair" printed on the source
  srvfs run alpha/web               # mount it, start it, wait until it answers
  srvfs prefetch web                # from now on alpha may burn`,
	})
	f := root.PersistentFlags()
	f.StringVar(&p.state, "state", defaultState, "folder of keys, sources, store and services")
	f.StringVar(&p.hostRoot, "host-root", "/", "where identical local files are looked for; \"\" for nowhere (read when the daemon starts)")
	f.DurationVar(&p.deadline, "deadline", 10*time.Second, "how long a read may wait for its source (read when the daemon starts)")
	f.StringVar(&p.reads, "reads", daemon.ReadsAuto, "who serves the content of a service's root: kernel, view, or auto (read when the daemon starts)")
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error { return p.check(c) }
	root.AddCommand(p.pairCmd(), p.listCmd(), p.diffCmd(), p.mountCmd(), p.umountCmd(), p.runCmd(), p.stopCmd(), p.removeCmd(), p.prefetchCmd(), p.exportCmd(), p.followCmd(), p.unfollowCmd(), p.serveCmd(), p.peersCmd(), p.collectCmd(), p.statusCmd(), p.daemonCmd())
	return root
}

// check makes the state folder's path absolute, as the daemon needs it.
func (p *program) check(c *cobra.Command) error {
	abs, err := filepath.Abs(p.state)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	p.state = abs
	if p.hostRoot != "" && !filepath.IsAbs(p.hostRoot) {
		return cli.UsageError(c, "--host-root %q is not an absolute path", p.hostRoot)
	}
	if p.reads != daemon.ReadsAuto && p.reads != daemon.ReadsKernel && p.reads != daemon.ReadsView {
		return cli.UsageError(c, "--reads %q is none of kernel, view and auto", p.reads)
	}
	if p.deadline < 100*time.Millisecond {
		return cli.UsageError(c, "--deadline %v is too short: a tenth of a second is the least", p.deadline)
	}
	return nil
}

// splitSpec reads HOST[:PORT]/SERVICE[@SNAPSHOT].
func splitSpec(c *cobra.Command, spec string) (s control.Snapshot, err error) {
	source, service, found := strings.Cut(spec, "/")
	if !found || source == "" || service == "" || strings.Contains(service, "/") {
		return s, cli.UsageError(c, "%q is not of the form HOST[:PORT]/SERVICE", spec)
	}
	s.Source = source
	s.Ref, err = manifest.ParseRef(service)
	return s, err
}

// splitLocal reads the same, or NAME[@SNAPSHOT] of a service that is known here.
func splitLocal(c *cobra.Command, spec string) (s control.Snapshot, err error) {
	if strings.Contains(spec, "/") {
		return splitSpec(c, spec)
	}
	s.Ref, err = manifest.ParseRef(spec)
	return s, err
}

// needRoot refuses early what the daemon could not do.
func needRoot(c *cobra.Command) error { return cli.NeedRoot(fmt.Sprintf("srvfs %s", c.Name())) }
