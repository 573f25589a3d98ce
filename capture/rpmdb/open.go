package rpmdb

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"srvfs/capture/pkgdb"
	"srvfs/capture/rootfs"
)

// readTries is how often a database that is written to meanwhile is read.
const readTries = 3

// A file is the bytes of a database.
type file struct {
	name   string // for messages
	b, wal []byte
}

// read reads the database in a folder of root. The error wraps fs.ErrNotExist if
// there is none.
func read(root *rootfs.Root, folder string) (*file, error) {
	for _, name := range []string{"rpmdb.sqlite", "Packages.db", "Packages"} {
		p := folder + name
		before, err := root.Stat(p)
		if errors.Is(err, fs.ErrNotExist) || err == nil && before.Size() == 0 {
			continue
		}
		for try := 1; err == nil; try++ {
			if err = locked(root, folder); err != nil {
				break
			}
			f := &file{name: root.Host(p)}
			if f.b, err = root.ReadFile(p, maxDatabase); err != nil {
				break
			}
			if name == "rpmdb.sqlite" {
				if f.wal, err = root.ReadFile(p+"-wal", maxDatabase); err != nil && !errors.Is(err, fs.ErrNotExist) {
					break
				}
			}
			var after fs.FileInfo
			if after, err = root.Stat(p); err != nil {
				break
			}
			if os.SameFile(before, after) && before.Size() == after.Size() && before.ModTime().Equal(after.ModTime()) {
				return f, nil
			}
			if before = after; try == readTries {
				err = busy(f.name)
			}
		}
		return nil, err
	}
	return nil, fmt.Errorf("%s: %w", root.Host(folder), fs.ErrNotExist)
}

// locked returns an error if a transaction of rpm is under way.
func locked(root *rootfs.Root, folder string) error {
	f, err := root.Open(folder + ".rpm.lock")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if lock.Type == unix.F_WRLCK {
		return busy(f.Name())
	}
	return nil
}

func busy(name string) error {
	return fmt.Errorf("%s: rpm is installing or removing packages; try again when it has ended: %w", name, pkgdb.ErrBusy)
}

// each calls yield with each package's header.
func (f *file) each(yield func(header []byte) error) error {
	left := len(f.b) + len(f.wal)
	bounded := func(header []byte) error {
		if left -= len(header); left < 0 {
			return errors.New("headers that overlap")
		}
		return yield(header)
	}
	switch _, isBDB := bdbOrder(f.b); {
	case bytes.HasPrefix(f.b, []byte(sqliteMagic)):
		return sqliteHeaders(f.b, f.wal, bounded)
	case bytes.HasPrefix(f.b, []byte(ndbMagic)):
		return ndbHeaders(f.b, bounded)
	case isBDB:
		return bdbHeaders(f.b, bounded)
	}
	return errors.New("neither SQLite nor ndb nor Berkeley DB")
}
