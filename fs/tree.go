package fs

import (
	"context"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"srvfs/manifest"
)

// forever is how long the kernel may keep what it is told: a view is frozen at
// its snapshot, so nothing that was true becomes false.
const forever = 365 * 24 * time.Hour

const (
	blockSize = 4096 // st_blksize, and the st_size of a directory
	sector    = 512  // the unit of st_blocks
)

// plant puts the folders above the tree into the table, and the tree's root.
//
// A tree's root is never the root of FUSE: of that one node the kernel keeps no
// ACLs, as it makes it before it knows that this file system has any. So each
// path that a user other than the owner walks through it would be an upcall.
// With Plain the folder "tree" is what is mounted; see [View.show].
func (v *View) plant() error {
	root := v.snapshot.Root
	folder := func(name string, links uint32) manifest.Entry {
		return manifest.Entry{Name: name, Type: manifest.Dir, Mode: 0o500, Links: links, Mtime: root.Mtime}
	}
	root.Name = treeFolder
	folders := []manifest.Entry{root}
	if v.layout == Layers {
		folders = []manifest.Entry{folder(contentFolder, 2), folder(failedFolder, 2), root} // by name
	}
	if _, err := v.table.add(0, []manifest.Entry{folder("", 2+uint32(len(folders)))}); err != nil {
		return err
	}
	first, err := v.table.add(0, folders)
	if err != nil {
		return err
	}
	v.table.at(0).setChildren(first, uint32(len(folders)))
	v.root = first + slot(len(folders)) - 1
	if v.layout == Layers {
		v.gate, v.failed = first, first+1
		v.table.at(v.gate).setChildren(first, 0)
		v.table.at(v.failed).setChildren(first, 0)
	}
	return nil
}

// load makes sure that the directory in s has its children in the table. It
// waits for the pages if they must be fetched.
func (v *View) load(cancel <-chan struct{}, caller uint32, s slot) error {
	if _, _, loaded := v.table.at(s).children(); loaded {
		return nil
	}
	ctx := v.operation(cancel, caller)
	defer ctx.end()
	return v.loadIn(ctx, s)
}

// loadIn is load for as long as ctx.
func (v *View) loadIn(ctx context.Context, s slot) error {
	return v.loads.do(ctx, v, s, func(ctx context.Context) error {
		dir := v.table.at(s)
		if _, _, loaded := dir.children(); loaded {
			return nil // by a call that ended just before this one began
		}
		entries, err := manifest.ReadDirectory(ctx, v.content, dir.digest, v.table.room())
		if err != nil {
			return err
		}
		first, err := v.table.add(s, entries)
		if err != nil {
			return err
		}
		if v.layout == Layers {
			v.digests.add(v.table, first, len(entries)) // before anyone can ask for them
		}
		dir.setChildren(first, uint32(len(entries)))
		v.directories.Add(1)
		return nil
	})
}

// attr fills in what stat says of the node in s.
func (v *View) attr(s slot, out *fuse.Attr) {
	n := v.table.at(s)
	c := v.table.class(n)
	r := v.table.record(n)
	r.name()
	*out = fuse.Attr{
		Ino: s.id(), Mode: c.mode, Nlink: r.links(), Owner: fuse.Owner{Uid: c.uid, Gid: c.gid}, Blksize: blockSize,
		Atime: uint64(n.sec), Mtime: uint64(n.sec), Ctime: uint64(n.sec), Atimensec: n.nsec, Mtimensec: n.nsec, Ctimensec: n.nsec,
	}
	switch {
	case c.is(manifest.File):
		out.Size = n.value
	case c.is(manifest.Dir):
		out.Size = blockSize
	case c.is(manifest.Symlink):
		r.chunks()
		out.Size = uint64(len(r.target()))
		return // its target needs no blocks
	default:
		out.Rdev = uint32(n.value)
	}
	out.Blocks = (out.Size + sector - 1) / sector
}

// entry answers a lookup with the node that the name in s stands for.
func (v *View) entry(s slot, out *fuse.EntryOut) {
	s = v.table.resolve(s)
	v.attr(s, &out.Attr)
	out.NodeId, out.Generation = s.id(), v.generation
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
}

// contentOf returns the content of the file in s.
func (v *View) contentOf(s slot) manifest.Content {
	n := v.table.at(s)
	r := v.table.record(n)
	r.name()
	r.links()
	return manifest.Content{Digest: n.digest, Size: int64(n.value), Chunks: r.chunks(), Path: v.path(s)}
}

// path returns where the snapshot has the node in s, by its first name.
func (v *View) path(s slot) string {
	var names [][]byte
	length := 0
	for s != v.root && s != 0 {
		name := v.table.name(s)
		names = append(names, name)
		length += 1 + len(name)
		s = v.table.at(s).parent
	}
	if len(names) == 0 {
		return "/"
	}
	path := make([]byte, 0, length)
	for _, name := range slices.Backward(names) {
		path = append(append(path, '/'), name...)
	}
	return string(path)
}

// below returns the path of a name in the directory in s.
func (v *View) below(s slot, name string) string {
	if p := v.path(s); p != "/" {
		return p + "/" + name
	}
	return "/" + name
}
