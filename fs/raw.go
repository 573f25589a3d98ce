package fs

import (
	"bytes"
	"syscall"

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
	if err := v.enter(cancel, in.Pid, dir); err != nil {
		return v.fail("lookup", v.belowPath(dir, name), err)
	}
	defer v.tree.RUnlock()
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

// Forget takes note that the kernel has n references to a node less. A node that is in
// the tree stays, whatever the kernel has of it: their memory is bounded by the number of
// names that the snapshot counts.
func (r *raw) Forget(id, n uint64) {
	r.v.count(opForget)
	if id < firstStream {
		r.v.table.forget(nodeSlot(id), n)
	}
}

func (r *raw) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	r.v.count(opGetAttr)
	if st, ok := r.v.streamOf(in.NodeId); ok {
		r.v.streamAttr(st, &out.Attr)
	} else {
		r.v.tree.RLock()
		r.v.attr(nodeSlot(in.NodeId), &out.Attr)
		r.v.tree.RUnlock()
	}
	out.SetTimeout(forever)
	return fuse.OK
}

func (r *raw) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	r.v.count(opReadlink)
	r.v.tree.RLock()
	defer r.v.tree.RUnlock()
	n := r.v.table.at(nodeSlot(in.NodeId))
	if !r.v.table.class(n).is(manifest.Symlink) {
		return nil, fuse.EINVAL
	}
	rec := r.v.table.record(n)
	rec.name()
	rec.links()
	return bytes.Clone(rec.target()), fuse.OK // it is sent when the tree may be another
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

// firstName is the offset after the name in slot 0, which is in no listing.
const firstName = 3

// list passes the entries of a directory from in.Offset on to add, until it says
// that there is no room for one. Offset 1 is after ".", 2 after "..", and s+3 after
// the name in slot s, so that an offset stays good when names come and go. The kernel's
// listings rely on nothing else.
func (v *View) list(cancel <-chan struct{}, in *fuse.ReadIn, add func(fuse.DirEntry, slot) bool) fuse.Status {
	dir := nodeSlot(in.NodeId)
	if err := v.enter(cancel, in.Pid, dir); err != nil {
		return v.fail("readdir", v.pathTo(dir), err)
	}
	defer v.tree.RUnlock()
	n := v.table.at(dir)
	if !v.table.class(n).is(manifest.Dir) {
		return fuse.ENOTDIR
	}
	if in.Offset == 0 {
		v.listed(dir)
	}
	l := v.table.children(n)
	parent := n.parent
	if dir == v.root {
		parent = dir // as at the root of every file system
	}
	dots := []fuse.DirEntry{{Name: ".", Ino: dir.id(), Mode: fuse.S_IFDIR, Off: 1}, {Name: "..", Ino: parent.id(), Mode: fuse.S_IFDIR, Off: 2}}
	for _, e := range dots[min(in.Offset, 2):] {
		if !add(e, noSlot) {
			return fuse.OK
		}
	}
	i := 0
	if in.Offset > 2 {
		var ok bool
		if i, ok = v.table.resume(l, dir, slot(in.Offset-firstName)); !ok {
			return fuse.Status(syscall.ESTALE)
		}
	}
	for ; i < l.count; i++ {
		s := l.at(i)
		e := fuse.DirEntry{Name: string(v.table.name(s)), Ino: v.table.resolve(s).id(), Mode: v.table.class(v.table.at(s)).mode, Off: uint64(s) + firstName}
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
	r.v.tree.RLock()
	defer r.v.tree.RUnlock()
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
	r.v.tree.RLock()
	defer r.v.tree.RUnlock()
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
	r.v.tree.RLock()
	defer r.v.tree.RUnlock()
	t := r.v.snapshot.Totals
	*out = fuse.StatfsOut{
		Bsize: blockSize, Frsize: blockSize, NameLen: manifest.MaxName,
		Blocks: t.Bytes / blockSize, Files: t.Entries + 1,
	}
	return fuse.OK
}
