package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

func openDir(p string) (*os.File, error) {
	fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	return os.NewFile(uintptr(fd), p), nil
}

// open opens the canonical path c. O_NONBLOCK: if a FIFO has taken the file's
// place since it was looked at, the open does not wait for a writer.
func (r *Root) open(c string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	how := &unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_IN_ROOT}
	fd, err := -1, error(unix.EAGAIN)
	// EAGAIN: a rename went on meanwhile; openat2(2) says to try again.
	for range 16 {
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
		fd, err = unix.Openat2(int(r.dir.Fd()), "."+c, how)
	}
	runtime.KeepAlive(r)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // an old kernel, or an old container's seccomp filter
		return os.OpenFile(r.Host(c), flags|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: r.Host(c), Err: err}
	}
	return os.NewFile(uintptr(fd), r.Host(c)), nil
}
