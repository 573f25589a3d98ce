package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// linkable reports whether a host file may be hard-linked into the store.
//
// A link is the host's own inode: a change in place changes our blob, and a
// root that has the blob open through overlayfs sees it before we can. Files of
// packages are replaced by rename, never written to; so they are linked. What
// people and programs edit (/etc, /var, /srv, ...) is reflinked or copied.
func linkable(p string) bool {
	for _, d := range []string{"/usr/", "/lib/", "/lib32/", "/lib64/", "/libx32/", "/bin/", "/sbin/"} {
		if strings.HasPrefix(p, d) {
			return !strings.HasPrefix(p, "/usr/local/")
		}
	}
	return false
}

// pin brings the host file m, which has the content c, into blobs: by hard
// link, else reflink, else copy.
func (s *Store) pin(ctx context.Context, m *match, c manifest.Content) error {
	kind, err := Linked, error(nil)
	linked := linkable(m.path) && !m.racy
	if linked {
		err = s.pinLink(m, c.Digest)
	}
	if !linked || err != nil {
		if kind, err = s.pinCopy(ctx, m, c); err != nil {
			return err
		}
	}
	s.stats.hostHits.add(1)
	s.stats.hostBytes.add(c.Size)
	_ = s.pins.set(c.Digest, kind) // its loss costs a wrong word in the status
	return nil
}

// pinLink links exactly the inode that was hashed, whatever its name leads to
// by now, and makes sure that it has not been written to since. The link
// changes ctime; a write would change mtime, which lies safely in the past.
func (s *Store) pinLink(m *match, d manifest.Digest) error {
	temp := s.tempPath()
	if err := unix.Linkat(unix.AT_FDCWD, procPath(m.file), unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW); err != nil {
		return err
	}
	k, err := statcache.FileKey(m.file)
	if err == nil && !unwritten(m.key, k) {
		err = errChanged
	}
	if err != nil {
		_ = os.Remove(temp)
		return err
	}
	if k, err = s.place(temp, d); err != nil {
		_ = os.Remove(temp)
		return err
	}
	if !unwritten(m.key, k) {
		s.drop(d, k, errChanged)
		return errChanged
	}
	s.settle(d, k)
	return nil
}

var errChanged = errors.New("the host's file was written to")

// unwritten reports whether only ctime differs: names or attributes changed,
// not bytes.
func unwritten(a, b statcache.Key) bool {
	a.Ctime, b.Ctime = 0, 0
	return a == b
}

// pinCopy makes a reflink, or a copy whose bytes are verified as they are written.
func (s *Store) pinCopy(ctx context.Context, m *match, c manifest.Content) (PinKind, error) {
	in, err := os.Open(procPath(m.file))
	if err != nil {
		return Unpinned, err
	}
	defer func() { _ = in.Close() }()
	temp := s.tempPath()
	out, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return Unpinned, s.onDisk(err, c.Path, c.Size)
	}
	kind := Reflinked
	if m.racy || !reflink(out, in, m.key) {
		kind = Copied
		err = copyVerified(ctx, out, in, c)
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = s.commit(temp, c.Digest)
	}
	if err != nil {
		_ = os.Remove(temp)
		return Unpinned, s.onDisk(err, c.Path, c.Size)
	}
	return kind, nil
}

// reflink makes out share in's blocks, if the file system can and in still has
// the key k.
func reflink(out, in *os.File, k statcache.Key) bool {
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) != nil {
		return false
	}
	now, err := statcache.FileKey(in)
	return err == nil && now == k
}

// copyVerified copies in to out, and fails unless it was c.
func copyVerified(ctx context.Context, out, in *os.File, c manifest.Content) error {
	if err := out.Truncate(0); err != nil { // what an attempt to reflink left
		return err
	}
	v, n, err := statcache.Hash(ctx, io.ReaderAt(tee{out, in}), false)
	if err == nil && (v.Digest != c.Digest || n != c.Size) {
		err = fmt.Errorf("%s on this host: %w", c.Path, manifest.ErrStale)
	}
	return err
}

// tee writes to out what is read from in.
type tee struct{ out, in *os.File }

func (t tee) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.in.ReadAt(p, off)
	if n > 0 {
		if _, werr := t.out.WriteAt(p[:n], off); werr != nil {
			return n, werr
		}
	}
	return n, err
}
