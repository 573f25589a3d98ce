package sandbox

import (
	"fmt"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// raiseLoopback brings up the one interface of a new network namespace, and gives
// it addresses. One that the kernel does not take is left out: it may have no IPv6,
// and whoever misses the address says so.
func raiseLoopback(addresses []netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return err
	}
	for i, a := range addresses {
		if a.Is4() {
			_ = addInet4(fd, i, a)
		} else {
			_ = addInet6(a)
		}
	}
	return nil
}

// addInet4 adds an address without a network, under the label "lo:N": so each is one
// of its own.
func addInet4(fd, n int, a netip.Addr) error {
	ifr, err := unix.NewIfreq(fmt.Sprintf("lo:%d", n))
	if err != nil {
		return err
	}
	b := a.As4()
	if err := ifr.SetInet4Addr(b[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, ifr); err != nil {
		return err
	}
	if err := ifr.SetInet4Addr([]byte{255, 255, 255, 255}); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, ifr)
}

// addInet6 does the same for IPv6, of which the kernel wants to be asked through a
// socket of that family (in6_ifreq, linux/ipv6.h).
func addInet6(a netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	const loopback = 1 // its index in every network namespace
	ifr := struct {
		addr   [16]byte
		prefix uint32
		index  int32
	}{a.As16(), 128, loopback}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&ifr)))
	runtime.KeepAlive(&ifr)
	if errno != 0 {
		return errno
	}
	return nil
}
