package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// blobMtime is every own blob's mtime. Being long ago, it makes sure that any
// later write changes it, however soon it comes (see package statcache).
var (
	blobMtime = time.Unix(0, 0)
	blobTimes = []unix.Timespec{{}, {}} // the same, for a system call
)

// known reports whether the blob of d is there and has the stat that it had
// when its bytes were last verified. It costs an lstat.
func (s *Store) known(d manifest.Digest) bool {
	k, ok := s.blobKey(d)
	return ok && s.trusted(d, k)
}

// Has reports whether the content stands in the store, verified. It costs an
// lstat.
func (s *Store) Has(d manifest.Digest) bool { return s.known(d) }

// blobKey returns the key of what stands under d's name in blobs, whatever that
// is: only a verified file's is ever trusted.
func (s *Store) blobKey(d manifest.Digest) (statcache.Key, bool) {
	var st unix.Stat_t
	err := uninterrupted(func() error {
		return unix.Fstatat(int(s.blobs.Fd()), d.Hex(), &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		return statcache.Key{}, false
	}
	return statcache.KeyOf(&st), true
}

// uninterrupted makes a system call again that a signal has interrupted.
func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *Store) trusted(d manifest.Digest, k statcache.Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trustedLocked(d, k)
}

// trustedLocked is trusted for a caller that holds s.mu.
func (s *Store) trustedLocked(d manifest.Digest, k statcache.Key) bool {
	if p, ok := s.pending[d]; ok && p == k {
		return true
	}
	v, ok := s.stat.Get(k)
	return ok && v.Digest == d
}

// check reports whether the blob of d is there and is what its name says. It
// hashes it if its stat is not the recorded one, and removes it if it is not.
func (s *Store) check(ctx context.Context, d manifest.Digest) (bool, error) {
	k, there := s.blobKey(d)
	if !there || s.trusted(d, k) {
		return there, nil
	}
	return s.rehash(ctx, d)
}

// rehash is check for a blob whose stat is not to be relied upon.
func (s *Store) rehash(ctx context.Context, d manifest.Digest) (bool, error) {
	f, err := os.OpenFile(s.blobPath(d), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		s.drop(d, statcache.Key{}, err)
		return false, nil
	}
	defer func() { _ = f.Close() }()
	k, err := statcache.FileKey(f)
	if err != nil {
		return false, err
	}
	s.stats.rehashed.add(1)
	v, _, err := statcache.Hash(ctx, f, false)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err == nil && v.Digest != d {
		err = fmt.Errorf("its bytes have digest %v: %w", v.Digest, manifest.ErrCorrupt)
	}
	after, kerr := statcache.FileKey(f)
	if err == nil && kerr == nil && after != k {
		err = errors.New("it is being written to")
	}
	if err != nil {
		s.drop(d, k, err)
		return false, nil
	}
	s.settle(d, k)
	return true, nil
}

// drop removes the blob of d, which was found bad when its key was k; not one
// that has taken its place since. A hard link to a host's file leaves the
// host's own name alone.
func (s *Store) drop(d manifest.Digest, k statcache.Key, why error) {
	s.naming.Lock()
	now, ok := s.blobKey(d)
	stays := ok && k != (statcache.Key{}) && (now.Dev != k.Dev || now.Ino != k.Ino)
	if !stays {
		s.mu.Lock()
		delete(s.pending, d)
		s.mu.Unlock()
		if err := os.RemoveAll(s.blobPath(d)); err != nil {
			why = errors.Join(why, err)
		}
	}
	s.naming.Unlock()
	if stays {
		return
	}
	pin := s.pins.get(d)
	_ = s.pins.set(d, Unpinned) // its loss costs a wrong word in the status
	s.stats.dropped.add(1)
	if pin == Linked {
		s.log.Warn("the host has changed a file that the store relied on; its content will come from elsewhere", "digest", d.Hex(), "err", why)
	} else {
		s.log.Warn("removed a damaged file from the store; its content will be fetched again", "digest", d.Hex(), "err", why)
	}
}

// commit gives the verified file at temp, which is the store's own, its name in
// blobs.
func (s *Store) commit(temp string, d manifest.Digest) error {
	if err := os.Chtimes(temp, blobMtime, blobMtime); err != nil {
		return err
	}
	k, err := s.place(temp, d)
	if err == nil {
		s.settle(d, k)
	}
	return err
}

// arrive tells Collect that d is about to come in. The caller holds s.naming.
func (s *Store) arrive(d manifest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.arrived != nil {
		s.arrived[d] = true
	}
}

// place renames a file into blobs and returns its key there.
func (s *Store) place(temp string, d manifest.Digest) (statcache.Key, error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	s.arrive(d)
	if err := os.Rename(temp, s.blobPath(d)); err != nil {
		return statcache.Key{}, err
	}
	// rename does nothing if both names are links of one inode.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return statcache.Key{}, err
	}
	k, ok := s.blobKey(d)
	if !ok {
		return k, fmt.Errorf("%s vanished", s.blobPath(d))
	}
	return k, nil
}

// settle trusts a verified blob: at once within this process, and for later
// ones when it has been flushed.
func (s *Store) settle(d manifest.Digest, k statcache.Key) {
	s.mu.Lock()
	s.pending[d] = k
	s.mu.Unlock()
	select {
	case s.flush <- struct{}{}:
	default:
	}
}

// writeBlob makes a blob of bytes that the caller has verified.
func (s *Store) writeBlob(d manifest.Digest, data []byte, what string) error {
	k, err := s.writeNew(s.blobs, d, data)
	if err != nil {
		return s.onDisk(err, what, int64(len(data)))
	}
	s.settle(d, k)
	return nil
}

// writeNew gives verified bytes their name in a folder, blobs or meta. It is
// what a small file costs, and a prefetch makes thousands of them: six system
// calls on one descriptor, no path longer than a name.
func (s *Store) writeNew(folder *os.File, d manifest.Digest, data []byte) (k statcache.Key, err error) {
	dir, temp := int(s.tmp.Fd()), s.tempName()
	var fd int
	if err := uninterrupted(func() (err error) {
		fd, err = unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o444)
		return err
	}); err != nil {
		return k, os.NewSyscallError("openat", err)
	}
	placed := false
	defer func() {
		// Only a network's file system says here that it has not kept the bytes.
		if cerr := unix.Close(fd); cerr != nil && err == nil {
			err = os.NewSyscallError("close", cerr)
		}
		switch {
		case err != nil && placed:
			_ = unix.Unlinkat(int(folder.Fd()), d.Hex(), 0)
		case err != nil:
			_ = unix.Unlinkat(dir, temp, 0)
		}
	}()
	for left := data; len(left) > 0; {
		var n int
		if err := uninterrupted(func() (err error) { n, err = unix.Write(fd, left); return err }); err != nil {
			return k, os.NewSyscallError("write", err)
		}
		left = left[n:]
	}
	if err := unix.UtimesNanoAt(fd, "", blobTimes, unix.AT_EMPTY_PATH); err != nil {
		// Before Linux 5.8 there is no such flag.
		if err := unix.UtimesNanoAt(dir, temp, blobTimes, 0); err != nil {
			return k, os.NewSyscallError("utimensat", err)
		}
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	s.arrive(d)
	if err := uninterrupted(func() error { return unix.Renameat(dir, temp, int(folder.Fd()), d.Hex()) }); err != nil {
		return k, os.NewSyscallError("renameat", err)
	}
	placed = true
	var st unix.Stat_t // after the rename, which sets ctime
	if err := uninterrupted(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return k, os.NewSyscallError("fstat", err)
	}
	return statcache.KeyOf(&st), nil
}

const (
	flushDelay = 5 * time.Second // as the kernel's own
	flushEach  = 16              // up to so many blobs are flushed one by one, more with the whole file system
)

// flusher flushes new blobs a while after they appeared, so that many small
// ones share the disk's time.
func (s *Store) flusher() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.flush:
		}
		t := time.NewTimer(flushDelay)
		select {
		case <-s.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if err := s.flushPending(); err != nil && s.quiet.pass("flush") {
			s.log.Error("the store's files can't be flushed to disk", "dir", s.dir, "err", err)
		}
	}
}

// flushPending brings the pending blobs to the disk, then records their stats:
// a recorded stat means that the bytes were on the disk before.
func (s *Store) flushPending() error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.mu.Lock()
	batch := make(map[manifest.Digest]statcache.Key, len(s.pending))
	for d, k := range s.pending {
		batch[d] = k
	}
	s.mu.Unlock()
	meta := s.metaNew.Swap(false)
	if len(batch) == 0 && !meta {
		return nil
	}
	if err := s.sync(batch, meta); err != nil {
		s.metaNew.Store(meta)
		return s.onDisk(err, "flush", 0)
	}
	known := make(map[statcache.Key]statcache.Value, len(batch))
	for d, k := range batch {
		known[k] = statcache.Value{Digest: d}
	}
	// A write that fails leaves the blobs to be hashed again by the next process.
	if err := s.stat.PutAllTrusted(known); err != nil && s.quiet.pass("statcache") {
		s.log.Warn("stats of the store's files can't be recorded; they will be hashed again", "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, k := range batch {
		if s.pending[d] == k {
			delete(s.pending, d)
		}
	}
	return nil
}

func (s *Store) sync(batch map[manifest.Digest]statcache.Key, meta bool) error {
	if meta || len(batch) > flushEach {
		return os.NewSyscallError("syncfs", unix.Syncfs(int(s.blobs.Fd())))
	}
	for d := range batch {
		f, err := os.Open(s.blobPath(d))
		if errors.Is(err, fs.ErrNotExist) {
			continue // dropped meanwhile
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return s.blobs.Sync()
}

// Flush returns when everything that is in the store has reached the disk. It
// does nothing when nothing is new.
func (s *Store) Flush() error { return s.flushPending() }
