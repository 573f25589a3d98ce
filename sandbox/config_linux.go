package sandbox

import (
	"fmt"
	"net/netip"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A Config says what a sandbox looks like. The mount, pid, uts and ipc
// namespaces are always its own.
type Config struct {
	// Root is the folder that becomes "/": an absolute path as the caller sees
	// it, with everything that is mounted below it. It may be an empty folder
	// on which the first of Mounts, with Target "/", mounts the real root. The
	// caller's own mounts are not changed.
	Root string
	// Mounts are made in this order before the root is entered, so their
	// Sources are paths of the caller's.
	Mounts []Mount
	// Hostname is the name that processes inside see; empty keeps the caller's.
	Hostname string
	// NewNet gives the sandbox a network of its own, with nothing but a
	// loopback interface, which is up. Otherwise it shares the network of the
	// thread that calls Start.
	NewNet bool
	// Addresses are those that a network of its own has besides 127.0.0.1 and ::1, on
	// the loopback interface: a service that is configured for an address of its host
	// can listen there, and is reached there by Dial.
	Addresses []netip.Addr
	// Log receives the helper's own complaints, and its stack if it crashes.
	// Nil discards them.
	Log *os.File
	// Anticipate: the first command will be one that is traced or filtered; see
	// Sandbox.Anticipate.
	Anticipate bool
	// Helper is the process to become process 1, if one was prepared; nil: a new
	// one. It serves once.
	Helper *Helper
}

// A Mount is one mount inside the root, in the terms of mount(2).
//
// Target is a path inside the root. Symbolic links on the way to it are
// followed as they would be by a process inside: they can't lead out of the
// root. A Target that is missing is made, with mode 0755 and owner root, if it
// would lie on a file system that an earlier Mount made new (a tmpfs, or an
// overlay, where it then is in the upper layer); nothing is ever made in the
// folder Root itself or in a bind mount, for these are somebody else's.
//
// With MS_BIND in Flags, MS_RDONLY, MS_NOSUID, MS_NODEV and MS_NOEXEC are added
// to the new mount, and with MS_REC to all mounts below it.
type Mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
}

// TypeDev is a Mount.Type of this package: a tmpfs that holds the device nodes
// and links that programs expect in /dev. See [DevMounts].
const TypeDev = "srvfs-dev"

// ProcMount mounts /proc, which shows the processes of the sandbox only.
func ProcMount() Mount {
	return Mount{Source: "proc", Target: "/proc", Type: "proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC}
}

// DevMounts mounts a minimal /dev: null, zero, full, random, urandom, tty, a
// console that swallows what is written to it, pseudo terminals of its own,
// shm, and the links fd, stdin, stdout and stderr, which need [ProcMount].
func DevMounts() []Mount {
	return []Mount{
		{Source: "dev", Target: "/dev", Type: TypeDev, Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "mode=0755,size=1m"},
		{Source: "devpts", Target: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		TmpfsMount("/dev/shm", 0o1777),
	}
}

// TmpfsMount mounts an empty file system in memory. Mode is the permission bits
// of its root directory, in octal as for chmod(1), so 0o1777 for /tmp.
func TmpfsMount(target string, mode uint32) Mount {
	return Mount{Source: "tmpfs", Target: target, Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: fmt.Sprintf("mode=%04o", mode&0o7777)}
}

// BindMount shows the caller's file or folder source at target.
func BindMount(source, target string, readOnly bool) Mount {
	m := Mount{Source: source, Target: target, Flags: unix.MS_BIND | unix.MS_REC}
	if readOnly {
		m.Flags |= unix.MS_RDONLY
	}
	return m
}

func (c *Config) validate() error {
	if !path.IsAbs(c.Root) {
		return fmt.Errorf("sandbox root %q: not an absolute path", c.Root)
	}
	for _, m := range c.Mounts {
		if !path.IsAbs(m.Target) || strings.Contains(m.Source+m.Target+m.Type+m.Data, "\x00") {
			return fmt.Errorf("sandbox mount on %q: not an absolute path inside the root", m.Target)
		}
		if m.Flags&(unix.MS_REMOUNT|unix.MS_MOVE|unix.MS_SHARED|unix.MS_SLAVE|unix.MS_PRIVATE|unix.MS_UNBINDABLE) != 0 {
			return fmt.Errorf("sandbox mount on %s: flags %#x change a mount, they don't make one", m.Target, m.Flags)
		}
	}
	return nil
}
