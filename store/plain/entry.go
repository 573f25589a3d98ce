package plain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// folder writes what is in the folder at p, which stands at the disk's path at and is
// empty, and then gives it its attributes: each name in it changes its times.
func (w *writer) folder(at string, e *manifest.Entry, p string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%.80s...: folders %d deep: %w", p, depth, manifest.ErrInvalid)
	}
	entries, err := manifest.ReadDirectory(w.ctx, w.Reader, e.Digest, w.Snapshot.Totals.Entries)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if w.entries += uint64(len(entries)); w.entries > w.Snapshot.Totals.Entries {
		return fmt.Errorf("the tree has more than the %d entries that it says: %w", w.Snapshot.Totals.Entries, manifest.ErrInvalid)
	}
	// By descriptor, as a tree may be deeper than a path can be long.
	dir, err := os.OpenFile(at, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	in := fmt.Sprintf("/proc/self/fd/%d/", dir.Fd())
	for i := range entries {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		c := &entries[i]
		below := path.Join(p, c.Name)
		if c.Type == manifest.Dir {
			if err = unix.Mkdir(in+c.Name, 0o700); err == nil {
				err = w.folder(in+c.Name, c, below, depth+1)
				w.done.Others++
			} else {
				err = fmt.Errorf("%s: %w", below, err)
			}
		} else if err = w.entry(in+c.Name, c, below); err != nil {
			err = fmt.Errorf("%s: %w", below, err)
		}
		if err != nil {
			return err
		}
	}
	if err := dress(at, e); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

// entry makes what is no folder.
func (w *writer) entry(at string, e *manifest.Entry, p string) error {
	if e.Link != 0 {
		if first, ok := w.links[e.Link]; ok {
			return os.NewSyscallError("link", unix.Linkat(unix.AT_FDCWD, first, unix.AT_FDCWD, at, 0))
		}
		w.links[e.Link] = w.tree + p
	}
	var err error
	switch e.Type {
	case manifest.File:
		return w.file(at, e, p)
	case manifest.Symlink:
		err = unix.Symlink(e.Target, at)
	case manifest.CharDevice:
		err = unix.Mknod(at, unix.S_IFCHR|0o600, int(e.Rdev))
	case manifest.BlockDevice:
		err = unix.Mknod(at, unix.S_IFBLK|0o600, int(e.Rdev))
	case manifest.FIFO:
		err = unix.Mkfifo(at, 0o600)
	default:
		err = fmt.Errorf("unknown %v: %w", e.Type, manifest.ErrInvalid)
	}
	w.done.Others++
	if err != nil {
		return err
	}
	return dress(at, e)
}

func (w *writer) file(at string, e *manifest.Entry, p string) (err error) {
	c := e.Content(p)
	linked, shared := false, false
	switch w.Content {
	case Stubs:
		err = stub(at, e)
	case Linked:
		if e.Size > 0 {
			linked, err = w.Reader.Link(w.ctx, c, at, func(path string) bool { return dressed(path, e) }, func(path string) error { return dress(path, e) })
		}
		if err == nil && linked {
			break
		}
		fallthrough
	case Whole:
		if err == nil {
			shared, err = w.whole(at, c)
		}
	}
	if err == nil && !linked {
		err = dress(at, e)
	}
	if err != nil {
		return err
	}
	w.done.Files.Files++
	w.done.Files.Bytes += e.Size
	if linked {
		w.done.Linked.Files++
		w.done.Linked.Bytes += e.Size
	}
	if shared {
		w.done.Shared.Files++
		w.done.Shared.Bytes += e.Size
	}
	if w.Progress != nil {
		w.Progress(w.done)
	}
	return nil
}

func create(at string) (*os.File, error) {
	return os.OpenFile(at, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// whole writes a file with its content.
func (w *writer) whole(at string, c manifest.Content) (shared bool, err error) {
	f, err := create(at)
	if err != nil {
		return false, err
	}
	shared, err = w.Reader.WriteTo(w.ctx, c, f)
	return shared, errors.Join(err, f.Close())
}

// stub writes a file without its content. An empty one needs none.
func stub(at string, e *manifest.Entry) error {
	f, err := create(at)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(e.Size), f.Close())
	if err != nil || e.Size == 0 {
		return err
	}
	return errors.Join(
		os.NewSyscallError("setxattr metacopy", unix.Lsetxattr(at, "trusted.overlay.metacopy", nil, 0)),
		os.NewSyscallError("setxattr redirect", unix.Lsetxattr(at, "trusted.overlay.redirect", []byte("/"+e.Digest.Hex()), 0)))
}

// dress gives what stands at a path the attributes of e, and sees that they are kept.
func dress(at string, e *manifest.Entry) error {
	// A change of owner takes setuid bits and capabilities away: it comes first.
	if err := os.Lchown(at, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	for _, x := range e.Xattrs {
		if err := unix.Lsetxattr(at, x.Name, []byte(x.Value), 0); err != nil {
			return fmt.Errorf("attribute %s: %w: the file system here may not have such", x.Name, err)
		}
	}
	if e.Type != manifest.Symlink {
		if err := unix.Chmod(at, e.Mode); err != nil {
			return os.NewSyscallError("chmod", err)
		}
	}
	t := unix.Timespec{Sec: e.Mtime.Sec, Nsec: int64(e.Mtime.Nsec)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("utimensat", err)
	}
	if !has(at, e) {
		return errors.New("the file system here keeps other attributes than it is given")
	}
	return nil
}

// has reports whether owner, mode, size and time are those of e.
func has(at string, e *manifest.Entry) bool {
	var st unix.Stat_t
	return unix.Lstat(at, &st) == nil && st.Uid == e.UID && st.Gid == e.GID && (e.Type == manifest.Symlink || st.Mode&0o7777 == e.Mode) &&
		st.Mtim.Sec == e.Mtime.Sec && uint32(st.Mtim.Nsec) == e.Mtime.Nsec && (e.Type != manifest.File || st.Size == e.Size)
}

// dressed reports whether the file at a path has all attributes of e, and no others.
func dressed(at string, e *manifest.Entry) bool {
	if !has(at, e) {
		return false
	}
	list := make([]byte, manifest.MaxXattrs)
	n, err := unix.Llistxattr(at, list)
	if err != nil || bytes.Count(list[:n], []byte{0}) != len(e.Xattrs) {
		return false
	}
	value := make([]byte, manifest.MaxXattrValue)
	for _, x := range e.Xattrs {
		if n, err := unix.Lgetxattr(at, x.Name, value); err != nil || string(value[:n]) != x.Value {
			return false
		}
	}
	return true
}
