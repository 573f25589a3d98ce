package capture

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/sandbox"
)

// furnish adds what a service finds in every root, and starts the sandbox.
func (s *stage) furnish(ctx context.Context, c stageConfig, helper *sandbox.Helper, base, root string) (err error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	s.root = os.NewFile(uintptr(fd), root)
	defer func() {
		if err != nil {
			_ = s.root.Close()
			s.root = nil
		}
	}()
	for _, m := range []struct {
		at, from string
		mode     uint32
	}{{"/run", base + "/run", 0o755}, {"/tmp", base + "/tmp", 0o1777}, {"/var/tmp", base + "/vartmp", 0o1777}, {"/proc", "", 0o555}, {"/dev", "", 0o755}, {"/sys", "", 0o555}} {
		if err := s.mkdir(folder{path: m.at, mode: m.mode}); err != nil {
			return err
		}
		if m.from == "" {
			continue
		}
		if err := unix.Chmod(m.from, m.mode); err != nil {
			return err
		}
		at, err := s.openDir(m.at)
		if err != nil {
			return err
		}
		err = bind(m.from, "/proc/self/fd/"+strconv.Itoa(int(at.Fd())))
		_ = at.Close()
		if err != nil {
			return err
		}
	}
	for _, f := range c.folders {
		if err := s.mkdir(f); err != nil {
			return err
		}
	}
	if s.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: base + "/run" + strings.TrimPrefix(notifySocket, "/run"), Net: "unixgram"}); err != nil {
		return fmt.Errorf("socket for sd_notify: %w", err)
	}
	if err := os.Chmod(base+"/run"+strings.TrimPrefix(notifySocket, "/run"), 0o777); err != nil {
		return err
	}
	if err := helper.Bring(root); err != nil {
		return err
	}
	host, _ := os.Hostname()
	s.sb, err = sandbox.Start(ctx, sandbox.Config{
		Helper: helper, Anticipate: true, // all commands are traced
		Root: root, Hostname: host, NewNet: true, Addresses: hostAddresses(), Log: c.log,
		Mounts: append([]sandbox.Mount{sandbox.ProcMount()}, sandbox.DevMounts()...),
	})
	return err
}

// openDir opens a folder of the root, as a process inside would find it.
func (s *stage) openDir(p string) (*os.File, error) {
	fd, err := openat2(s.root, p, unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	return os.NewFile(uintptr(fd), p), nil
}

// mkdir makes the folder, and those above it, where they are missing.
func (s *stage) mkdir(f folder) error {
	if f.path == "/" {
		return nil
	}
	if d, err := s.openDir(f.path); err == nil {
		return d.Close()
	}
	parent := path.Dir(f.path)
	if err := s.mkdir(folder{path: parent, mode: 0o755}); err != nil {
		return err
	}
	d, err := s.openDir(parent)
	if err != nil {
		return fmt.Errorf("folder for the service: %w", err)
	}
	defer func() { _ = d.Close() }()
	name := path.Base(f.path)
	err = unix.Mkdirat(int(d.Fd()), name, 0o700)
	if err == nil {
		err = unix.Fchownat(int(d.Fd()), name, int(f.uid), int(f.gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.Fchmodat(int(d.Fd()), name, f.mode, 0)
	}
	if err != nil {
		return &fs.PathError{Op: "make folder", Path: f.path, Err: err}
	}
	return nil
}

// readFile returns the first bytes of a file of the root that the service has
// written: a PID file.
func (s *stage) readFile(p string) ([]byte, error) {
	fd, err := openat2(s.root, p, unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	f := os.NewFile(uintptr(fd), p)
	defer func() { _ = f.Close() }()
	b := make([]byte, manifest.MaxPath)
	n, err := f.Read(b)
	if n == 0 && err != nil {
		return nil, err
	}
	return b[:n], nil
}

// hostAddresses are those that a service of this host may be configured for. In the
// sandbox they lead nowhere but back.
func hostAddresses() (all []netip.Addr) {
	const most = 64
	found, _ := net.InterfaceAddrs() // without them most services start as well
	for _, a := range found {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() && len(all) < most {
			all = append(all, p.Addr())
		}
	}
	return all
}
