package sandbox

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// askCredentials makes the kernel say with each message who sent it, with the
// pid translated to our namespace.
func askCredentials(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}); err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt SO_PASSCRED", set)
}
