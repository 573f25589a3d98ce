package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// ErrTooLarge: the file is longer than the caller accepts.
var ErrTooLarge = errors.New("file is too large")

// ErrNotRegular: what should be opened is neither a regular file nor a
// directory. Opening a device or a FIFO may block, or do something.
var ErrNotRegular = errors.New("not a regular file or directory")

// Lstat returns what the directory entry p is; a link is not followed. Its Sys
// is a *syscall.Stat_t.
func (r *Root) Lstat(p string) (fs.FileInfo, error) {
	c, _, err := r.ResolveParent(p)
	if err != nil {
		return nil, err
	}
	return os.Lstat(r.Host(c))
}

// Stat follows links and returns what p is in the end.
func (r *Root) Stat(p string) (fs.FileInfo, error) {
	c, _, err := r.Resolve(p)
	if err != nil {
		return nil, err
	}
	return os.Lstat(r.Host(c))
}

// Readlink returns the text of the symlink p.
func (r *Root) Readlink(p string) (string, error) {
	c, _, err := r.ResolveParent(p)
	if err != nil {
		return "", err
	}
	return os.Readlink(r.Host(c))
}

// Open opens the regular file or directory p for reading, following links. For
// anything else the error wraps ErrNotRegular.
func (r *Root) Open(p string) (*os.File, error) {
	c, _, err := r.Resolve(p)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(r.Host(c))
	if err != nil {
		return nil, err
	}
	if err := openable(r.Host(c), info); err != nil {
		return nil, err
	}
	f, err := r.open(c)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err == nil { // it may have been replaced meanwhile
		err = openable(r.Host(c), info)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func openable(host string, info fs.FileInfo) error {
	if info.Mode().IsRegular() || info.IsDir() {
		return nil
	}
	return &fs.PathError{Op: "open", Path: host, Err: ErrNotRegular}
}

// ReadFile returns the content of the regular file p, following links. If it
// has more than limit bytes the error wraps ErrTooLarge.
func (r *Root) ReadFile(p string, limit int64) ([]byte, error) {
	f, err := r.Open(p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: syscall.EISDIR}
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s: %d bytes exceed %d: %w", f.Name(), info.Size(), limit, ErrTooLarge)
	}
	return readAll(f, info.Size(), limit)
}

// readAll reads a file that is said to have size bytes: one more is asked for,
// so that end of file shows in as few reads as possible. Files of /proc say 0.
func readAll(f *os.File, size, limit int64) ([]byte, error) {
	b := make([]byte, 0, max(size+1, 512))
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		if int64(len(b)) > limit {
			return nil, fmt.Errorf("%s: more than %d bytes: %w", f.Name(), limit, ErrTooLarge)
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// ReadDir returns the entries of the directory p, sorted by name.
func (r *Root) ReadDir(p string) ([]fs.DirEntry, error) {
	c, _, err := r.Resolve(p)
	if err != nil {
		return nil, err
	}
	return os.ReadDir(r.Host(c))
}

// LookPath returns the path of the program name: itself if it has a slash, else
// the first executable regular file of that name in dirs. Links are followed
// to judge it, and not to name it. The error wraps fs.ErrNotExist, or
// fs.ErrPermission for a file that nobody may execute.
func (r *Root) LookPath(name string, dirs []string) (string, error) {
	if path.Base(name) != name {
		info, err := r.Stat(name)
		if err == nil {
			err = executable(r.Host(name), info)
		}
		return name, err
	}
	for _, d := range dirs {
		if d == "" || d[0] != '/' {
			continue
		}
		p := path.Join(d, name)
		if info, err := r.Stat(p); err == nil && executable(p, info) == nil {
			return p, nil
		}
	}
	return "", &fs.PathError{Op: "look up program", Path: name, Err: fs.ErrNotExist}
}

func executable(host string, info fs.FileInfo) error {
	if info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		return nil
	}
	return &fs.PathError{Op: "execute", Path: host, Err: fs.ErrPermission}
}
