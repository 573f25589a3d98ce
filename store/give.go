package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// hole is the smallest part of a file that is left out when it is all zeros, in bytes.
const hole = 4096

// WriteTo gives c's bytes to out, an empty file of somebody else. Where both lie on one
// file system with reflinks the blocks are shared until one of the two changes, and
// shared is true; else they are copied, and verified on the way. Of a copy the parts that
// are zeros are holes.
//
// Errors are as for Open; besides ErrCorrupt, if the store's own disk has changed the
// bytes: the blob is then gone, and out is of no use.
func (r *Reader) WriteTo(ctx context.Context, c manifest.Content, out *os.File) (shared bool, err error) {
	if err := r.Ensure(ctx, c); err != nil {
		return false, err
	}
	if c.Size == 0 {
		return false, nil
	}
	b, ok := r.store.openBlob(c.Digest)
	if !ok {
		return false, fmt.Errorf("%s: %s changes as fast as it is verified: %w", c.Path, r.store.blobPath(c.Digest), manifest.ErrCorrupt)
	}
	defer func() { _ = b.blob.Close() }()
	if reflink(out, b.blob, b.key) {
		return true, nil
	}
	if err := out.Truncate(0); err != nil { // what an attempt to reflink left
		return false, err
	}
	d, err := copySparse(ctx, out, b.blob)
	if err == nil && d != c.Digest {
		if _, err := r.store.rehash(ctx, c.Digest); err != nil {
			return false, err
		}
		err = fmt.Errorf("%s in %s: %w", c.Path, r.store.dir, manifest.ErrCorrupt)
	}
	return false, err
}

// copySparse copies in to out, which is empty, and returns its digest.
func copySparse(ctx context.Context, out, in *os.File) (d manifest.Digest, err error) {
	h := sha256.New()
	buf := takeBuffer(manifest.ChunkSize)
	defer giveBuffer(buf)
	zeros := make([]byte, hole)
	var off int64
	for {
		if ctx.Err() != nil {
			return d, context.Cause(ctx)
		}
		n, err := in.ReadAt(*buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return d, err
		}
		data := (*buf)[:n]
		_, _ = h.Write(data)
		for at := 0; at < n; {
			end := at
			for end < n && !bytes.Equal(data[end:min(n, end+hole)], zeros[:min(n, end+hole)-end]) {
				end = min(n, end+hole)
			}
			if _, err := out.WriteAt(data[at:end], off+int64(at)); end > at && err != nil {
				return d, err
			}
			at = min(n, end+hole) // what ended the run is a hole
		}
		off += int64(n)
		if err != nil {
			break
		}
	}
	return manifest.Digest(h.Sum(nil)), out.Truncate(off)
}

// Link makes to another name of the file that has c's bytes in the store: nobody may
// write to it. Owner, mode, times and attributes belong to the file, not to the name. So
// the first such name has dress give it what it needs; later ones are made if fits says
// that they want the same. linked is false, and to does not exist, where they do not, or
// where the file is the host's own.
//
// Errors are as for Open, or those of the file system: EXDEV if to lies on another one.
func (r *Reader) Link(ctx context.Context, c manifest.Content, to string, fits func(path string) bool, dress func(path string) error) (linked bool, err error) {
	s := r.store
	if err := r.Ensure(ctx, c); err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.blobPath(c.Digest), &st); err != nil {
		return false, err
	}
	before := statcache.KeyOf(&st)
	first := st.Nlink == 1
	if s.pins.get(c.Digest) == Linked || !first && !fits(s.blobPath(c.Digest)) || !s.trusted(c.Digest, before) {
		return false, nil
	}
	if err := unix.Linkat(unix.AT_FDCWD, s.blobPath(c.Digest), unix.AT_FDCWD, to, 0); err != nil {
		if errors.Is(err, unix.EMLINK) {
			return false, nil
		}
		return false, os.NewSyscallError("link", err)
	}
	defer func() {
		if !linked {
			_ = os.Remove(to)
		}
	}()
	now, ok := s.blobKey(c.Digest)
	if !ok || !unwritten(before, now) {
		return false, nil
	}
	if !first {
		s.settle(c.Digest, now)
		return true, nil
	}
	if err := dress(to); err != nil {
		return false, err
	}
	// Its mtime is another now, and would hide a write that came between.
	return s.rehash(ctx, c.Digest)
}
