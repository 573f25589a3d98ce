package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// openNet keeps hold of the network namespace, so that Dial does not depend on
// /proc of a process that may be ending.
func (s *Sandbox) openNet() error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.init.Process.Pid))
	if err != nil {
		return fmt.Errorf("its network namespace: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.netns = f
	return nil
}

// Dial connects to addr from inside the sandbox's network namespace. Network is
// a kind of tcp or udp. The host is an IP address or "localhost", which means
// 127.0.0.1 and then ::1; other names are resolved only if the sandbox shares
// the caller's network. The connection lives until it is closed or the sandbox
// ends.
func (s *Sandbox) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") && !strings.HasPrefix(network, "udp") {
		return nil, fmt.Errorf("dial %s %s: only tcp and udp reach into a sandbox", network, addr)
	}
	addrs, err := s.resolve(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s %s: %w", network, addr, err)
	}
	fd, err := s.holdNet()
	if err != nil {
		return nil, fmt.Errorf("dial %s %s: %w", network, addr, err)
	}
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { _ = unix.Close(fd) }()
		c, err := dialIn(ctx, fd, network, addrs)
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}

// holdNet returns a descriptor of the network namespace, the caller's to close.
func (s *Sandbox) holdNet() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.netns == nil {
		return -1, ErrEnded
	}
	return unix.FcntlInt(s.netns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// resolve returns addr with IP addresses in place of the name, so that the
// dialer starts no goroutine on another thread.
func (s *Sandbox) resolve(ctx context.Context, network, addr string) ([]string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return []string{addr}, nil
	}
	ips := []string{"127.0.0.1", "::1"}
	if host != "localhost" {
		if s.newNet {
			return nil, fmt.Errorf("name %q can't be resolved inside a sandbox; give an address", host)
		}
		if ips, err = net.DefaultResolver.LookupHost(ctx, host); err != nil {
			return nil, err
		}
	}
	var addrs []string
	for _, ip := range ips {
		v6 := strings.Contains(ip, ":")
		if v6 && !strings.HasSuffix(network, "4") || !v6 && !strings.HasSuffix(network, "6") {
			addrs = append(addrs, net.JoinHostPort(ip, port))
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s has no address for %s", host, network)
	}
	return addrs, nil
}

// dialIn dials on a thread that is moved to the network namespace for it. A
// socket belongs to the namespace it was made in, so the thread can go back at
// once.
func dialIn(ctx context.Context, netns int, network string, addrs []string) (net.Conn, error) {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, os.NewSyscallError("open own network namespace", err)
	}
	defer func() { _ = unix.Close(home) }()
	if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, os.NewSyscallError("setns", err)
	}
	var c net.Conn
	var errs []error
	for _, addr := range addrs {
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			break
		}
		errs = append(errs, err)
	}
	if unix.Setns(home, unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	} // otherwise the thread is of no use to anybody: it ends with this goroutine
	if c != nil {
		return c, nil
	}
	return nil, errors.Join(errs...)
}
