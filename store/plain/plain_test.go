package plain_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/fs/fstest"
	"srvfs/manifest"
	"srvfs/store"
	"srvfs/store/plain"
)

// childEnv makes the test program write a tree, telling each file, until it is killed.
const childEnv = "SRVFS_PLAIN_TEST"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// A disk is an origin with the files and pages of a scanned tree.
type disk struct{ *fstest.Tree }

func (d disk) Fetch(_ context.Context, digest manifest.Digest, off, n int64) (io.ReadCloser, error) {
	b, ok := d.Meta[digest]
	if p, isFile := d.Files[digest]; isFile {
		var err error
		if b, err = os.ReadFile(p); err != nil {
			return nil, err
		}
		ok = true
	}
	if !ok {
		return nil, manifest.ErrNotFound
	}
	if n < 0 {
		n = int64(len(b)) - off
	}
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

// A world is a tree with one of each that a disk can hold, and a store of its content.
type world struct {
	testing.TB
	dir    string // on one file system: the tree (source), the store
	tree   *fstest.Tree
	snap   *manifest.Snapshot
	store  *store.Store
	reader *store.Reader
}

func newWorld(t testing.TB, dir string, fill func(w *world, dir string)) *world {
	t.Helper()
	w := &world{TB: t, dir: dir}
	source := filepath.Join(dir, "source")
	w.must(os.Mkdir(source, 0o755))
	fill(w, source)
	w.open(source)
	return w
}

func (w *world) open(source string) {
	w.Helper()
	var err error
	w.tree, err = fstest.Scan(source)
	w.must(err)
	w.snap = w.tree.Snapshot("web")
	w.store, err = store.Open(store.Options{Dir: filepath.Join(w.dir, "store")})
	w.must(err)
	w.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			w.Error(err)
		}
	})
	w.reader = w.store.Reader(store.Source{Name: "disk", Origin: disk{w.tree}})
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	w.Cleanup(cancel)
	return ctx
}

func (w *world) write(dir string, content plain.Content) plain.Result {
	w.Helper()
	r, err := plain.Write(w.ctx(), plain.Options{Snapshot: w.snap, Reader: w.reader, Dir: dir, Content: content})
	w.must(err)
	return r
}

// same compares a folder with the source, entry for entry: the root's digest covers all
// names, attributes, times, links, and bytes.
func (w *world) same(what, dir string) {
	w.Helper()
	got, err := fstest.Scan(dir)
	w.must(err)
	if got.Root.Equal(&w.tree.Root) {
		return
	}
	out, _ := exec.Command("diff", "-u", w.list(filepath.Join(w.dir, "source")), w.list(dir)).CombinedOutput()
	w.Errorf("%s differs from the source:\n%s", what, out)
}

// list writes what is in a folder to a file, for people.
func (w *world) list(dir string) string {
	w.Helper()
	out, err := exec.Command("sh", "-c", "cd "+dir+" && find . -printf '%p %y %m %U:%G %T@ %s %n %l\\n' | sort && getfattr -hdR -m - . 2>&1; find . -type f | sort | xargs -d '\\n' sha256sum 2>&1").CombinedOutput()
	if err != nil {
		w.Logf("list %s: %v", dir, err)
	}
	f := filepath.Join(w.TempDir(), "list")
	w.must(os.WriteFile(f, out, 0o600))
	return f
}

func (w *world) put(path string, b []byte, mode uint32) {
	w.Helper()
	w.must(os.MkdirAll(filepath.Dir(path), 0o755))
	w.must(os.WriteFile(path, b, 0o600))
	w.must(unix.Chmod(path, mode))
}

// everything fills dir with one of each that a file system can hold.
func everything(w *world, dir string) {
	w.put(dir+"/etc/motd", []byte("hello\n"), 0o644)
	w.put(dir+"/etc/empty", nil, 0o600)
	w.put(dir+"/etc/again", []byte("hello\n"), 0o640) // the same content with another mode
	w.put(dir+"/etc/same", []byte("hello\n"), 0o644)  // and with the same
	w.must(os.Mkdir(dir+"/etc/emptydir", 0o700))
	w.put(dir+"/big", random(3<<20+12345), 0o600)
	w.put(dir+"/chunk", random(256<<10), 0o444)
	w.put(dir+"/bin/su", []byte("#!/bin/sh\n"), 0o755)
	w.must(os.Lchown(dir+"/bin/su", 1234, 70000))
	w.must(unix.Chmod(dir+"/bin/su", 0o6755))
	w.put(dir+"/bin/none", []byte("x"), 0)
	w.must(os.Mkdir(dir+"/tmp", 0o700))
	w.must(unix.Chmod(dir+"/tmp", 0o1777))
	w.must(os.Mkdir(dir+"/group", 0o700))
	w.must(os.Lchown(dir+"/group", 12, 34))
	w.must(unix.Chmod(dir+"/group", 0o2750))

	w.put(dir+"/links/a", []byte("one file"), 0o644)
	w.must(os.Mkdir(dir+"/links/deep", 0o755))
	w.must(os.Link(dir+"/links/a", dir+"/links/b"))
	w.must(os.Link(dir+"/links/a", dir+"/links/deep/c"))
	w.must(os.Symlink("a", dir+"/links/sym"))
	w.must(os.Lchown(dir+"/links/sym", 7, 8))
	w.must(os.Symlink("/no/where/"+strings.Repeat("x", 1000), dir+"/links/long"))
	w.must(os.Link(dir+"/links/sym", dir+"/links/symtoo"))

	w.must(os.Mkdir(dir+"/dev", 0o755))
	w.must(unix.Mknod(dir+"/dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	w.must(unix.Mknod(dir+"/dev/sda", unix.S_IFBLK|0o660, int(unix.Mkdev(8, 300))))
	w.must(unix.Mkfifo(dir+"/dev/fifo", 0o620))
	w.must(os.Link(dir+"/dev/fifo", dir+"/dev/fifo2"))

	w.put(dir+"/attr/user", []byte("x"), 0o644)
	w.must(unix.Setxattr(dir+"/attr/user", "user.bytes", []byte{0, 1, 255, '\n'}, 0))
	w.must(unix.Setxattr(dir+"/attr/user", "user.empty", nil, 0))
	w.must(unix.Setxattr(dir+"/attr/user", "trusted.secret", []byte("s"), 0))
	w.must(unix.Setxattr(dir+"/attr", "user.ondir", []byte("d"), 0))
	w.must(unix.Lsetxattr(dir+"/links/sym", "trusted.onlink", []byte("l"), 0))
	w.put(dir+"/attr/cap", []byte("cap"), 0o755)
	capability := make([]byte, 20)
	binary.LittleEndian.PutUint32(capability, 0x02000001)
	binary.LittleEndian.PutUint32(capability[4:], 1<<unix.CAP_NET_BIND_SERVICE)
	w.must(unix.Setxattr(dir+"/attr/cap", "security.capability", capability, 0))
	w.put(dir+"/attr/acl", []byte("acl"), 0o640)
	if out, err := exec.Command("setfacl", "-m", "u:4242:rw,g:99:r", dir+"/attr/acl").CombinedOutput(); err != nil {
		w.Fatalf("setfacl (package acl): %v: %s", err, out)
	}
	if out, err := exec.Command("setfacl", "-d", "-m", "u:4242:rwx", dir+"/attr").CombinedOutput(); err != nil {
		w.Fatalf("setfacl: %v: %s", err, out)
	}

	w.must(os.Mkdir(dir+"/names", 0o755))
	for i, name := range []string{"\xff\xfe invalid", "new\nline", " ", "-rf", "*", "\\", strings.Repeat("n", 255), "...", ".srvfs-new"} {
		w.put(dir+"/names/"+name, fmt.Appendf(nil, "%d", i), 0o644)
	}
	f, err := os.Create(dir + "/sparse")
	w.must(err)
	w.must(f.Truncate(5 << 20))
	_, err = f.WriteAt([]byte("end"), 4<<20)
	w.must(errors.Join(err, f.Close()))
	for name, sec := range map[string]int64{"/etc/motd": 1234567890, "/etc/empty": 0, "/etc/same": 1234567890, "/chunk": 1 << 33, "/links/sym": 7, "/etc": 99, "": 42} {
		ts := []unix.Timespec{{Sec: sec, Nsec: 1}, {Sec: sec, Nsec: 123456789}}
		w.must(unix.UtimesNanoAt(unix.AT_FDCWD, dir+name, ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	_, _ = r.Read(b)
	return b
}

func blocks(w *world, path string) int64 {
	w.Helper()
	var st unix.Stat_t
	w.must(unix.Lstat(path, &st))
	return st.Blocks
}

// clean fails if something is left beside the trees.
func (w *world) clean(parent string) {
	w.Helper()
	left, err := filepath.Glob(filepath.Join(parent, ".*.srvfs-new"))
	w.must(err)
	if len(left) > 0 {
		w.Errorf("left behind: %v", left)
	}
}

// A whole tree is the source's, entry for entry: on a file system without reflinks, and
// into an empty folder that is there.
func TestWriteWhole(t *testing.T) {
	w := newWorld(t, t.TempDir(), everything)
	at := filepath.Join(w.dir, "whole")
	w.must(os.Mkdir(at, 0o711))
	r := w.write(at, plain.Whole)
	w.same("the tree", at)
	if r.Files.Files == 0 || r.Linked.Files != 0 || r.Others == 0 {
		t.Errorf("%+v", r)
	}
	if n := blocks(w, at+"/sparse"); n > 64 {
		t.Errorf("a file with holes takes %d blocks", n)
	}
	// It is a copy of its own.
	w.must(os.WriteFile(at+"/etc/motd", []byte("written"), 0o644))
	v, err := w.store.Verify(w.ctx())
	if err != nil || len(v.Removed) > 0 {
		t.Errorf("after a write to the tree: %+v, %v", v, err)
	}
	w.clean(w.dir)
}

// On a file system with reflinks nothing is copied.
func TestWriteReflinks(t *testing.T) {
	image, at := filepath.Join(t.TempDir(), "image"), t.TempDir()
	for _, argv := range [][]string{{"truncate", "-s", "320M", image}, {"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, at}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	w := newWorld(t, at, everything)
	dir := filepath.Join(at, "whole")
	r := w.write(dir, plain.Whole)
	w.same("the tree", dir)
	if r.Shared.Bytes != r.Files.Bytes || r.Shared.Files != r.Files.Files-1 { // the empty one shares nothing
		t.Errorf("not all is shared: %+v", r)
	}
	w.must(os.WriteFile(dir+"/big", []byte("written"), 0o644))
	if v, err := w.store.Verify(w.ctx()); err != nil || len(v.Removed) > 0 {
		t.Errorf("after a write to the tree: %+v, %v", v, err)
	}
}

// Linked files are the store's own, with the attributes of the snapshot; where two files
// of one content want different ones there is a copy.
func TestWriteLinked(t *testing.T) {
	w := newWorld(t, t.TempDir(), func(w *world, dir string) {
		everything(w, dir)
		// A file's links count the store's own name too, so none can be the source's: see below.
		w.must(os.RemoveAll(dir + "/links"))
		w.must(os.Remove(dir + "/etc/same"))
	})
	at := filepath.Join(w.dir, "linked")
	r := w.write(at, plain.Linked)
	if r.Linked.Files != r.Files.Files-3 { // the empty one, the second "hello", and the second "x"
		t.Errorf("%+v", r)
	}
	var blob, file unix.Stat_t
	w.must(errors.Join(unix.Lstat(filepath.Join(w.store.BlobDir(), manifest.Sum(random(3<<20+12345)).Hex()), &blob), unix.Lstat(at+"/big", &file)))
	if blob.Ino != file.Ino || file.Nlink != 2 {
		t.Errorf("/big is no link to the store's file: %+v", file)
	}
	copied := filepath.Join(w.dir, "copied")
	if out, err := exec.Command("cp", "-a", at, copied).CombinedOutput(); err != nil { // which has links of its own
		t.Fatalf("%v: %s", err, out)
	}
	w.same("a copy of the linked tree", copied)
	if tally, err := w.store.Reader().Tally(w.ctx(), w.snap); err != nil || tally.Missing.Files != 0 {
		t.Errorf("the store after its files got other names: %+v, %v", tally, err)
	}
	// A second tree is linked too: all fits.
	if again := w.write(filepath.Join(w.dir, "again"), plain.Linked); again.Linked != r.Linked {
		t.Errorf("the second time: %+v, the first %+v", again, r)
	}
	v, err := w.store.Verify(w.ctx())
	if err != nil || len(v.Removed) > 0 {
		t.Errorf("%+v, %v", v, err)
	}
	// Who writes to one all the same damages the store, which notices.
	w.must(os.WriteFile(at+"/big", random(3<<20 + 12345)[1:], 0o644))
	if tally, err := w.store.Reader().Tally(w.ctx(), w.snap); err != nil || tally.Missing.Files != 1 {
		t.Errorf("after a write: %+v, %v", tally, err)
	}
}

func TestWriteLinkedElsewhere(t *testing.T) {
	w := newWorld(t, t.TempDir(), everything)
	at := t.TempDir()
	w.must(unix.Mount("plain-test", at, "tmpfs", 0, ""))
	t.Cleanup(func() { w.must(unix.Unmount(at, unix.MNT_DETACH)) })
	_, err := plain.Write(w.ctx(), plain.Options{Snapshot: w.snap, Reader: w.reader, Dir: at + "/x", Content: plain.Linked})
	if !errors.Is(err, unix.EXDEV) {
		t.Errorf("links to another file system: %v", err)
	}
	// Onto a mountpoint there is no rename.
	if _, err := plain.Write(w.ctx(), plain.Options{Snapshot: w.snap, Reader: w.reader, Dir: at}); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "mounted there") {
		t.Errorf("onto a mountpoint: %v", err)
	}
	w.clean(at)
	w.clean(filepath.Dir(at))
}

// A tree of stubs over the store's blobs is the source's tree, and holds no content.
func TestWriteStubs(t *testing.T) {
	w := newWorld(t, t.TempDir(), everything)
	at, root := filepath.Join(w.dir, "stubs"), t.TempDir()
	w.write(at, plain.Stubs)
	if n := blocks(w, at+"/big"); n > 8 {
		t.Errorf("a stub takes %d blocks", n)
	}
	w.must(w.reader.Prefetch(w.ctx(), w.snap, nil))
	w.must(unix.Mount("plain-test", root, "overlay", 0, "lowerdir="+at+"::"+w.store.BlobDir()+",metacopy=on,redirect_dir=follow,xino=on"))
	t.Cleanup(func() { w.must(unix.Unmount(root, unix.MNT_DETACH)) })
	w.same("the root", root)
}

// What is in the way stays as it is.
func TestWriteRefuses(t *testing.T) {
	w := newWorld(t, t.TempDir(), func(w *world, dir string) { w.put(dir+"/x", []byte("x"), 0o644) })
	full, file, link, foreign := w.dir+"/full", w.dir+"/file", w.dir+"/link", w.dir+"/.foreign.srvfs-new"
	w.put(full+"/mine", nil, 0o644)
	w.put(file, nil, 0o644)
	w.must(os.Symlink("source", link))
	w.put(foreign+"/mine", nil, 0o644)
	for dir, want := range map[string]string{
		full: "not empty", file: "no folder", link: "no folder", w.dir + "/no/where": "there is no folder", "relative": "absolute path",
		"/": "absolute path", w.dir + "/x/../y": "clean", w.dir + "/foreign": "not of ours",
	} {
		_, err := plain.Write(w.ctx(), plain.Options{Snapshot: w.snap, Reader: w.reader, Dir: dir})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
	}
	for _, p := range []string{full + "/mine", file, link, foreign + "/mine"} {
		if _, err := os.Lstat(p); err != nil {
			t.Error(err)
		}
	}
	// Content that can't be had leaves nothing.
	reader := w.store.Reader()
	if _, err := plain.Write(w.ctx(), plain.Options{Snapshot: w.snap, Reader: reader, Dir: w.dir + "/none"}); !errors.Is(err, manifest.ErrUnavailable) {
		t.Errorf("without content: %v", err)
	}
	ctx, cancel := context.WithCancel(w.ctx())
	cancel()
	if _, err := plain.Write(ctx, plain.Options{Snapshot: w.snap, Reader: w.reader, Dir: w.dir + "/none"}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	w.must(os.RemoveAll(foreign))
	w.clean(w.dir)
	if _, err := os.Lstat(w.dir + "/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a tree: %v", err)
	}
	// A tree that says it is smaller than it is.
	w.snap.Totals.Entries = 0
	if _, err := plain.Write(w.ctx(), plain.Options{Snapshot: w.snap, Reader: w.reader, Dir: w.dir + "/none"}); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("a tree that lies: %v", err)
	}
}

// child writes the tree of a world whose test is another process.
func child(dir string) {
	tree, err := fstest.Scan(filepath.Join(dir, "source"))
	if err == nil {
		var s *store.Store
		if s, err = store.Open(store.Options{Dir: filepath.Join(dir, "store")}); err == nil {
			_, err = plain.Write(context.Background(), plain.Options{
				Snapshot: tree.Snapshot("web"), Reader: s.Reader(store.Source{Name: "disk", Origin: disk{tree}}), Dir: filepath.Join(dir, "out"),
				Progress: func(r plain.Result) { fmt.Println(r.Files.Files) },
			})
		}
	}
	fmt.Println("end", err)
	os.Exit(0)
}

// A process that is killed leaves no half tree under the final name, and the next begins
// clean.
func TestWriteKilled(t *testing.T) {
	dir := t.TempDir()
	const files = 40
	w := &world{TB: t, dir: dir}
	w.must(os.Mkdir(dir+"/source", 0o755))
	for i := range files {
		w.put(fmt.Sprintf("%s/source/d%d/f%d", dir, i%5, i), random(10_000+i), 0o644)
	}
	for _, at := range []int{1, 7, 23, files - 1, files} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		w.must(err)
		w.must(cmd.Start())
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != fmt.Sprint(at) {
			if strings.HasPrefix(lines.Text(), "end") {
				t.Errorf("killed too late: %s", lines.Text())
			}
		}
		w.must(cmd.Process.Kill())
		_ = cmd.Wait()
		if _, err := os.Lstat(dir + "/out"); err == nil {
			tree, err := fstest.Scan(dir + "/out")
			w.must(err)
			if at < files || tree.Totals.Files != files {
				t.Errorf("killed at file %d: a tree of %d", at, tree.Totals.Files)
			}
			w.must(os.RemoveAll(dir + "/out"))
		}
	}
	w.open(dir + "/source")
	w.write(dir+"/out", plain.Whole)
	w.same("after all", dir+"/out")
	w.clean(dir)
}

// Two at a time are refused.
func TestWriteTwice(t *testing.T) {
	w := newWorld(t, t.TempDir(), func(w *world, dir string) { w.put(dir+"/x", []byte("x"), 0o644) })
	o := plain.Options{Snapshot: w.snap, Reader: w.reader, Dir: w.dir + "/out"}
	second := error(nil)
	first := o
	first.Progress = func(plain.Result) { _, second = plain.Write(w.ctx(), o) }
	_, err := plain.Write(w.ctx(), first)
	w.must(err)
	if !errors.Is(second, plain.ErrBusy) {
		t.Errorf("a second one: %v", second)
	}
	w.same("the first", w.dir+"/out")
}
