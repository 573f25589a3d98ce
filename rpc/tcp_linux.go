package rpc

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// setCongestion chooses how fast a connection may send. Linux's default takes the
// jitter of a long wire for its limit, and leaves slow start after some 300 KiB; the
// few MB that a service needs to start are then sent at a tenth of what the
// wire can do. BBR measures what it can. Where the kernel has no BBR, and may
// not load it, the default stays.
func setCongestion(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	if raw, err := t.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr") })
	}
}

// setUserTimeout sets TCP_USER_TIMEOUT on a TCP connection.
func setUserTimeout(c net.Conn, d time.Duration) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return set
}
