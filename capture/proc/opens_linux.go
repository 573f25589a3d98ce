package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/capture/rootfs"
)

// ErrNotRunning: there is no process to be watched.
var ErrNotRunning = errors.New("no instance of the service runs")

// forgetStrangers is how long a process that does not belong to the service is
// remembered as such: its number may be used again.
const forgetStrangers = 5 * time.Second

// Opens calls seen, until ctx ends, with each regular file that the processes of a
// running service open or execute: those that Running finds for one of the queries,
// and all that they, or the control groups of their units, start. Watched are the file systems that the given folders of
// this host lie on. Paths are as with InspectIn.
//
// The kernel tells of what was opened when it has been (fanotify(7)), and waits for
// nobody. A process that has ended before it was looked at belongs to nobody.
//
// The error is ErrNotRunning if no process is found, and wraps fs.ErrPermission
// without CAP_SYS_ADMIN; complete is false if
// there were more events than the kernel keeps.
func Opens(ctx context.Context, root *rootfs.Root, queries []Query, folders []string, seen func(path string, pid int)) (complete bool, err error) {
	in, err := newPlace(root)
	if err != nil {
		return false, err
	}
	w := &opens{in: in, units: map[string]bool{}, ours: map[int]bool{}, strangers: map[int]bool{}, seen: seen, complete: true}
	for _, q := range queries {
		pids, err := Running(root, q)
		if err != nil {
			return false, err
		}
		for _, pid := range pids {
			w.ours[pid] = true
		}
		if q.Unit != "" {
			w.units[q.Unit] = true
		}
	}
	if len(w.ours) == 0 {
		return false, ErrNotRunning
	}
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_LARGEFILE|unix.O_NOATIME)
	if err != nil {
		return false, os.NewSyscallError("fanotify_init", err)
	}
	f := os.NewFile(uintptr(fd), "fanotify")
	defer func() { _ = f.Close() }()
	for _, dir := range folders {
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN|unix.FAN_OPEN_EXEC, unix.AT_FDCWD, dir); err != nil {
			return false, fmt.Errorf("watch the file system of %s: %w", dir, err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return w.complete, nil
		}
		if err != nil {
			return w.complete, fmt.Errorf("fanotify: %w", err)
		}
		if err := w.events(buf[:n]); err != nil {
			return w.complete, err
		}
	}
}

// opens is what Opens knows of processes.
type opens struct {
	in        *place
	units     map[string]bool // systemd's
	ours      map[int]bool
	strangers map[int]bool
	forgotten time.Time // strangers
	seen      func(string, int)
	complete  bool
}

// events takes in what one read has brought: struct fanotify_event_metadata.
func (w *opens) events(b []byte) error {
	const size = 24
	for len(b) >= size {
		length := int(binary.NativeEndian.Uint32(b))
		if length < size || length > len(b) || b[4] != unix.FANOTIFY_METADATA_VERSION {
			return fmt.Errorf("fanotify: an event of %d bytes, version %d", length, b[4])
		}
		mask := binary.NativeEndian.Uint64(b[8:])
		fd, pid := int(int32(binary.NativeEndian.Uint32(b[16:]))), int(int32(binary.NativeEndian.Uint32(b[20:])))
		b = b[length:]
		if mask&unix.FAN_Q_OVERFLOW != 0 {
			w.complete = false
		}
		if fd < 0 {
			continue
		}
		if p, ok := w.file(fd, pid); ok {
			w.seen(p, pid)
		}
		_ = unix.Close(fd)
	}
	return nil
}

// file returns which file of the root a process of the service has opened.
func (w *opens) file(fd, pid int) (string, bool) {
	var st unix.Stat_t
	if !w.belongs(pid) || unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink == 0 {
		return "", false
	}
	link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil || strings.HasSuffix(link, " (deleted)") {
		return "", false
	}
	return w.in.strip(link)
}

// belongs reports whether a process is one of the service's.
func (w *opens) belongs(pid int) bool {
	if now := time.Now(); now.Sub(w.forgotten) > forgetStrangers {
		clear(w.strangers)
		w.forgotten = now
	}
	var way []int
	ours := false
	for p := pid; p > 1 && len(way) < 100; {
		if w.ours[p] {
			ours = true
			break
		}
		if w.strangers[p] {
			break
		}
		way = append(way, p)
		if w.units[UnitOf(p)] {
			ours = true
			break
		}
		s, err := readStatus(p)
		if err != nil {
			return false
		}
		if p, err = strconv.Atoi(s["PPid"]); err != nil {
			return false
		}
	}
	for _, p := range way {
		if ours {
			w.ours[p] = true
		} else {
			w.strangers[p] = true
		}
	}
	return ours
}
