package fstest

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A Tree is a folder as a snapshot has it.
type Tree struct {
	Root   manifest.Entry
	Totals manifest.Totals
	Meta   map[manifest.Digest][]byte // directory pages and chunk lists
	Files  map[manifest.Digest]string // where on the disk a content stands
}

// An inode names a file of the disk.
type inode struct{ dev, ino uint64 }

// A dir is a directory that has been read but not encoded: how many names a file
// has in the tree is known only at the end.
type dir struct {
	entry    manifest.Entry
	children []*dir
	inodes   []inode // of the children that are no directories; else zero
}

// Scan reads the folder at path. Sockets are left out.
func Scan(path string) (*Tree, error) {
	t := NewTree()
	links := map[inode]uint32{}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	root, err := t.read(path, "", &st, links)
	if err != nil {
		return nil, err
	}
	numbers := map[inode]uint64{}
	t.Root, err = t.encode(root, links, numbers)
	return t, err
}

// NewTree returns a tree without anything in it.
func NewTree() *Tree {
	return &Tree{Meta: map[manifest.Digest][]byte{}, Files: map[manifest.Digest]string{}}
}

func (t *Tree) read(path, name string, st *unix.Stat_t, links map[inode]uint32) (*dir, error) {
	d := &dir{entry: manifest.Entry{
		Name: name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Links: 1,
		Mtime: manifest.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
	}}
	e := &d.entry
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = manifest.Dir
	case unix.S_IFREG:
		e.Type, e.Size = manifest.File, st.Size
		e.Digest, e.Chunks, err = t.hash(path)
	case unix.S_IFLNK:
		e.Type = manifest.Symlink
		e.Target, err = os.Readlink(path)
	case unix.S_IFCHR:
		e.Type, e.Rdev = manifest.CharDevice, st.Rdev
	case unix.S_IFBLK:
		e.Type, e.Rdev = manifest.BlockDevice, st.Rdev
	case unix.S_IFIFO:
		e.Type = manifest.FIFO
	}
	if err == nil {
		e.Xattrs, err = xattrs(path)
	}
	if err != nil || e.Type != manifest.Dir {
		return d, err
	}
	names, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		var st unix.Stat_t
		below := path + "/" + n.Name()
		if err := unix.Lstat(below, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", below, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			continue
		}
		c, err := t.read(below, n.Name(), &st, links)
		if err != nil {
			return nil, err
		}
		id := inode{}
		if c.entry.Type != manifest.Dir {
			id = inode{st.Dev, st.Ino}
			links[id]++
		}
		d.children = append(d.children, c)
		d.inodes = append(d.inodes, id)
	}
	return d, nil
}

// hash reads a file and remembers where its content stands.
func (t *Tree) hash(path string) (d, chunks manifest.Digest, err error) {
	f, err := os.Open(path)
	if err != nil {
		return d, chunks, err
	}
	defer func() { _ = f.Close() }()
	h := manifest.NewHasher()
	if _, err := io.Copy(h, f); err != nil {
		return d, chunks, err
	}
	d, _, list := h.Sum()
	if list != nil {
		chunks = t.put(list.Encode())
	}
	if _, ok := t.Files[d]; !ok {
		t.Files[d] = path
	}
	return d, chunks, nil
}

func (t *Tree) put(b []byte) manifest.Digest {
	d := manifest.Sum(b)
	t.Meta[d] = b
	return d
}

func xattrs(path string) ([]manifest.Xattr, error) {
	buf := make([]byte, manifest.MaxXattrs)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil, fmt.Errorf("attributes of %s: %w", path, err)
	}
	var all []manifest.Xattr
	value := make([]byte, manifest.MaxXattrValue)
	for name := range bytes.SplitSeq(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		if len(name) == 0 || manifest.ForbiddenXattr(string(name)) {
			continue
		}
		k, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			return nil, fmt.Errorf("attribute %s of %s: %w", name, path, err)
		}
		all = append(all, manifest.Xattr{Name: string(name), Value: string(value[:k])})
	}
	manifest.SortXattrs(all)
	return all, nil
}

func (t *Tree) encode(d *dir, links map[inode]uint32, numbers map[inode]uint64) (manifest.Entry, error) {
	entries := make([]manifest.Entry, len(d.children))
	d.entry.Links = 2
	for i, c := range d.children {
		if c.entry.Type == manifest.Dir {
			e, err := t.encode(c, links, numbers)
			if err != nil {
				return e, err
			}
			entries[i] = e
			d.entry.Links++
			continue
		}
		id := d.inodes[i]
		if c.entry.Links = links[id]; c.entry.Links > 1 {
			if numbers[id] == 0 {
				numbers[id] = uint64(len(numbers) + 1)
			}
			c.entry.Link = numbers[id]
		}
		entries[i] = c.entry
	}
	var err error
	d.entry.Digest, err = t.Directory(entries)
	return d.entry, err
}

// Directory adds a directory with these entries, which are sorted, to the tree
// and its totals, and returns its digest. The totals count a file with several
// names as often.
func (t *Tree) Directory(entries []manifest.Entry) (manifest.Digest, error) {
	t.Totals.Dirs++
	t.Totals.Entries += uint64(len(entries))
	for _, e := range entries {
		if e.Type == manifest.File {
			t.Totals.Files++
			t.Totals.Bytes += uint64(e.Size)
		}
	}
	return manifest.EncodeDirectory(entries, func(d manifest.Digest, b []byte) error {
		t.Meta[d] = b
		return nil
	})
}

// Snapshot returns a snapshot of the tree as it stands.
func (t *Tree) Snapshot(service string) *manifest.Snapshot {
	return &manifest.Snapshot{Service: service, Sequence: 1, Source: "source", Root: t.Root, Totals: t.Totals}
}
