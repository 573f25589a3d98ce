package fs_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/fs"
	"srvfs/manifest"
)

func TestMountRefuses(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/f", "x") })
	write(t, w.dir+"/file", "x")
	write(t, w.dir+"/full/name", "x")
	must(t, os.Symlink("nowhere", w.dir+"/dangling"))
	ok := fs.Options{Snapshot: w.source.Tree.Snapshot("web"), Content: w.source}
	changed := func(f func(o *fs.Options)) fs.Options { o := ok; f(&o); return o }
	w.mount(fs.Options{})
	for what, c := range map[string]struct {
		at   string
		o    fs.Options
		want error
	}{
		"missing":      {w.dir + "/none", ok, os.ErrNotExist},
		"dangling":     {w.dir + "/dangling", ok, os.ErrNotExist},
		"a file":       {w.dir + "/file", ok, unix.ENOTDIR},
		"not empty":    {w.dir + "/full", ok, unix.ENOTEMPTY},
		"mounted":      {w.mnt, ok, unix.EBUSY},
		"no snapshot":  {w.blobs, changed(func(o *fs.Options) { o.Snapshot = nil }), manifest.ErrInvalid},
		"no content":   {w.blobs, changed(func(o *fs.Options) { o.Content = nil }), manifest.ErrInvalid},
		"layout":       {w.blobs, changed(func(o *fs.Options) { o.Layout = 7 }), manifest.ErrInvalid},
		"negative":     {w.blobs, changed(func(o *fs.Options) { o.Deadline = -1 }), manifest.ErrInvalid},
		"open files":   {w.blobs, changed(func(o *fs.Options) { o.OpenFiles = -1 }), manifest.ErrInvalid},
		"in the view":  {w.mnt + "/f", ok, unix.ENOTDIR},
		"already over": {w.blobs, ok, context.Canceled},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		if what == "already over" {
			cancel()
		}
		v, err := fs.Mount(ctx, c.at, c.o)
		cancel()
		if v != nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.at) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	if left := leftovers(w.dir + "/"); len(left) != 1 {
		t.Errorf("mounted: %q", left)
	}
}

// In a mount namespace without the device, and as another user.
func TestMountNeedsRootAndDevice(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/f", "x") })
	must(t, unix.Chmod(w.mnt, 0o777))
	for d := w.dir; d != "/tmp" && d != "/"; d = d[:strings.LastIndexByte(d, '/')] {
		must(t, os.Chmod(d, 0o755))
	}
	args := `FS_TEST_SERVE={"Origin":"` + w.origin + `","Mountpoint":"` + w.mnt + `","Blobs":"` + w.blobs + `"}`
	self, err := os.Executable()
	must(t, err)
	copyFile(t, self, w.dir+"/self")
	for _, c := range []struct{ with, want string }{
		{"setpriv --reuid 1000 --regid 1000 --clear-groups", "permission denied"},
		{"setpriv --bounding-set -sys_admin --inh-caps -sys_admin", "mounting needs root"},
		{"unshare -m sh -c 'mount -t tmpfs none /dev && exec \"$0\"'", "load the kernel's module"},
	} {
		out, err := shell(t, "env '%s' %s %s/self", args, c.with, w.dir)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %q, %v; want %q", c.with, out, err, c.want)
		}
	}
}

func TestUnmount(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/dir/f", "content") }).mount(fs.Options{})
	f, err := os.Open(w.mnt + "/dir/f")
	must(t, err)
	if err := w.view.TryUnmount(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("while a file is open: %v, want EBUSY", err)
	}
	if _, err := os.Stat(w.mnt + "/dir"); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
	// Its name disappears, and who has it open may go on until the time is over.
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- w.view.Unmount(ctx) }()
	must(t, eventually(func() error {
		if _, err := os.Lstat(w.mnt + "/dir"); !errors.Is(err, os.ErrNotExist) {
			return errors.New("still there")
		}
		return nil
	}))
	select {
	case err := <-ended:
		t.Fatalf("Unmount returned while a file is open: %v", err)
	default:
	}
	var b [7]byte
	if _, err := f.ReadAt(b[:], 0); err != nil || string(b[:]) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	must(t, f.Close())
	must(t, <-ended)
	w.view.Wait()
	must(t, w.view.Unmount(ctx)) // again
	must(t, w.view.Abort())
	if n := w.source.Opens.Load() - w.source.Closes.Load(); n != 0 {
		t.Errorf("%d files were not closed", n)
	}
	w.mount(fs.Options{}) // the place is free
}

func TestUnmountAbortsInTheEnd(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/dir/f", "content") })
	w.source.SetHook(hang("read"))
	w.mount(fs.Options{Deadline: limit})
	f, err := os.Open(w.mnt + "/dir/f")
	must(t, err)
	defer f.Close()
	reader := make(chan error, 1)
	go func() { _, err := f.ReadAt(make([]byte, 1), 0); reader <- err }()
	must(t, eventually(func() error {
		if w.source.Reads.Load() == 0 {
			return errors.New("no read yet")
		}
		return nil
	}))
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	must(t, w.view.Unmount(ctx))
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
	if err := <-reader; err == nil {
		t.Error("the read succeeded")
	}
	w.view.Wait()
}

func TestUnmountedFromOutside(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/f", "x") }).mount(fs.Options{})
	if out, err := shell(t, "umount %s", w.mnt); err != nil {
		t.Fatal(out, err)
	}
	w.view.Wait()
}

// Whoever serves the view dies without a word, while a process reads from it.
func TestDetachCleansUpAfterADeadView(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/dir/f", "content") })
	s := w.serve(serveArgs{Hang: "read", Deadline: limit})
	all, err := fs.Mounts()
	must(t, err)
	found := false
	for _, m := range all {
		found = found || m.Mountpoint == w.mnt && m.Name == "source/web" && m.Connection > 0
	}
	if !found {
		t.Errorf("%s is not among %+v", w.mnt, all)
	}
	reader := exec.Command("cat", w.mnt+"/dir/f")
	must(t, reader.Start())
	must(t, eventually(func() error { return blocked(reader.Process.Pid) }))
	must(t, s.cmd.Process.Kill())
	_ = s.cmd.Wait()
	if err := reader.Wait(); err == nil {
		t.Error("the reader read on")
	}
	if _, err := os.Stat(w.mnt + "/unknown"); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("a dead view answers %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if _, err := fs.Mount(ctx, w.mnt, fs.Options{Snapshot: w.source.Tree.Snapshot("web"), Content: w.source}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a mount over a dead view: %v", err)
	}
	must(t, fs.Detach(w.mnt))
	must(t, fs.Detach(w.mnt)) // nothing to do
	w.mount(fs.Options{})
	sameBytes(t, w.origin+"/dir/f", w.mnt+"/dir/f")
}

func TestDetachEndsALivingView(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/dir/f", "content") })
	w.source.SetHook(hang("meta"))
	w.mount(fs.Options{Deadline: limit})
	waiter := exec.Command("ls", w.mnt+"/dir")
	must(t, waiter.Start())
	must(t, eventually(func() error { return blocked(waiter.Process.Pid) }))
	must(t, fs.Detach(w.mnt))
	_ = waiter.Wait()
	w.view.Wait() // although the origin still hangs
}

func TestDetachLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	must(t, fs.Detach(dir))
	must(t, fs.Detach(dir+"/none"))
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Type != unix.TMPFS_MAGIC {
		t.Error("another file system was detached")
	}
}

// No program that this process starts holds the connection.
func TestDeviceIsNotInherited(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/f", "x") }).mount(fs.Options{})
	out, err := shell(t, "ls -l /proc/self/fd")
	if err != nil || strings.Contains(out, "/dev/fuse") {
		t.Errorf("%v: %s", err, out)
	}
	_ = w
}

// Views are opened, read, evicted and closed evenly.
func TestOpenFilesAreBounded(t *testing.T) {
	w := newWorld(t, func(dir string) {
		for i := range 40 {
			write(t, dir+"/"+string(rune('A'+i)), strings.Repeat("x", i+1))
		}
	}).mount(fs.Options{OpenFiles: 4})
	for i := range 40 {
		sameBytes(t, w.origin+"/"+string(rune('A'+i)), w.mnt+"/"+string(rune('A'+i)))
	}
	if s := w.view.Stats(); s.OpenFiles > 4 {
		t.Errorf("%d files are open", s.OpenFiles)
	}
	if open := w.source.Opens.Load() - w.source.Closes.Load(); open > 4 {
		t.Errorf("%d files were not closed", open)
	}
}
