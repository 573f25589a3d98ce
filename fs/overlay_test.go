package fs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"srvfs/fs"
	"srvfs/fs/fstest"
	"srvfs/manifest"
	"srvfs/test/garden"
)

func TestFirstOpenFetchesTheRestIsNative(t *testing.T) {
	w := newWorld(t, func(dir string) { everything(t, dir) }).mount(fs.Options{Layout: fs.Layers})
	root := w.overlay()
	out, err := shell(t, "ls -lR %s; find %s -printf '%%s %%p' ", root, root)
	if err != nil {
		t.Fatal(err, out)
	}
	if n := w.source.Ensures.Load() + w.source.Opens.Load(); n != 0 {
		t.Errorf("stat and ls fetched %d files", n)
	}
	if s := w.view.Stats(); s.GateLookups != 0 {
		t.Errorf("stat and ls came to the gate %d times", s.GateLookups)
	}
	asked := w.asked(func() { sameBytes(t, w.origin+"/big", root+"/big") })
	if len(asked) != 1 || asked["lookup"] != 1 || w.source.Ensures.Load() != 1 {
		t.Errorf("the first open asked %v, %d fetched; want one lookup at the gate", asked, w.source.Ensures.Load())
	}
	w.quiet("the second open", func() { sameBytes(t, w.origin+"/big", root+"/big") })
	if s := w.view.Stats(); s.GateLookups != 1 || s.Reads != 0 || s.Streams != 0 {
		t.Errorf("%d lookups at the gate, %d reads, %d streams", s.GateLookups, s.Reads, s.Streams)
	}
	sameBytes(t, w.origin+"/etc/empty", root+"/etc/empty")
	if n := w.source.Ensures.Load(); n != 1 {
		t.Errorf("an empty file was fetched")
	}
	asked = w.asked(func() {
		sameBytes(t, w.origin+"/links/a", root+"/links/a")
		sameBytes(t, w.origin+"/links/deep/c", root+"/links/deep/c")
	})
	if w.source.Ensures.Load() > 3 {
		t.Errorf("two names of a file asked %v, %d fetched", asked, w.source.Ensures.Load())
	}
}

// What the content holds is opened without a call that others could join, in the
// plain view and at the gate.
func TestHeldContentIsAskedFirst(t *testing.T) {
	w := newWorld(t, func(dir string) {
		write(t, dir+"/a", "one")
		write(t, dir+"/b", "another")
	})
	w.source.Holding = true
	w.mount(fs.Options{})
	for _, name := range []string{"a", "b", "a"} {
		want, err := os.ReadFile(w.origin + "/" + name)
		must(t, err)
		if got, err := os.ReadFile(w.mnt + "/" + name); err != nil || string(got) != string(want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if held, opens := w.source.Held.Load(), w.source.Opens.Load(); held != 2 || opens != 0 {
		t.Errorf("opened %d held files, %d others; want 2, 0", held, opens)
	}
	must(t, w.view.Unmount(t.Context()))

	w.mount(fs.Options{Layout: fs.Layers})
	root := w.overlay()
	content, err := os.ReadFile(w.origin + "/a")
	must(t, err)
	must(t, os.WriteFile(w.source.Blobs+"/"+manifest.Sum(content).Hex(), content, 0o444))
	for i, name := range []string{"a", "b"} {
		if _, err := os.ReadFile(root + "/" + name); err != nil {
			t.Error(err)
		}
		if n := w.source.Ensures.Load(); n != int64(i) {
			t.Errorf("after %s: %d contents ensured, want %d", name, n, i)
		}
	}
}

func TestGateKnowsNoOtherContent(t *testing.T) {
	w := newWorld(t, func(dir string) { everything(t, dir) }).mount(fs.Options{Layout: fs.Layers})
	for _, name := range []string{"x", strings.Repeat("0", 64), strings.Repeat("G", 64), "sha256:" + strings.Repeat("0", 57)} {
		if _, err := os.Lstat(w.mnt + "/content/" + name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, err := os.ReadDir(w.mnt + "/content"); err != nil || len(all) != 0 {
		t.Errorf("the gate lists %v, %v", all, err)
	}
	if all, err := os.ReadDir(w.mnt); err != nil || len(all) != 3 {
		t.Errorf("the layers are %v, %v", all, err)
	}
	if n := w.source.Ensures.Load(); n != 0 {
		t.Errorf("%d fetched", n)
	}
	// The overlay finds its attributes; nobody else is shown them.
	var d [100]byte
	n, err := unix.Getxattr(w.mnt+"/tree/page", "trusted.overlay.redirect", d[:])
	if want := "/" + manifest.Sum(pattern(4096, 3)).Hex(); err != nil || string(d[:n]) != want {
		t.Errorf("redirect %q, %v; want %s", d[:max(n, 0)], err, want)
	}
	if n, err := unix.Getxattr(w.mnt+"/tree/etc/empty", "trusted.overlay.metacopy", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("an empty file has metacopy (%d, %v)", n, err)
	}
	if s := allXattrs(t, w.mnt+"/tree/page"); s != "" {
		t.Errorf("listed: %s", s)
	}
}

func TestParallelFirstOpens(t *testing.T) {
	const n, each = 64, 100 * time.Millisecond
	w := newWorld(t, func(dir string) {
		for i := range n {
			write(t, fmt.Sprintf("%s/f%d", dir, i), fmt.Sprint("content ", i))
		}
	})
	// Each waits at the gate until all are there: it opens for 64 at a time, or not
	// before they give up.
	all := make(chan struct{})
	var there atomic.Int64
	w.source.SetHook(func(ctx context.Context, c fstest.Call) error {
		if c.Op != "ensure" {
			return nil
		}
		if there.Add(1) == n {
			close(all)
		}
		select {
		case <-all:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		time.Sleep(each) // the wire
		return nil
	})
	w.mount(fs.Options{Layout: fs.Layers})
	root := w.overlay()
	_, err := os.ReadDir(root)
	must(t, err)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { sameBytes(t, fmt.Sprintf("%s/f%d", w.origin, i), fmt.Sprintf("%s/f%d", root, i)) })
	}
	wg.Wait()
	took := time.Since(start)
	t.Logf("%d first opens of %v each took %v", n, each, took)
	if took > n/4*each {
		t.Errorf("they wait for one another")
	}
	// And many openers of one file make one fetch.
	write(t, w.origin+"/f0", "changed")
	before := w.source.Ensures.Load()
	if before != n {
		t.Errorf("%d fetches, want %d", before, n)
	}
}

func TestFailedOpenIsNotRemembered(t *testing.T) {
	broken := func(err error) fstest.Hook {
		return func(_ context.Context, c fstest.Call) error { return fmt.Errorf("%s: %w", c.Op, err) }
	}
	for what, c := range map[string]struct {
		hook fstest.Hook
		want unix.Errno
	}{
		"silent":    {hang("ensure"), unix.EIO},
		"missing":   {broken(manifest.ErrNotFound), unix.EIO},
		"damaged":   {broken(manifest.ErrCorrupt), unix.EIO},
		"disk full": {broken(manifest.ErrNoSpace), unix.ENOSPC},
		"stale":     {broken(manifest.ErrStale), unix.ESTALE},
		// The gate was told that the blob is there, and it is not.
		"lost": {func(_ context.Context, c fstest.Call) error { return fstest.ErrLost }, unix.EIO},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, func(dir string) { write(t, dir+"/dir/file", "content") })
			w.mount(fs.Options{Layout: fs.Layers, Deadline: 300 * time.Millisecond})
			root := w.overlay()
			_, err := os.Lstat(root + "/dir/file")
			must(t, err)
			w.source.SetHook(c.hook)
			start := time.Now()
			if _, err := os.ReadFile(root + "/dir/file"); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("took %v", took)
			}
			if n := strings.Count(w.log.String(), "path=/dir/file"); n != 1 {
				t.Errorf("%d lines with the path:\n%s", n, w.log)
			}
			if _, err := os.Lstat(root + "/dir/file"); err != nil {
				t.Errorf("stat after it: %v", err)
			}
			if _, err := os.ReadDir(root + "/dir"); err != nil {
				t.Errorf("ls after it: %v", err)
			}
			w.source.SetHook(nil)
			must(t, eventually(func() error { _, err := os.ReadFile(root + "/dir/file"); return err }))
			sameBytes(t, w.origin+"/dir/file", root+"/dir/file")
		})
	}
}

// streamWorld has a file that arrives when release is closed.
func streamWorld(t *testing.T, o fs.Options) (w *world, root string, release chan struct{}) {
	w = newWorld(t, func(dir string) { must(t, os.WriteFile(dir+"/large", pattern(9<<20, 5), 0o644)) })
	release = make(chan struct{})
	w.source.SetHook(func(ctx context.Context, c fstest.Call) error {
		if c.Op == "ensure" {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return ctx.Err()
	})
	o.Layout = fs.Layers
	w.mount(o)
	return w, w.overlay(), release
}

func TestLargeFileIsStreamed(t *testing.T) {
	w, root, release := streamWorld(t, fs.Options{Stream: 4 << 20})
	f, err := os.Open(root + "/large")
	must(t, err)
	defer f.Close()
	page := make([]byte, 4096)
	_, err = f.ReadAt(page, 8<<20)
	must(t, err)
	if !bytes.Equal(page, pattern(9<<20, 5)[8<<20:][:4096]) {
		t.Error("wrong bytes")
	}
	if s := w.view.Stats(); s.Streams != 1 || s.Reads == 0 || s.ReadBytes > 4<<20 {
		t.Errorf("%d streams, %d reads, %d bytes", s.Streams, s.Reads, s.ReadBytes)
	}
	close(release) // the whole file arrives behind it
	blob := w.blobs + "/" + manifest.Sum(pattern(9<<20, 5)).Hex()
	must(t, eventually(func() error { _, err := os.Stat(blob); return err }))
	sameBytes(t, w.origin+"/large", root+"/large") // who has it open goes on
	w.quiet("a second read", func() { sameBytes(t, w.origin+"/large", root+"/large") })
	// The next root finds the blob.
	f.Close()
	must(t, unix.Unmount(root, 0))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	must(t, w.view.Unmount(ctx))
	w.mount(fs.Options{Layout: fs.Layers, Stream: 4 << 20})
	w.overlayAt(root, w.dir+"/upper", w.dir+"/work")
	sameBytes(t, w.origin+"/large", root+"/large")
	if s := w.view.Stats(); s.Reads != 0 || s.Streams != 0 {
		t.Errorf("the second root: %d reads, %d streams", s.Reads, s.Streams)
	}
}

// Half the deadline over a slow line is enough for any file of some size.
func TestSlowFileIsStreamed(t *testing.T) {
	w, root, release := streamWorld(t, fs.Options{Deadline: 600 * time.Millisecond})
	defer close(release)
	sameBytes(t, w.origin+"/large", root+"/large")
	if s := w.view.Stats(); s.Streams != 1 || s.Failures != 0 {
		t.Errorf("%d streams, %d failures", s.Streams, s.Failures)
	}
}

func TestStreamingCanBeOff(t *testing.T) {
	_, root, release := streamWorld(t, fs.Options{Stream: -1, Deadline: 300 * time.Millisecond})
	defer close(release)
	if _, err := os.Open(root + "/large"); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
}

// What a service changes lies in the upper layer, and the view knows nothing of it.
func TestWritesGoToTheUpperLayer(t *testing.T) {
	t.Run("tree", func(t *testing.T) { writesGoToTheUpperLayer(t, false) })
	t.Run("stubs", func(t *testing.T) { writesGoToTheUpperLayer(t, true) })
}

func writesGoToTheUpperLayer(t *testing.T, stubs bool) {
	w := newWorld(t, func(dir string) {
		everything(t, dir)
		if stubs {
			everyoneExecutes(t, dir)
		}
	}).mount(fs.Options{Layout: fs.Layers})
	w.stubs = stubs
	root := w.overlay()
	read := func(name, want string) {
		t.Helper()
		if b, err := os.ReadFile(root + name); err != nil || string(b) != want {
			t.Errorf("%s: %.50q, %v; want %.50q", name, b, err, want)
		}
	}
	f, err := os.OpenFile(root+"/big", os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("changed"), 1<<20)
	must(t, err)
	must(t, f.Close())
	want := pattern(3<<20+12345, 1)
	copy(want[1<<20:], "changed")
	read("/big", string(want))

	must(t, os.WriteFile(root+"/etc/motd", []byte("other"), 0))
	read("/etc/motd", "other")
	// Attributes alone are copied; the content stays below, through chmod, rename
	// and a second name.
	must(t, os.Chmod(root+"/page", 0o640))
	must(t, os.Rename(root+"/page", root+"/etc/moved"))
	must(t, os.Link(root+"/etc/moved", root+"/etc/linked"))
	read("/etc/moved", string(pattern(4096, 3)))
	read("/etc/linked", string(pattern(4096, 3)))
	if st, err := os.Stat(root + "/etc/linked"); err != nil || st.Mode() != 0o640 || st.Size() != 4096 {
		t.Errorf("%v, %v", st, err)
	}
	f, err = os.OpenFile(root+"/etc/moved", os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("more")
	must(t, err)
	must(t, f.Close())
	read("/etc/linked", string(pattern(4096, 3))+"more")
	// A directory of the tree moves with all that is in it.
	must(t, os.Rename(root+"/links", root+"/links2"))
	read("/links2/deep/c", "one file")
	// What is deleted stays deleted, and a new directory does not show the old one's names.
	must(t, os.Remove(root+"/bin/su"))
	must(t, os.RemoveAll(root+"/attr"))
	must(t, os.Mkdir(root+"/attr", 0o755))
	for _, gone := range []string{"/bin/su", "/attr/user", "/links", "/page"} {
		if _, err := os.Lstat(root + gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if all, err := os.ReadDir(root + "/attr"); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	must(t, unix.Setxattr(root+"/chunk", "user.new", []byte("v"), 0))
	read("/chunk", string(pattern(256<<10, 2)))
	// A file capability and an ACL come along when a file is copied up.
	for _, name := range []string{"/dev/null", "/sparse"} {
		must(t, os.Chown(root+name, 33, 33))
	}
	sameBytes(t, w.origin+"/sparse", root+"/sparse")

	// All of it holds in a new root on the same upper layer, and a new view.
	must(t, unix.Unmount(root, 0))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	must(t, w.view.Unmount(ctx))
	w.mount(fs.Options{Layout: fs.Layers})
	w.overlayAt(root, w.dir+"/upper", w.dir+"/work")
	read("/big", string(want))
	read("/etc/motd", "other")
	read("/etc/linked", string(pattern(4096, 3))+"more")
	read("/links2/deep/c", "one file")
	read("/chunk", string(pattern(256<<10, 2)))
	for _, gone := range []string{"/bin/su", "/attr/user", "/links", "/page"} {
		if _, err := os.Lstat(root + gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s in the second root: %v", gone, err)
		}
	}
}

// The root is a file system like any other: go-fuse's collection of what POSIX
// programs do runs in it, as do those of its cases in the plain view that need
// nothing written.
func TestPosix(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/lower/file", "x") }).mount(fs.Options{Layout: fs.Layers})
	root := w.overlay()
	for _, name := range sortedKeys(posixtest.All) {
		switch name {
		case "FcntlFlockLocksFile": // wants flock and fcntl to exclude each other; on Linux they don't
			continue
		case "XAttrLarge": // is about the file system of the upper layer
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := root + "/" + name
			must(t, os.Mkdir(dir, 0o755))
			posixtest.All[name](t, dir)
		})
	}
}

// Overlayfs's own file handles of this view must not lead a later view astray.
func TestGenerationsDiffer(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/a", "a") }).mount(fs.Options{})
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, w.mnt+"/a", 0)
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	must(t, w.view.Unmount(ctx))
	w.mount(fs.Options{})
	h2, _, err := unix.NameToHandleAt(unix.AT_FDCWD, w.mnt+"/a", 0)
	must(t, err)
	if bytes.Equal(h.Bytes(), h2.Bytes()) {
		t.Error("one file handle for two views")
	}
}

func TestProgramsRun(t *testing.T) {
	for what, args := range map[string]serveArgs{"plain": {}, "layers": {Layout: fs.Layers}, "stubs": {Layout: fs.Layers, Stubs: t.TempDir()}} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, func(dir string) { programs(t, dir) })
			s := w.serve(args)
			root := w.mnt
			switch {
			case args.Stubs != "":
				root = w.dir + "/root"
				for _, d := range []string{root, w.dir + "/upper", w.dir + "/work"} {
					must(t, os.Mkdir(d, 0o755))
				}
				w.overlayOf(root, args.Stubs+":"+fs.Lower(w.mnt, w.blobs), w.dir+"/upper", w.dir+"/work")
			case args.Layout == fs.Layers:
				root = w.overlay()
			}
			must(t, os.Chmod(filepath.Dir(w.dir), 0o755))
			must(t, os.Chmod(w.dir, 0o755))
			run := func(want, format string, args ...any) {
				t.Helper()
				out, err := shell(t, format, args...)
				if err != nil || strings.TrimSpace(out) != want {
					t.Errorf("%q, %v; want %q", out, err, want)
				}
			}
			run("hello", "chroot %s /bin/sh -c '/bin/cat /hello'", root) // exec, shared libraries by mmap
			run("0", "setpriv --reuid 1000 --regid 1000 --clear-groups %s/bin/suid -u", root)
			run("1000", "setpriv --reuid 1000 --regid 1000 --clear-groups %s/bin/id -u", root)
			// ACLs and modes hold for others than root.
			run("x", "setpriv --reuid 4242 --regid 1000 --clear-groups cat %s/acl", root)
			if out, err := shell(t, "setpriv --reuid 4243 --regid 1000 --clear-groups cat %s/acl", root); err == nil || !strings.Contains(out, "Permission denied") {
				t.Errorf("an ACL is not enforced: %q, %v", out, err)
			}
			before := s.stats()
			run("hello", "chroot %s /bin/sh -c '/bin/cat /hello'", root)
			after := s.stats()
			for name, n := range after.Upcalls {
				// Each exec asks whether the program has capabilities: the kernel
				// keeps no attributes. A stub answers that itself.
				if d := n - before.Upcalls[name]; d > 0 && (name != "getxattr" || args.Stubs != "") && name != "forget" {
					t.Errorf("a second run asked %s %d times", name, d)
				}
			}
			t.Logf("a second run asked for attributes %d times", after.Upcalls["getxattr"]-before.Upcalls["getxattr"])
		})
	}
}

// programs fills dir with a few of this machine, and their libraries.
func programs(t *testing.T, dir string) {
	for _, p := range []string{"/bin/sh", "/bin/cat", "/usr/bin/id"} {
		libs, err := shell(t, "ldd %s", p)
		must(t, err)
		files := []string{p}
		for _, f := range strings.Fields(libs) {
			if strings.HasPrefix(f, "/") {
				files = append(files, f)
			}
		}
		for _, f := range files {
			to := dir + f
			if f == p {
				to = dir + "/bin/" + filepath.Base(p)
			}
			must(t, os.MkdirAll(filepath.Dir(to), 0o755))
			copyFile(t, f, to)
		}
	}
	copyFile(t, "/usr/bin/id", dir+"/bin/suid")
	must(t, unix.Chmod(dir+"/bin/suid", 0o4755))
	write(t, dir+"/hello", "hello\n")
	write(t, dir+"/acl", "x")
	must(t, os.Chmod(dir+"/acl", 0o600))
	must(t, unix.Setxattr(dir+"/acl", "system.posix_acl_access", garden.ACL(4242, 4), 0))
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	must(t, err)
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	must(t, err)
	_, err = io.Copy(dst, src)
	must(t, err)
	must(t, dst.Close())
}

func TestLowerEscapes(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/f", "x") })
	w.mnt, w.blobs = w.dir+`/m:n,o\p q`, w.dir+`/b:,\`
	must(t, os.Mkdir(w.mnt, 0o755))
	must(t, os.Mkdir(w.blobs, 0o755))
	w.source.Blobs = w.blobs
	w.mount(fs.Options{Layout: fs.Layers})
	sameBytes(t, w.origin+"/f", w.overlay()+"/f")
}
