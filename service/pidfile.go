package service

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// readPIDFile returns the process number that a daemon of this service has
// written to path, as the service numbers it. It looks where such a file must
// lie when the service has written it since it started: in the folder that is
// its /run, or in its upper; never in the root itself, because that is a view.
// The error is fs.ErrNotExist when the daemon has not written it yet, or when a
// directory on the way is a link of the tree (then the upper does not have it
// under this name).
func readPIDFile(d *dir, path string) (int, error) {
	below, name := pidFilePlace(d, path)
	root, err := os.OpenRoot(below)
	if err != nil {
		return 0, fmt.Errorf("pid file %s: %w", path, err)
	}
	defer func() { _ = root.Close() }()
	info, err := root.Lstat(name)
	if err != nil {
		return 0, fmt.Errorf("pid file %s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("pid file %s is no regular file", path)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, fmt.Errorf("pid file %s: %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("pid file %s: %w", path, err)
	}
	return parsePID(path, b)
}

// parsePID reads the first word of a pid file. A file that is still empty is
// fs.ErrNotExist: its writer has opened it and not yet written.
func parsePID(path string, b []byte) (int, error) {
	words := strings.Fields(string(b))
	if len(words) == 0 {
		return 0, fmt.Errorf("pid file %s is empty: %w", path, fs.ErrNotExist)
	}
	pid, err := strconv.Atoi(words[0])
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("pid file %s holds %.40q, not a process number", path, b)
	}
	return pid, nil
}

// pidFileInfo returns what stands where readPIDFile looks; nil: nothing.
func pidFileInfo(d *dir, path string) os.FileInfo {
	if path == "" {
		return nil
	}
	below, name := pidFilePlace(d, path)
	root, err := os.OpenRoot(below)
	if err != nil {
		return nil
	}
	defer func() { _ = root.Close() }()
	info, err := root.Lstat(name)
	if err != nil {
		return nil
	}
	return info
}

// pidFilePlace returns the folder of ours in which a pid file must lie, and its
// path there.
func pidFilePlace(d *dir, path string) (below, name string) {
	if name, ok := belowRun(path); ok {
		return d.in(runName), name
	}
	return d.in(upperName), strings.TrimPrefix(path, "/")
}
