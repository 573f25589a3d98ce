package fs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"srvfs/fs"
	"srvfs/fs/fstest"
	"srvfs/manifest"
	"srvfs/test/garden"
)

// everything fills dir with one of each that a file system can hold.
func everything(t testing.TB, dir string) {
	write(t, dir+"/etc/motd", "hello\n")
	write(t, dir+"/etc/empty", "")
	must(t, os.Mkdir(dir+"/etc/emptydir", 0o700))
	must(t, os.WriteFile(dir+"/big", pattern(3<<20+12345, 1), 0o600))
	must(t, os.WriteFile(dir+"/chunk", pattern(256<<10, 2), 0o600))
	must(t, os.WriteFile(dir+"/page", pattern(4096, 3), 0o600))

	// owners and modes, each bit of them
	write(t, dir+"/bin/su", "#!/bin/sh\n")
	must(t, os.Lchown(dir+"/bin/su", 1234, 70000))
	must(t, unix.Chmod(dir+"/bin/su", 0o6755))
	must(t, os.Mkdir(dir+"/tmp", 0))
	must(t, unix.Chmod(dir+"/tmp", 0o1777))
	write(t, dir+"/bin/none", "x")
	must(t, unix.Chmod(dir+"/bin/none", 0))
	must(t, os.Lchown(dir+"/bin/none", 1<<32-2, 1<<32-2))

	// links
	write(t, dir+"/links/a", "one file")
	must(t, os.Link(dir+"/links/a", dir+"/links/b"))
	must(t, os.Mkdir(dir+"/links/deep", 0o755))
	must(t, os.Link(dir+"/links/a", dir+"/links/deep/c"))
	must(t, os.Symlink("a", dir+"/links/sym"))
	must(t, os.Symlink("/no/where/"+strings.Repeat("x", 4000), dir+"/links/long"))
	must(t, os.Symlink("../etc", dir+"/links/dir"))
	must(t, os.Link(dir+"/links/sym", dir+"/links/symtoo"))

	// devices and pipes
	must(t, os.Mkdir(dir+"/dev", 0o755))
	must(t, unix.Mknod(dir+"/dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(dir+"/dev/far", unix.S_IFCHR|0o600, int(unix.Mkdev(4095, 1048575))))
	must(t, unix.Mknod(dir+"/dev/sda", unix.S_IFBLK|0o660, int(unix.Mkdev(8, 300))))
	must(t, unix.Mkfifo(dir+"/dev/fifo", 0o620))
	must(t, os.Link(dir+"/dev/fifo", dir+"/dev/fifo2"))

	// attributes
	write(t, dir+"/attr/user", "x")
	must(t, unix.Setxattr(dir+"/attr/user", "user.bytes", []byte{0, 1, 255, '\n'}, 0))
	must(t, unix.Setxattr(dir+"/attr/user", "user.empty", nil, 0))
	must(t, unix.Setxattr(dir+"/attr/user", "user.long", pattern(3000, 9), 0))
	must(t, unix.Setxattr(dir+"/attr/user", "trusted.secret", []byte("s"), 0))
	must(t, unix.Setxattr(dir+"/attr", "user.ondir", []byte("d"), 0))
	must(t, unix.Lsetxattr(dir+"/links/sym", "trusted.onlink", []byte("l"), 0))
	write(t, dir+"/attr/cap", "x")
	must(t, unix.Setxattr(dir+"/attr/cap", "security.capability", capability(unix.CAP_NET_BIND_SERVICE), 0))
	write(t, dir+"/attr/acl", "x")
	must(t, unix.Setxattr(dir+"/attr/acl", "system.posix_acl_access", garden.ACL(4242, 6), 0))
	must(t, unix.Setxattr(dir+"/attr", "system.posix_acl_default", garden.ACL(4242, 7), 0))

	// names
	must(t, os.Mkdir(dir+"/names", 0o755))
	for i, name := range oddNames() {
		must(t, os.WriteFile(dir+"/names/"+name, fmt.Appendf(nil, "%d", i), 0o644))
	}

	// a hole, and times
	f, err := os.Create(dir + "/sparse")
	must(t, err)
	must(t, f.Truncate(5<<20))
	_, err = f.WriteAt([]byte("end"), 4<<20)
	must(t, err)
	must(t, f.Close())
	for name, sec := range map[string]int64{"/etc/motd": 1234567890, "/etc/empty": 0, "/page": -86400, "/chunk": 1 << 33, "/links/sym": 7} {
		ts := []unix.Timespec{{Sec: sec, Nsec: 1}, {Sec: sec, Nsec: 123456789}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+name, ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// everyoneExecutes makes programs of all files.
func everyoneExecutes(t testing.TB, dir string) {
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		return unix.Chmod(path, st.Mode&0o7777|0o111)
	}))
}

func oddNames() []string {
	names := []string{"\xff\xfe invalid", "new\nline", " ", "-rf", "*", "\\", "\x01\x7f", "é", "e\u0301", "tree", "content",
		strings.Repeat("n", 255), strings.Repeat("\xe2\x82\xac", 85), "...", ".hidden", "sha256:" + strings.Repeat("0", 64)}
	slices.Sort(names)
	return names
}

// capability is the form of security.capability, revision 2.
func capability(bit int) []byte {
	b := make([]byte, 20)
	binary.LittleEndian.PutUint32(b, 0x02000001) // effective
	binary.LittleEndian.PutUint32(b[4:], 1<<bit)
	return b
}

// sameTree compares two folders: names, attributes, links, extended attributes,
// bytes. Skip leaves out what the two can't have in common.
func sameTree(t *testing.T, want, got string, overlay bool) {
	t.Helper()
	inodes := map[uint64]uint64{}
	count := 0
	var walk func(rel string)
	walk = func(rel string) {
		count++
		var a, b unix.Stat_t
		must(t, unix.Lstat(want+rel, &a))
		if err := unix.Lstat(got+rel, &b); err != nil {
			t.Errorf("%q: %v", rel, err)
			return
		}
		dir := a.Mode&unix.S_IFMT == unix.S_IFDIR
		if dir {
			a.Size, b.Size = 0, 0
		}
		if overlay && rel == "" { // the root of an overlay is that of its upper layer
			a.Mtim, a.Mode = b.Mtim, b.Mode
		}
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Size != b.Size || a.Rdev != b.Rdev || a.Mtim != b.Mtim {
			t.Errorf("%q: mode %o owner %d:%d size %d device %x time %v; want %o %d:%d %d %x %v", rel, b.Mode, b.Uid, b.Gid, b.Size, b.Rdev, b.Mtim,
				a.Mode, a.Uid, a.Gid, a.Size, a.Rdev, a.Mtim)
		}
		if !dir || !overlay { // a directory of an overlay always has one link
			if a.Nlink != b.Nlink {
				t.Errorf("%q: %d links, want %d", rel, b.Nlink, a.Nlink)
			}
		}
		if !overlay && (b.Atim != b.Mtim || b.Ctim != b.Mtim || b.Blksize != 4096 || !dir && b.Mode&unix.S_IFMT != unix.S_IFLNK && b.Blocks != (b.Size+511)/512) {
			t.Errorf("%q: times %v %v, block size %d, %d blocks", rel, b.Atim, b.Ctim, b.Blksize, b.Blocks)
		}
		if one, seen := inodes[a.Ino]; seen && one != b.Ino || !seen && b.Ino == 0 {
			t.Errorf("%q: inode %d; another name of the same file has %d", rel, b.Ino, one)
		}
		inodes[a.Ino] = b.Ino
		if x, y := allXattrs(t, want+rel), allXattrs(t, got+rel); x != y {
			t.Errorf("%q: attributes %q, want %q", rel, y, x)
		}
		switch a.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			x, err := os.Readlink(want + rel)
			must(t, err)
			if y, err := os.Readlink(got + rel); err != nil || x != y {
				t.Errorf("%q: link to %q (%v), want %q", rel, y, err, x)
			}
		case unix.S_IFREG:
			sameBytes(t, want+rel, got+rel)
		case unix.S_IFDIR:
			x, err := os.ReadDir(want + rel)
			must(t, err)
			y, err := os.ReadDir(got + rel)
			if err != nil {
				t.Errorf("%q: %v", rel, err)
				return
			}
			name := func(e os.DirEntry) string { return e.Name() + " " + e.Type().String() }
			if nx, ny := names(x, name), names(y, name); !slices.Equal(nx, ny) {
				t.Errorf("%q: holds %q, want %q", rel, ny, nx)
			}
			for _, e := range x {
				walk(rel + "/" + e.Name())
			}
		}
	}
	walk("")
	t.Logf("compared %d names", count)
}

func names(all []os.DirEntry, f func(os.DirEntry) string) []string {
	s := make([]string, len(all))
	for i, e := range all {
		s[i] = f(e)
	}
	return s
}

func sameBytes(t *testing.T, want, got string) {
	t.Helper()
	x, err := os.ReadFile(want)
	must(t, err)
	y, err := os.ReadFile(got)
	if err != nil || !bytes.Equal(x, y) {
		t.Errorf("%q: %d bytes (%v), want %d, or they differ", got, len(y), err, len(x))
	}
}

// allXattrs returns all attributes of a file, sorted, as one string.
func allXattrs(t *testing.T, path string) string {
	t.Helper()
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return err.Error()
	}
	var all []string
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name != "" {
			value := make([]byte, 64<<10)
			n, err := unix.Lgetxattr(path, name, value)
			all = append(all, fmt.Sprintf("%s=%q %v", name, value[:max(n, 0)], err))
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// The whole view is compared with the folder that it shows, once from the view
// and once, with nothing asked, from the kernel's caches.
func TestPlainViewIsTheSource(t *testing.T) {
	for _, holding := range []bool{false, true} {
		t.Run(fmt.Sprintf("holding=%v", holding), func(t *testing.T) {
			w := newWorld(t, func(dir string) { everything(t, dir) })
			w.source.Holding = holding
			w.mount(fs.Options{})
			sameTree(t, w.origin, w.mnt, false)
			sameTree(t, w.origin, w.mnt, false)
			if s := w.view.Stats(); s.Failures != 0 {
				t.Errorf("%d operations failed:\n%s", s.Failures, w.log)
			}
		})
	}
}

func TestRootIsTheSource(t *testing.T) {
	t.Run("tree", func(t *testing.T) { rootIsTheSource(t, false, false) })
	t.Run("stubs", func(t *testing.T) { rootIsTheSource(t, true, false) })
	t.Run("holding", func(t *testing.T) { rootIsTheSource(t, false, true) })
}

func rootIsTheSource(t *testing.T, stubs, holding bool) {
	w := newWorld(t, func(dir string) {
		everything(t, dir)
		if stubs {
			everyoneExecutes(t, dir)
		}
	})
	w.source.Holding = holding
	w.mount(fs.Options{Layout: fs.Layers})
	w.stubs = stubs
	root := w.overlay()
	sameTree(t, w.origin, root, true)
	sameTree(t, w.origin, w.mnt+"/tree", false) // the layer itself can be read too
	if s := w.view.Stats(); s.Failures != 0 {
		t.Errorf("%d operations failed:\n%s", s.Failures, w.log)
	}
}

func TestWarmViewIsNotAsked(t *testing.T) {
	w := newWorld(t, func(dir string) { everything(t, dir) }).mount(fs.Options{})
	pass := func() {
		must(t, filepath.WalkDir(w.mnt, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if _, err := d.Info(); err != nil {
				return err
			}
			switch {
			case d.Type().IsRegular():
				_, err = os.ReadFile(path)
			case d.Type()&os.ModeSymlink != 0:
				_, err = os.Readlink(path)
			}
			if _, err := os.Lstat(path + ".no"); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) && !errors.Is(err, syscall.ENAMETOOLONG) {
				return fmt.Errorf("a name that is not there: %w", err)
			}
			return err
		}))
		for _, cmd := range []string{"ls -lR %s", "find %s -printf '%%p %%s %%T@ %%l'"} {
			if out, err := shell(t, "TZ=UTC "+cmd+" 2>&1 >/dev/null", w.mnt); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}
	}
	t.Logf("cold: %v", w.asked(pass))
	// What the kernel keeps nowhere: find's question for the kind of file system,
	// and ls's for SELinux labels, once for each program.
	if asked := w.asked(pass); asked["getxattr"] > 1 || asked["statfs"] > 1 || len(asked) > 2 {
		t.Errorf("a second walk asked the view: %v", asked)
	}
	if n := w.view.Stats().Upcalls; n["open"] > 1 || n["opendir"] > 1 || n["flush"] > 1 {
		t.Errorf("asked more than once: %v", n)
	}
}

func TestFlatFolderOf100000(t *testing.T) {
	const n = 100_000
	w := newWorld(t, func(dir string) { write(t, dir+"/x", "x") })
	tree := w.source.Tree
	one := manifest.Entry{Type: manifest.File, Mode: 0o600, Links: 1, Size: 1, Digest: manifest.Sum([]byte("x"))}
	entries := make([]manifest.Entry, n)
	for i := range entries {
		entries[i] = one
		entries[i].Name = strconv.Itoa(i)
	}
	slices.SortFunc(entries, func(a, b manifest.Entry) int { return strings.Compare(a.Name, b.Name) })
	tree.Root.Digest = directory(t, tree, []manifest.Entry{{Name: "queue", Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: directory(t, tree, entries)}})
	w.mount(fs.Options{})
	got, err := os.ReadDir(w.mnt + "/queue")
	must(t, err)
	if len(got) != n {
		t.Errorf("%d names, want %d", len(got), n)
	}
	for _, i := range []int{0, 1, 59999, 60000, 99999} {
		if b, err := os.ReadFile(fmt.Sprintf("%s/queue/%d", w.mnt, i)); err != nil || len(b) != 1 {
			t.Errorf("%d: %q, %v", i, b, err)
		}
	}
	if _, err := os.Stat(w.mnt + "/queue/100000"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a name too many: %v", err)
	}
	// An offset stays good: from the middle on, the second half comes.
	d, err := os.Open(w.mnt + "/queue")
	must(t, err)
	defer d.Close()
	buf := make([]byte, 1<<16)
	var middle int64
	for seen := 0; seen < 50_002; { // with "." and ".."
		k, err := unix.Getdents(int(d.Fd()), buf)
		must(t, err)
		for b := buf[:k]; len(b) > 0 && seen < 50_002; seen++ {
			entry := (*unix.Dirent)(unsafe.Pointer(&b[0]))
			middle, b = entry.Off, b[entry.Reclen:]
		}
	}
	if off, err := d.Seek(middle, io.SeekStart); err != nil || off != middle {
		t.Fatal(off, err)
	}
	half := 0
	for {
		k, err := unix.Getdents(int(d.Fd()), buf)
		must(t, err)
		if k == 0 {
			break
		}
		_, c, _ := unix.ParseDirent(buf[:k], -1, nil)
		half += c
	}
	if half != n-50_000 {
		t.Errorf("%d names after the first 50000, want %d", half, n-50_000)
	}
	w.quiet("a second listing", func() { _, _ = os.ReadDir(w.mnt + "/queue") })
}

func directory(t testing.TB, tree *fstest.Tree, entries []manifest.Entry) manifest.Digest {
	t.Helper()
	d, err := tree.Directory(entries)
	must(t, err)
	return d
}

func TestPlainViewIsReadOnly(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/f", "x") }).mount(fs.Options{})
	f := w.mnt + "/f"
	for what, err := range map[string]error{
		"write":    os.WriteFile(f, nil, 0),
		"create":   os.WriteFile(w.mnt+"/new", nil, 0o644),
		"mkdir":    os.Mkdir(w.mnt+"/d", 0o755),
		"remove":   unix.Unlink(f),
		"rename":   os.Rename(f, w.mnt+"/g"),
		"link":     os.Link(f, w.mnt+"/g"),
		"symlink":  os.Symlink("x", w.mnt+"/g"),
		"chmod":    os.Chmod(f, 0),
		"chown":    os.Chown(f, 1, 1),
		"times":    unix.UtimesNanoAt(unix.AT_FDCWD, f, make([]unix.Timespec, 2), 0),
		"truncate": os.Truncate(f, 0),
		"setxattr": unix.Setxattr(f, "user.x", nil, 0),
		"mknod":    unix.Mknod(w.mnt+"/n", unix.S_IFIFO, 0),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}
	// Remounted by somebody, it is still no place to write to.
	must(t, unix.Mount("", w.mnt, "", unix.MS_REMOUNT, ""))
	for what, err := range map[string]error{
		"write": os.WriteFile(f, []byte("y"), 0), "create": os.WriteFile(w.mnt+"/new", nil, 0o644), "mkdir": os.Mkdir(w.mnt+"/d", 0o755),
		"remove": unix.Unlink(f), "chmod": os.Chmod(f, 0), "setxattr": unix.Setxattr(f, "user.x", []byte("v"), 0),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s after a remount: %v, want EROFS", what, err)
		}
	}
}

func TestMountIsForServices(t *testing.T) {
	w := newWorld(t, func(dir string) { everything(t, dir) }).mount(fs.Options{Name: "host/web service"})
	b, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	var line string
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, " "+w.mnt+" ") {
			line = l
		}
	}
	f := strings.Fields(line)
	if len(f) < 4 || f[0] != `host/web\040service` || f[2] != fs.Type {
		t.Fatalf("mounted as %q", line)
	}
	opts := strings.Split(f[3], ",")
	for _, o := range []string{"ro", "default_permissions", "allow_other"} {
		if !slices.Contains(opts, o) {
			t.Errorf("%s is missing in %q", o, opts)
		}
	}
	for _, o := range []string{"nosuid", "nodev", "noexec"} {
		if slices.Contains(opts, o) {
			t.Errorf("%s is in %q", o, opts)
		}
	}
	if f, err := os.OpenFile(w.mnt+"/dev/null", os.O_WRONLY, 0); err != nil { // a device works
		t.Error(err)
	} else {
		_, err := f.Write([]byte("x"))
		must(t, err)
		f.Close()
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(w.mnt, &st))
	if st.Namelen != 255 || st.Bsize != 4096 || st.Files != w.source.Tree.Totals.Entries+1 || st.Bfree != 0 {
		t.Errorf("statfs: %+v", st)
	}
	var own unix.Stat_t
	must(t, unix.Stat(w.mnt, &own))
	if n := uint64(unix.Minor(own.Dev)); n != w.view.Connection() {
		t.Errorf("connection %d, the device is %d", w.view.Connection(), n)
	}
}
