package fs

import "github.com/hanwen/go-fuse/v2/fuse"

// The mount is read-only, so the kernel asks none of these unless somebody
// remounts it otherwise. A writer is then told the truth.

func (r *raw) refuse() fuse.Status {
	r.v.count(opWrite)
	return fuse.EROFS
}

func (r *raw) SetAttr(<-chan struct{}, *fuse.SetAttrIn, *fuse.AttrOut) fuse.Status { return r.refuse() }

func (r *raw) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return r.refuse()
}

func (r *raw) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return r.refuse()
}
func (r *raw) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return r.refuse() }
func (r *raw) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status  { return r.refuse() }
func (r *raw) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return r.refuse()
}

func (r *raw) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return r.refuse()
}

func (r *raw) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return r.refuse()
}

func (r *raw) SetXAttr(<-chan struct{}, *fuse.SetXAttrIn, string, []byte) fuse.Status {
	return r.refuse()
}
func (r *raw) RemoveXAttr(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return r.refuse() }

func (r *raw) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return r.refuse()
}

func (r *raw) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return r.refuse()
}

func (r *raw) Write(<-chan struct{}, *fuse.WriteIn, []byte) (uint32, fuse.Status) {
	return 0, r.refuse()
}

func (r *raw) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, r.refuse()
}

func (r *raw) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, r.refuse()
}
func (r *raw) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status { return r.refuse() }
