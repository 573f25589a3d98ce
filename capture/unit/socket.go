package unit

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// defaultBacklog is systemd's: the kernel cuts it to net.core.somaxconn.
const defaultBacklog = 1<<31 - 1

// socketOf returns the service that a socket unit starts, and the socket unit. Of a
// service the name comes back.
func socketOf(root *rootfs.Root, full string) (socket, service string, err error) {
	if !strings.HasSuffix(full, socketSuffix) {
		return "", full, nil
	}
	s, err := loadSocket(root, full)
	if errors.Is(err, errNoUnit) {
		return "", "", notFound(root, full)
	}
	if err != nil {
		return "", "", err
	}
	if s.accept {
		prefix, _, _ := splitName(s.text.name)
		return "", "", fmt.Errorf("unit %s has Accept=yes: it starts a process of %s@.service for each connection, which needs systemd; if the program can also listen by itself, name that as the command: %w", s.text.name, prefix, manifest.ErrInvalid)
	}
	return s.text.name, s.service, nil
}

// A socketUnit is one that was read.
type socketUnit struct {
	text    *text
	spec    specifiers
	last    map[string]assignment
	listen  []assignment // ListenStream= and its like, in order
	ignored []assignment // what can't be carried
	accept  bool
	service string // that it starts
}

// carried are the keys of [Socket] that are translated; inert ones matter only to
// a manager that keeps the socket when the service has ended, or to nobody.
var (
	carried = []string{"SocketMode", "DirectoryMode", "SocketUser", "SocketGroup", "Backlog", "BindIPv6Only", "ReusePort", "FreeBind", "PassCredentials", "FileDescriptorName", "Accept", "Service"}
	inert   = []string{"RemoveOnStop", "Writable", "MaxConnections", "MaxConnectionsPerSource", "TriggerLimitIntervalSec", "TriggerLimitBurst", "PollLimitIntervalSec", "PollLimitBurst", "FlushPending", "TimeoutSec"}
)

// networks are the ways to listen that a service elsewhere can be given. Others
// (FIFOs, netlink, message queues) are not carried.
var networks = map[string]struct{ ip, unix string }{
	"ListenStream":           {"tcp", "unix"},
	"ListenDatagram":         {"udp", "unixgram"},
	"ListenSequentialPacket": {"", "unixpacket"},
}

// loadSocket reads a socket unit. The error wraps errNoUnit if there is none.
func loadSocket(root *rootfs.Root, full string) (*socketUnit, error) {
	text, err := load(root, full)
	if err != nil {
		return nil, err
	}
	s := &socketUnit{text: text, last: map[string]assignment{}}
	s.spec = specifiers{root: root, name: text.name, file: text.path}
	for _, a := range text.all {
		switch {
		case a.section != "Socket" || strings.HasPrefix(a.key, "X-") || slices.Contains(inert, a.key):
		case slices.Contains(carried, a.key):
			s.last[a.key] = a
		case strings.HasPrefix(a.key, "Listen") && a.value == "":
			s.listen = nil
		case networks[a.key].unix != "":
			s.listen = append(s.listen, a)
		default:
			s.ignored = append(s.ignored, a)
		}
	}
	if a, ok := s.value("Accept"); ok {
		if s.accept, ok = parseBool(a.value); !ok {
			return nil, a.errorf("%.80q is neither yes nor no", a.value)
		}
	}
	base, _ := cutSuffix(text.name)
	s.service = base + serviceSuffix
	if a, ok := s.value("Service"); ok {
		if s.service, err = fullName(a.value); err != nil || !strings.HasSuffix(s.service, serviceSuffix) {
			return nil, a.errorf("%.80q is no service", a.value)
		}
	}
	return s, nil
}

func (s *socketUnit) value(key string) (assignment, bool) {
	a, ok := s.last[key]
	a.value = s.spec.expand(a.value)
	return a, ok && a.value != ""
}

// setSockets gives the unit the sockets that systemd would pass to it: of the unit
// that it was named by, of those that it names, and of those that are enabled.
// A socket unit that is only installed would not be started either.
func (t *translator) setSockets(u *manifest.Unit) error {
	nonBlock, err := t.flag("NonBlocking")
	if err != nil {
		return err
	}
	named, err := t.words("Sockets")
	if err != nil {
		return err
	}
	base, _ := cutSuffix(t.text.name)
	own := base + socketSuffix
	candidates := []string{t.socket, own}
	for _, a := range named {
		candidates = append(candidates, a.value)
		t.wanted = append(t.wanted, a.value)
	}
	enabled := enabledSockets(t.root)
	candidates = append(candidates, t.wanted...)
	candidates = append(candidates, enabled...)
	done := map[string]bool{"": true}
	for _, name := range candidates {
		if done[name] || !strings.HasSuffix(name, socketSuffix) {
			continue
		}
		done[name] = true
		s, err := loadSocket(t.root, name)
		if err != nil {
			if name == t.socket || slices.Contains(t.wanted, name) {
				t.ignore(assignment{key: "Sockets", value: name}, err.Error())
			}
			continue // no concern of this service, as far as can be seen
		}
		asked := name == t.socket || slices.ContainsFunc(named, func(a assignment) bool { return a.value == name })
		if done[s.text.name] && name != s.text.name || s.accept || !asked && s.service != t.text.name {
			continue
		}
		done[s.text.name] = true
		if !asked && !slices.Contains(t.wanted, name) && !slices.Contains(enabled, name) {
			t.info.Sockets = append(t.info.Sockets, s.text.name)
			continue
		}
		if err := t.addSockets(u, s, nonBlock); err != nil {
			return err
		}
	}
	return nil
}

// enabledSockets returns the socket units that a target, or another unit, wants.
func enabledSockets(root *rootfs.Root) []string {
	var all []string
	for _, d := range searchPath {
		entries, err := root.ReadDir(d)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".wants") && !strings.HasSuffix(e.Name(), ".requires") {
				continue
			}
			units, err := root.ReadDir(d + "/" + e.Name())
			if err != nil {
				continue
			}
			for _, u := range units {
				if strings.HasSuffix(u.Name(), socketSuffix) {
					all = append(all, u.Name())
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// addSockets translates one socket unit.
func (t *translator) addSockets(u *manifest.Unit, s *socketUnit, nonBlock bool) error {
	common := manifest.Socket{Name: s.text.name, Backlog: defaultBacklog, Mode: 0o666, DirMode: 0o755, NonBlock: nonBlock}
	if a, ok := s.value("FileDescriptorName"); ok {
		common.Name = a.value
	}
	for key, to := range map[string]*uint32{"SocketMode": &common.Mode, "DirectoryMode": &common.DirMode} {
		if a, ok := s.value(key); ok {
			m, err := strconv.ParseUint(a.value, 8, 32)
			if err != nil || m > 0o7777 {
				return a.errorf("%.80q is not an octal mode", a.value)
			}
			*to = uint32(m)
		}
	}
	if a, ok := s.value("Backlog"); ok {
		n, err := strconv.ParseUint(a.value, 10, 31)
		if err != nil {
			return a.errorf("%.80q is not a number of connections", a.value)
		}
		common.Backlog = uint32(n)
	}
	for key, to := range map[string]*bool{"ReusePort": &common.ReusePort, "FreeBind": &common.FreeBind, "PassCredentials": &common.PassCred} {
		if a, ok := s.value(key); ok {
			if *to, ok = parseBool(a.value); !ok {
				return a.errorf("%.80q is neither yes nor no", a.value)
			}
		}
	}
	if a, ok := s.value("SocketUser"); ok {
		who, err := t.acc.user(a.value)
		if err != nil {
			return a.errorf("%v", err)
		}
		common.UID, common.GID = who.uid, who.gid
	}
	if a, ok := s.value("SocketGroup"); ok {
		gid, err := t.acc.group(a.value)
		if err != nil {
			return a.errorf("%v", err)
		}
		common.GID = gid
	}
	only6 := false
	if a, ok := s.value("BindIPv6Only"); ok {
		switch a.value {
		case "default", "both":
		case "ipv6-only":
			only6 = true
		default:
			return a.errorf("%.80q is none of default, both and ipv6-only", a.value)
		}
	}
	for _, a := range s.listen {
		a.value = s.spec.expand(a.value)
		if strings.HasPrefix(a.value, "vsock:") || strings.Contains(a.value, "]:") && strings.Contains(a.value, "%") {
			t.ignore(assignment{key: s.text.name + ": " + a.key, value: a.value}, "sockets of virtual machines, or of one interface, can't be taken to another host")
			continue
		}
		one := common
		var why string
		one.Network, one.Address, why = address(a, only6)
		if why != "" {
			return a.errorf("%.200q: %s", a.value, why)
		}
		u.Sockets = append(u.Sockets, one)
	}
	for _, a := range s.ignored {
		t.ignore(assignment{key: s.text.name + ": " + a.key, value: a.value}, "")
	}
	t.info.Files = append(t.info.Files, s.text.files...)
	return nil
}

// address reads what ListenStream= and its like are given: a port, an address and
// port, a path, or @name. Why says what is wrong with it.
func address(a assignment, only6 bool) (network, addr, why string) {
	kinds := networks[a.key]
	switch {
	case path.IsAbs(a.value):
		return kinds.unix, path.Clean(a.value), ""
	case strings.HasPrefix(a.value, "@"):
		return kinds.unix, a.value, ""
	case kinds.ip == "":
		return "", "", "only unix sockets are of this kind"
	}
	text := a.value
	if n, err := strconv.ParseUint(text, 10, 16); err == nil && n > 0 {
		if only6 {
			kinds.ip += "6"
		}
		return kinds.ip, ":" + text, ""
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil || ap.Port() == 0 {
		return "", "", "neither a port, an address and port, a path, nor @name"
	}
	if only6 && ap.Addr().Is6() {
		kinds.ip += "6"
	}
	return kinds.ip, ap.String(), ""
}
