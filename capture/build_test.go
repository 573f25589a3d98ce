package capture

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// acl is a POSIX ACL as the kernel keeps it: user::rw-, user:33:r--, group::r--,
// mask::r--, other::---.
var acl = []byte{
	2, 0, 0, 0,
	1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff,
	2, 0, 4, 0, 33, 0, 0, 0,
	4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff,
	0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff,
	0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
}

// capNetBind is cap_net_bind_service=ep in the kernel's second format.
var capNetBind = []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

const oddName = "odd \n \xff\xfe 名前 \\ :,"

// zoo makes one of every kind of entry below a new folder.
func zoo(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	at := func(p string) string { return filepath.Join(root, p) }
	write(t, at("etc/plain"), "plain", 0o644)
	write(t, at("etc/"+oddName), "odd", 0o640)
	write(t, at("bin/setuid"), "setuid", 0o755)
	check(t, os.Chown(at("bin/setuid"), 0, 33))
	check(t, unix.Chmod(at("bin/setuid"), 0o6755))
	write(t, at("bin/capable"), "capable", 0o755)
	check(t, unix.Setxattr(at("bin/capable"), "security.capability", capNetBind, 0))
	check(t, unix.Setxattr(at("etc/plain"), "user.note", []byte("a\x00b"), 0))
	check(t, unix.Setxattr(at("etc/plain"), "system.posix_acl_access", acl, 0))
	check(t, unix.Setxattr(at("etc"), "trusted.srvfs", []byte("t"), 0))
	write(t, at("data/one"), "linked", 0o600)
	check(t, os.Chown(at("data/one"), 1000, 1001))
	check(t, os.Link(at("data/one"), at("data/two")))
	check(t, os.Link(at("data/one"), at("etc/three")))
	check(t, os.Link(at("etc/plain"), filepath.Join(t.TempDir(), "outside")))
	check(t, os.Symlink("/etc/plain", at("data/link")))
	check(t, os.Lchown(at("data/link"), 5, 6))
	check(t, os.Symlink("nowhere", at("data/dangling")))
	check(t, unix.Mknod(at("data/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(t, unix.Mknod(at("data/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 300))))
	check(t, unix.Mkfifo(at("data/fifo"), 0o620))
	check(t, unix.Chmod(at("data/fifo"), 0o620))
	check(t, os.MkdirAll(at("data/empty"), 0o755))
	check(t, unix.Chmod(at("data/empty"), 0o3770))
	write(t, at("data/none"), "", 0o644)
	sparse := at("data/sparse")
	write(t, sparse, "", 0o644)
	check(t, os.Truncate(sparse, 3<<20))
	f := must(os.OpenFile(sparse, os.O_WRONLY, 0))(t)
	must(f.WriteAt([]byte("end"), 2<<20))(t)
	check(t, f.Close())
	big := make([]byte, 3*manifest.ChunkSize+17)
	must(rand.Read(big))(t)
	write(t, at("data/big"), string(big), 0o644)
	stamp := unix.Timespec{Sec: 1_234_567_890, Nsec: 123_456_789}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, at("etc/plain"), []unix.Timespec{stamp, stamp}, 0))
	early := unix.Timespec{Sec: -5, Nsec: 1}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, at("data/link"), []unix.Timespec{early, early}, unix.AT_SYMLINK_NOFOLLOW))
	sock := must(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0))(t)
	t.Cleanup(func() { _ = unix.Close(sock) })
	t.Chdir(at("data"))
	check(t, unix.Bind(sock, &unix.SockaddrUnix{Name: "socket"}))
	for i := range 700 { // more than a page
		write(t, at(fmt.Sprintf("many/%04d", i)), "", 0o644)
	}
	return root
}

func TestBuildKeepsEverything(t *testing.T) {
	root := zoo(t)
	tr := gather(t, root, nil)
	entry := func(p string) manifest.Entry {
		t.Helper()
		n, ok := tr.find(p)
		if !ok {
			t.Fatalf("no %q", p)
		}
		return n.entry
	}
	if _, ok := tr.find("/data/socket"); ok {
		t.Error("a socket is in the tree")
	}
	plain := entry("/etc/plain")
	if plain.Mtime != (manifest.Time{Sec: 1_234_567_890, Nsec: 123_456_789}) || plain.Links != 1 || plain.Link != 0 || plain.Digest != manifest.Sum([]byte("plain")) {
		t.Errorf("plain: %+v", plain)
	}
	if want := []manifest.Xattr{{Name: "system.posix_acl_access", Value: string(acl)}, {Name: "user.note", Value: "a\x00b"}}; !slices.Equal(plain.Xattrs, want) {
		t.Errorf("attributes %q, want %q", plain.Xattrs, want)
	}
	if e := entry("/etc"); !slices.Equal(e.Xattrs, []manifest.Xattr{{Name: "trusted.srvfs", Value: "t"}}) || e.Links != 2 {
		t.Errorf("/etc: %+v", e)
	}
	if e := entry("/bin/setuid"); e.Mode != 0o6755 || e.GID != 33 {
		t.Errorf("setuid: %+v", e)
	}
	if e := entry("/bin/capable"); len(e.Xattrs) != 1 || e.Xattrs[0].Value != string(capNetBind) {
		t.Errorf("capable: %+v", e)
	}
	one, two, three := entry("/data/one"), entry("/data/two"), entry("/etc/three")
	if one.Links != 3 || one.Link == 0 || two.Link != one.Link || three.Link != one.Link || one.UID != 1000 || one.GID != 1001 {
		t.Errorf("links: %+v %+v %+v", one, two, three)
	}
	if e := entry("/data/link"); e.Target != "/etc/plain" || e.UID != 5 || e.Mtime != (manifest.Time{Sec: -5, Nsec: 1}) {
		t.Errorf("link: %+v", e)
	}
	if e := entry("/data/null"); e.Type != manifest.CharDevice || e.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("null: %+v", e)
	}
	if e := entry("/data/disk"); e.Type != manifest.BlockDevice || e.Rdev != unix.Mkdev(8, 300) {
		t.Errorf("disk: %+v", e)
	}
	if e := entry("/data/fifo"); e.Type != manifest.FIFO || e.Mode != 0o620 {
		t.Errorf("fifo: %+v", e)
	}
	if e := entry("/data/empty"); e.Mode != 0o3770 || e.Links != 2 {
		t.Errorf("empty: %+v", e)
	}
	if e := entry("/etc/" + oddName); e.Size != 3 {
		t.Errorf("odd name: %+v", e)
	}
	for _, p := range []string{"/data/big", "/data/sparse"} {
		e := entry(p)
		b := must(os.ReadFile(filepath.Join(root, p)))(t)
		list := must(manifest.DecodeChunkList(tr.meta[e.Chunks], e.Size))(t)
		if e.Digest != manifest.Sum(b) || list[1] != manifest.Sum(b[manifest.ChunkSize:2*manifest.ChunkSize]) {
			t.Errorf("%s: %+v", p, e)
		}
	}
	// 4 folders; /data has one folder more.
	if tr.totals.Dirs != 6 || tr.root.Links != 2+4 {
		t.Errorf("totals %+v, root %+v", tr.totals, tr.root)
	}
	entries := must(manifest.ReadDirectory(t.Context(), tr.meta, digestOf(t, tr, "/many"), 1<<20))(t)
	if len(entries) != 700 {
		t.Errorf("%d entries read back", len(entries))
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	root := zoo(t)
	cache := must(statcache.Open(filepath.Join(t.TempDir(), "digests")))(t)
	defer func() { _ = cache.Close() }()
	first := gather(t, root, nil)
	for range 3 {
		again := gather(t, root, cache)
		if again.root.Digest != first.root.Digest || again.totals != first.totals {
			t.Fatalf("root %v with %+v, then %v with %+v", first.root.Digest, first.totals, again.root.Digest, again.totals)
		}
	}
	write(t, filepath.Join(root, "many/0600"), "changed", 0o644)
	changed := gather(t, root, cache)
	if changed.root.Digest == first.root.Digest {
		t.Fatal("a change does not show")
	}
	same := 0
	for d := range changed.meta {
		if _, ok := first.meta[d]; ok {
			same++
		}
	}
	if fresh := len(changed.meta) - same; fresh > 4 {
		t.Errorf("one changed file changed %d pages", fresh)
	}
}

func TestBuildUsesTheCache(t *testing.T) {
	root := t.TempDir()
	big := strings.Repeat("0123456789abcdef", 100_000)
	write(t, filepath.Join(root, "big"), big, 0o644)
	write(t, filepath.Join(root, "small"), "small", 0o644)
	cache := must(statcache.Open(filepath.Join(t.TempDir(), "digests")))(t)
	defer func() { _ = cache.Close() }()
	time.Sleep(2 * statcache.Window) // a younger file is not recorded, by design
	first := gather(t, root, cache)
	if first.hashed != int64(len(big))+5 {
		t.Fatalf("%d bytes read at first", first.hashed)
	}
	r := must(rootfs.New(root))(t)
	defer func() { _ = r.Close() }()
	c := newClosure(r, must(mountsBelow(root))(t), nil)
	check(t, c.addTree(t.Context(), "/", Reason{ClassUser, "all"}))
	asked := 0
	again := must(build(t.Context(), newHasher(openRoot(t, root), cache, func(d manifest.Digest) []byte { asked++; return first.meta[d] }), c.items))(t)
	if again.hashed != 0 || asked != 1 || again.root.Digest != first.root.Digest {
		t.Fatalf("%d bytes read again, %d lists asked for", again.hashed, asked)
	}
	// Without the old chunk list the file is read again.
	if third := gather(t, root, cache); third.hashed != int64(len(big)) || third.root.Digest != first.root.Digest {
		t.Fatalf("%d bytes read without lists", third.hashed)
	}
}

func TestBuildLeavesOutForbiddenAttributes(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "f"), "f", 0o644)
	check(t, unix.Setxattr(filepath.Join(root, "f"), "trusted.overlay.redirect", []byte("/etc/shadow"), 0))
	tr := gather(t, root, nil)
	if n, _ := tr.find("/f"); len(n.entry.Xattrs) != 0 {
		t.Errorf("attributes %q", n.entry.Xattrs)
	}
}

func TestFileThatKeepsChanging(t *testing.T) {
	root := t.TempDir()
	name := filepath.Join(root, "busy")
	const size = 192 << 20 // sparse; so long to read that a write falls into it
	write(t, name, "", 0o644)
	check(t, os.Truncate(name, size))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return
		}
		defer func() { _ = f.Close() }()
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
				_, _ = f.WriteAt([]byte{byte(i)}, 4096*(i%16))
				time.Sleep(time.Millisecond) // the rate of the writes, not a wait
			}
		}
	}()
	r := must(rootfs.New(root))(t)
	defer func() { _ = r.Close() }()
	c := newClosure(r, must(mountsBelow(root))(t), nil)
	check(t, c.addTree(t.Context(), "/", Reason{ClassUser, "all"}))
	_, err := build(t.Context(), newHasher(openRoot(t, root), nil, nil), c.items)
	close(stop)
	<-done
	wantErr(t, err, manifest.ErrStale, "/busy", "--exclude")
}

func TestLeadGoesThroughThePagesOfTheWay(t *testing.T) {
	root := zoo(t)
	for i := range mostListed*256 + 600 { // names; a page has at most 256
		write(t, fmt.Sprintf("%s/huge/%05d", root, i), "", 0o644)
	}
	tr := gather(t, root, nil)
	pages := func(dir string) (all []manifest.Digest) {
		d := digestOf(t, tr, dir)
		for _, c := range must(manifest.DecodePage(tr.meta[d]))(t).Children {
			all = append(all, c.Digest)
		}
		return append([]manifest.Digest{d}, all...)
	}
	many, huge := pages("/many"), pages("/huge")
	if len(many) < 3 || len(huge) <= 1+mostListed {
		t.Fatalf("%d and %d pages", len(many), len(huge))
	}
	way := []step{{path: "/many/0600"}, {path: "/data/big"}, {path: "/etc/plain"}, {path: "/huge/00001"}, {path: "/bin/none/deeper"}}
	lead := must(tr.lead(way, []manifest.Touch{{Path: "/data/big"}}))(t)
	n, _ := tr.find("/data/big")
	// The order is that of the way: root, many, data, etc, of huge the index and
	// one page, bin, where a name was looked for that is not there, and a chunk
	// list.
	want := append([]manifest.Digest{tr.root.Digest}, many...)
	want = append(want, digestOf(t, tr, "/data"), digestOf(t, tr, "/etc"), huge[0], huge[1], digestOf(t, tr, "/bin"), n.entry.Chunks)
	if !slices.Equal(lead, want) {
		t.Errorf("leads through %v, want %v", lead, want)
	}
	page := must(manifest.DecodePage(tr.meta[huge[1]]))(t)
	if !slices.ContainsFunc(page.Entries, func(e manifest.Entry) bool { return e.Name == "00001" }) {
		t.Errorf("the page %v has no 00001", huge[1])
	}
	for dir, want := range map[string]int{"/many": 1 + len(many), "/huge": 2} {
		if listed := must(tr.lead([]step{{path: dir, listed: true}}, nil))(t); len(listed) != want {
			t.Errorf("a listing of %s needs %d pages, want %d", dir, len(listed), want)
		}
	}
}
