package manifest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A Socket is one that listens before a unit's start command is executed, which
// finds it among its descriptors from 3 on (sd_listen_fds(3)): what a systemd
// socket unit says in one ListenStream= or its like.
type Socket struct {
	Name string // in LISTEN_FDNAMES
	// Network is "tcp", "udp", "unix" (a stream), "unixgram" or "unixpacket";
	// "tcp6" and "udp6" are for IPv6 only.
	Network string
	// Address is an IP address and port, or ":80" for all addresses of the host; of
	// unix sockets a path, or "@name" for one without a file.
	Address   string
	Backlog   uint32 // of connections that nobody has accepted
	UID, GID  uint32 // of a unix socket's file
	Mode      uint32 // the file's
	DirMode   uint32 // of the folders above it that are missing
	NonBlock  bool   // O_NONBLOCK is set
	ReusePort bool   // SO_REUSEPORT
	FreeBind  bool   // the address need not be the host's (IP_FREEBIND)
	PassCred  bool   // SO_PASSCRED
}

const (
	// maxSockets bounds those of one unit. Descriptors are passed to it, of which
	// a process has 1,024 unless it asks for more.
	maxSockets    = 240
	maxSocketPath = 107 // bytes of sun_path, less the zero
	maxBacklog    = 1<<31 - 1
)

var socketNetworks = []string{"tcp", "tcp6", "udp", "udp6", "unix", "unixgram", "unixpacket"}

// Unix reports whether it is a unix socket.
func (s *Socket) Unix() bool { return strings.HasPrefix(s.Network, "unix") }

// addrPort returns the address of a socket that is not a unix socket. That of one
// for all addresses is the zero Addr.
func (s *Socket) addrPort() (netip.AddrPort, error) {
	text, all := s.Address, strings.HasPrefix(s.Address, ":")
	if all {
		text = "[::]" + text
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if all {
		a = netip.AddrPortFrom(netip.Addr{}, a.Port())
	}
	return a, nil
}

// The options of a Socket in its encoding.
const (
	socketNonBlock = 1 << iota
	socketReusePort
	socketFreeBind
	socketPassCred
	socketOptions = iota
)

func (s *Socket) options() [socketOptions]*bool {
	return [...]*bool{&s.NonBlock, &s.ReusePort, &s.FreeBind, &s.PassCred}
}

func encodeSockets(w *encoder, all []Socket) {
	w.uint(uint64(len(all)))
	for i := range all {
		s := &all[i]
		w.string(s.Name)
		w.string(s.Network)
		w.string(s.Address)
		for _, v := range []uint32{s.Backlog, s.UID, s.GID, s.Mode, s.DirMode} {
			w.uint(uint64(v))
		}
		flags := uint64(0)
		for bit, on := range s.options() {
			if *on {
				flags |= 1 << bit
			}
		}
		w.uint(flags)
	}
}

func decodeSockets(r *decoder) []Socket {
	const u32 = 1<<32 - 1
	n := r.count(maxSockets, 9, "sockets")
	if n == 0 {
		return nil
	}
	all := make([]Socket, n)
	for i := range all {
		s := &all[i]
		s.Name = r.string(MaxName, "socket's name")
		s.Network = r.string(16, "network")
		s.Address = r.string(MaxName, "address")
		s.Backlog = uint32(r.upTo(maxBacklog, "backlog"))
		s.UID, s.GID = uint32(r.upTo(u32, "owner")), uint32(r.upTo(u32, "group"))
		s.Mode, s.DirMode = uint32(r.upTo(0o7777, "mode")), uint32(r.upTo(0o7777, "mode"))
		flags := r.upTo(1<<socketOptions-1, "options of a socket")
		for bit, on := range s.options() {
			*on = flags&(1<<bit) != 0
		}
	}
	return all
}

func (s *Socket) validate() error {
	bad := func(why string) error {
		return fmt.Errorf("socket %.20q %.200q: %s", s.Network, s.Address, why)
	}
	if !slices.Contains(socketNetworks, s.Network) {
		return bad("no such network")
	}
	if s.Name == "" || len(s.Name) > MaxName || strings.ContainsFunc(s.Name, func(r rune) bool { return r < ' ' || r == ':' || r > '~' }) {
		return bad(fmt.Sprintf("name %.80q", s.Name))
	}
	if s.Mode&^0o7777 != 0 || s.DirMode&^0o7777 != 0 || s.Backlog > maxBacklog {
		return bad("a value is out of range")
	}
	if s.Unix() {
		named := strings.HasPrefix(s.Address, "@")
		if len(s.Address) > maxSocketPath || strings.Contains(s.Address, "\x00") || named && len(s.Address) == 1 || !named && !ValidPath(s.Address) {
			return bad("neither a clean absolute path nor a name, or too long")
		}
		return nil
	}
	a, err := s.addrPort()
	switch {
	case err != nil:
		return bad("not an address and a port")
	case a.Port() == 0:
		return bad("no port")
	case a.Addr().Zone() != "":
		return bad("an address of one interface only")
	case strings.HasSuffix(s.Network, "6") && a.Addr().IsValid() && !a.Addr().Is6():
		return bad("not an address of IPv6")
	}
	return nil
}
