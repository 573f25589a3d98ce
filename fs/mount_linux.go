package fs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// Type is the file system type of every view, as in /proc/mounts and as the
// argument of mount -t.
const Type = "fuse.srvfs"

const (
	// maxRead is the size of the largest READ, in bytes. It is one chunk: the
	// kernel's read-ahead then asks for several at a time, and a reader has its
	// first bytes when the first chunk is there.
	maxRead = manifest.ChunkSize
	// maxBackground is how many read-aheads the kernel has under way at a time.
	maxBackground = 64
)

// Mount shows a snapshot at mountpoint, an existing empty directory, and returns
// when the view answers. Nothing is fetched for that. ctx bounds the mounting,
// not the life of the view.
//
// It needs Linux 5.2, the right to mount (root, or CAP_SYS_ADMIN in the mount namespace's
// user namespace) and /dev/fuse, and no other program. Files keep their setuid
// bits and device nodes their function, as services need them.
//
// The error wraps manifest.ErrInvalid for unusable options, os.ErrNotExist for a
// missing mountpoint or device, syscall.ENOTDIR, syscall.ENOTEMPTY, syscall.EBUSY
// where a view is mounted already, and os.ErrPermission.
func Mount(ctx context.Context, mountpoint string, o Options) (*View, error) {
	v, err := newView(o)
	if err != nil {
		return nil, fmt.Errorf("can't mount at %s: %w", mountpoint, err)
	}
	if err := v.mount(ctx, mountpoint, o); err != nil {
		return nil, fmt.Errorf("can't mount %s at %s: %w", v.name, mountpoint, err)
	}
	return v, nil
}

// mount ends v if it fails.
func (v *View) mount(ctx context.Context, mountpoint string, o Options) (err error) {
	serving := false
	defer func() {
		if err != nil && !serving {
			v.end()
		}
	}()
	err = within(ctx, func() (err error) {
		v.mountpoint, err = checkMountpoint(mountpoint)
		return err
	})
	if err != nil {
		return err
	}
	fd, err := v.attach()
	if err != nil {
		return err
	}
	// go-fuse takes over the descriptor, by the name by which a privileged parent
	// would hand it on. We mount ourselves because its own mount leaves the
	// descriptor open in every program that this process starts, and whoever
	// holds it keeps a dead view's connection from ending.
	v.server, err = fuse.NewServer(&raw{RawFileSystem: fuse.NewDefaultRawFileSystem(), v: v}, "/dev/fd/"+strconv.Itoa(fd), v.mountOptions(o))
	if err != nil {
		_ = unix.Unmount(v.mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		return fmt.Errorf("the kernel's FUSE does not answer: %w", err)
	}
	serving = true
	go v.serve()
	err = within(ctx, v.confirm)
	if err == nil && v.layout == Plain {
		err = within(ctx, v.show)
	}
	if err != nil {
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		_ = v.Unmount(gone) // at once
		return fmt.Errorf("the view does not answer: %w", err)
	}
	v.setReadAhead(cmp.Or(o.ReadAhead, DefaultReadAhead))
	return nil
}

// attach makes the mount and returns the connection's descriptor.
func (v *View) attach() (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("/dev/fuse: %w: load the kernel's module (modprobe fuse) or give the container the device", err)
	case err != nil:
		return -1, fmt.Errorf("/dev/fuse: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	// allow_other: the services run as their own users. default_permissions: the
	// kernel checks modes and ACLs, as on any disk.
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,max_read=%d,default_permissions,allow_other", fd, os.Geteuid(), os.Getegid(), maxRead)
	err = unix.Mount(v.name, v.mountpoint, Type, unix.MS_RDONLY, data)
	switch {
	case errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("mounting needs root: %w", err)
	case errors.Is(err, unix.ENODEV):
		return -1, fmt.Errorf("this kernel has no FUSE: %w", err)
	case err != nil:
		return -1, err
	}
	undo := func() { _ = unix.Unmount(v.mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }
	var st unix.Statx_t
	// DONT_SYNC: nobody serves yet.
	if err = unix.Statx(unix.AT_FDCWD, v.mountpoint, unix.AT_STATX_DONT_SYNC|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st); err != nil {
		undo()
		return -1, err
	}
	v.connection = uint64(st.Dev_minor)
	if v.device, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
		undo()
		return -1, err
	}
	return fd, nil
}

func (v *View) mountOptions(o Options) *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:          "srvfs",
		FsName:        v.name,
		MaxWrite:      maxRead, // also bounds the pages of a READ
		MaxBackground: maxBackground,
		MaxStackDepth: 1, // an overlay may sit on the view
		// Without it neither the kernel nor an overlay would look at POSIX ACLs.
		EnableAcl:                true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		Debug:                    o.Debug,
		Logger:                   slog.NewLogLogger(v.log.Handler(), slog.LevelDebug),
		PanicHandler:             v.panicked,
	}
}

// confirm asks the kernel for the root's attributes, which the kernel asks us.
// Then it polls a file: the answer, made by go-fuse to a name of its own, is
// ENOSYS, after which the kernel knows that no file of this view need be polled.
// Otherwise Go programs, which poll each file that they open, would each ask.
func (v *View) confirm() error {
	var st unix.Stat_t
	if err := unix.Stat(v.mountpoint, &st); err != nil {
		return err
	}
	fd, err := unix.Open(filepath.Join(v.mountpoint, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return unix.Close(fd)
}

// show puts the folder "tree" in the place of the root that holds it.
func (v *View) show() error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, filepath.Join(v.mountpoint, treeFolder), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.Unmount(v.mountpoint, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("umount: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, v.mountpoint, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// setReadAhead tells the kernel how far to read ahead in this mount; INIT can't
// ask for more than 128 KiB. Where /sys is read-only, 128 KiB it is.
func (v *View) setReadAhead(n int) {
	f := fmt.Sprintf("/sys/class/bdi/0:%d/read_ahead_kb", v.connection)
	if err := os.WriteFile(f, []byte(strconv.Itoa(n>>10)), 0); err != nil {
		v.log.Debug("view: read-ahead stays as it is", "err", err)
	}
}

// checkMountpoint returns the mountpoint's absolute path without symlinks.
func checkMountpoint(mountpoint string) (string, error) {
	abs, err := filepath.Abs(mountpoint)
	if err != nil {
		return "", err
	}
	if err := checkUnused(abs); err != nil { // before stat: a dead view answers nothing
		return "", err
	}
	path, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", err
	}
	if path != abs {
		if err := checkUnused(path); err != nil {
			return "", err
		}
	}
	dir, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = dir.Close() }()
	if st, err := dir.Stat(); err != nil {
		return "", err
	} else if !st.IsDir() {
		return "", fmt.Errorf("the mountpoint is no directory: %w", unix.ENOTDIR)
	}
	switch names, err := dir.Readdirnames(1); {
	case err == io.EOF:
		return path, nil
	case err != nil:
		return "", err
	default:
		return "", fmt.Errorf("the mountpoint holds %q; choose an empty directory: %w", names[0], unix.ENOTEMPTY)
	}
}

func checkUnused(path string) error {
	top, found, err := topMount(path)
	if err == nil && found && top.fstype == Type {
		err = fmt.Errorf("%s is mounted there already; unmount it first: %w", top.Name, unix.EBUSY)
	}
	return err
}

// within runs fn and waits for it no longer than ctx. A system call on a file
// system that does not answer can't be ended by any means of ours; its goroutine
// then stays until the call returns.
func within(ctx context.Context, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
