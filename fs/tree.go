package fs

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"srvfs/manifest"
)

// forever is how long the kernel may keep what it is told: what is true in a snapshot
// remains so, and a view that moves to another says what is true no more.
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
	top, err := v.table.add(0, folders)
	if err != nil {
		return err
	}
	first := top.first
	v.table.publish(v.table.at(0), top)
	v.root = first + slot(len(folders)) - 1
	if v.layout == Layers {
		v.gate, v.failed = first, first+1
		v.table.at(v.gate).setChildren(first, 0)
		v.table.at(v.failed).setChildren(first, 0)
	}
	return nil
}

// enter makes sure that the directory in s has its children in the table, and returns
// with v.tree locked for reading. It waits for the pages if they must be fetched. What
// is no directory it leaves alone. After an error nothing is locked.
func (v *View) enter(cancel <-chan struct{}, caller uint32, s slot) error {
	for {
		v.tree.RLock()
		n := v.table.at(s)
		if n.loaded() || !v.table.class(n).is(manifest.Dir) {
			return nil
		}
		r := v.table.refTo(s)
		v.tree.RUnlock()
		ctx := v.operation(cancel, caller)
		err := v.loadIn(ctx, r)
		ctx.end()
		if err != nil {
			return err
		}
	}
}

// loadIn loads the directory r, for as long as ctx. Where there is none any more it has
// nothing to do.
func (v *View) loadIn(ctx context.Context, r ref) error {
	return v.loads.do(ctx, v, r, func(ctx context.Context) error {
		for {
			digest, wanted := v.unread(r)
			if !wanted {
				return nil // by a call that ended just before this one began
			}
			entries, err := manifest.ReadDirectory(ctx, v.content, digest, v.table.room())
			if err == nil {
				err = v.take(r, digest, entries)
			}
			if now, wanted := v.unread(r); err == nil || wanted && now == digest {
				return err
			}
			// The view has moved meanwhile, and the directory is another.
		}
	})
}

// unread returns the digest of the directory r, if it is still to be loaded.
func (v *View) unread(r ref) (manifest.Digest, bool) {
	v.tree.RLock()
	defer v.tree.RUnlock()
	if !v.table.lives(r) {
		return manifest.Digest{}, false
	}
	n := v.table.at(r.slot)
	return n.digest, !n.loaded()
}

// errMoved says that a directory was read that is another by now.
var errMoved = errors.New("it has changed meanwhile")

// take takes the names of the directory r, which has this digest, into the table.
func (v *View) take(r ref, digest manifest.Digest, entries []manifest.Entry) error {
	v.tree.RLock()
	defer v.tree.RUnlock()
	dir := v.table.at(r.slot)
	if !v.table.lives(r) || dir.digest != digest || dir.loaded() {
		return errMoved
	}
	l, err := v.table.add(r.slot, entries)
	if err != nil {
		return err
	}
	if v.layout == Layers {
		v.digests.add(v.table, l.first, l.count) // before anyone can ask for them
	}
	v.table.publish(dir, l)
	v.directories.Add(1)
	return nil
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
	v.table.looked(s)
	out.NodeId, out.Generation = s.id(), uint64(uint32(v.generation+v.table.generation(s)))
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

// path returns where the snapshot has the node in s, by its first name, or had it when
// it left the tree. Where the view can move, the caller holds v.tree.
func (v *View) path(s slot) string {
	if v.table.hasLeft(s) {
		v.table.mu.Lock()
		defer v.table.mu.Unlock()
		if p, ok := v.table.left[s]; ok {
			return p
		}
	}
	return v.upward(s)
}

// upward is path for a node that is in the tree.
func (v *View) upward(s slot) string {
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

// pathTo is path for who does not hold v.tree.
func (v *View) pathTo(s slot) string {
	v.tree.RLock()
	defer v.tree.RUnlock()
	return v.path(s)
}

// below returns the path of a name in the directory in s.
func (v *View) below(s slot, name string) string {
	if p := v.path(s); p != "/" {
		return p + "/" + name
	}
	return "/" + name
}

// belowPath is below for who does not hold v.tree.
func (v *View) belowPath(s slot, name string) string {
	v.tree.RLock()
	defer v.tree.RUnlock()
	return v.below(s, name)
}
