package fs

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"srvfs/manifest"
)

// Read serves the bytes that the kernel does not have in its page cache.
func (r *raw) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	r.v.count(opRead)
	return r.v.read(cancel, in, buf)
}

func (v *View) read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	var c manifest.Content
	if st, ok := v.streamOf(in.NodeId); ok {
		c = st.content
		v.resume(st)
	} else {
		n := v.table.at(nodeSlot(in.NodeId))
		if !v.table.class(n).is(manifest.File) {
			return nil, fuse.EINVAL
		}
		c.Digest, c.Size = n.digest, int64(n.value)
	}
	off := int64(in.Offset)
	if off < 0 || off >= c.Size {
		return fuse.ReadResultData(nil), fuse.OK
	}
	buf = buf[:min(int64(len(buf)), int64(in.Size), c.Size-off)]

	h := v.files.get(c.Digest)
	if h == nil {
		// The path and the chunk list cost time that later reads can do without.
		if c.Path == "" {
			c = v.contentOf(nodeSlot(in.NodeId))
			v.opened(nodeSlot(in.NodeId))
		}
		if err := v.files.hasFailed(c.Digest); err != nil {
			return nil, errno(err)
		}
		ctx, end := v.operation(cancel, in.Pid)
		defer end()
		var err error
		if h, err = v.acquire(ctx, c); err != nil {
			return nil, v.failRead(in.NodeId, c, explain(ctx, err))
		}
	}
	if d, ok := h.file.(Descriptor); ok {
		if fd, ok := d.Fd(); ok {
			v.readBytes.Add(uint64(len(buf)))
			return &spliced{v: v, h: h, fd: fd, off: off, size: len(buf)}, fuse.OK
		}
	}
	if err := v.files.hasFailed(c.Digest); err != nil {
		v.files.put(h, false)
		return nil, errno(err)
	}
	ctx, end := v.operation(cancel, in.Pid)
	defer end()
	n, err := h.file.ReadAt(ctx, buf, off)
	if n < len(buf) && (err == nil || errors.Is(err, io.EOF)) {
		err = fmt.Errorf("%d bytes at %d of %d, %d wanted: %w", n, off, c.Size, len(buf), manifest.ErrCorrupt)
	}
	if n < len(buf) {
		v.files.put(h, true)
		return nil, v.failRead(in.NodeId, c, explain(ctx, err))
	}
	v.files.put(h, false)
	v.readBytes.Add(uint64(n))
	return fuse.ReadResultData(buf), fuse.OK
}

func (v *View) failRead(id uint64, c manifest.Content, err error) fuse.Status {
	if errno(err) != fuse.EINTR {
		v.files.fails(c.Digest, err)
	}
	if c.Path == "" {
		c.Path = v.path(nodeSlot(id))
	}
	return v.fail("read", c.Path, err)
}

// spliced is an answer that the kernel takes from a file of the disk itself,
// without a copy through this process. Its methods are those that go-fuse looks
// for in its own kind.
type spliced struct {
	v    *View
	h    *handle
	fd   uintptr
	off  int64
	size int
}

// Seekable tells go-fuse that it may splice, and what.
func (s *spliced) Seekable() (fd uintptr, off int64, size int) { return s.fd, s.off, s.size }

// Size returns the length of the answer in bytes.
func (s *spliced) Size() int { return s.size }

// Bytes is for when splicing does not work.
func (s *spliced) Bytes(buf []byte) ([]byte, fuse.Status) {
	if cap(buf) < s.size {
		buf = make([]byte, s.size)
	}
	buf = buf[:s.size]
	for n := 0; n < s.size; {
		k, err := syscall.Pread(int(s.fd), buf[n:], s.off+int64(n))
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return nil, fuse.EIO
		case k == 0:
			return nil, fuse.EIO // the blob is shorter than its content
		default:
			n += k
		}
	}
	return buf, fuse.OK
}

// Done gives the file back when the kernel has the bytes.
func (s *spliced) Done() { s.v.files.put(s.h, false) }
