package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A replica makes a snapshot's tree in a folder: every name with its
// attributes, decoded from the pages as a standby decodes them. A file has no
// content: its attributes make the overlay take it from the source's own file.
type replica struct {
	meta   manifest.MetaSource
	mounts []sourceMount
	// copyFrom, if not nil, is the source's root, and each file gets a copy of
	// its content: for kernels that can't redirect.
	copyFrom *os.File
	// frozen are the files that have copies, which make a layer of their own below
	// the others; frozenDir is where they are.
	frozen    map[string]*frozen
	frozenDir string

	links map[uint64]string
	names uint64 // that may still be made
}

// make makes the tree with the root entry root in the empty folder dir.
func (r *replica) make(ctx context.Context, root *manifest.Entry, entries uint64, dir string) error {
	r.links, r.names = map[uint64]string{}, entries
	if err := r.fill(ctx, root, "/", dir); err != nil {
		return fmt.Errorf("build the root from the snapshot: %w", err)
	}
	return nil
}

// fill makes what is in the folder e, then gives the folder its attributes,
// last, since making what is in it changes its time.
func (r *replica) fill(ctx context.Context, e *manifest.Entry, p, at string) error {
	entries, err := manifest.ReadDirectory(ctx, r.meta, e.Digest, r.names)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	r.names -= uint64(len(entries))
	for i := range entries {
		child := &entries[i]
		if err := r.one(ctx, child, path.Join(p, child.Name), at+"/"+child.Name); err != nil {
			return err
		}
	}
	if err := r.opaque(p, at); err != nil {
		return err
	}
	return dress(e, at)
}

func (r *replica) one(ctx context.Context, e *manifest.Entry, p, at string) error {
	if e.Link != 0 {
		if first, ok := r.links[e.Link]; ok {
			if err := os.Link(first, at); err != nil {
				return err
			}
			return nil
		}
		r.links[e.Link] = at
	}
	var err error
	switch e.Type {
	case manifest.Dir:
		if err := os.Mkdir(at, 0o700); err != nil {
			return err
		}
		return r.fill(ctx, e, p, at)
	case manifest.Symlink:
		err = os.Symlink(e.Target, at)
	case manifest.File:
		if err := r.file(ctx, e, p, at); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		return nil
	case manifest.CharDevice:
		err = unix.Mknod(at, unix.S_IFCHR|0o600, int(e.Rdev))
	case manifest.BlockDevice:
		err = unix.Mknod(at, unix.S_IFBLK|0o600, int(e.Rdev))
	case manifest.FIFO:
		err = unix.Mknod(at, unix.S_IFIFO|0o600, 0)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return dress(e, at)
}

const (
	xattrMetacopy = "trusted.overlay.metacopy"
	xattrRedirect = "trusted.overlay.redirect"
	xattrOpaque   = "trusted.overlay.opaque"
)

func (r *replica) file(ctx context.Context, e *manifest.Entry, p, at string) error {
	fd, err := unix.Open(at, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), at)
	defer func() { _ = f.Close() }()
	if err := r.fillFile(ctx, e, p, f); err != nil {
		return err
	}
	return dressFile(e, f)
}

// fillFile gives the file f its content, or what leads the kernel to it.
func (r *replica) fillFile(ctx context.Context, e *manifest.Entry, p string, f *os.File) error {
	if e.Size == 0 {
		return nil
	}
	if r.copyFrom != nil {
		from, err := r.content(p)
		if err != nil {
			return err
		}
		defer func() { _ = from.Close() }()
		if _, err := io.Copy(f, from); err != nil {
			return fmt.Errorf("copy: %w", err)
		}
		return ctx.Err()
	}
	if err := f.Truncate(e.Size); err != nil {
		return err
	}
	// The redirect starts at the root of the file system that holds the file.
	m := mountOf(r.mounts, p)
	redirect := p
	if m.path != "/" {
		redirect = strings.TrimPrefix(p, m.path)
	}
	if name, ok := r.copyOf(p); ok {
		redirect = "/" + name
	}
	fd := int(f.Fd())
	if err := unix.Fsetxattr(fd, xattrMetacopy, nil, 0); err != nil {
		return &os.PathError{Op: "setxattr " + xattrMetacopy, Path: f.Name(), Err: err}
	}
	if err := unix.Fsetxattr(fd, xattrRedirect, []byte(redirect), 0); err != nil {
		return &os.PathError{Op: "setxattr " + xattrRedirect, Path: f.Name(), Err: err}
	}
	return nil
}

// dressFile is dress for an open file: a tree has thousands, and each path that is
// walked again costs. What was just made here is root's.
func dressFile(e *manifest.Entry, f *os.File) error {
	fd := int(f.Fd())
	if e.UID != 0 || e.GID != 0 {
		if err := f.Chown(int(e.UID), int(e.GID)); err != nil {
			return err
		}
	}
	for _, x := range e.Xattrs {
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return &os.PathError{Op: "setxattr " + x.Name, Path: f.Name(), Err: err}
		}
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return &os.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	t := unix.Timespec{Sec: e.Mtime.Sec, Nsec: int64(e.Mtime.Nsec)}
	times := [2]unix.Timespec{t, t}
	// futimens(3): utimensat(2) of the descriptor itself.
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); errno != 0 {
		return &os.PathError{Op: "utimensat", Path: f.Name(), Err: errno}
	}
	return nil
}

// content opens what a copy of the file is made of.
func (r *replica) content(p string) (*os.File, error) {
	if name, ok := r.copyOf(p); ok {
		return os.Open(filepath.Join(r.frozenDir, name))
	}
	return openCanonical(r.copyFrom, p)
}

// copyOf returns the name of the copy of a frozen file.
func (r *replica) copyOf(p string) (string, bool) {
	if f := r.frozen[p]; f != nil {
		return f.name, true
	}
	return "", false
}

// opaque hides what the source has in this folder. Roots of layers can't be
// opaque.
func (r *replica) opaque(p, at string) error {
	if r.copyFrom != nil || mountOf(r.mounts, p).path == p {
		return nil
	}
	if err := unix.Setxattr(at, xattrOpaque, []byte("y"), 0); err != nil {
		return &os.PathError{Op: "setxattr " + xattrOpaque, Path: at, Err: err}
	}
	return nil
}

// dress gives the file at its owner, attributes, mode and time, in this order:
// a change of owner clears capabilities and setuid.
func dress(e *manifest.Entry, at string) error {
	if err := os.Lchown(at, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	for _, x := range e.Xattrs {
		// A tmpfs need not know every kind of attribute.
		if err := unix.Lsetxattr(at, x.Name, []byte(x.Value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return &os.PathError{Op: "setxattr " + x.Name, Path: at, Err: err}
		}
	}
	if e.Type != manifest.Symlink {
		if err := unix.Chmod(at, e.Mode); err != nil {
			return &os.PathError{Op: "chmod", Path: at, Err: err}
		}
	}
	t := unix.Timespec{Sec: e.Mtime.Sec, Nsec: int64(e.Mtime.Nsec)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: at, Err: err}
	}
	return nil
}
