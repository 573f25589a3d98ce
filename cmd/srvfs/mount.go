package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/cmd/srvfs/internal/daemon"
)

// helperName is what mount(8) calls a helper for the type fuse.srvfs.
const helperName = "mount.fuse.srvfs"

func (p *program) mountCmd() *cobra.Command {
	var from archiveFlags
	c := &cobra.Command{
		Use:   "mount (HOST[:PORT]/SERVICE | ARCHIVE)[@SNAPSHOT] MOUNTPOINT",
		Short: "mount a service's snapshot as a read-only view",
		Long: `Mount shows the newest snapshot of a service at an empty folder, or an earlier one
(@12, or @2026-01-31T12:00: what was the newest then), and returns when the view answers. Names and attributes are there at once; the content of a file
is read from this host's own identical file or from the store, and fetched from
the source when neither has it. If the source can't be asked, the snapshot that
is stored here is shown.

` + archiveHelp + `

mount(8) and /etc/fstab work too: mount -t fuse.srvfs HOST/SERVICE MOUNTPOINT

` + cli.Codes,
		Example: "  srvfs mount alpha/web /srv/web\n  srvfs mount alpha/web@12 /mnt/before\n  srvfs mount web.tar /mnt/web\n  mount -t fuse.srvfs alpha/web /srv/web",
		Args:    cli.Args(2, 2, "HOST[:PORT]/SERVICE or an archive, and a mountpoint"),
		RunE: func(c *cobra.Command, args []string) error {
			return p.mount(c, args[0], args[1], &from)
		},
	}
	from.add(c)
	return c
}

func (p *program) mount(c *cobra.Command, spec, mountpoint string, from *archiveFlags) error {
	if err := needRoot(c); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("%w: this kernel has no FUSE, or the module is not loaded: modprobe fuse", err)
	}
	snapshot, err := from.split(c, spec)
	if err != nil {
		return err
	}
	abs, err := mountpointPath(mountpoint)
	if err != nil {
		return err
	}
	return p.do(c.Context(), "mount", control.Call{Snapshot: snapshot, Mountpoint: abs}, nil, nil)
}

// mountpointPath makes a mountpoint's path as the kernel's mount table has it:
// absolute, its parents without symlinks. The last part is not looked at: a dead
// view there must not make this process wait.
func mountpointPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil || abs == "/" {
		return abs, err
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(parent, filepath.Base(abs))
	} // else the daemon says what is wrong with it
	return abs, nil
}

func (p *program) umountCmd() *cobra.Command {
	var lazy bool
	c := &cobra.Command{
		Use:     "umount MOUNTPOINT",
		Aliases: []string{"unmount"},
		Short:   "unmount a view",
		Long:    "Umount ends a view. What was fetched stays in the store.\n\n" + cli.Codes,
		Example: "  srvfs umount /srv/web",
		Args:    cli.Args(1, 1, "a mountpoint"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := needRoot(c); err != nil {
				return err
			}
			abs, err := mountpointPath(args[0])
			if err != nil {
				return err
			}
			return p.do(c.Context(), "umount", control.Call{Mountpoint: abs, Force: lazy}, nil, nil)
		},
	}
	c.Flags().BoolVarP(&lazy, "lazy", "l", false, "unmount it even while it is used; what uses it gets errors")
	return c
}

// newHelper is the command that mount(8) calls:
//
//	mount.fuse.srvfs HOST/SERVICE DIR [-sfnv] [-o OPTIONS] [-t TYPE]
//
// Of the options it knows state=DIR, host_root=DIR and deadline=TIME; those that
// are for mount(8) and systemd, and those that the view has anyway, are passed
// over, and rw too, which mount(8) says unless told otherwise; others are refused.
func newHelper() *cobra.Command {
	p := &program{state: defaultState, hostRoot: "/", deadline: 10 * time.Second, reads: daemon.ReadsAuto}
	var options []string
	var sloppy, fake, ignored bool
	var kind string
	var from archiveFlags
	c := &cobra.Command{
		Use:   helperName + " HOST[:PORT]/SERVICE MOUNTPOINT [-o OPTIONS]",
		Short: "mount a view, as a helper of mount(8)",
		Args:  cli.Args(2, 2, "HOST[:PORT]/SERVICE and a mountpoint"),
		RunE: func(c *cobra.Command, args []string) error {
			for _, o := range options {
				if err := p.mountOption(c, o, sloppy, &from); err != nil {
					return err
				}
			}
			if err := p.check(c); err != nil || fake {
				return err
			}
			return p.mount(c, args[0], args[1], &from)
		},
	}
	f := c.Flags()
	f.StringSliceVarP(&options, "options", "o", nil, "mount options")
	f.BoolVarP(&sloppy, "sloppy", "s", false, "ignore unknown options")
	f.BoolVarP(&fake, "fake", "f", false, "do all but mount")
	f.BoolVarP(&ignored, "no-mtab", "n", false, "ignored")
	f.BoolVarP(&ignored, "verbose", "v", false, "ignored")
	f.StringVarP(&kind, "type", "t", "", "ignored")
	return c
}

func (p *program) mountOption(c *cobra.Command, option string, sloppy bool, from *archiveFlags) error {
	key, value, _ := strings.Cut(option, "=")
	switch key {
	case "state":
		p.state = value
	case "archive":
		from.ref = value
	case "identity":
		from.identity = value
	case "insecure":
		from.insecure = true
	case "host_root":
		p.hostRoot = value
	case "deadline":
		d, err := time.ParseDuration(value)
		if err != nil {
			return cli.UsageError(c, "mount option %q: %v", option, err)
		}
		p.deadline = d
	case "", "ro", "rw", "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "exec", "suid", "dev", "async", "relatime", "noatime", "allow_other", "default_permissions":
	default:
		if !sloppy && !strings.HasPrefix(key, "x-") && !strings.HasPrefix(key, "comment") {
			return cli.UsageError(c, "unknown mount option %q", option)
		}
	}
	return nil
}
