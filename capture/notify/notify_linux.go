// Package notify tells which paths of a root have changed, whoever changed them, by
// fanotify(7).
//
// Whole file systems are marked: that takes some microseconds, however many files they
// hold, and nothing is missed between a folder's making and the moment when somebody
// begins to look at it, as with inotify. What the kernel reports is a handle of the
// folder and a name; the path is found by opening the handle.
//
// A path that is reported is a hint: something may have changed there. A file system
// holds more than the root may see of it, and of what lies outside, a path can be made
// up that exists inside as well. So whoever is told looks for himself. The other
// way round there is no doubt: what has changed is reported, or events were lost, and
// that is said.
package notify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Mount is one file system of the root.
type Mount struct {
	Path string // where it is in the root: absolute, clean
	Host string // where it is on this host
}

// An Event says that something has changed at Path, absolute and clean in the root. If
// Below is set a folder has come there, of which the content was not reported.
type Event struct {
	Path  string
	Below bool

	targets []string // what had the name: fsid and handle of each file
	left    bool     // one of them has lost it
}

// An Inode is a file, whatever its names are.
type Inode struct{ Dev, Ino uint64 }

// ErrLost: events were lost, and anything may have changed.
var ErrLost = errors.New("events were lost")

// mask is what is reported: names that come and go, content, attributes.
const mask = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO | unix.FAN_MODIFY | unix.FAN_CLOSE_WRITE | unix.FAN_ATTRIB | unix.FAN_ONDIR

// A Watcher watches the file systems of one root. It is for one goroutine.
type Watcher struct {
	file   *os.File
	mounts []*mount
	buf    []byte
	paths  map[string][]string // of folders, by handle
}

type mount struct {
	Mount
	fd   int
	fsid [8]byte
}

// bufferSize is how much is read at once: some 5,000 events.
const bufferSize = 256 << 10

// mostPaths bounds the folders of which the paths are remembered.
const mostPaths = 4096

// Open begins to watch: what changes after it has returned will be reported. The error
// wraps fs.ErrPermission, or an errno of a file system that can't be watched.
func Open(mounts []Mount) (_ *Watcher, err error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_DFID_NAME_TARGET|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return nil, fmt.Errorf("watch for changes: %w", os.NewSyscallError("fanotify_init", err))
	}
	w := &Watcher{file: os.NewFile(uintptr(fd), "fanotify"), buf: make([]byte, bufferSize), paths: map[string][]string{}}
	defer func() {
		if err != nil {
			_ = w.Close()
		}
	}()
	for _, m := range mounts {
		one := &mount{Mount: m, fd: -1}
		var st unix.Statfs_t
		if err := unix.Statfs(m.Host, &st); err != nil {
			return nil, &os.PathError{Op: "statfs", Path: m.Host, Err: err}
		}
		binary.NativeEndian.PutUint32(one.fsid[:], uint32(st.Fsid.Val[0]))
		binary.NativeEndian.PutUint32(one.fsid[4:], uint32(st.Fsid.Val[1]))
		// Not O_PATH: open_by_handle_at wants it.
		if one.fd, err = unix.Open(m.Host, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, &os.PathError{Op: "open", Path: m.Host, Err: err}
		}
		w.mounts = append(w.mounts, one)
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, mask, one.fd, "."); err != nil {
			return nil, fmt.Errorf("watch the file system of %s: %w", m.Host, os.NewSyscallError("fanotify_mark", err))
		}
	}
	return w, nil
}

// Close ends the watch.
func (w *Watcher) Close() error {
	for _, m := range w.mounts {
		if m.fd >= 0 {
			_ = unix.Close(m.fd)
		}
	}
	return w.file.Close()
}

// Wait waits until something has changed. The error is that of ctx, or of the kernel.
func (w *Watcher) Wait(ctx context.Context) error {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	if err := w.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Now()) })
	defer stop()
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR // then reading fails too
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("watch for changes: %w", err)
	}
	return nil
}

// Next waits until something has changed and returns what is reported by then, each
// path once, in the order of the first report of each. What happens to a file before it
// is called is one report: who waits a little after Wait has fewer. The error is ErrLost, that of
// ctx, or of the kernel.
func (w *Watcher) Next(ctx context.Context) ([]Event, error) {
	if err := w.Wait(ctx); err != nil {
		return nil, err
	}
	conn, err := w.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	got := gathered{at: map[string]int{}}
	for {
		n := 0
		var failed error
		err := conn.Read(func(fd uintptr) bool {
			n, failed = unix.Read(int(fd), w.buf)
			return true
		})
		switch {
		case err != nil:
			return nil, fmt.Errorf("watch for changes: %w", err)
		case errors.Is(failed, unix.EINTR):
			continue
		case errors.Is(failed, unix.EAGAIN):
			return got.events, nil
		case failed != nil:
			return nil, fmt.Errorf("watch for changes: %w", os.NewSyscallError("read", failed))
		}
		if err := w.gather(w.buf[:n], &got); err != nil {
			return nil, err
		}
		if n < len(w.buf)/2 {
			return got.events, nil // that was all
		}
	}
}

// gathered are events, and where the one of each path is.
type gathered struct {
	events []Event
	at     map[string]int
}

// The sizes of struct fanotify_event_metadata, and of the head of an information record.
const (
	metadataSize = 24
	infoHead     = 4
	handleHead   = 8 // of struct file_handle
)

// gather takes what the kernel wrote apart.
func (w *Watcher) gather(b []byte, got *gathered) error {
	for len(b) >= metadataSize {
		size := int(binary.NativeEndian.Uint32(b))
		head := int(binary.NativeEndian.Uint16(b[6:]))
		bits := binary.NativeEndian.Uint64(b[8:])
		if size < metadataSize || size > len(b) || head < metadataSize || head > size {
			return fmt.Errorf("watch for changes: an event of %d bytes: %w", size, unix.EPROTO)
		}
		record := b[head:size]
		b = b[size:]
		if bits&unix.FAN_Q_OVERFLOW != 0 {
			return ErrLost
		}
		folder := bits&unix.FAN_ONDIR != 0
		if folder && bits&(unix.FAN_MOVED_FROM|unix.FAN_DELETE) != 0 {
			clear(w.paths) // it, and what is below it, is elsewhere now
		}
		var at []int
		target := ""
		for len(record) >= infoHead {
			kind, n := record[0], int(binary.NativeEndian.Uint16(record[2:]))
			if n < infoHead || n > len(record) {
				return fmt.Errorf("watch for changes: a record of %d bytes: %w", n, unix.EPROTO)
			}
			switch kind {
			case unix.FAN_EVENT_INFO_TYPE_FID:
				if n >= infoHead+8+handleHead {
					target = string(record[infoHead:n])
				}
			case unix.FAN_EVENT_INFO_TYPE_DFID_NAME, unix.FAN_EVENT_INFO_TYPE_DFID:
				for _, p := range w.locate(record[infoHead:n]) {
					i, ok := got.at[p]
					if !ok {
						i = len(got.events)
						got.at[p] = i
						got.events = append(got.events, Event{Path: p})
					}
					at = append(at, i)
					e := &got.events[i]
					e.Below = e.Below || folder && bits&(unix.FAN_CREATE|unix.FAN_MOVED_TO) != 0
				}
			}
			record = record[n:]
		}
		for _, i := range at {
			e := &got.events[i]
			e.left = e.left || bits&(unix.FAN_DELETE|unix.FAN_MOVED_FROM) != 0
			if target != "" && !folder && !slices.Contains(e.targets, target) {
				e.targets = append(e.targets, target)
			}
		}
	}
	return nil
}

// Others returns the files that have had the event's name meanwhile and still exist, if
// it may be another one, or none, that has it now: what was done to such a file under
// this name shows under another that it has. Of one with a single name, which the kernel
// knows, on a file system that is mounted once, that is returned; of the others the inode.
func (w *Watcher) Others(e Event) (names []string, inodes []Inode) {
	if len(e.targets) == 1 {
		if !e.left {
			return nil, nil // when it does, that is reported
		}
		for _, m := range w.mounts {
			if rest, ok := strings.CutPrefix(e.Path, strings.TrimSuffix(m.Path, "/")); ok && m.fsid == [8]byte([]byte(e.targets[0])) {
				var st unix.Stat_t
				if unix.Lstat(m.Host+rest, &st) == nil {
					return nil, nil
				}
			}
		}
	}
	for _, t := range e.targets {
		b := []byte(t)
		n := int(binary.NativeEndian.Uint32(b[8:]))
		if n > len(b)-8-handleHead {
			continue
		}
		h := unix.NewFileHandle(int32(binary.NativeEndian.Uint32(b[12:])), b[8+handleHead:8+handleHead+n])
		for _, m := range w.mounts {
			if m.fsid != [8]byte(b) {
				continue
			}
			var st unix.Stat_t
			if fd, err := openHandle(m.fd, h); err == nil {
				if unix.Fstat(fd, &st) == nil && st.Nlink > 0 {
					if p, ok := m.name(fd, &st); ok && st.Nlink == 1 && w.once(m.fsid) {
						names = append(names, p)
					} else {
						inodes = append(inodes, Inode{st.Dev, st.Ino})
					}
				}
				_ = unix.Close(fd)
				break
			}
		}
	}
	return names, inodes
}

// once reports whether a file system is mounted in one place: a file with one name has
// one path then.
func (w *Watcher) once(fsid [8]byte) bool {
	n := 0
	for _, m := range w.mounts {
		if m.fsid == fsid {
			n++
		}
	}
	return n == 1
}

// name returns where in the root an open file is, if the kernel knows and if it is so.
func (m *mount) name(fd int, st *unix.Stat_t) (string, bool) {
	host, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", false
	}
	var there unix.Stat_t
	rest, ok := strings.CutPrefix(host, strings.TrimSuffix(m.Host, "/"))
	if !ok || !strings.HasPrefix(rest, "/") || unix.Lstat(host, &there) != nil || there.Dev != st.Dev || there.Ino != st.Ino {
		return "", false
	}
	return path.Join(m.Path, rest), true
}

// isRoot reports whether an open folder is the root. The kernel calls one so too that no
// path leads to: where the root is a part of its file system, all other folders of that.
func isRoot(fd int) bool {
	var root, st unix.Stat_t
	return unix.Stat("/", &root) == nil && unix.Fstat(fd, &st) == nil && st.Dev == root.Dev && st.Ino == root.Ino
}

// openHandle opens a file by its handle. The kernel may say that it has no memory when
// it is busy.
func openHandle(mount int, h unix.FileHandle) (fd int, err error) {
	for range 4 {
		fd, err = unix.OpenByHandleAt(mount, h, unix.O_PATH|unix.O_CLOEXEC)
		if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// locate returns the paths that a record may mean: fsid, handle of the folder, name.
func (w *Watcher) locate(b []byte) []string {
	if len(b) < 8+handleHead {
		return nil
	}
	fsid := [8]byte(b)
	n := int(binary.NativeEndian.Uint32(b[8:]))
	if n > len(b)-8-handleHead {
		return nil
	}
	end := 8 + handleHead + n
	name := strings.TrimRight(string(b[end:]), "\x00")
	key := string(b[:end])
	dirs, ok := w.paths[key]
	if !ok {
		kind := int32(binary.NativeEndian.Uint32(b[12:]))
		dirs = w.open(fsid, unix.NewFileHandle(kind, slices.Clone(b[8+handleHead:end])))
		if len(w.paths) >= mostPaths {
			clear(w.paths)
		}
		w.paths[key] = dirs
	}
	all := make([]string, len(dirs))
	for i, d := range dirs {
		all[i] = path.Join(d, name) // "." for the folder itself
	}
	return all
}

// open returns where the folder is, as each mount of its file system shows it.
func (w *Watcher) open(fsid [8]byte, h unix.FileHandle) (all []string) {
	for _, m := range w.mounts {
		if m.fsid != fsid {
			continue
		}
		fd, err := openHandle(m.fd, h)
		if err != nil {
			continue // it is gone, which is reported where it was
		}
		host, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		outside := err == nil && host == "/" && !isRoot(fd)
		_ = unix.Close(fd)
		if err != nil || outside {
			continue
		}
		rest, ok := strings.CutPrefix(host, strings.TrimSuffix(m.Host, "/"))
		if ok && (rest == "" || rest[0] == '/') {
			all = append(all, path.Join(m.Path, rest))
		}
	}
	return all
}
