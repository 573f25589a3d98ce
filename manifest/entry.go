package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Type says what an entry is. Sockets have no type: a service makes its
// sockets anew, so they are left out of every snapshot.
type Type uint8

// The types of entries. The numbers are part of the encoding.
const (
	File Type = iota + 1
	Dir
	Symlink
	CharDevice
	BlockDevice
	FIFO
)

var typeNames = [...]string{File: "file", Dir: "dir", Symlink: "symlink", CharDevice: "chardev", BlockDevice: "blockdev", FIFO: "fifo"}

// String returns the type's name in lower case: "file", "dir", "symlink",
// "chardev", "blockdev" or "fifo".
func (t Type) String() string {
	if t.valid() {
		return typeNames[t]
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

func (t Type) valid() bool { return t >= File && t <= FIFO }

// Limits of Linux, in bytes, which decoders enforce.
const (
	MaxName       = 255       // NAME_MAX
	MaxPath       = 4096      // PATH_MAX
	MaxXattrName  = 255       // XATTR_NAME_MAX
	MaxXattrValue = 64 << 10  // XATTR_SIZE_MAX
	MaxXattrs     = 64 << 10  // XATTR_LIST_MAX: all names of one entry
	maxSize       = 1<<63 - 1 // loff_t
)

// An Xattr is one extended attribute: POSIX ACLs and file capabilities too
// are kept in this raw form.
type Xattr struct {
	Name  string
	Value string // any bytes
}

// Equal reports whether two entries are the same in all that they say.
func (e *Entry) Equal(o *Entry) bool {
	return e.Name == o.Name && e.Type == o.Type && e.Mode == o.Mode && e.UID == o.UID && e.GID == o.GID && e.Mtime == o.Mtime && e.Size == o.Size &&
		e.Digest == o.Digest && e.Chunks == o.Chunks && e.Target == o.Target && e.Rdev == o.Rdev && e.Links == o.Links && e.Link == o.Link && slices.Equal(e.Xattrs, o.Xattrs)
}

// A Time is a file's time: seconds since 1970 and the nanoseconds after them,
// so that years a time.Time in nanoseconds can't hold are kept.
type Time struct {
	Sec  int64
	Nsec uint32 // below 1e9
}

// An Entry is one name in a directory: what stat, readlink and listxattr say,
// and the digest of what read or readdir would return.
type Entry struct {
	Name  string // any bytes but '/' and NUL; empty only for a snapshot's root
	Type  Type
	Mode  uint32 // permissions, setuid, setgid and sticky: 07777
	UID   uint32
	GID   uint32
	Mtime Time
	Size  int64 // of a File, in bytes; else 0
	// Digest is of a File's bytes, or of a Dir's first page; else zero.
	Digest Digest
	// Chunks is the digest of the chunk list of a File with Size > ChunkSize.
	Chunks Digest
	Target string // of a Symlink
	Rdev   uint64 // of a device, as in stat(2) on Linux
	// Links is st_nlink: of a Dir, 2 + its sub-directories; else the number of
	// the file's names within the snapshot.
	Links uint32
	// Link is not zero when Links > 1 for anything but a Dir. Entries of one
	// snapshot with the same Link are one file.
	Link   uint64
	Xattrs []Xattr // sorted by name, each name once
}

// Content returns the content of the file e that stands at path.
func (e *Entry) Content(path string) Content {
	return Content{Digest: e.Digest, Size: e.Size, Chunks: e.Chunks, Path: path}
}

// overlayXattr begins the attributes by which overlayfs redirects a lookup. In
// a snapshot they would let its maker choose what a name shows.
const overlayXattr = "trusted.overlay."

// ForbiddenXattr reports whether the attribute can be in no snapshot, because
// it would steer the overlay file system on the standby.
func ForbiddenXattr(name string) bool {
	return strings.HasPrefix(name, overlayXattr) || strings.HasPrefix(name, "user.overlay.")
}

// ValidName reports whether s can be a name in a directory.
func ValidName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= MaxName && !strings.ContainsAny(s, "/\x00")
}

// validate reports the first reason why e can't be an entry. The root of a
// snapshot has no name; all others need one.
func (e *Entry) validate(root bool) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("entry %.300q: %s: %w", e.Name, fmt.Sprintf(format, args...), ErrInvalid)
	}
	switch {
	case root && (e.Name != "" || e.Type != Dir):
		return bad("a root is a directory without a name")
	case !root && !ValidName(e.Name):
		return bad("not a name")
	case !e.Type.valid():
		return bad("unknown %v", e.Type)
	case e.Mode&^0o7777 != 0:
		return bad("mode %#o", e.Mode)
	case e.Mtime.Nsec >= 1e9:
		return bad("mtime has %d ns", e.Mtime.Nsec)
	case e.Links == 0:
		return bad("no links")
	case (e.Type != Dir && e.Links > 1) != (e.Link != 0):
		return bad("%d links with link number %d", e.Links, e.Link)
	}
	if e.Type == File {
		switch {
		case e.Size < 0:
			return bad("size %d", e.Size)
		case e.Digest.IsZero() || (e.Size == 0) != (e.Digest == EmptyDigest):
			return bad("size %d with digest %v", e.Size, e.Digest)
		case (e.Size > ChunkSize) != !e.Chunks.IsZero():
			return bad("size %d with chunk list %v", e.Size, e.Chunks)
		}
	} else if e.Size != 0 || !e.Chunks.IsZero() {
		return bad("a %v has no size", e.Type)
	} else if (e.Type == Dir) != !e.Digest.IsZero() {
		return bad("a %v with digest %v", e.Type, e.Digest)
	}
	if e.Type == Symlink {
		if e.Target == "" || len(e.Target) >= MaxPath || strings.Contains(e.Target, "\x00") {
			return bad("symlink target %.80q", e.Target)
		}
	} else if e.Target != "" {
		return bad("a %v has no target", e.Type)
	}
	if e.Rdev != 0 && e.Type != CharDevice && e.Type != BlockDevice {
		return bad("a %v has no device number", e.Type)
	}
	total := 0
	for i, x := range e.Xattrs {
		total += len(x.Name) + 1
		switch {
		case x.Name == "" || len(x.Name) > MaxXattrName || strings.Contains(x.Name, "\x00") || len(x.Value) > MaxXattrValue || total > MaxXattrs:
			return bad("attribute %.80q", x.Name)
		case i > 0 && x.Name <= e.Xattrs[i-1].Name:
			return bad("attribute %.80q out of order", x.Name)
		case ForbiddenXattr(x.Name):
			return bad("attribute %.80q would steer the overlay", x.Name)
		}
	}
	return nil
}

// SortXattrs puts attributes into the order that the encoding demands.
func SortXattrs(xs []Xattr) {
	slices.SortFunc(xs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
}

// encode appends e. Fields that its type does not have take no space.
func (e *Entry) encode(w *encoder) {
	w.byte(byte(e.Type))
	w.string(e.Name)
	w.uint(uint64(e.Mode))
	w.uint(uint64(e.UID))
	w.uint(uint64(e.GID))
	w.int(e.Mtime.Sec)
	w.uint(uint64(e.Mtime.Nsec))
	w.uint(uint64(e.Links))
	if e.Type != Dir && e.Links > 1 {
		w.uint(e.Link)
	}
	switch e.Type {
	case File:
		w.uint(uint64(e.Size))
		if e.Size > 0 {
			w.digest(e.Digest)
		}
		if e.Size > ChunkSize {
			w.digest(e.Chunks)
		}
	case Dir:
		w.digest(e.Digest)
	case Symlink:
		w.string(e.Target)
	case CharDevice, BlockDevice:
		w.uint(e.Rdev)
	}
	w.uint(uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		w.string(x.Name)
		w.string(x.Value)
	}
}

// minEntry is the shortest encoding of an entry: an empty file named "a".
const minEntry = 12

func (e *Entry) decode(r *decoder, root bool) {
	const u32 = 1<<32 - 1
	e.Type = Type(r.byte())
	e.Name = r.string(MaxName, "name")
	e.Mode = uint32(r.upTo(0o7777, "mode"))
	e.UID = uint32(r.upTo(u32, "owner"))
	e.GID = uint32(r.upTo(u32, "group"))
	e.Mtime.Sec = r.int()
	e.Mtime.Nsec = uint32(r.upTo(1e9-1, "nanoseconds"))
	e.Links = uint32(r.upTo(u32, "links"))
	if e.Type != Dir && e.Links > 1 {
		e.Link = r.uint()
	}
	switch e.Type {
	case File:
		e.Size = int64(r.upTo(maxSize, "size"))
		e.Digest = EmptyDigest
		if e.Size > 0 {
			e.Digest = r.digest()
		}
		if e.Size > ChunkSize {
			e.Chunks = r.digest()
		}
	case Dir:
		e.Digest = r.digest()
	case Symlink:
		e.Target = r.string(MaxPath, "target")
	case CharDevice, BlockDevice:
		e.Rdev = r.uint()
	}
	if n := r.count(MaxXattrs/2, 2, "attributes"); n > 0 {
		e.Xattrs = make([]Xattr, n)
		for i := range e.Xattrs {
			e.Xattrs[i] = Xattr{Name: r.string(MaxXattrName, "attribute name"), Value: r.string(MaxXattrValue, "attribute")}
		}
	}
	if r.err == nil {
		if err := e.validate(root); err != nil {
			r.err = fmt.Errorf("%s: %w", r.what, err)
		}
	}
}
