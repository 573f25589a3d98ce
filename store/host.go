package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// A host is the machine's own files, below a folder. Paths are resolved as if
// that folder were the root: a symlink can't lead out of it.
type host struct {
	root  *os.File
	real  string // the folder's path without symlinks
	cache *statcache.Cache

	names struct {
		once  sync.Once
		ready chan struct{} // closed when index is set
		index *nameIndex
	}
	remote struct {
		mu     sync.Mutex
		read   time.Time
		points []string
	}
}

func openHost(root string, cache *statcache.Cache) (*host, error) {
	f, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("host root: %w", err)
	}
	h := &host{root: f, cache: cache}
	h.names.ready = make(chan struct{})
	if h.real, err = os.Readlink(procPath(f)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("host root: %w", err)
	}
	return h, nil
}

// Close releases the folder.
func (h *host) Close() error { return h.root.Close() }

// prepare starts building the index of names, once. It may be called on nil.
func (h *host) prepare(s *Store) {
	if h == nil {
		return
	}
	h.names.once.Do(func() {
		if !s.flights.spawn(func() {
			h.names.index = indexNames(s.ctx, h.real)
			close(h.names.ready)
		}) {
			close(h.names.ready)
		}
	})
}

func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// A match is an open host file whose bytes have the digest that was asked for.
type match struct {
	file *os.File // O_PATH
	key  statcache.Key
	path string // without symlinks, below the host's root
	racy bool   // changed so lately that a further change might not show in its key
}

// find returns a host file with the content c, or nil. It hashes files that
// have the right size and are not in the cache: half a second for a GB.
func (h *host) find(ctx context.Context, s *Store, c manifest.Content, how search) (*match, error) {
	tried := map[[2]uint64]bool{}
	if c.Path != "" {
		if m, err := h.try(ctx, s, c, c.Path, tried); m != nil || err != nil {
			return m, err
		}
	}
	if how == quick {
		select {
		case <-h.names.ready:
		default:
			return nil, nil // a walk over a cold disk is no faster than the wire
		}
	}
	select {
	case <-h.names.ready:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for _, p := range h.names.index.paths(path.Base(c.Path)) {
		if m, err := h.try(ctx, s, c, p, tried); m != nil || err != nil {
			return m, err
		}
	}
	return nil, nil
}

// try looks at one path. Errors are the context's only: a host file that can't
// be read is no match.
func (h *host) try(ctx context.Context, s *Store, c manifest.Content, name string, tried map[[2]uint64]bool) (*match, error) {
	f := h.lookup(name)
	if f == nil {
		return nil, nil
	}
	keep := false
	defer func() {
		if !keep {
			_ = f.Close()
		}
	}()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != c.Size {
		return nil, nil
	}
	k := statcache.KeyOf(&st)
	if id := [2]uint64{k.Dev, k.Ino}; tried[id] {
		return nil, nil
	} else {
		tried[id] = true
	}
	m := &match{file: f, key: k, racy: k.Racy(time.Now())}
	if v, ok := h.cache.Get(k); !ok {
		in, err := os.Open(procPath(f))
		if err != nil {
			return nil, nil
		}
		defer func() { _ = in.Close() }()
		v, after, err := h.cache.Digest(ctx, in)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		s.stats.hostHashed.add(k.Size)
		if err != nil || after != k || v.Digest != c.Digest {
			return nil, nil
		}
	} else if v.Digest != c.Digest {
		return nil, nil
	}
	real, err := os.Readlink(procPath(f))
	if err != nil {
		return nil, nil
	}
	m.path, keep = strings.TrimPrefix(real, strings.TrimSuffix(h.real, "/")), true
	return m, nil
}

// glance says what a look at c's own path tells without reading a file: whether
// an identical file is known to be there, and whether one could be.
func (h *host) glance(c manifest.Content) (is, maybe bool) {
	f := h.lookup(c.Path)
	if f == nil {
		return false, false
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != c.Size {
		return false, false
	}
	v, known := h.cache.Get(statcache.KeyOf(&st))
	return known && v.Digest == c.Digest, !known
}

// lookup opens what stands at name without reading it, or returns nil.
func (h *host) lookup(name string) *os.File {
	if !manifest.ValidPath(name) || h.isRemote(name) {
		return nil
	}
	fd, err := openat2(int(h.root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

func openat2(dir int, name string, how *unix.OpenHow) (fd int, err error) {
	for range 16 { // EAGAIN: something was renamed while the path was resolved
		fd, err = unix.Openat2(dir, name, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return fd, err
}

// isRemote reports whether name lies on a mounted network file system or FUSE
// (perhaps our own view): looking there could wait for ever.
func (h *host) isRemote(name string) bool {
	h.remote.mu.Lock()
	defer h.remote.mu.Unlock()
	if time.Since(h.remote.read) > time.Second {
		h.remote.points, h.remote.read = remoteMounts(h.real), time.Now()
	}
	for _, p := range h.remote.points {
		if name == p || strings.HasPrefix(name, p+"/") {
			return true
		}
	}
	return false
}

// remoteMounts returns the mount points of such file systems, as paths below
// root.
func remoteMounts(root string) (points []string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) == 0 || !remoteType(kind[0]) {
			continue
		}
		p, err := filepath.Rel(root, unescape(fields[4]))
		if err == nil && p != "." && p != ".." && !strings.HasPrefix(p, "../") {
			points = append(points, "/"+p)
		}
	}
	return points
}

func remoteType(t string) bool {
	switch t, _, _ := strings.Cut(t, "."); t {
	case "fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "9p", "autofs":
		return true
	}
	return false
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
