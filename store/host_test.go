package store

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// inode returns a file's inode number.
func inode(t testing.TB, p string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	return st.Ino
}

// hostRoot makes the root of a host without files.
func hostRoot(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, d := range nameFolders[:6] {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestHostFilesAreNotFetched(t *testing.T) {
	root, o := hostRoot(t), newOrigin()
	lib, big, conf := random(7000, 20), random(9*chunk, 21), random(300, 22)
	writeFile(t, root+"/usr/lib/libz.so.1", lib)
	writeFile(t, root+"/usr/lib/deep/er/big.bin", big)
	writeFile(t, root+"/etc/app.conf", conf)
	writeFile(t, root+"/usr/share/zone/Berlin", random(500, 23))
	for link, target := range map[string]string{
		"/etc/localtime": "/usr/share/zone/Berlin", // absolute: within the host root
		"/etc/passwd":    "../../../../etc/passwd", // can't lead out of it
		"/etc/loop":      "loop",
	} {
		if err := os.Symlink(target, root+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(root+"/etc/pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	settleClock()
	s := openStore(t, Options{Dir: filepath.Join(t.TempDir(), "store"), HostRoot: root})
	r := s.Reader(Source{Name: "origin", Origin: o})
	<-s.host.names.ready // before that only the same path counts for who waits
	none := newOrigin()  // makes contents that the origin doesn't have
	for _, c := range []struct {
		path string
		b    []byte
		pin  PinKind
		ino  string
	}{
		{"/usr/lib/libz.so.1", lib, Linked, "/usr/lib/libz.so.1"},
		{"/opt/elsewhere/big.bin", big, Linked, "/usr/lib/deep/er/big.bin"}, // by name
		{"/etc/app.conf", conf, Copied, ""},                                 // people edit it
		{"/etc/localtime", random(500, 23), Linked, "/usr/share/zone/Berlin"},
	} {
		content := none.file(c.path, c.b)
		mustRead(t, r, content, c.b)
		if pin := s.Pin(content.Digest); pin != c.pin && (c.pin != Copied || pin != Reflinked) {
			t.Errorf("%s is %v, want %v", c.path, pin, c.pin)
		}
		if c.ino != "" && inode(t, s.blobPath(content.Digest)) != inode(t, root+c.ino) {
			t.Errorf("%s: the blob is not the host's inode", c.path)
		}
	}
	if n := o.total(); n != 0 {
		t.Errorf("%d requests for local files", n)
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for p, b := range map[string][]byte{
		"/etc/passwd": passwd, "/etc/loop": []byte("x"), "/etc/pipe": []byte("y"), "/etc": []byte("z"),
		"/usr/lib/libz.so.1": bytes.Repeat([]byte{1}, len(lib)), // same path and size, other bytes
	} {
		mustRead(t, r, o.file(p, b), b)
		if s.Pin(manifest.Sum(b)) != Unpinned {
			t.Errorf("%s was found on the host", p)
		}
	}
	if st := s.Stats(); st.HostHits != 4 || st.FetchedFiles != 5 {
		t.Errorf("stats %+v", st)
	}
}

// What a package upgrade, a deletion and an edit in place do to a linked file.
func TestHostFileChanges(t *testing.T) {
	root, o := hostRoot(t), newOrigin()
	b := random(2*chunk, 24)
	for _, n := range []string{"upgraded", "deleted", "edited", "truncated", "touched"} {
		writeFile(t, root+"/usr/lib/"+n, append([]byte(n), b...))
	}
	settleClock()
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, Options{Dir: dir, HostRoot: root})
	r := s.Reader(Source{Name: "origin", Origin: o})
	content := func(n string) (manifest.Content, []byte) {
		body := append([]byte(n), b...)
		return newOrigin().file("/usr/lib/"+n, body), body
	}
	files := map[string]*File{}
	for _, n := range []string{"upgraded", "deleted", "edited", "truncated", "touched"} {
		c, body := content(n)
		mustRead(t, r, c, body)
		if s.Pin(c.Digest) != Linked {
			t.Fatalf("%s is %v", n, s.Pin(c.Digest))
		}
		f, err := r.Open(ctxOf(t), c)
		if err != nil {
			t.Fatal(err)
		}
		files[n] = f
		defer func() { _ = f.Close() }()
	}
	writeFile(t, root+"/usr/lib/new", []byte("new version"))
	for _, err := range []error{
		os.Rename(root+"/usr/lib/new", root+"/usr/lib/upgraded"),
		os.Remove(root + "/usr/lib/deleted"),
		os.WriteFile(root+"/usr/lib/edited", bytes.Repeat([]byte("!"), 2*chunk+6), 0o644),
		os.Truncate(root+"/usr/lib/truncated", 10),
		os.Chtimes(root+"/usr/lib/touched", time.Now(), time.Now()),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"upgraded", "deleted", "touched"} {
		c, body := content(n)
		mustRead(t, r, c, body)
		if s.Pin(c.Digest) != Linked {
			t.Errorf("%s is %v", n, s.Pin(c.Digest))
		}
	}
	if n := o.total(); n != 0 {
		t.Errorf("%d requests for pinned files", n)
	}
	for _, n := range []string{"edited", "truncated"} {
		c, body := content(n)
		o.file(c.Path, body)
		p := make([]byte, 100) // through a File that was open when it happened
		if _, err := files[n].ReadAt(ctxOf(t), p, 50); err != nil || !bytes.Equal(p, body[50:150]) {
			t.Errorf("%s: open file: %v", n, err)
		}
		mustRead(t, r, c, body)
		if s.Pin(c.Digest) != Unpinned {
			t.Errorf("%s is %v", n, s.Pin(c.Digest))
		}
	}
	if got, err := os.ReadFile(root + "/usr/lib/truncated"); err != nil || len(got) != 10 {
		t.Errorf("the host's own file was touched: %d bytes, %v", len(got), err)
	}
	verifyBlobs(t, dir)
}

func TestDamagedBlob(t *testing.T) {
	o := newOrigin()
	b, big := random(4000, 25), random(7*chunk, 26)
	book := &logbook{}
	dir := filepath.Join(t.TempDir(), "store")
	for _, c := range []manifest.Content{o.file("/f", b), o.file("/big", big)} {
		body := o.content[c.Digest]
		for name, damage := range map[string]func(p string) error{
			"overwritten": func(p string) error {
				f, err := os.OpenFile(p, os.O_WRONLY, 0)
				if err == nil {
					_, err = f.WriteAt([]byte("damage"), 100)
					_ = f.Close()
				}
				return err
			},
			"truncated": func(p string) error { return os.Truncate(p, 17) },
			"removed":   os.Remove,
			"replaced":  func(p string) error { return os.Rename(mkTemp(t, dir), p) },
			"a folder":  func(p string) error { _ = os.Remove(p); return os.Mkdir(p, 0o700) },
		} {
			for _, when := range []string{"at once", "while open", "after a restart"} {
				s, err := Open(Options{Dir: dir, Log: book.logger()})
				if err != nil {
					t.Fatal(err)
				}
				r := s.Reader(Source{Name: "origin", Origin: o})
				if err := r.Ensure(ctxOf(t), c); err != nil {
					t.Fatal(err)
				}
				f, err := r.Open(ctxOf(t), c)
				if err != nil {
					t.Fatal(err)
				}
				if when == "after a restart" {
					_ = f.Close()
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if err := damage(s.blobPath(c.Digest)); err != nil {
					t.Fatal(err)
				}
				if when == "after a restart" {
					if s, err = Open(Options{Dir: dir}); err != nil {
						t.Fatal(err)
					}
					r = s.Reader(Source{Name: "origin", Origin: o})
				}
				if when == "while open" {
					p := make([]byte, 200)
					if _, err := f.ReadAt(ctxOf(t), p, 50); err != nil || !bytes.Equal(p, body[50:250]) {
						t.Errorf("%s %s: %v", name, when, err)
					}
				}
				_ = f.Close()
				mustRead(t, r, c, body)
				if err := r.Ensure(ctxOf(t), c); err != nil {
					t.Fatal(err)
				}
				verifyBlobs(t, dir)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if !strings.Contains(book.String(), "removed a damaged file from the store") {
		t.Errorf("nothing in the log:\n%s", book)
	}
}

func mkTemp(t testing.TB, dir string) string {
	p := filepath.Join(dir, "impostor")
	if err := os.WriteFile(p, []byte("something else"), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRemoteMounts(t *testing.T) {
	for kind, want := range map[string]bool{"fuse.sshfs": true, "fuse": true, "nfs4": true, "ext4": false, "overlay": false, "tmpfs": false} {
		if remoteType(kind) != want {
			t.Errorf("%s", kind)
		}
	}
	if got := unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("%q", got)
	}
}
