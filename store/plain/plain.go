// Package plain writes a snapshot's tree to a plain disk.
//
// # What is written
//
// Everything that a snapshot knows: owner, mode with setuid, setgid and sticky, times of
// modification to the nanosecond, extended attributes with capabilities and ACLs, hard
// links, symlinks, devices, FIFOs. A disk that keeps something else than it is given is an
// error that names the path.
//
// What becomes of the files' content is a [Content]: [Whole] files share their blocks
// with the store where the file system has reflinks, and are copies elsewhere, with holes
// for zeros. [Linked] files are the store's own under a second name. [Stubs] have none:
// each says in two attributes where overlayfs finds it in a data-only layer, as the names
// of a view do. A root over stubs and the store's blobs needs no view.
//
// # All or nothing
//
// The tree is written beside its place, in the folder ".NAME.srvfs-new", flushed, and
// renamed. So the place has the whole tree or is as it was, whenever the process is killed;
// the next [Write] to the same place begins by removing what the one before has left. Two
// at a time are refused.
package plain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/store"
)

// A Content says what becomes of the content of files.
type Content uint8

// The kinds of content.
const (
	Whole  Content = iota // reflinks where the file system has them, copies elsewhere
	Linked                // hard links to the store's files; Whole where a link would not do
	Stubs                 // none: overlayfs finds it in a data-only layer by its digest
)

// Options say what to write and where.
type Options struct {
	Snapshot *manifest.Snapshot
	Reader   *store.Reader // of the content; what is not in the store is fetched
	Dir      string        // absolute and clean; it does not exist, or is an empty folder
	Content  Content
	// Progress, if not nil, is called after each file.
	Progress func(Result)
}

// A Result tells what was written. Files with several names count once.
type Result struct {
	Files  store.Count `json:"files"`
	Shared store.Count `json:"shared"` // of Files: reflinks
	Linked store.Count `json:"linked"` // of Files: hard links to the store's
	Others uint64      `json:"others"` // folders, symlinks, devices, FIFOs
}

const (
	treeName = "tree" // in the folder that a tree is written in
	// maxDepth bounds the depth of folders: each open one takes a descriptor.
	maxDepth = 2000
)

// ErrBusy: another process writes a tree to the same place.
var ErrBusy = errors.New("another one is being written there")

// Write writes the tree. The error wraps manifest.ErrInvalid, ErrNoSpace or ErrBusy, is one
// of the reader, or of the file system.
func Write(ctx context.Context, o Options) (Result, error) {
	w := &writer{Options: o, ctx: ctx, links: map[uint64]string{}}
	if err := w.write(); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fmt.Errorf("%w: %w", err, manifest.ErrNoSpace)
		}
		return Result{}, fmt.Errorf("write %s to %s: %w", o.Snapshot.Service, o.Dir, err)
	}
	return w.done, nil
}

type writer struct {
	Options
	ctx     context.Context
	done    Result
	tree    string            // where it is written
	links   map[uint64]string // the first name of a file with several, below tree
	entries uint64
}

func (w *writer) write() (err error) {
	if err := w.check(); err != nil {
		return err
	}
	base := filepath.Base(w.Dir)
	if len(base) > 200 { // so that a name can be made of it
		base = manifest.Sum([]byte(base)).Hex()
	}
	parent := filepath.Dir(w.Dir)
	beside := filepath.Join(parent, "."+base+".srvfs-new")
	unlock, err := begin(beside)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(beside))
		unlock()
	}()
	w.tree = filepath.Join(beside, treeName)
	if err := unix.Mkdir(w.tree, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", w.tree, err)
	}
	if w.Content == Linked {
		if err := w.sameDisk(); err != nil {
			return err
		}
	}
	if err := w.folder(w.tree, &w.Snapshot.Root, "/", 0); err != nil {
		return err
	}
	return w.place(parent)
}

// check refuses a place where something would be lost.
func (w *writer) check() error {
	if !manifest.ValidPath(w.Dir) || w.Dir == "/" {
		return fmt.Errorf("not a clean absolute path: %w", manifest.ErrInvalid)
	}
	info, err := os.Lstat(w.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if info, err := os.Stat(filepath.Dir(w.Dir)); err != nil || !info.IsDir() {
			return fmt.Errorf("there is no folder %s: %w", filepath.Dir(w.Dir), manifest.ErrNotFound)
		}
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("it exists and is no folder: choose another name: %w", fs.ErrExist)
	}
	names, err := os.ReadDir(w.Dir)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("the folder is not empty: choose another, or remove it: %w", fs.ErrExist)
	}
	return err
}

// begin makes the folder that a tree is written in, or takes over what a process that was
// killed has left of it.
func begin(beside string) (unlock func(), err error) {
	for {
		if err := os.Mkdir(beside, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err := os.OpenFile(beside, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another one has just ended
		} else if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%w (%s)", ErrBusy, beside)
			}
			return nil, fmt.Errorf("lock %s: %w", beside, err)
		}
		mine, err := f.Stat()
		now, nowErr := os.Lstat(beside)
		if err == nil && nowErr == nil && os.SameFile(mine, now) {
			unlock := func() { _ = f.Close() }
			if err := empty(beside); err != nil {
				unlock()
				return nil, err
			}
			return unlock, nil
		}
		_ = f.Close()
		if err = errors.Join(err, nowErr); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// empty removes what a killed one has left, and nothing that is not ours.
func empty(beside string) error {
	names, err := os.ReadDir(beside)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Name() != treeName {
			return fmt.Errorf("%s holds %q, which is not of ours: remove it: %w", beside, n.Name(), fs.ErrExist)
		}
	}
	return os.RemoveAll(filepath.Join(beside, treeName))
}

// sameDisk fails where no hard link to the store is possible.
func (w *writer) sameDisk() error {
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(w.Reader.BlobDir(), &a), unix.Stat(w.tree, &b)); err != nil {
		return err
	}
	if a.Dev != b.Dev {
		return fmt.Errorf("it lies on another file system than the store (%s), so there can be no hard links: %w", w.Reader.BlobDir(), unix.EXDEV)
	}
	return nil
}

// place flushes the tree and gives it its name.
func (w *writer) place(parent string) error {
	if err := syncAll(w.tree); err != nil {
		return err
	}
	// Onto an empty folder too, but not onto one in which something has appeared.
	if err := unix.Rename(w.tree, w.Dir); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("something is mounted there: name a folder in it: %w", err)
		}
		return os.NewSyscallError("rename", err)
	}
	return syncAll(parent)
}

// syncAll flushes the file system that a folder lies on.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))), f.Close())
}
