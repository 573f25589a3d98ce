package sandbox

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// build makes the root, in process 1 before it does anything else, and enters
// it. Ready is called before the caller's root goes, and waits for who needs it. The
// work is done by a thread with a root and working directory of its
// own, which then becomes the launcher. For the others the working directory is
// now a procfs of the sandbox that is mounted nowhere: there process 1 can look
// at its processes even if the root has no /proc.
func (l *layout) build(ready func()) (*launcher, *fault) {
	launches := &launcher{orders: make(chan func())}
	done := make(chan *fault)
	var root, proc int
	go func() {
		runtime.LockOSThread() // for ever: no other goroutine may meet this root
		var f *fault
		root, proc, f = l.buildHere(ready)
		done <- f
		if f == nil {
			launches.work()
		}
	}()
	if f := <-done; f != nil {
		return nil, f
	}
	defer func() { _ = unix.Close(proc) }()
	if err := chrootTo(root); err != nil {
		return nil, failure("enter", "the new root", err, "")
	}
	if err := unix.Fchdir(proc); err != nil {
		return nil, failure("enter", "procfs", err, "")
	}
	launches.root = root
	return launches, nil
}

// buildHere builds the root and makes it that of the namespace. The calling
// thread goes back to the caller's root, with procfs as working directory.
func (l *layout) buildHere(ready func()) (root, proc int, f *fault) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return -1, -1, failure("unshare", "", err, "")
	}
	unix.Umask(0)
	old, err := openDir("/")
	if err != nil {
		return -1, -1, failure("open", "/", err, "")
	}
	defer func() { _ = unix.Close(old) }()
	if f := makePrivate(old); f != nil {
		return -1, -1, f
	}
	if f := l.prepare(); f != nil {
		return -1, -1, f
	}
	if proc, err = detachedProc(); err != nil {
		return -1, -1, failure("make a procfs", "", err, "")
	}
	if root, err = openDir(l.Root); err != nil {
		return -1, -1, failure("open", l.Root, err, "")
	}
	ready()
	if f := replaceRoot(root); f != nil {
		return -1, -1, f
	}
	if err := chrootTo(old); err != nil {
		return -1, -1, failure("go back to", "the old root", err, "")
	}
	if err := unix.Fchdir(proc); err != nil {
		return -1, -1, failure("enter", "procfs", err, "")
	}
	return root, proc, nil
}

func openDir(path string) (int, error) {
	return unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func chrootTo(dir int) error {
	if err := unix.Fchdir(dir); err != nil {
		return err
	}
	return unix.Chroot(".")
}

// toTop gives this thread the root of its mount namespace as its root, even if
// it is in a chroot: joining a mount namespace does that, even one's own.
func toTop() error {
	fd, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Setns(fd, unix.CLONE_NEWNS)
}

// makePrivate cuts all mounts of the namespace off from the caller's: none that
// is made here appears there. Only from the top can all be reached.
func makePrivate(old int) *fault {
	if err := toTop(); err != nil {
		return failure("enter", "the top of the mount namespace", err, "")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return failure("make mounts private", "", err, "")
	}
	if err := chrootTo(old); err != nil {
		return failure("go back to", "the old root", err, "")
	}
	return nil
}

// prepare makes the root and all that is mounted in it.
func (l *layout) prepare() *fault {
	unix.Umask(0)
	if l.Hostname != "" {
		if err := unix.Sethostname([]byte(l.Hostname)); err != nil {
			return failure("set host name", l.Hostname, err, "")
		}
	}
	if l.NewNet {
		if err := raiseLoopback(l.Addresses); err != nil {
			return failure("bring loopback interface up", "", err, "")
		}
	}
	for i, path := range l.Brought {
		err := unix.MoveMount(l.trees[i], "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
		_ = unix.Close(l.trees[i])
		if err != nil {
			return failure("bring mount to", path, err, "")
		}
	}
	// The new root must be a mount point, whatever it was.
	if err := unix.Mount(l.Root, l.Root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return failure("bind root", l.Root, err, "")
	}
	made := make(map[uint64]bool)
	for _, m := range l.Mounts {
		if f := m.make(l.Root, made); f != nil {
			return f
		}
	}
	return nil
}

// make makes one mount. Made holds the mounts whose file systems are new.
func (m *Mount) make(root string, made map[uint64]bool) *fault {
	target, f := m.openTarget(root, made)
	if f != nil {
		return f
	}
	defer func() { _ = unix.Close(target) }()
	where := fmt.Sprintf("/proc/self/fd/%d", target)
	what := fmt.Sprintf("mount %s on", strings.TrimSpace(m.Type+" "+m.Source))
	if m.Flags&unix.MS_BIND != 0 {
		if err := unix.Mount(m.Source, where, "", m.Flags&(unix.MS_BIND|unix.MS_REC), ""); err != nil {
			return failure("bind "+m.Source+" on", m.Target, err, "")
		}
	} else {
		kind := m.Type
		if kind == TypeDev {
			kind = "tmpfs"
		}
		if err := unix.Mount(m.Source, where, kind, m.Flags, m.Data); err != nil {
			return failure(what, m.Target, err, m.hint(err))
		}
	}
	// target is what was covered; what covers it is found by its name.
	top, err := openIn(root, m.Target, unix.O_PATH)
	if err != nil {
		return failure("open mount", m.Target, err, "")
	}
	defer func() { _ = unix.Close(top) }()
	if m.Flags&unix.MS_BIND != 0 {
		if err := restrict(top, m.Flags); err != nil {
			return failure("set attributes of mount", m.Target, err, "")
		}
		return nil
	}
	id, err := mountID(top)
	if err != nil {
		return failure("identify mount", m.Target, err, "")
	}
	made[id] = true
	if m.Type == TypeDev {
		return populateDev(top)
	}
	return nil
}

func (m *Mount) hint(err error) string {
	switch {
	case errors.Is(err, unix.EINVAL) && m.Type == "overlay":
		return "see the kernel log for the layer or option that it does not accept: " + m.Data
	case errors.Is(err, unix.ENODEV):
		return "this kernel has no file system " + m.Type
	}
	return ""
}

// openTarget opens the place where m is to be mounted, inside root whatever
// symbolic links lie on the way. It makes it if it may.
func (m *Mount) openTarget(root string, made map[uint64]bool) (int, *fault) {
	fd, err := openIn(root, m.Target, unix.O_PATH)
	if err == nil {
		return fd, nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return -1, failure("open mount target", m.Target, err, "")
	}
	isFile := false
	if m.Flags&unix.MS_BIND != 0 {
		var st unix.Stat_t
		if err := unix.Stat(m.Source, &st); err != nil {
			return -1, failure("bind", m.Source, err, "")
		}
		isFile = st.Mode&unix.S_IFMT != unix.S_IFDIR
	}
	parts := strings.Split(strings.Trim(path.Clean(m.Target), "/"), "/")
	for i := range parts {
		at := "/" + path.Join(parts[:i+1]...)
		if fd, err := openIn(root, at, unix.O_PATH); err == nil {
			_ = unix.Close(fd)
			continue
		} else if !errors.Is(err, unix.ENOENT) {
			return -1, failure("open mount target", at, err, "")
		}
		if err := makeIn(root, at, isFile && i == len(parts)-1, made); err != nil {
			return -1, failure("make mount target", m.Target, err, "")
		}
	}
	if fd, err = openIn(root, m.Target, unix.O_PATH); err != nil {
		return -1, failure("open mount target", m.Target, err, "")
	}
	return fd, nil
}

// errForeign: the target is missing where nothing may be made.
var errForeign = errors.New("it does not exist, and the folder it should be in belongs to somebody else")

// makeIn makes a folder, or an empty file, in a parent that exists inside root,
// if that lies on one of the mounts in made.
func makeIn(root, at string, isFile bool, made map[uint64]bool) error {
	parent, err := openIn(root, path.Dir(at), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(parent) }()
	id, err := mountID(parent)
	if err != nil {
		return err
	}
	if !made[id] {
		return errForeign
	}
	if !isFile {
		return unix.Mkdirat(parent, path.Base(at), 0o755)
	}
	fd, err := unix.Openat(parent, path.Base(at), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// openIn opens a path as a process would whose root is root: no symbolic link
// and no ".." leads out of it. Root itself is opened anew each time, because
// what is mounted on it may have changed.
func openIn(root, name string, flags int) (int, error) {
	dir, err := openDir(root)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(dir) }()
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(dir, name, &how)
		// EAGAIN: somebody renamed something while ".." was walked.
		if err != unix.EAGAIN && err != unix.EINTR || tries == 100 {
			return fd, err
		}
	}
}

func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	return st.Mnt_id, nil
}

// restrict adds the attributes that a bind mount ignores when it is made.
func restrict(fd int, flags uintptr) error {
	var set uint64
	for flag, attr := range map[uintptr]uint64{
		unix.MS_RDONLY: unix.MOUNT_ATTR_RDONLY,
		unix.MS_NOSUID: unix.MOUNT_ATTR_NOSUID,
		unix.MS_NODEV:  unix.MOUNT_ATTR_NODEV,
		unix.MS_NOEXEC: unix.MOUNT_ATTR_NOEXEC,
	} {
		if flags&flag != 0 {
			set |= attr
		}
	}
	if set == 0 {
		return nil
	}
	at := uint(unix.AT_EMPTY_PATH)
	if flags&unix.MS_REC != 0 {
		at |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", at, &unix.MountAttr{Attr_set: set})
}

// detachedProc returns a new procfs of our pid namespace.
func detachedProc() (int, error) {
	fsfd, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fsfd) }()
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, err
	}
	return unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// replaceRoot makes root, a mount point, the root of the mount namespace, and
// drops all other mounts.
func replaceRoot(root int) *fault {
	if err := toTop(); err != nil {
		return failure("enter", "the top of the mount namespace", err, "")
	}
	top, err := openDir("/")
	if err != nil {
		return failure("open", "/", err, "")
	}
	defer func() { _ = unix.Close(top) }()
	if err := unix.Fchdir(root); err != nil {
		return failure("enter", "the new root", err, "")
	}
	err = unix.PivotRoot(".", ".") // puts the old root on top of the new one
	if errors.Is(err, unix.EINVAL) {
		// The top is the kernel's first root, as in an initramfs: that can't be
		// replaced, only covered.
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return failure("move the new root to", "/", err, "")
		}
		return nil
	}
	if err != nil {
		return failure("pivot_root", "", err, "")
	}
	if err := unix.Fchdir(top); err != nil {
		return failure("enter", "the old root", err, "")
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return failure("detach", "the old root", err, "")
	}
	return nil
}
