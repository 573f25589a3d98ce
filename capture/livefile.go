package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// liveFiles says where the content of one snapshot's files is. It takes 8 bytes of
// memory for each, and reads its index for what that says.
type liveFiles struct {
	*index
	frozen string   // the folder of copies
	dir    *os.File // the root, O_PATH; nil until first needed
	// places are sorted: the first four bytes of a digest, and the number of the mark in
	// the index from which on, before the next, there is a file that has it.
	places []uint64

	mu     sync.Mutex
	again  map[string]Identity // by path: found unchanged by hash under another identity
	differ map[string]Identity // by path: found changed by hash
}

// A liveRec is what the index says of a file that has content.
type liveRec struct {
	path   string
	digest manifest.Digest
	id     Identity
	frozen bool // the library has a copy
}

func newLiveFiles(x *index, frozen string) (*liveFiles, error) {
	f := &liveFiles{index: x, frozen: frozen, again: map[string]Identity{}, differ: map[string]Identity{}}
	if err := x.mark(); err != nil {
		return nil, err
	}
	f.places = make([]uint64, 0, x.count)
	c := x.start()
	for c.next() {
		if c.kind == manifest.File && c.id.Size > 0 {
			f.places = append(f.places, uint64(binary.BigEndian.Uint32(c.digest))<<32|uint64(c.number/markEvery))
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	slices.Sort(f.places)
	f.places = slices.Clip(slices.Compact(f.places))
	return f, nil
}

// covers reports whether what the layers below say of the path does not count.
func (f *liveFiles) covers(p string) (bool, error) {
	c := f.seek(p)
	return c.ok && string(c.path) == p, c.err
}

// find returns the files that have the digest d.
func (f *liveFiles) find(d manifest.Digest) (all []liveRec, err error) {
	head := uint64(binary.BigEndian.Uint32(d[:])) << 32
	i, _ := slices.BinarySearch(f.places, head)
	for ; i < len(f.places) && f.places[i]>>32 == head>>32; i++ {
		c := f.at(int(uint32(f.places[i])))
		for n := 0; n < markEvery && c.next(); n++ {
			if !bytes.Equal(c.digest, d[:]) || c.id.Size == 0 {
				continue
			}
			e, err := c.entry()
			if err != nil {
				return nil, err
			}
			all = append(all, liveRec{e.Path, e.Digest, e.Identity, e.Frozen})
		}
		if c.err != nil {
			return nil, c.err
		}
	}
	return all, nil
}

// rootDir opens the root when it is first needed: the disk that it is on may
// not be mounted when the daemon starts.
func (f *liveFiles) rootDir() (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dir == nil {
		fd, err := unix.Open(f.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: f.root, Err: err}
		}
		f.dir = os.NewFile(uintptr(fd), f.root)
	}
	return f.dir, nil
}

// A liveRef is one record, and the files that it is of.
type liveRef struct {
	files *liveFiles
	liveRec
}

// A liveFile is an open file of which the identity was right when it was opened.
type liveFile struct {
	f    liveFD
	path string // in the snapshot
	size int64
	id   Identity // as it was found
	ref  liveRef
}

func (f *liveFile) close() { _ = f.f.Close() }

// A liveFD is the descriptor of an open regular file. An [os.File] would be
// offered to the runtime's poller first, which takes four system calls more to
// find that it can't be polled, and thousands of small files are read.
type liveFD int

// ReadAt implements [io.ReaderAt].
func (fd liveFD) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		k, err := unix.Pread(int(fd), p[n:], off+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n, os.NewSyscallError("pread", err)
		case k == 0:
			return n, io.EOF
		}
		n += max(k, 0)
	}
	return n, nil
}

// Close implements [io.Closer].
func (fd liveFD) Close() error { return os.NewSyscallError("close", unix.Close(int(fd))) }

func (fd liveFD) stat() (st unix.Stat_t, err error) {
	err = fstat(int(fd), &st)
	return st, os.NewSyscallError("fstat", err)
}

// open opens the file if it is still what was captured; else the error wraps
// [manifest.ErrStale] and says which path, and since when if that is known.
func (r liveRef) open() (*liveFile, error) {
	p := r.path
	if r.frozen {
		if file := r.openFrozen(); file != nil {
			return file, nil
		}
		// A copy that is lost is not worse than none: the file may be unchanged.
	}
	root, err := r.files.rootDir()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", p, err, manifest.ErrUnavailable)
	}
	fd, err := openFile(root, p)
	if err != nil {
		if gone(err) {
			return nil, stale(p, "it is gone, or a folder on its path was replaced: %v", err)
		}
		return nil, fmt.Errorf("%s: %w: %w", p, err, manifest.ErrUnavailable)
	}
	file := &liveFile{f: liveFD(fd), path: p, size: r.id.Size, ref: r}
	if err := file.check(); err != nil {
		file.close()
		return nil, err
	}
	return file, nil
}

// openFrozen opens the copy of a frozen file, or returns nil. Nobody writes to
// copies; that a disk has not changed them the standby's digests show.
func (r liveRef) openFrozen() *liveFile {
	fd, err := unix.Open(filepath.Join(r.files.frozen, r.digest.Hex()), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	file := &liveFile{f: liveFD(fd), path: r.path, size: r.id.Size, ref: r}
	st, err := file.f.stat()
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != r.id.Size {
		file.close()
		return nil
	}
	file.id = identityOf(&st)
	return file
}

// check compares the file's stat with the record.
func (f *liveFile) check() error {
	st, err := f.f.stat()
	if err != nil {
		return fmt.Errorf("%s: %w: %w", f.path, err, manifest.ErrUnavailable)
	}
	f.id = identityOf(&st)
	want := f.ref.id
	switch {
	case f.id == want:
		return nil
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return stale(f.path, "it is no longer a regular file")
	case f.id.Size != want.Size || f.id.Mtime != want.Mtime:
		return stale(f.path, "it had %d bytes and was modified %s; it has %d bytes and was modified %s",
			want.Size, stamp(want.Mtime), f.id.Size, stamp(f.id.Mtime))
	}
	return f.rehash()
}

// rehash decides about a file of the same size and modification time with
// another inode or change time.
func (f *liveFile) rehash() error {
	files := f.ref.files
	files.mu.Lock()
	same, differ := files.again[f.path] == f.id, files.differ[f.path] == f.id
	files.mu.Unlock()
	if same {
		return nil
	}
	if !differ {
		h := manifest.NewHasher()
		if _, err := io.Copy(h, io.NewSectionReader(f.f, 0, f.size)); err != nil {
			return fmt.Errorf("%s: %w: %w", f.path, err, manifest.ErrUnavailable)
		}
		d, _, _ := h.Sum()
		if err := f.unchanged(); err != nil {
			return err
		}
		files.mu.Lock()
		if d == f.ref.digest {
			files.again[f.path] = f.id
		} else {
			files.differ[f.path] = f.id
		}
		files.mu.Unlock()
		if d == f.ref.digest {
			return nil
		}
	}
	return stale(f.path, "it was replaced %s", stamp(f.id.Ctime))
}

// unchanged reports whether the stat is still what it was at open.
func (f *liveFile) unchanged() error {
	st, err := f.f.stat()
	if err != nil {
		return fmt.Errorf("%s: %w: %w", f.path, err, manifest.ErrUnavailable)
	}
	if id := identityOf(&st); id.Size != f.id.Size || id.Mtime != f.id.Mtime {
		return stale(f.path, "it was modified %s, while it was read", stamp(id.Mtime))
	}
	return nil
}

// readRange reads n bytes from off into buf, which grows as needed.
func (f *liveFile) readRange(buf *[]byte, off, n int64) ([]byte, error) {
	*buf = slices.Grow((*buf)[:0], int(n))[:n]
	if k, err := f.f.ReadAt(*buf, off); int64(k) < n {
		if errors.Is(err, io.EOF) {
			return nil, stale(f.path, "it ends after %d bytes", off+int64(k))
		}
		return nil, fmt.Errorf("%s: %w: %w", f.path, err, manifest.ErrUnavailable)
	}
	if err := f.unchanged(); err != nil {
		return nil, err
	}
	return *buf, nil
}

// A liveReader streams a range. It reports a change of the file in place of the
// end, or as soon as it meets one.
type liveReader struct {
	ctx      context.Context
	file     *liveFile
	f        *os.File // the same descriptor: one that may be closed while it is read from
	off, end int64
}

func (r *liveReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.off == r.end {
		if err := r.file.unchanged(); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	if int64(len(p)) > r.end-r.off {
		p = p[:r.end-r.off]
	}
	n, err := r.f.ReadAt(p, r.off)
	r.off += int64(n)
	switch {
	case n > 0 || err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		return 0, stale(r.file.path, "it ends after %d bytes", r.off)
	}
	return 0, fmt.Errorf("%s: %w: %w", r.file.path, err, manifest.ErrUnavailable)
}

func (r *liveReader) Close() error { return r.f.Close() }

func stale(p, format string, args ...any) error {
	return fmt.Errorf("%s: %w: %s; capture the service again", p, manifest.ErrStale, fmt.Sprintf(format, args...))
}

func stamp(ns int64) string { return time.Unix(0, ns).Format(time.RFC3339Nano) }

// gone reports whether an open failed because the path no longer leads to a
// file: it is missing, or a symlink, or a folder became a file.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}

// openCanonical opens the canonical path p below root for reading. No symlink
// is followed, not even on the way: whoever can write to a folder of the
// service could have put one there since the path was resolved.
func openCanonical(root *os.File, p string) (*os.File, error) {
	fd, err := openFile(root, p)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path.Join(root.Name(), p), Err: err}
	}
	return os.NewFile(uintptr(fd), path.Join(root.Name(), p)), nil
}

// openFile is openCanonical without an [os.File] around the descriptor, and with
// a bare errno.
func openFile(root *os.File, p string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_NOATIME,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := openat2(root, p, how)
	if errors.Is(err, unix.EPERM) { // O_NOATIME is for the owner and root
		how.Flags &^= unix.O_NOATIME
		fd, err = openat2(root, p, how)
	}
	return fd, err
}

func openat2(root *os.File, p string, how unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(int(root.Fd()), "."+p, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// identify returns the identity of the file that info describes.
func identify(info fs.FileInfo) Identity {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Identity{}
	}
	return Identity{Dev: st.Dev, Ino: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}
}

func identityOf(st *unix.Stat_t) Identity {
	return Identity{Dev: st.Dev, Ino: st.Ino, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}
}
