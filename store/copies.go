package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// Copies is a folder of private copies: files with the bytes of a content that
// are nobody else's, so that a service may write to them. Blobs are shared, and may
// be the host's own files; a copy never shares an inode with one.
//
// A copy is made for a path, and kept in step with it: when a newer snapshot has
// other bytes there, only the chunks that differ are written. It counts only
// when all of it has been verified and flushed, and its stat (device, inode, size,
// mtime, ctime) recorded; a copy that a killed process left half-way has another
// stat, and is gone over again by the next Update. So a process killed at any
// point leaves a good copy, or one that nobody uses.
//
// Its methods may be called from several goroutines. One Copies at a time uses a
// folder.
type Copies struct {
	store *Store
	dir   string

	mu   sync.Mutex
	busy map[string]bool // names that an Update is writing to
}

// Copies returns the private copies in dir, which is made when the first one
// is. The folder must lie outside the store's.
func (s *Store) Copies(dir string) *Copies {
	return &Copies{store: s, dir: dir, busy: map[string]bool{}}
}

const (
	// copyReserve is the share of a file system that copies leave free: they save
	// time, and must never be what a service has no space for.
	copyReserve = 20
	// copyFlush is how much of a copy is written before it is sent to the disk, so
	// that nobody's fsync has to wait for all of it.
	copyFlush = 16 << 20
)

// zeroes is what a hole reads as.
var zeroes = manifest.Sum(make([]byte, manifest.ChunkSize))

// name returns the name of a path's copy in the folder.
func (c *Copies) name(path string) string { return manifest.Sum([]byte(path)).Hex() }

// Update makes the copy of of.Path one of this content, and returns how many
// bytes had to be written: none if it is one already, or if the file system can
// share the blob's blocks. It reads the store and the host, and asks no source;
// it stands back while anybody waits for content.
//
// The error wraps ErrUnavailable if the content is not local yet, ErrNoSpace if
// the copy would leave too little of the disk free, ErrCorrupt if the blob turned
// out to be damaged; or it is ErrBusy, or the context's.
func (c *Copies) Update(ctx context.Context, r *Reader, of manifest.Content) (wrote int64, err error) {
	name := c.name(of.Path)
	c.mu.Lock()
	if c.busy[name] {
		c.mu.Unlock()
		return 0, fmt.Errorf("private copy of %s: %w", of.Path, ErrBusy)
	}
	c.busy[name] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.busy, name)
		c.mu.Unlock()
	}()
	if err := valid(of); err != nil {
		return 0, err
	}
	path := filepath.Join(c.dir, name)
	if c.store.isCopy(path, of) {
		return 0, nil
	}
	if there, err := r.local(ctx, of, thorough); err != nil {
		return 0, err
	} else if !there {
		return 0, fmt.Errorf("private copy of %s: its content is not local yet: %w", of.Path, manifest.ErrUnavailable)
	}
	lowPriority(func() { wrote, err = c.update(ctx, r, of, path) })
	if err != nil && ctx.Err() == nil && !errors.Is(err, manifest.ErrCorrupt) {
		err = c.store.onDisk(err, "private copy of "+of.Path, of.Size)
	}
	return wrote, err
}

// ErrBusy: the same copy is being made by another call.
var ErrBusy = errors.New("it is being made")

// isCopy reports whether the file at path is a verified copy of the content.
func (s *Store) isCopy(path string, of manifest.Content) bool {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Size != of.Size {
		return false
	}
	v, ok := s.stat.Get(statcache.KeyOf(&st))
	return ok && v.Digest == of.Digest
}

// update is Update for a content whose blob stands.
func (c *Copies) update(ctx context.Context, r *Reader, of manifest.Content, path string) (int64, error) {
	s := c.store
	list := manifest.ChunkList{of.Digest}
	if of.Size > manifest.ChunkSize {
		bodies, err := r.meta(ctx, []manifest.Digest{of.Chunks}, keepIfPossible)
		if err != nil {
			return 0, fmt.Errorf("chunk list of %s: %w", of.Path, err)
		}
		if list, err = manifest.DecodeChunkList(bodies[0], of.Size); err != nil {
			return 0, fmt.Errorf("%s: %w", of.Path, err)
		}
	}
	blob, ok := s.openBlob(of.Digest)
	if !ok || blob.blob == nil {
		return 0, fmt.Errorf("private copy of %s: %s is no longer there: %w", of.Path, s.blobPath(of.Digest), manifest.ErrUnavailable)
	}
	defer func() { _ = blob.close() }()
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return 0, err
	}
	f, err := openCopy(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	w := &copying{s: s, ctx: ctx, of: of, list: list, from: blob.blob, to: f}
	if !reflink(f, blob.blob, blob.key) {
		if err := w.room(); err != nil {
			return 0, err
		}
		if err := w.write(); err != nil {
			return w.wrote, err
		}
	}
	if err := f.Truncate(of.Size); err != nil {
		return w.wrote, err
	}
	return w.wrote, w.finish(blob.key)
}

// openCopy opens a copy to write to it. One that has a second name, or is no
// file, is somebody else's doing and makes room.
func openCopy(path string) (*os.File, error) {
	for range 2 {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err == nil {
			var st unix.Stat_t
			if err = unix.Fstat(int(f.Fd()), &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 1 {
				return f, nil
			}
			_ = f.Close()
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err := os.RemoveAll(path); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: somebody else changes it", path)
}

// copying is one copy that is being written.
type copying struct {
	s        *Store
	ctx      context.Context
	of       manifest.Content
	list     manifest.ChunkList
	from, to *os.File
	wrote    int64
}

// room fails if the copy would leave too little space for others.
func (w *copying) room() error {
	var st unix.Stat_t
	var disk unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(w.to.Fd()), &st), unix.Fstatfs(int(w.to.Fd()), &disk)); err != nil {
		return err
	}
	need, free := w.of.Size-st.Blocks*512, int64(disk.Bavail)*disk.Bsize
	if reserve := int64(disk.Blocks) * disk.Bsize / copyReserve; need > 0 && free-need < reserve {
		return fmt.Errorf("it would leave %d bytes free, less than a %dth of the disk: %w", max(0, free-need), copyReserve, unix.ENOSPC)
	}
	return nil
}

// had returns the chunks that the file is known to have, or nil.
func (w *copying) had(k statcache.Key) manifest.ChunkList {
	v, ok := w.s.stat.Get(k)
	if !ok || v.Chunks.IsZero() {
		return nil
	}
	b := w.s.readMeta(v.Chunks)
	if b == nil {
		return nil
	}
	list, err := manifest.DecodeChunkList(b, k.Size)
	if err != nil {
		return nil
	}
	return list
}

// write writes the chunks that the file does not have, verified on the way.
func (w *copying) write() error {
	k, err := statcache.FileKey(w.to)
	if err != nil {
		return err
	}
	had := w.had(k)
	if k.Size > w.of.Size {
		if err := w.to.Truncate(w.of.Size); err != nil {
			return err
		}
	}
	buf := takeBuffer(manifest.ChunkSize)
	defer giveBuffer(buf)
	flushed := int64(0)
	for i := range w.list {
		off := int64(i) * manifest.ChunkSize
		chunk := (*buf)[:min(manifest.ChunkSize, w.of.Size-off)]
		if err := w.s.demand.yield(w.ctx); err != nil {
			return err
		}
		switch {
		case i < len(had) && had[i] == w.list[i]:
			continue
		case had == nil && off < k.Size: // what a killed process left may be good
			if n, _ := w.to.ReadAt(chunk, off); n == len(chunk) && manifest.Sum(chunk) == w.list[i] {
				continue
			}
		case off >= k.Size && w.list[i] == zeroes:
			continue // a hole, once the file is as long
		}
		if _, err := w.from.ReadAt(chunk, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if manifest.Sum(chunk) != w.list[i] {
			return w.damaged()
		}
		if _, err := w.to.WriteAt(chunk, off); err != nil {
			return err
		}
		if w.wrote += int64(len(chunk)); w.wrote-flushed >= copyFlush {
			flushed = w.wrote
			const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
			if err := unix.SyncFileRange(int(w.to.Fd()), 0, off+int64(len(chunk)), wait); err != nil {
				return err
			}
		}
	}
	return nil
}

// damaged has the blob looked at again, and removed if it is bad.
func (w *copying) damaged() error {
	_, err := w.s.rehash(w.ctx, w.of.Digest)
	return errors.Join(fmt.Errorf("private copy of %s: the stored content is damaged: %w", w.of.Path, manifest.ErrCorrupt), err)
}

// finish brings the copy to the disk, then records its stat.
func (w *copying) finish(blob statcache.Key) error {
	if now, err := statcache.FileKey(w.from); err != nil || now != blob {
		return errors.Join(w.damaged(), err)
	}
	// As for blobs: a write to the copy, however soon it comes, changes an mtime
	// that is long ago.
	if err := errors.Join(os.Chtimes(procPath(w.to), blobMtime, blobMtime), w.to.Sync()); err != nil {
		return err
	}
	k, err := statcache.FileKey(w.to)
	if err != nil {
		return err
	}
	return w.s.stat.PutTrusted(k, statcache.Value{Digest: w.of.Digest, Chunks: w.of.Chunks})
}

// Take moves the copy of of.Path to the path to, on the same file system, and
// reports whether there was one, verified, with just this content. Its owner is
// root and its mode 0600.
func (c *Copies) Take(of manifest.Content, to string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := c.name(of.Path)
	from := filepath.Join(c.dir, name)
	if c.busy[name] || !c.store.isCopy(from, of) {
		return false, nil
	}
	if err := os.Rename(from, to); err != nil {
		return false, fmt.Errorf("private copy of %s: %w", of.Path, err)
	}
	return true, nil
}

// Retain removes the copies of all paths but these.
func (c *Copies) Retain(paths []string) error {
	keep := map[string]bool{}
	for _, p := range paths {
		keep[c.name(p)] = true
	}
	list, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range list {
		if !keep[e.Name()] && !c.busy[e.Name()] {
			if err := os.RemoveAll(filepath.Join(c.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if len(keep) == 0 && len(c.busy) == 0 {
		if err := os.Remove(c.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Usage returns the number of copies, and the bytes that they take on disk.
func (c *Copies) Usage() (n Count) {
	list, err := os.ReadDir(c.dir)
	if err != nil {
		return n // nothing has been copied yet
	}
	for _, e := range list {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(c.dir, e.Name()), &st) == nil {
			n.add(1, st.Blocks*512)
		}
	}
	return n
}

// Reflinks reports whether a file in dir, which exists, can share the blocks of
// one in the store. It tries.
func (s *Store) Reflinks(dir string) bool {
	from, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "clone-")
	if err != nil {
		return false
	}
	defer func() { _, _ = from.Close(), os.Remove(from.Name()) }()
	to, err := os.CreateTemp(dir, ".clone-")
	if err != nil {
		return false
	}
	defer func() { _, _ = to.Close(), os.Remove(to.Name()) }()
	_, err = from.Write(make([]byte, 4096))
	return err == nil && unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil
}
