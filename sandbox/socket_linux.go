package sandbox

import (
	"errors"
	"net/netip"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Socket is one that a command finds open and listening; see [Command.Sockets].
// It is made by root inside the sandbox: in its network, and of a unix socket, its
// root.
type Socket struct {
	Name string // in LISTEN_FDNAMES
	// Network is "tcp", "udp", "unix", "unixgram" or "unixpacket"; "tcp6" and
	// "udp6" are for IPv6 only.
	Network string
	// Address is an IP address and port, or ":80" for all addresses; of unix sockets
	// a path in the root, or "@name" for one without a file.
	Address   string
	Backlog   uint32 // of connections that nobody has accepted
	UID, GID  uint32 // of a unix socket's file
	Mode      uint32 // the file's
	DirMode   uint32 // of the folders above it that are missing
	NonBlock  bool   // O_NONBLOCK is set
	ReusePort bool   // SO_REUSEPORT
	FreeBind  bool   // IP_FREEBIND
	PassCred  bool   // SO_PASSCRED
}

// firstSocket is SD_LISTEN_FDS_START.
const firstSocket = 3

// passSockets opens the command's sockets as descriptors from 3 on, and says so as
// sd_listen_fds(3) wants it. What has these numbers by now is not needed any more.
func passSockets(c *order) *fault {
	if len(c.Sockets) == 0 {
		return nil
	}
	names := make([]string, len(c.Sockets))
	for i, s := range c.Sockets {
		names[i] = s.Name
		fd, err := s.listen()
		if err == nil {
			err = place(fd, firstSocket+i)
		}
		if err != nil {
			return failure("listen on", strings.TrimSpace(s.Network+" "+s.Address), err, hintOf(err))
		}
	}
	c.Env = append(c.Env, "LISTEN_PID="+strconv.Itoa(os.Getpid()), "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	return nil
}

// hintOf says what the errno does not: what else was tried, or what is in the way.
func hintOf(err error) string {
	var of *os.PathError
	switch {
	case errors.As(err, &of):
		return of.Op + " " + of.Path
	case errors.Is(err, unix.EADDRINUSE):
		return "another process listens there"
	}
	return ""
}

// place moves a descriptor to a number, where it outlives the execution.
func place(fd, number int) error {
	if fd == number {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Dup3(fd, number, 0)
}

// listen opens the socket.
func (s *Socket) listen() (fd int, err error) {
	flags := unix.SOCK_CLOEXEC
	if s.NonBlock {
		flags |= unix.SOCK_NONBLOCK
	}
	kind := unix.SOCK_STREAM
	switch s.Network {
	case "udp", "udp6", "unixgram":
		kind = unix.SOCK_DGRAM
	case "unixpacket":
		kind = unix.SOCK_SEQPACKET
	}
	if strings.HasPrefix(s.Network, "unix") {
		fd, err = s.bindUnix(kind | flags)
	} else {
		fd, err = s.bindIP(kind | flags)
	}
	if err == nil && kind != unix.SOCK_DGRAM {
		if err = unix.Listen(fd, int(s.Backlog)); err != nil {
			_ = unix.Close(fd)
		}
	}
	return fd, err
}

// bindIP binds to an address of IPv4 or IPv6; to all of them by a socket of IPv6
// that takes both, where the kernel has IPv6.
func (s *Socket) bindIP(kind int) (int, error) {
	text, all := s.Address, strings.HasPrefix(s.Address, ":")
	if all {
		text = "[::]" + text
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return -1, err
	}
	if a.Addr().Is4() {
		return s.bound(unix.AF_INET, kind, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()})
	}
	fd, err := s.bound(unix.AF_INET6, kind, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()})
	if all && !strings.HasSuffix(s.Network, "6") && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
		return s.bound(unix.AF_INET, kind, &unix.SockaddrInet4{Port: int(a.Port())})
	}
	return fd, err
}

func (s *Socket) bound(family, kind int, a unix.Sockaddr) (fd int, err error) {
	fd, err = unix.Socket(family, kind, 0)
	if err != nil {
		return -1, err
	}
	only6 := 0
	if strings.HasSuffix(s.Network, "6") {
		only6 = 1
	}
	isIP, is6 := family != unix.AF_UNIX, family == unix.AF_INET6
	for _, o := range []struct {
		on                   bool
		level, option, value int
	}{
		{isIP, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{isIP && s.ReusePort, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{isIP && s.FreeBind, unix.IPPROTO_IP, unix.IP_FREEBIND, 1},
		{is6, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only6}, // whatever the host's default is
		{!isIP && s.PassCred, unix.SOL_SOCKET, unix.SO_PASSCRED, 1},
	} {
		if o.on && err == nil {
			err = unix.SetsockoptInt(fd, o.level, o.option, o.value)
		}
	}
	if err == nil {
		err = unix.Bind(fd, a)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// bindUnix binds to a name, or to a path: its folders are made, and a socket that is
// there already and belongs to nobody makes way.
func (s *Socket) bindUnix(kind int) (int, error) {
	a := &unix.SockaddrUnix{Name: s.Address}
	if strings.HasPrefix(s.Address, "@") {
		return s.bound(unix.AF_UNIX, kind, a)
	}
	mask := unix.Umask(0)
	defer unix.Umask(mask)
	if err := makeAbove(s.Address, s.DirMode); err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if unix.Lstat(s.Address, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		_ = unix.Unlink(s.Address)
	}
	unix.Umask(0o777 &^ int(s.Mode)) // nobody connects who may not, from the first moment on
	fd, err := s.bound(unix.AF_UNIX, kind, a)
	if err != nil {
		return -1, err
	}
	if err = os.Lchown(s.Address, int(s.UID), int(s.GID)); err == nil {
		err = unix.Chmod(s.Address, s.Mode) // chown(2) takes bits away
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// makeAbove makes the folders above a path that are missing.
func makeAbove(p string, mode uint32) error {
	dir := path.Dir(p)
	err := unix.Mkdir(dir, mode)
	if errors.Is(err, unix.ENOENT) && dir != "/" {
		if err = makeAbove(dir, mode); err == nil {
			err = unix.Mkdir(dir, mode)
		}
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "make folder", Path: dir, Err: err}
	}
	return nil
}
