package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A Prepared is a file that stands in the upper from the beginning, because the
// service will write to it. overlayfs copies a whole file when it is first opened
// for writing: 1.3 s for a GB on ext4.
type Prepared struct {
	Path  string         // in the root, absolute, without symlinks
	Entry manifest.Entry // the file there: its attributes are those of Entry
	// Folders are those that it lies in, the outermost first, the root left out.
	// They are made in the upper as overlayfs makes them when it copies a file up.
	Folders []manifest.Entry
	// Take moves a private copy of the file's content to a path in the upper, by
	// rename, and reports whether there was one. Nil: the file starts empty.
	Take func(to string) (bool, error)
}

// Placed counts what was put into an upper before the first start.
type Placed struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"` // on disk
}

// makeUpper makes the upper, with what was prepared in it, and renames it to its
// name. What can't be placed is left to overlayfs: it never costs the start.
func (i *Instance) makeUpper() error {
	temp := i.dir.in(newUpper)
	placed, err := buildUpper(temp, &i.o.Snapshot.Root, i.o.Prepared)
	if err != nil && len(i.o.Prepared) > 0 {
		i.slog.Warn("files that the service writes to will be copied when it first does", "service", i.o.Name, "error", err)
		placed, err = buildUpper(temp, &i.o.Snapshot.Root, nil)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(temp, i.dir.in(upperName)); err != nil {
		return err
	}
	i.rec.Placed = placed
	return nil
}

// buildUpper builds an upper at path. Its own attributes are those of the root
// that the service sees.
func buildUpper(path string, root *manifest.Entry, files []Prepared) (Placed, error) {
	var placed Placed
	if err := os.RemoveAll(path); err != nil { // of a start that was killed
		return placed, err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return placed, err
	}
	folders := map[string]*manifest.Entry{}
	for n := range files {
		size, ok, err := place(path, &files[n], folders)
		if err != nil {
			return placed, fmt.Errorf("prepare %s: %w", files[n].Path, err)
		}
		if ok {
			placed.Files++
			placed.Bytes += size
		}
	}
	// Their times are set when nothing is made in them any more.
	for p, e := range folders {
		if err := setAttributes(filepath.Join(path, p), e, true); err != nil {
			return placed, fmt.Errorf("prepare folder %s: %w", p, err)
		}
	}
	if err := setAttributes(path, root, len(folders) > 0); err != nil {
		return placed, fmt.Errorf("attributes of the root: %w", err)
	}
	return placed, nil
}

// place puts one file into the upper, and the folders above it, which it adds to
// folders: their attributes come last. It returns the file's size on disk.
func place(upper string, f *Prepared, folders map[string]*manifest.Entry) (int64, bool, error) {
	if err := f.check(); err != nil {
		return 0, false, err
	}
	// A link in the upper would be a file of its own: the other names would go
	// on showing what was.
	if f.Entry.Links > 1 {
		return 0, false, nil
	}
	var made []string
	dir := "/"
	for n := range f.Folders {
		dir = path.Join(dir, f.Folders[n].Name)
		err := os.Mkdir(filepath.Join(upper, dir), 0o700)
		if err == nil {
			made = append(made, dir)
		} else if !errors.Is(err, fs.ErrExist) {
			return 0, false, err
		}
	}
	to := filepath.Join(upper, f.Path)
	if ok, err := f.put(to); !ok || err != nil {
		slices.Reverse(made)
		for _, p := range made { // overlayfs makes them when they are needed
			err = errors.Join(err, os.Remove(filepath.Join(upper, p)))
		}
		return 0, false, err
	}
	dir = "/"
	for n := range f.Folders {
		dir = path.Join(dir, f.Folders[n].Name)
		folders[dir] = &f.Folders[n]
	}
	if err := setAttributes(to, &f.Entry, true); err != nil {
		return 0, false, err
	}
	info, err := os.Lstat(to)
	if err != nil {
		return 0, false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.Mode().IsRegular() || info.Size() != f.Entry.Size:
		return 0, false, fmt.Errorf("it has %d bytes, the snapshot says %d: %w", info.Size(), f.Entry.Size, manifest.ErrCorrupt)
	case st.Nlink != 1:
		return 0, false, fmt.Errorf("the copy has %d names: %w", st.Nlink, manifest.ErrInvalid)
	}
	return st.Blocks * 512, true, nil
}

// put brings the file's content to a path.
func (f *Prepared) put(to string) (bool, error) {
	if f.Take != nil {
		return f.Take(to)
	}
	n, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return false, err
	}
	return true, n.Close()
}

// check refuses what does not fit together: all of it goes into paths of this
// host.
func (f *Prepared) check() error {
	p := "/"
	for n := range f.Folders {
		if e := &f.Folders[n]; e.Type != manifest.Dir || !manifest.ValidName(e.Name) {
			return fmt.Errorf("%q on the way is no folder: %w", e.Name, manifest.ErrInvalid)
		}
		p = path.Join(p, f.Folders[n].Name)
	}
	if !manifest.ValidName(f.Entry.Name) || path.Join(p, f.Entry.Name) != f.Path {
		return fmt.Errorf("%q in %q: %w", f.Entry.Name, p, manifest.ErrInvalid)
	}
	if f.Entry.Type != manifest.File || f.Take == nil && f.Entry.Size != 0 {
		return fmt.Errorf("a %v of %d bytes: %w", f.Entry.Type, f.Entry.Size, manifest.ErrInvalid)
	}
	return nil
}

// setAttributes gives a path the owner, extended attributes and mode of an
// entry, and with times its modification time.
func setAttributes(path string, e *manifest.Entry, times bool) error {
	if err := os.Lchown(path, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	for _, x := range e.Xattrs { // after chown, which takes capabilities away
		if manifest.ForbiddenXattr(x.Name) {
			continue
		}
		if err := unix.Lsetxattr(path, x.Name, []byte(x.Value), 0); err != nil {
			return fmt.Errorf("attribute %s: %w", x.Name, err)
		}
	}
	if err := unix.Chmod(path, e.Mode&0o7777); err != nil { // after chown, which clears setuid
		return err
	}
	if !times {
		return nil
	}
	t := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: e.Mtime.Sec, Nsec: int64(e.Mtime.Nsec)}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, t, unix.AT_SYMLINK_NOFOLLOW)
}

// Placed counts what was put into the upper when it was made, and reports whether
// that was at this start.
func (i *Instance) Placed() (p Placed, now bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rec.Placed, i.fresh
}

// CopyUp has overlayfs copy files into the upper now, so that the service does not
// wait for it at its first write: for a root that was made without them. Their
// content should be local. It returns when that is done, when ctx ends, or when
// the service is stopped. What is no file, or has several names, is left alone.
func (i *Instance) CopyUp(ctx context.Context, paths []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	i.mu.Lock()
	select {
	case <-i.stop:
		i.mu.Unlock()
		return nil
	default:
	}
	i.watched.Add(2)
	task := i.task
	i.mu.Unlock()
	defer i.watched.Done()
	go func() { // the copying process holds the root
		defer i.watched.Done()
		select {
		case <-i.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	said, err := inRoot(ctx, order{Task: task, CopyUp: paths})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("copy files into the upper of service %s: %s (%w)", i.o.Name, lastLines(said, 1), err)
	}
	if said != "" {
		i.slog.Warn("files that the service writes to are not copied yet", "service", i.o.Name, "reason", said)
	}
	return nil
}

// copyUp opens a file as one who writes to it does, which is when overlayfs copies it.
func copyUp(p string) error {
	info, err := os.Lstat(p)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() || st.Nlink != 1 {
		return nil // the service has put something else there
	}
	how := unix.OpenHow{Flags: unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, p, &how)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
