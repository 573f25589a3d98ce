package control

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// maxSocketPath is what sun_path holds, less the final NUL.
const maxSocketPath = 107

// short returns a path to the same socket that fits into a socket address,
// through a descriptor of its folder where the state folder lies deep. The
// folder must be kept open until the path has been used.
func short(path string) (string, *os.File, error) {
	if len(path) <= maxSocketPath {
		return path, nil, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), dir, nil
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	p, dir, err := short(path)
	if err != nil {
		return nil, err
	}
	if dir != nil {
		defer func() { _ = dir.Close() }()
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", p)
}

func listen(path string) (net.Listener, error) {
	p, dir, err := short(path)
	if err != nil {
		return nil, err
	}
	if dir != nil {
		defer func() { _ = dir.Close() }()
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name may be one through /proc; the daemon removes the socket itself
	return l, nil
}
