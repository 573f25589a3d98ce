package capture

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/capture/rpmfile"
	"srvfs/manifest"
)

// unpack makes the root of package files: the source itself is lost, or was never
// there. The same files are unpacked once.
func (c *capturing) unpack(ctx context.Context) (string, error) {
	sum := sha256.New()
	for _, name := range c.RPMs {
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("--rpm %s: %w: %w", name, err, manifest.ErrNotFound)
		}
		if err != nil {
			return "", fmt.Errorf("--rpm: %w", err)
		}
		_, _ = fmt.Fprintln(sum, filepath.Base(name), info.Size(), info.ModTime().UnixNano())
	}
	parent := filepath.Join(c.StateDir, rootsFolder)
	dir := filepath.Join(parent, c.Name+"-"+hex.EncodeToString(sum.Sum(nil)[:rootKey/2]))
	if held, err := holdRoot(dir); err == nil {
		c.held = held
		if _, err := os.Stat(dir); err == nil { // it was not swept in between
			c.Root = dir
			return fmt.Sprintf("%d packages, unpacked already", len(c.RPMs)), nil
		}
		_ = held.Close()
		c.held = nil
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(parent, tempPrefix)
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if c.held, err = holdRoot(tmp); err != nil {
		return "", err
	}
	if err := rpmfile.Unpack(ctx, c.RPMs, tmp); err != nil {
		return "", err
	}
	if err := syncTree(tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); errors.Is(err, fs.ErrExist) {
		// Another capture was faster, and may be the one that publishes.
		return "", fmt.Errorf("another capture has unpacked the same packages meanwhile: try again: %w", err)
	} else if err != nil {
		return "", err
	}
	c.Root = dir
	return fmt.Sprintf("%d packages", len(c.RPMs)), syncDir(parent)
}

// Unpacked roots stand in a folder of the state folder, and are called by their
// service and so many digits that stand for the packages.
const (
	rootsFolder = "roots"
	rootKey     = 16
)

// holdRoot keeps others from sweeping an unpacked root away until what it returns
// is closed: a capture that uses it has not published anything yet.
func holdRoot(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		return nil, errors.Join(os.NewSyscallError("flock", err), f.Close())
	}
	return f, nil
}

// sweepRoot removes an unpacked root that nobody holds.
func sweepRoot(dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	} else if err != nil {
		return os.NewSyscallError("flock", err)
	}
	return os.RemoveAll(dir)
}

// syncTree brings what was written below dir to the disk.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// sweepRoots removes the unpacked roots of a service that none of its kept
// snapshots is served from, and what a crash has left half unpacked. A root goes by
// its name: the state folder may have been called by another path.
func (l *Library) sweepRoots(service string) error {
	parent := filepath.Join(l.dir, rootsFolder)
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := l.all()
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, p := range all {
		if p.Service != service {
			continue
		}
		x, err := l.index(p)
		if err != nil {
			return err
		}
		used[filepath.Base(x.root)] = true
	}
	for _, e := range entries {
		i := max(0, len(e.Name())-rootKey)
		ours := e.Name()[:i] == service+"-" && !used[e.Name()]
		if !ours && !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		if err := sweepRoot(filepath.Join(parent, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
