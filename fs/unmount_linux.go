package fs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endAfterAbort is how long an aborted view may take to end. Only a Content
// that ignores its context can take longer.
const endAfterAbort = 5 * time.Second

// Unmount takes the view away and returns when it has ended. Where processes
// still use it, its name disappears at once and they may go on until ctx ends;
// then it is aborted, and they get errors.
func (v *View) Unmount(ctx context.Context) error {
	if err := v.unmount(unix.UMOUNT_NOFOLLOW); errors.Is(err, unix.EBUSY) {
		err = v.unmount(unix.UMOUNT_NOFOLLOW | unix.MNT_DETACH)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
	}
	v.log.Warn("view: still in use, aborted", "mountpoint", v.mountpoint)
	if err := v.Abort(); err != nil {
		return err
	}
	late := time.NewTimer(endAfterAbort)
	defer late.Stop()
	select {
	case <-v.done:
		return nil
	case <-late.C:
		return fmt.Errorf("view at %s was aborted and has not ended after %v", v.mountpoint, endAfterAbort)
	}
}

// TryUnmount unmounts the view if nobody uses it, and does not wait for its end.
// Otherwise the error wraps syscall.EBUSY, and nothing has changed.
func (v *View) TryUnmount() error { return v.unmount(unix.UMOUNT_NOFOLLOW) }

// unmount unmounts the view where it was mounted, if it still is.
func (v *View) unmount(flags int) error {
	select {
	case <-v.done:
		return nil
	default:
	}
	top, found, err := topMount(v.mountpoint)
	if err != nil {
		return err
	}
	if !found || top.Connection != v.connection || top.fstype != Type {
		return nil // somebody else did it
	}
	if err := unix.Unmount(v.mountpoint, flags); err != nil {
		return fmt.Errorf("can't unmount %s: %w", v.mountpoint, err)
	}
	return nil
}

// Abort cuts the view off from the kernel, whoever uses it: operations under way
// and to come fail with ENOTCONN or EIO. It does not unmount and does not wait
// for the view's end.
func (v *View) Abort() error {
	select {
	case <-v.done:
		return nil // the connection's number may be another's by now
	default:
	}
	v.cancel()
	return abortConnection(v.connection)
}

// Detach cleans up after a view whose process is gone without having unmounted
// it: processes that wait for it get an error, and its mount disappears. Nothing
// is done where no view is mounted. A view that lives is cut off all the same;
// so this is for the start of a daemon, and for mountpoints of its own.
func Detach(mountpoint string) error {
	path, err := filepath.Abs(mountpoint)
	if err != nil {
		return err
	}
	// A dead view can't even be asked whether it is a symlink.
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	for {
		top, found, err := topMount(path)
		if err != nil || !found || top.fstype != Type {
			return err
		}
		if err := abortConnection(top.Connection); err != nil {
			return fmt.Errorf("can't abort the view at %s: %w", path, err)
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("can't detach %s: %w", path, err)
		}
	}
}

// A Mounted is a view that is mounted on this machine, by whichever process.
type Mounted struct {
	Mountpoint string
	Name       string // its Options.Name
	Connection uint64
	fstype     string
}

// Mounts returns all views in the mount namespace of this process, in the order
// in which they were mounted.
func Mounts() ([]Mounted, error) {
	all, err := mounts()
	var views []Mounted
	for _, m := range all {
		if m.fstype == Type {
			views = append(views, m)
		}
	}
	return views, err
}

// topMount returns what is mounted at path, on top of what else may be.
func topMount(path string) (top Mounted, found bool, err error) {
	all, err := mounts()
	for _, m := range all {
		if m.Mountpoint == path {
			top, found = m, true
		}
	}
	return top, found, err
}

func mounts() ([]Mounted, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("can't see what is mounted: %w", err)
	}
	return parseMountinfo(bytes.NewReader(b)), nil
}

// parseMountinfo reads the format of proc_pid_mountinfo(5). Lines of another
// form are left out.
func parseMountinfo(r io.Reader) []Mounted {
	var all []Mounted
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // an overlay's options can be long
	for lines.Scan() {
		head, tail, ok := strings.Cut(lines.Text(), " - ")
		f, t := strings.Split(head, " "), strings.Split(tail, " ")
		if !ok || len(f) < 6 || len(t) < 2 {
			continue
		}
		_, minor, _ := strings.Cut(f[2], ":")
		n, err := strconv.ParseUint(minor, 10, 64)
		if err != nil {
			continue
		}
		all = append(all, Mounted{Mountpoint: unescape(f[4]), Name: unescape(t[1]), Connection: n, fstype: unescape(t[0])})
	}
	return all
}

// unescape turns \ooo into the byte that it stands for.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

const (
	fusectl      = "/sys/fs/fuse/connections"
	fusectlMagic = 0x65735543 // linux/magic.h
)

// abortConnection ends a FUSE connection. One that has ended already is no error.
func abortConnection(n uint64) error {
	control := fusectl
	var st unix.Statfs_t
	if err := unix.Statfs(control, &st); err != nil || st.Type != fusectlMagic {
		// It is not mounted, as in a container: for a moment it is, elsewhere, so
		// that nothing is left and a read-only /sys does not matter.
		dir, err := os.MkdirTemp("", "srvfs-fusectl-")
		if err != nil {
			return err
		}
		defer func() { _ = os.Remove(dir) }()
		if err := unix.Mount("fusectl", dir, "fusectl", 0, ""); err != nil {
			return fmt.Errorf("can't mount fusectl, which aborts views: %w", err)
		}
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
		control = dir
	}
	f, err := os.OpenFile(filepath.Join(control, strconv.FormatUint(n, 10), "abort"), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("1")
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
