package fs

import (
	"errors"
	"fmt"
	"io"

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
		v.tree.RLock()
		n := v.table.at(nodeSlot(in.NodeId))
		isFile := v.table.class(n).is(manifest.File)
		c.Digest, c.Size = n.digest, int64(n.value) // which no move changes
		v.tree.RUnlock()
		if !isFile {
			return nil, fuse.EINVAL
		}
	}
	off := int64(in.Offset)
	if off < 0 || off >= c.Size {
		return answer(nil), fuse.OK
	}
	buf = buf[:min(int64(len(buf)), int64(in.Size), c.Size-off)]

	ctx := v.operation(cancel, in.Pid)
	defer ctx.end()
	h := v.files.get(c.Digest)
	if h == nil {
		// The path and the chunk list cost time that later reads can do without.
		if c.Path == "" {
			v.tree.RLock()
			c = v.contentOf(nodeSlot(in.NodeId))
			v.tree.RUnlock()
			v.opened(nodeSlot(in.NodeId))
		}
		if err := v.files.hasFailed(c.Digest); err != nil {
			return nil, errno(err)
		}
		var err error
		if h, err = v.acquire(ctx, c); err != nil {
			return nil, v.failRead(in.NodeId, c, explain(ctx, err))
		}
	}
	if err := v.files.hasFailed(c.Digest); err != nil {
		v.files.put(h, false)
		return nil, errno(err)
	}
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
	return answer(buf), fuse.OK
}

func (v *View) failRead(id uint64, c manifest.Content, err error) fuse.Status {
	if errors.Is(err, manifest.ErrNotFound) && id < firstStream && v.table.hasLeft(nodeSlot(id)) {
		// It was opened before the view moved, and what was not read until then is
		// nowhere any more.
		err = fmt.Errorf("the file has been replaced or removed since it was opened, and this part of it is not here: %w: %w", manifest.ErrStale, err)
	}
	if errno(err) != fuse.EINTR {
		v.files.fails(c.Digest, err)
	}
	if c.Path == "" {
		c.Path = v.pathTo(nodeSlot(id))
	}
	return v.fail("read", c.Path, err)
}

// An answer is bytes in memory. go-fuse's own result of that kind has no Slices,
// and is offered to a pipe first, in vain: four system calls for each read.
type answer []byte

// Slices returns what the kernel gets.
func (a answer) Slices() ([][]byte, fuse.Status) { return [][]byte{a}, fuse.OK }

// Bytes implements [fuse.ReadResult].
func (a answer) Bytes([]byte) ([]byte, fuse.Status) { return a, fuse.OK }

// Size implements [fuse.ReadResult].
func (a answer) Size() int { return len(a) }

// Done implements [fuse.ReadResult].
func (a answer) Done() {}
