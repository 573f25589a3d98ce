package capture

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A node is one path of the tree that is being built.
type node struct {
	path  string // canonical
	entry manifest.Entry
	id    Identity
	nlink uint64
	item  *item
	// frozen: its content is a copy in the library, of the moment of the snapshot.
	frozen bool
	looked int64 // when, in nanoseconds since 1970: not after its stat
	// compared: of a folder, that since then all its names were compared with what the
	// snapshot has.
	compared bool
}

// identity returns what the index says of the node's file, whatever type that has. See
// Entry.racy for the other.
func (n *node) identity() (id Identity, racy bool) {
	id = n.id
	racy = n.id.Racy(time.Unix(0, n.looked)) || n.entry.Type == manifest.Dir && !n.compared
	id.Size = n.entry.Size
	return id, racy
}

// fresh reports whether the file starts empty on the standby. One with several
// names keeps its content.
func (n *node) fresh() bool {
	return n.item != nil && n.item.fresh != "" && n.entry.Type == manifest.File && n.nlink == 1
}

// scan reads the attributes of every path in items, which must be canonical
// and include all parents. Sockets and what has vanished are left out; a folder
// that has vanished takes what is below it with it. The nodes come back sorted
// by path.
func scan(ctx context.Context, root *os.File, items map[string]*item) ([]*node, error) {
	below := make(map[string][]string) // folder -> names
	for p := range items {
		if p != "/" {
			dir, name := path.Split(p)
			dir = path.Clean(dir)
			below[dir] = append(below[dir], name)
		}
	}
	nodes := make([]*node, 0, len(items))
	top, err := scanRoot(root)
	if err != nil {
		return nil, err
	}
	top.item = items["/"]
	nodes = append(nodes, top)
	for i := 0; i < len(nodes); i++ { // grows as folders are met
		dir := nodes[i]
		names := below[dir.path]
		if dir.entry.Type != manifest.Dir || len(names) == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		slices.Sort(names)
		if nodes, err = scanDir(root, dir.path, names, items, nodes); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(nodes, func(a, b *node) int { return strings.Compare(a.path, b.path) })
	return nodes, nil
}

// openFolder opens a canonical path: to name what is in it (O_PATH), or to list it
// (O_RDONLY).
func openFolder(root *os.File, p string, access uint64) (*os.File, error) {
	fd, err := openat2(root, p, unix.OpenHow{
		Flags:   access | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path.Join(root.Name(), p), Err: err}
	}
	return os.NewFile(uintptr(fd), p), nil
}

func scanRoot(root *os.File) (*node, error) {
	var st unix.Stat_t
	looked := time.Now()
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", root.Name(), err)
	}
	n, err := newNode("/", "", &st, looked)
	if err == nil {
		n.entry.Xattrs, err = xattrs("/proc/self/fd/"+strconv.Itoa(int(root.Fd()))+"/.", root.Name())
	}
	runtime.KeepAlive(root)
	return n, err
}

// scanDir appends the nodes of names in the folder dir. Each is named relative
// to the open folder, so that nothing above it can be swapped meanwhile.
func scanDir(root *os.File, dir string, names []string, items map[string]*item, nodes []*node) ([]*node, error) {
	f, err := openFolder(root, dir, unix.O_PATH)
	if err != nil {
		if gone(err) {
			return nodes, nil
		}
		return nil, err
	}
	defer func() { _ = f.Close() }()
	fd := int(f.Fd())
	prefix := "/proc/self/fd/" + strconv.Itoa(fd) + "/"
	for _, name := range names {
		p := path.Join(dir, name)
		var st unix.Stat_t
		looked := time.Now()
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, &fs.PathError{Op: "stat", Path: p, Err: err}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			continue
		}
		n, err := newNode(p, name, &st, looked)
		if err != nil {
			return nil, err
		}
		n.item = items[p]
		if n.fresh() {
			// It is made anew: what changes all the time says nothing of the service.
			n.entry.Size, n.entry.Mtime = 0, manifest.Time{}
		}
		if n.entry.Type == manifest.Symlink {
			if n.entry.Target, err = os.Readlink(prefix + name); err != nil {
				if gone(err) || errors.Is(err, unix.EINVAL) { // replaced since its stat
					continue
				}
				return nil, err
			}
		}
		if n.entry.Xattrs, err = xattrs(prefix+name, p); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// newNode makes a node of a stat that was not taken before looked.
func newNode(p, name string, st *unix.Stat_t, looked time.Time) (*node, error) {
	n := &node{
		looked: looked.UnixNano(),
		path:   p,
		id:     Identity{Dev: st.Dev, Ino: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()},
		nlink:  st.Nlink,
		entry: manifest.Entry{
			Name: name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Links: 1,
			Mtime: manifest.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
		},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.entry.Type, n.entry.Size = manifest.File, st.Size
	case unix.S_IFDIR:
		n.entry.Type = manifest.Dir
	case unix.S_IFLNK:
		n.entry.Type = manifest.Symlink
	case unix.S_IFCHR:
		n.entry.Type, n.entry.Rdev = manifest.CharDevice, st.Rdev
	case unix.S_IFBLK:
		n.entry.Type, n.entry.Rdev = manifest.BlockDevice, st.Rdev
	case unix.S_IFIFO:
		n.entry.Type = manifest.FIFO
	default:
		return nil, fmt.Errorf("%s: mode %#o: unknown type of file", p, st.Mode)
	}
	return n, nil
}

// xattrs returns the extended attributes of the entry at host, itself if it is a
// symlink, which is shown as p, without those that a snapshot can't have.
func xattrs(host, p string) ([]manifest.Xattr, error) {
	return readXattrs(p,
		func(b []byte) (int, error) { return unix.Llistxattr(host, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(host, name, b) })
}

// readXattrs reads what list names. The kernel bounds both.
func readXattrs(p string, list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]manifest.Xattr, error) {
	var stack [256]byte
	names, err := grow(stack[:], list)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, &fs.PathError{Op: "listxattr", Path: p, Err: err}
	}
	if len(names) == 0 {
		return nil, nil
	}
	var xs []manifest.Xattr
	for _, name := range strings.Split(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if manifest.ForbiddenXattr(name) {
			continue
		}
		v, err := grow(stack[:], func(b []byte) (int, error) { return get(name, b) })
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP): // removed meanwhile, or not for us
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "getxattr " + name, Path: p, Err: err}
		}
		xs = append(xs, manifest.Xattr{Name: name, Value: string(v)})
	}
	manifest.SortXattrs(xs)
	return xs, nil
}

// grow calls get with buffers that grow until what it returns fits.
func grow(b []byte, get func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(b)
		if err == nil {
			return b[:n], nil
		}
		if !errors.Is(err, syscall.ERANGE) || len(b) > manifest.MaxXattrs {
			return nil, err
		}
		b = make([]byte, 4*len(b))
	}
}

// restat replaces what the scan said of the file n by what it is now.
func restat(fd int, n *node) error {
	var st unix.Stat_t
	looked := time.Now()
	if err := fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", n.path, err)
	}
	fresh, err := newNode(n.path, n.entry.Name, &st, looked)
	if err != nil {
		return err
	}
	fresh.item = n.item
	fresh.entry.Xattrs, err = readXattrs(n.path,
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
	if err != nil {
		return err
	}
	*n = *fresh
	return nil
}
