package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A sweep looks at all files of a snapshot, and costs little more than one stat of each:
// it compares that with the identity that the index has. Where they are the same, a
// full look would find nothing, since whatever changes content, attributes, or the names
// in a folder sets the change time. What differs, and what was racy when it was looked at
// last, is then looked at in full.

// sweepMarks is how many marks of the index a worker takes at once: some 4,000 entries.
const sweepMarks = 64

// sweep looks at everything.
func (u *updating) sweep() error {
	ctx, cancel := context.WithCancelCause(u.ctx)
	defer cancel(nil)
	for _, one := range u.known.layers {
		if err := one.mark(); err != nil {
			return err
		}
	}
	base := u.known.layers[len(u.known.layers)-1]
	parts := max(1, (len(base.marks)+sweepMarks-1)/sweepMarks)
	workers := make([]sweeper, min(runtime.GOMAXPROCS(0), parts))
	var next atomic.Int64
	var wg sync.WaitGroup
	for i := range workers {
		w := &workers[i]
		w.root, w.index = u.dir, u.known
		wg.Go(func() {
			defer w.close()
			for k := int(next.Add(1)) - 1; k < parts && ctx.Err() == nil; k = int(next.Add(1)) - 1 {
				if err := w.part(base, k*sweepMarks, (k+1)*sweepMarks); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// The root is in no index.
	if err := u.visit("/", false); err != nil {
		return err
	}
	doubtful, lists := map[string][]string{}, []string{"/"}
	for _, w := range workers {
		for _, p := range w.doubtful {
			dir := path.Dir(p)
			doubtful[dir] = append(doubtful[dir], path.Base(p))
		}
		lists = append(lists, w.folders...)
	}
	for _, dir := range slices.Sorted(maps.Keys(doubtful)) {
		if err := u.visitAll(dir, doubtful[dir]); err != nil {
			return err
		}
	}
	for _, dir := range lists {
		if err := u.compareNames(dir); err != nil {
			return err
		}
	}
	return nil
}

// visitAll is visit for some names of a folder of the snapshot.
func (u *updating) visitAll(dir string, names []string) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	var some []string
	olds := map[string]*manifest.Entry{}
	for _, name := range names {
		p := path.Join(dir, name)
		if u.seen[p] != nil || u.passes(p) {
			continue
		}
		old, err := u.lookup(p)
		if err != nil {
			return err
		}
		if olds[name] = old; old != nil {
			some = append(some, name)
		} else if err := u.visit(p, true); err != nil {
			return err
		}
	}
	nodes, err := scanDir(u.dir, dir, some, nil, nil)
	if err != nil {
		return err
	}
	for _, name := range some {
		u.seen[path.Join(dir, name)] = &looked{old: olds[name]}
	}
	for _, n := range nodes {
		s := u.seen[n.path]
		s.now = n
		if n.entry.Type == manifest.Dir && s.old.Type != manifest.Dir {
			if err := u.content(n.path, s.old); err != nil {
				return err
			}
		}
	}
	return nil
}

// compareNames looks for names in a folder, which was looked at before, that the snapshot
// does not have.
func (u *updating) compareNames(dir string) error {
	s := u.seen[dir]
	if s == nil || s.now == nil || s.now.entry.Type != manifest.Dir || s.now.compared || !u.scope.whole(dir) {
		return nil
	}
	list, err := u.names(dir)
	if err != nil {
		return err
	}
	all, err := u.listing(dir)
	if err != nil {
		return err
	}
	slices.Sort(list)
	for _, name := range list {
		for len(all) > 0 && all[0].Name < name {
			all = all[1:]
		}
		if len(all) > 0 && all[0].Name == name {
			continue
		}
		if err := u.visit(path.Join(dir, name), true); err != nil {
			return err
		}
	}
	s.now.compared = true
	return nil
}

// names returns what is in a folder; nothing if it is gone.
func (u *updating) names(dir string) ([]string, error) {
	f, err := openFolder(u.dir, dir, unix.O_RDONLY)
	var list []string
	if err == nil {
		list, err = f.Readdirnames(-1)
		err = errors.Join(err, f.Close())
	}
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return list, nil
}

// A sweeper compares what stat says with an index.
type sweeper struct {
	root  *os.File
	index *layered
	open  []openDir // each lies in the one before
	name  []byte
	stat  unix.Statx_t

	doubtful []string // what is to be looked at in full
	folders  []string // of which the names are to be compared
}

// An openDir is a folder that is open; of one that is not there the descriptor is -1.
type openDir struct {
	path string
	fd   int
}

// part compares the entries from a mark of the lowest layer on, up to another.
func (w *sweeper) part(base *index, from, to int) error {
	first, end := "", ""
	if from > 0 {
		first = base.marks[from].path
	}
	if to < len(base.marks) {
		end = base.marks[to].path
	}
	c := w.index.seek(first)
	for c.next() && (end == "" || string(c.path) < end) {
		i := bytes.LastIndexByte(c.path, '/')
		fd, err := w.folder(c.path[:max(i, 1)])
		if err != nil {
			return err
		}
		same := false
		if fd >= 0 {
			if same, err = w.same(fd, c.path[i+1:], c.cursor); err != nil {
				return fmt.Errorf("%s: %w", c.path, err)
			}
		}
		if same {
			continue
		}
		p := string(c.path)
		if w.doubtful = append(w.doubtful, p); c.kind == manifest.Dir {
			w.folders = append(w.folders, p)
		}
	}
	return c.failed()
}

// same reports whether the file at name is what the index says, for sure.
func (w *sweeper) same(fd int, name []byte, c *cursor) (bool, error) {
	if c.racy() {
		return false, nil
	}
	w.name = append(append(w.name[:0], name...), 0)
	switch err := statAt(fd, w.name, &w.stat); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, os.NewSyscallError("statx", err)
	}
	st := &w.stat
	id := Identity{
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Size: int64(st.Size),
		Mtime: st.Mtime.Sec*1e9 + int64(st.Mtime.Nsec), Ctime: st.Ctime.Sec*1e9 + int64(st.Ctime.Nsec),
	}
	if c.kind != manifest.File {
		id.Size = 0
	}
	return id == c.id, nil
}

// statAt is statx(2) with a name that ends with a NUL, which is not copied.
func statAt(fd int, name []byte, st *unix.Statx_t) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&name[0])), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(st)), 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// folder returns a descriptor of the folder; -1 if it is not there.
func (w *sweeper) folder(dir []byte) (int, error) {
	for len(w.open) > 0 {
		top := &w.open[len(w.open)-1]
		if top.path == string(dir) {
			return top.fd, nil
		}
		if strings.HasPrefix(string(dir), top.path) && (top.path == "/" || dir[len(top.path)] == '/') {
			break
		}
		w.pop()
	}
	d := openDir{path: string(dir), fd: -1}
	fd, err := openat2(w.root, d.path, unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case err == nil:
		d.fd = fd
	case !gone(err):
		return -1, &os.PathError{Op: "open", Path: d.path, Err: err}
	}
	w.open = append(w.open, d)
	return d.fd, nil
}

func (w *sweeper) pop() {
	if fd := w.open[len(w.open)-1].fd; fd >= 0 {
		_ = unix.Close(fd)
	}
	w.open = w.open[:len(w.open)-1]
}

func (w *sweeper) close() {
	for len(w.open) > 0 {
		w.pop()
	}
}
