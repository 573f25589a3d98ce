package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"srvfs/sandbox"
)

// A stage is where a disposable instance runs: a root that is a copy-on-write
// view, with all that is written going into memory.
//
// Its mounts are made by a thread of its own in a mount namespace of its own, so
// that no other process sees them and nothing is left of them, whatever happens
// to this process. The thread covers a folder that is on every host with a
// tmpfs, as a place for the layers; since the covering is private, what is
// in that folder on the host is not touched.
type stage struct {
	root   *os.File // the root, O_PATH
	notify *net.UnixConn
	sb     *sandbox.Sandbox

	end  chan struct{}
	done chan struct{}
	once sync.Once
}

// notifySocket is where units of the kind Notify say that they are ready.
const notifySocket = "/run/srvfs-notify"

// stageConfig says what the root of a stage is made of.
type stageConfig struct {
	mounts  []sourceMount // of the source, its root first
	folders []folder      // made before anything starts
	scratch int64         // bytes; 0 is tmpfs's own default
	log     *os.File
	// build, if not nil, makes the names of the root in the folder given, with
	// redirects into the mounts' layers. Without it the source's own names show.
	build func(dir string) error
	// copies: the names that build makes have their content with them.
	copies bool
	// frozen is the folder of the copies that names redirect to; "" if there are
	// none.
	frozen string
}

// cover are folders that can be covered in the private namespace.
var cover = []string{"/tmp", "/run", "/mnt", "/var"}

// newStage makes the root and starts a sandbox in it.
func newStage(ctx context.Context, c stageConfig) (*stage, error) {
	s := &stage{end: make(chan struct{}), done: make(chan struct{})}
	ready := make(chan error)
	go s.hold(ctx, c, ready)
	if err := <-ready; err != nil {
		<-s.done
		return nil, err
	}
	return s, nil
}

// close ends the sandbox and takes the mounts away.
func (s *stage) close(ctx context.Context) error {
	var err error
	s.once.Do(func() {
		if s.sb != nil {
			err = s.sb.Stop(ctx)
		}
		if s.notify != nil {
			_ = s.notify.Close()
		}
		if s.root != nil {
			_ = s.root.Close()
		}
		close(s.end)
		<-s.done
	})
	return err
}

// full reports whether the memory for what is written is used up, and how much that is.
func (s *stage) full() (size int64, full bool) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.root.Fd()), &st); err != nil {
		return 0, false
	}
	size = int64(st.Blocks) * st.Bsize
	return size, int64(st.Bavail)*st.Bsize < max(size/100, 64<<10)
}

// hold runs on the thread that owns the mounts, until the stage is closed. The
// thread is never unlocked, so it ends with the goroutine, and the namespace
// with it.
func (s *stage) hold(ctx context.Context, c stageConfig, ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread can't end before the process: use another.
		go s.hold(ctx, c, ready)
		<-s.done
		runtime.UnlockOSThread()
		return
	}
	defer close(s.done)
	err := s.set(ctx, c)
	ready <- err
	if err != nil {
		return
	}
	<-s.end
}

func (s *stage) set(ctx context.Context, c stageConfig) error {
	// The sources are named by descriptors from here on: covering a folder may
	// hide them, and their paths may hold what mount options can't.
	trees := make([]int, len(c.mounts))
	for i, m := range c.mounts {
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.host, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("look at %s: open_tree: %w", m.host, err)
		}
		defer func() { _ = unix.Close(fd) }()
		trees[i] = fd
	}
	frozen := -1
	if c.frozen != "" {
		var err error
		if frozen, err = unix.OpenTree(unix.AT_FDCWD, c.frozen, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			return fmt.Errorf("look at %s: open_tree: %w", c.frozen, err)
		}
		defer func() { _ = unix.Close(frozen) }()
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("private mounts: unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	base, err := coverFolder(c.scratch)
	if err != nil {
		return err
	}
	root := base + "/root"
	for _, dir := range []string{root, base + "/run", base + "/tmp", base + "/vartmp"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if frozen >= 0 {
		if err := os.Mkdir(base+"/frozen", 0o700); err != nil {
			return err
		}
		if err := unix.MoveMount(frozen, "", unix.AT_FDCWD, base+"/frozen", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("look at %s: move_mount: %w", c.frozen, err)
		}
	}
	helper, err := sandbox.Prepare(true, true) // it comes to life while the root is built
	if err != nil {
		return err
	}
	defer helper.Close()
	if err := s.mountLayers(c, base, root, trees); err != nil {
		return err
	}
	return s.furnish(ctx, c, helper, base, root)
}

func coverFolder(scratch int64) (string, error) {
	data := "mode=0700"
	if scratch > 0 {
		data += ",size=" + strconv.FormatInt(scratch, 10)
	}
	for _, dir := range cover {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
			continue
		}
		if err := unix.Mount("srvfs", dir, "tmpfs", unix.MS_NOATIME, data); err != nil {
			return "", fmt.Errorf("memory for the sandbox: mount tmpfs: %w", err)
		}
		return dir, nil
	}
	return "", fmt.Errorf("this host has none of the folders %s", strings.Join(cover, ", "))
}

// mountLayers makes one overlay for each mount of the source: its lower layer,
// a file system, can't be crossed into others.
func (s *stage) mountLayers(c stageConfig, base, root string, trees []int) error {
	tree := base + "/tree"
	if c.build != nil {
		if err := os.Mkdir(tree, 0o755); err != nil {
			return err
		}
		if err := c.build(tree); err != nil {
			return err
		}
		if c.copies {
			return bind(tree, root)
		}
	}
	for i, m := range c.mounts {
		n := strconv.Itoa(i)
		src, up, work := base+"/src"+n, base+"/up"+n, base+"/work"+n
		for _, dir := range []string{src, up, work} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := unix.MoveMount(trees[i], "", unix.AT_FDCWD, src, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("look at %s: move_mount: %w", m.host, err)
		}
		at, lower, data := root+m.path, src, ""
		if c.build != nil {
			names := path.Clean(tree + m.path)
			if info, err := os.Lstat(names); err != nil || !info.IsDir() {
				continue // nothing of this mount is in the snapshot
			}
			if err := hideOthers(src, names); err != nil {
				return err
			}
			lower, data = "lower"+n, ",metacopy=on,redirect_dir=on"
			if err := os.Mkdir(base+"/"+lower, 0o755); err != nil {
				return err
			}
			if err := bind(names, base+"/"+lower); err != nil {
				return err
			}
			lower = base + "/" + lower + ":" + src
			if c.frozen != "" { // its names are digests, which a whiteout hides as well
				if err := hideOthers(base+"/frozen", names); err != nil {
					return err
				}
				lower += ":" + base + "/frozen"
			}
		}
		top := src
		if c.build != nil {
			top = path.Clean(tree + m.path)
		}
		if err := copyAttributes(top, up); err != nil {
			return err
		}
		at = path.Clean(at)
		data = "lowerdir=" + lower + ",upperdir=" + up + ",workdir=" + work + data
		if err := unix.Mount("overlay", at, "overlay", 0, data); err != nil {
			return &layerError{path: m.path, err: err}
		}
	}
	return nil
}

// A layerError: the kernel can't make the overlay.
type layerError struct {
	path string
	err  error
}

func (e *layerError) Error() string {
	return fmt.Sprintf("copy-on-write view of %s: mount overlay: %v", e.path, e.err)
}

func (e *layerError) Unwrap() error { return e.err }

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", to, err)
	}
	return nil
}

// hideOthers prepares the folder names as a layer above src of which nothing
// may show but what names redirects to. A folder that is below the layer's root is opaque;
// the root itself can't be, so what else src has there gets a whiteout.
func hideOthers(src, names string) error {
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := path.Join(names, e.Name())
		if _, err := os.Lstat(p); err == nil {
			continue
		}
		if err := unix.Mknod(p, unix.S_IFCHR, 0); err != nil {
			return &os.PathError{Op: "mknod", Path: p, Err: err}
		}
	}
	return nil
}

// copyAttributes gives the folder to what from shows: the root of an overlay
// has the attributes of its upper layer.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	if err := os.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	xs, err := xattrs(from+"/.", from)
	if err != nil {
		return err
	}
	for _, x := range xs {
		if err := unix.Setxattr(to, x.Name, []byte(x.Value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "setxattr " + x.Name, Path: to, Err: err}
		}
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
		return &os.PathError{Op: "utimensat", Path: to, Err: err}
	}
	return nil
}
