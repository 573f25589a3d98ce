package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"srvfs/manifest"
)

// raw answers the kernel. What it does not define is answered ENOSYS, once: the
// kernel then never asks again and does without, as for FLUSH, FSYNC, LSEEK,
// ACCESS, IOCTL and STATX.
type raw struct {
	fuse.RawFileSystem
	v *View
}

// nodeSlot returns the slot of a node that the kernel names.
func nodeSlot(id uint64) slot { return slot(id - 1) }

// String names the file system in go-fuse's own messages.
func (r *raw) String() string { return "srvfs" }

// Lookup answers with a name's node; or that there is none, which the kernel
// may remember as long.
func (r *raw) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	v := r.v
	v.count(opLookup)
	dir := nodeSlot(in.NodeId)
	if v.gate != 0 && dir == v.gate {
		return v.lookupContent(cancel, in.Pid, name, out)
	}
	if v.gate != 0 && dir == v.failed {
		return v.lookupFailed(name)
	}
	if err := v.load(cancel, in.Pid, dir); err != nil {
		return v.fail("lookup", v.below(dir, name), err)
	}
	n := v.table.at(dir)
	if !v.table.class(n).is(manifest.Dir) {
		return fuse.ENOTDIR
	}
	s, found := v.table.find(n, name)
	if !found {
		if v.missed != nil {
			v.missed(v.below(dir, name))
		}
		out.NodeId = 0
		out.SetEntryTimeout(forever)
		return fuse.OK
	}
	v.entry(s, out)
	return fuse.OK
}

// Forget does nothing: nodes are permanent, and their memory is bounded by the
// number of names that the snapshot counts.
func (r *raw) Forget(uint64, uint64) { r.v.count(opForget) }

func (r *raw) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	r.v.count(opGetAttr)
	if st, ok := r.v.streamOf(in.NodeId); ok {
		r.v.streamAttr(st, &out.Attr)
	} else {
		r.v.attr(nodeSlot(in.NodeId), &out.Attr)
	}
	out.SetTimeout(forever)
	return fuse.OK
}

func (r *raw) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	r.v.count(opReadlink)
	n := r.v.table.at(nodeSlot(in.NodeId))
	if !r.v.table.class(n).is(manifest.Symlink) {
		return nil, fuse.EINVAL
	}
	rec := r.v.table.record(n)
	rec.name()
	rec.links()
	return rec.target(), fuse.OK
}

// Open is answered ENOSYS, after which the kernel opens every file of this view
// by itself and keeps its pages from one open to the next.
func (r *raw) Open(_ <-chan struct{}, _ *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	r.v.count(opOpen)
	return fuse.ENOSYS
}

// OpenDir likewise: the kernel keeps listings too.
func (r *raw) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	r.v.count(opOpenDir)
	return fuse.ENOSYS
}

func (r *raw) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status {
	r.v.count(opFlush)
	return fuse.ENOSYS
}

func (r *raw) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	r.v.count(opReadDir)
	return r.v.list(cancel, in, func(e fuse.DirEntry, _ slot) bool { return out.AddDirEntry(e) })
}

func (r *raw) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	r.v.count(opReadDirPlus)
	return r.v.list(cancel, in, func(e fuse.DirEntry, s slot) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && s != noSlot { // of "." and ".." the kernel wants no node
			r.v.entry(s, entry)
		}
		return entry != nil
	})
}

const noSlot = ^slot(0)

// list passes the entries of a directory from in.Offset on to add, until it says
// that there is no room for one. Offset 1 is after ".", 2 after "..", and k+2
// after the k-th name, so that an offset stays good for as long as the view.
func (v *View) list(cancel <-chan struct{}, in *fuse.ReadIn, add func(fuse.DirEntry, slot) bool) fuse.Status {
	dir := nodeSlot(in.NodeId)
	if err := v.load(cancel, in.Pid, dir); err != nil {
		return v.fail("readdir", v.path(dir), err)
	}
	n := v.table.at(dir)
	if !v.table.class(n).is(manifest.Dir) {
		return fuse.ENOTDIR
	}
	if in.Offset == 0 {
		v.listed(dir)
	}
	first, count, _ := n.children()
	parent := n.parent
	if dir == v.root {
		parent = dir // as at the root of every file system
	}
	for off := in.Offset; off < uint64(count)+2; off++ {
		e := fuse.DirEntry{Off: off + 1}
		s := noSlot
		switch off {
		case 0:
			e.Name, e.Ino, e.Mode = ".", dir.id(), fuse.S_IFDIR
		case 1:
			e.Name, e.Ino, e.Mode = "..", parent.id(), fuse.S_IFDIR
		default:
			s = first + slot(off-2)
			e.Name, e.Ino, e.Mode = string(v.table.name(s)), v.table.resolve(s).id(), v.table.class(v.table.at(s)).mode
		}
		if !add(e, s) {
			break
		}
	}
	return fuse.OK
}

// selinuxLabel is what "ls -l" asks of every file. Where no file has one, it is
// told that this file system has no labels; it then asks no further.
const selinuxLabel = "security.selinux"

func (r *raw) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	r.v.count(opGetXAttr)
	value, found := r.v.xattr(in.NodeId, name)
	switch {
	case !found && name == selinuxLabel && !r.v.table.labelled.Load():
		return 0, fuse.ENOTSUP
	case !found:
		return 0, fuse.ENOATTR
	case len(dest) < len(value):
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// xattr returns an extended attribute. In the tree of Layers each file with
// content also has those that send the overlay to the gate. The kernel does not
// keep attributes, so each question for one is an upcall; ENOSYS would spare them,
// but it counts for the whole mount, and would be right only for a snapshot in
// which no file at all has attributes.
func (v *View) xattr(id uint64, name string) (value []byte, found bool) {
	if id >= firstStream {
		return nil, false
	}
	s := nodeSlot(id)
	n := v.table.at(s)
	if v.layout == Layers && v.table.class(n).is(manifest.File) && n.value > 0 {
		switch name {
		case overlayMetacopy:
			return nil, true
		case overlayRedirect:
			return append([]byte{'/'}, n.digest.Hex()...), true
		}
	}
	v.eachXattr(n, func(k, val []byte) bool {
		if string(k) == name {
			value, found = val, true
		}
		return !found
	})
	return value, found
}

func (v *View) eachXattr(n *node, yield func(name, value []byte) bool) {
	rec := v.table.record(n)
	rec.name()
	rec.links()
	rec.chunks()
	rec.target()
	rec.xattrs(yield)
}

// ListXAttr leaves out the overlay's attributes: it needs none of them listed,
// and a copy of a file that carried them would be a trap.
func (r *raw) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	r.v.count(opListXAttr)
	if in.NodeId >= firstStream {
		return 0, fuse.OK
	}
	var size int
	r.v.eachXattr(r.v.table.at(nodeSlot(in.NodeId)), func(name, _ []byte) bool {
		if size+len(name)+1 <= len(dest) {
			dest[size+copy(dest[size:], name)] = 0
		}
		size += len(name) + 1
		return true
	})
	if size > len(dest) {
		return uint32(size), fuse.ERANGE
	}
	return uint32(size), fuse.OK
}

// StatFs says how large the snapshot is. Overlayfs refuses a layer without it.
func (r *raw) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	r.v.count(opStatFs)
	t := r.v.snapshot.Totals
	*out = fuse.StatfsOut{
		Bsize: blockSize, Frsize: blockSize, NameLen: manifest.MaxName,
		Blocks: t.Bytes / blockSize, Files: t.Entries + 1,
	}
	return fuse.OK
}
