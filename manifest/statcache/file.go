package statcache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// reopen opens the file that stands at c.path now, with a whole number of
// records in it, and loads it if asked to.
func (c *Cache) reopen(load bool) error {
	f, err := os.OpenFile(c.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := c.adopt(f, load); err != nil {
		_ = f.Close()
		return fmt.Errorf("%s: %w", c.path, err)
	}
	if c.file != nil {
		_ = c.file.Close()
	}
	c.file = f
	return nil
}

func (c *Cache) adopt(f *os.File, load bool) error {
	// Exclusive, so that a tail that looks torn is not another's append under way.
	if err := flock(f, unix.LOCK_EX); err != nil {
		return err
	}
	defer unlock(f)
	if err := mend(f); err != nil {
		return err
	}
	if !load {
		return nil
	}
	return c.load(f)
}

// mend makes f begin with the header and end with a whole record. The caller
// holds the exclusive lock.
func mend(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	var h [recordSize]byte
	n, err := f.ReadAt(h[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if n < recordSize || h != header {
		if err := f.Truncate(0); err != nil {
			return err
		}
		_, err := f.Write(header[:])
		return err
	}
	if torn := st.Size() % recordSize; torn != 0 {
		return f.Truncate(st.Size() - torn)
	}
	return nil
}

// load replaces the table by what f holds. The caller holds a lock.
func (c *Cache) load(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, st.Size())
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	c.stale = c.table.load(b[min(n, recordSize):n])
	return nil
}

// append adds records to the file that stands at c.path, which another process
// may have replaced.
func (c *Cache) append(records []byte) error {
	for {
		if err := flock(c.file, unix.LOCK_SH); err != nil {
			return err
		}
		if c.current() {
			break
		}
		unlock(c.file)
		if err := c.reopen(false); err != nil {
			return err
		}
	}
	n, err := c.file.Write(records)
	unlock(c.file)
	if err != nil && n > 0 { // the disk is full: take what is torn away again
		if lerr := flock(c.file, unix.LOCK_EX); lerr == nil {
			_ = mend(c.file)
			unlock(c.file)
		}
	}
	return err
}

// current reports whether c.file still is the file at c.path.
func (c *Cache) current() bool {
	a, err := c.file.Stat()
	if err != nil {
		return true // let the write report it
	}
	b, err := os.Lstat(c.path)
	return err == nil && os.SameFile(a, b)
}

// compact writes the records that count, those of other processes included,
// to a new file and renames it over the old.
func (c *Cache) compact() error {
	if err := c.replace(); err != nil {
		return fmt.Errorf("statcache: compact %s: %w", c.path, err)
	}
	return nil
}

func (c *Cache) replace() error {
	for {
		if err := flock(c.file, unix.LOCK_EX); err != nil {
			return err
		}
		if c.current() {
			break
		}
		unlock(c.file)
		if err := c.reopen(false); err != nil {
			return err
		}
	}
	old := c.file
	defer unlock(old)
	if err := c.load(old); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(c.path), filepath.Base(c.path)+".new-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.MultiReader(bytes.NewReader(header[:]), bytes.NewReader(c.table.records)))
	// Without this a crash could leave an empty file where the old one was full.
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), c.path)
	}
	if err != nil {
		if rerr := os.Remove(f.Name()); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	c.stale = 0
	// The old file stays open, and locked, until the new one is in its place in c.
	next, err := os.OpenFile(c.path, os.O_RDWR|os.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.file = next
	defer func() { _ = old.Close() }()
	return nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("flock", err)
		}
	}
}

func unlock(f *os.File) { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) }
