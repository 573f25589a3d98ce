package rootfs

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// MaxLinks is the number of symlinks that one path may cross, as in the kernel
// (path_resolution(7)).
const MaxLinks = 40

// maxCached bounds the memory that a tree of endless directories can take.
const maxCached = 1 << 19

// A Root is a folder seen as "/". It is safe for concurrent use.
type Root struct {
	prefix string   // "" for "/", else absolute without a slash at the end
	dir    *os.File // the folder, O_PATH

	mu   sync.RWMutex
	dirs map[string]resolved // clean absolute path of a directory -> what it is
}

// resolved is where a directory really is. The links are shared: append to a
// copy only.
type resolved struct {
	path  string // canonical; "" for "/"
	links []string
}

// New returns the folder at path, which must exist, as a Root. The path may be
// relative, and a link, also a magic one: New("/proc/123/root") is the root of
// process 123.
func New(path string) (*Root, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := openDir(abs)
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", path, err)
	}
	return &Root{prefix: strings.TrimSuffix(abs, "/"), dir: f, dirs: map[string]resolved{}}, nil
}

// Close releases the folder. The Root can't open files afterwards.
func (r *Root) Close() error { return r.dir.Close() }

// Path returns the folder's absolute path on this host.
func (r *Root) Path() string { return r.Host("/") }

// String returns Path.
func (r *Root) String() string { return r.Path() }

// Host returns where the file with the canonical path p is on this host. With
// any other path it is the text alone: links are not followed.
func (r *Root) Host(p string) string {
	if r.prefix == "" {
		return p
	}
	if p == "/" {
		return r.prefix
	}
	return r.prefix + p
}

// Resolve returns the canonical path of p, and each symlink that was crossed on
// the way, in order (a link crossed twice is there twice). A relative p starts
// at the root, and ".." at the root stays there.
//
// When a component does not exist the error wraps fs.ErrNotExist; the path is
// then where the missing file would be, as far as that can be said, and the
// links crossed are complete. A loop, or more than MaxLinks links, gives ELOOP.
func (r *Root) Resolve(p string) (canonical string, links []string, err error) {
	return r.resolve(p, true)
}

// ResolveParent is Resolve, except that the last component is not followed and
// need not exist: what comes back is the canonical name of the directory entry
// that p means.
func (r *Root) ResolveParent(p string) (canonical string, links []string, err error) {
	return r.resolve(p, false)
}

func (r *Root) resolve(p string, follow bool) (string, []string, error) {
	var at resolved
	var err error
	if path.Clean(p) == p && len(p) > 1 && p[0] == '/' {
		i := strings.LastIndexByte(p, '/')
		if at, err = r.directory(p[:i]); err == nil {
			at, err = r.walk(at, p[i+1:], follow)
		} else {
			at.path += p[i:]
		}
	} else {
		at, err = r.walk(at, p, follow)
	}
	if at.path == "" {
		at.path = "/"
	}
	return at.path, at.links, err
}

// directory resolves the clean absolute path d ("" is the root), which must be
// a directory, from the cache if it can.
func (r *Root) directory(d string) (resolved, error) {
	if d == "" {
		return resolved{}, nil
	}
	r.mu.RLock()
	at, ok := r.dirs[d]
	r.mu.RUnlock()
	if ok {
		return at, nil
	}
	i := strings.LastIndexByte(d, '/')
	at, err := r.directory(d[:i])
	if err != nil {
		at.path += d[i:]
		return at, err
	}
	at, err = r.walk(at, d[i+1:]+"/", true)
	if err == nil {
		at.links = at.links[:len(at.links):len(at.links)]
		r.mu.Lock()
		if len(r.dirs) < maxCached {
			r.dirs[d] = at
		}
		r.mu.Unlock()
	}
	return at, err
}

// walk goes on from the directory at along the components of rest, by lstat.
func (r *Root) walk(at resolved, rest string, follow bool) (resolved, error) {
	if strings.IndexByte(rest, 0) >= 0 {
		return at, &fs.PathError{Op: "resolve", Path: r.Host(at.path + "/" + rest), Err: syscall.EINVAL}
	}
	own := false // at.links may be appended to
	isDir := true
	for rest != "" {
		name, tail, more := strings.Cut(rest, "/")
		if name == "" {
			rest = tail
			continue
		}
		if !isDir {
			at.path = path.Join(at.path, rest)
			return at, &fs.PathError{Op: "resolve", Path: r.Host(at.path), Err: syscall.ENOTDIR}
		}
		rest = tail
		switch name {
		case ".":
			continue
		case "..":
			at.path = at.path[:max(0, strings.LastIndexByte(at.path, '/'))]
			continue
		}
		next := at.path + "/" + name
		if !follow && strings.Trim(tail, "/") == "" {
			at.path = next
			return at, nil
		}
		if r.isDir(next) {
			at.path = next
			continue
		}
		info, err := os.Lstat(r.Host(next))
		if err != nil {
			at.path = path.Join(next, rest)
			return at, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at.path = next
			isDir = info.IsDir()
			if !isDir && more {
				rest = "/" + rest // "file/" is an error too
				if strings.Trim(rest, "/") == "" {
					return at, &fs.PathError{Op: "resolve", Path: r.Host(next + "/"), Err: syscall.ENOTDIR}
				}
			}
			continue
		}
		target, err := os.Readlink(r.Host(next))
		if err != nil {
			at.path = path.Join(next, rest)
			return at, err
		}
		if !own {
			at.links = append(make([]string, 0, len(at.links)+2), at.links...)
			own = true
		}
		at.links = append(at.links, next)
		if len(at.links) > MaxLinks {
			at.path = path.Join(next, rest)
			return at, &fs.PathError{Op: "resolve", Path: r.Host(next), Err: syscall.ELOOP}
		}
		if strings.HasPrefix(target, "/") {
			at.path = ""
		}
		if more {
			target += "/" + rest
		}
		rest = target
	}
	return at, nil
}

// isDir reports whether the canonical path p is known to be a real directory.
func (r *Root) isDir(p string) bool {
	r.mu.RLock()
	at, ok := r.dirs[p]
	r.mu.RUnlock()
	return ok && at.path == p
}
