package store

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// copied returns the one file in a folder of copies.
func copied(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("copies in %s: %v, %v", dir, list, err)
	}
	return filepath.Join(dir, list[0].Name())
}

func mustUpdate(t *testing.T, c *Copies, r *Reader, of manifest.Content, want int64) {
	t.Helper()
	if wrote, err := c.Update(ctxOf(t), r, of); err != nil || wrote != want {
		t.Fatalf("update of %s wrote %d bytes, want %d: %v", of.Path, wrote, want, err)
	}
}

// A copy follows its file by chunks, and is taken only while it is what was
// verified.
func TestCopies(t *testing.T) {
	base := t.TempDir()
	s := openStore(t, Options{Dir: filepath.Join(base, "store")})
	o := newOrigin()
	old := random(5*chunk+17, 1)
	c := o.file("/var/lib/db/data", old)
	r := s.Reader(Source{Name: "source", Origin: o})
	dir := filepath.Join(base, "prepared", "web")
	copies := s.Copies(dir)
	if _, err := copies.Update(ctxOf(t), r, c); !errors.Is(err, manifest.ErrUnavailable) {
		t.Fatalf("a copy of what is not local: %v", err)
	}
	if n := copies.Usage(); n.Files != 0 {
		t.Errorf("usage: %+v", n)
	}
	if err := r.Ensure(ctxOf(t), c); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, copies, r, c, c.Size)
	mustUpdate(t, copies, r, c, 0)
	at := copied(t, dir)
	if inode(t, at) == inode(t, s.blobPath(c.Digest)) {
		t.Fatal("the copy is the blob")
	}
	if n := copies.Usage(); n.Files != 1 || n.Bytes < c.Size {
		t.Errorf("usage: %+v", n)
	}

	// A newer file: one chunk differs, and it is shorter.
	body := bytes.Clone(old[:4*chunk+100])
	copy(body[chunk+5:], "changed")
	next := o.file("/var/lib/db/data", body)
	if err := r.Ensure(ctxOf(t), next); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, copies, r, next, chunk+100)
	to := filepath.Join(base, "taken")
	if ok, err := copies.Take(c, to); ok || err != nil {
		t.Fatalf("took a copy of what it was: %v %v", ok, err)
	}

	// Somebody writes to it: it is no copy any more, and only that chunk is
	// written again.
	f, err := os.OpenFile(at, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 3*chunk); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if ok, err := copies.Take(next, to); ok || err != nil {
		t.Fatalf("took a damaged copy: %v %v", ok, err)
	}
	mustUpdate(t, copies, r, next, chunk)
	// A copy that was cut off, as by a kill.
	if err := os.Truncate(at, 2*chunk+7); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, copies, r, next, next.Size-2*chunk)

	// A second name would let somebody else write to it.
	if err := os.Link(at, at+".link"); err != nil {
		t.Fatal(err)
	}
	if ok, err := copies.Take(next, to); ok || err != nil {
		t.Fatalf("took a copy with two names: %v %v", ok, err)
	}
	if err := copies.Retain([]string{next.Path}); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, copies, r, next, 0) // its stat has changed, its bytes have not
	if ok, err := copies.Take(next, to); !ok || err != nil {
		t.Fatalf("take: %v %v", ok, err)
	}
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, body) {
		t.Errorf("what was taken differs: %v", err)
	}
	if ok, err := copies.Take(next, to); ok || err != nil {
		t.Errorf("took it twice: %v %v", ok, err)
	}

	// A write to what was taken does not reach the store.
	if err := os.WriteFile(to, []byte("the service's own"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRead(t, r, next, body)
	verifyBlobs(t, s.Dir())

	// Retain removes what nobody asks for any more.
	mustUpdate(t, copies, r, next, next.Size)
	if err := copies.Retain(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

// A copy outlives the process that made it, and is known again by its stat.
func TestCopiesOutliveTheProcess(t *testing.T) {
	base := t.TempDir()
	o := newOrigin()
	c := o.file("/data", random(3*chunk, 2))
	open := func() (*Store, *Copies, *Reader) {
		s := openStore(t, Options{Dir: filepath.Join(base, "store")})
		return s, s.Copies(filepath.Join(base, "copies")), s.Reader(Source{Name: "source", Origin: o})
	}
	s, copies, r := open()
	if err := r.Ensure(ctxOf(t), c); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, copies, r, c, c.Size)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, copies, r = open()
	mustUpdate(t, copies, r, c, 0)
	if ok, err := copies.Take(c, filepath.Join(base, "taken")); !ok || err != nil {
		t.Errorf("take: %v %v", ok, err)
	}
}

// A hole takes no space, and a damaged blob makes no copy.
func TestCopiesHolesAndDamage(t *testing.T) {
	base := t.TempDir()
	s := openStore(t, Options{Dir: filepath.Join(base, "store")})
	o := newOrigin()
	r := s.Reader(Source{Name: "source", Origin: o})
	copies := s.Copies(filepath.Join(base, "copies"))
	sparse := make([]byte, 8*chunk)
	copy(sparse[7*chunk:], random(chunk, 3))
	c := o.file("/sparse", sparse)
	if err := r.Ensure(ctxOf(t), c); err != nil {
		t.Fatal(err)
	}
	mustUpdate(t, copies, r, c, chunk)
	if n := copies.Usage(); n.Bytes > 2*chunk {
		t.Errorf("a file of one chunk and a hole takes %d bytes", n.Bytes)
	}
	taken := filepath.Join(base, "taken")
	if ok, err := copies.Take(c, taken); !ok || err != nil {
		t.Fatalf("take: %v %v", ok, err)
	}
	if got, _ := os.ReadFile(taken); !bytes.Equal(got, sparse) {
		t.Error("the copy of a file with a hole differs")
	}

	// Bytes change below a stat that does not: as a bad disk does it.
	bad := o.file("/bad", random(3*chunk, 4))
	if err := r.Ensure(ctxOf(t), bad); err != nil {
		t.Fatal(err)
	}
	blob := s.blobPath(bad.Digest)
	b, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	b[chunk+1]++
	if err := os.WriteFile(blob, b, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(blob, blobMtime, blobMtime); err != nil {
		t.Fatal(err)
	}
	k, _ := s.blobKey(bad.Digest)
	s.mu.Lock()
	s.pending[bad.Digest] = k
	s.mu.Unlock()
	if _, err := copies.Update(ctxOf(t), r, bad); !errors.Is(err, manifest.ErrCorrupt) {
		t.Errorf("a copy of damaged content: %v", err)
	}
	if ok, err := copies.Take(bad, taken); ok || err != nil {
		t.Errorf("took damage: %v %v", ok, err)
	}
	if s.Has(bad.Digest) {
		t.Error("the damaged blob is still trusted")
	}
}

// Copies never take the last of the disk; on XFS they take nothing.
func TestCopiesSpace(t *testing.T) {
	o := newOrigin()
	c := o.file("/data", random(24*chunk, 5))
	small := mountTemp(t, "store-test", "tmpfs", "size=12m")
	s := openStore(t, Options{Dir: filepath.Join(small, "store")})
	r := s.Reader(Source{Name: "source", Origin: o})
	if err := r.Ensure(ctxOf(t), c); err != nil {
		t.Fatal(err)
	}
	copies := s.Copies(filepath.Join(small, "copies"))
	if _, err := copies.Update(ctxOf(t), r, c); !errors.Is(err, manifest.ErrNoSpace) {
		t.Errorf("a copy that fills the disk: %v", err)
	}
	if n := copies.Usage(); n.Bytes != 0 {
		t.Errorf("it took %+v", n)
	}
	if s.Reflinks(small) {
		t.Error("a tmpfs shares blocks")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	image := filepath.Join(t.TempDir(), "xfs")
	for _, argv := range [][]string{{"truncate", "-s", "320M", image}, {"mkfs.xfs", "-q", "-m", "reflink=1", image}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	xfs := loopMount(t, image)
	s = openStore(t, Options{Dir: filepath.Join(xfs, "store")})
	r = s.Reader(Source{Name: "source", Origin: o})
	if err := r.Ensure(ctxOf(t), c); err != nil {
		t.Fatal(err)
	}
	if !s.Reflinks(xfs) {
		t.Fatal("XFS shares no blocks")
	}
	unix.Sync()
	before := freeBytes(t, xfs)
	copies = s.Copies(filepath.Join(xfs, "copies"))
	mustUpdate(t, copies, r, c, 0)
	if used := before - freeBytes(t, xfs); used > 4*chunk {
		t.Errorf("a reflink of %d bytes took %d", c.Size, used)
	}
	if ok, err := copies.Take(c, filepath.Join(xfs, "taken")); !ok || err != nil {
		t.Errorf("take: %v %v", ok, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bfree) * st.Bsize
}

// Written finds the files, with the folders above, in the profile's order.
func TestWritten(t *testing.T) {
	o := newOrigin()
	snap := o.tree(map[string][]byte{"/a/b/data": []byte("x"), "/top": []byte("y"), "/log": nil, "/read": []byte("z")}, "/top", "/read", "/a/b/data", "/log", "/gone", "/a/b", "/top/not/a/folder")
	for i := range snap.Profile {
		snap.Profile[i].Write = snap.Profile[i].Path != "/read"
		snap.Profile[i].Fresh = snap.Profile[i].Path == "/log"
	}
	s := openStore(t, Options{Dir: t.TempDir()})
	all, err := s.Reader(Source{Name: "source", Origin: o}).Written(ctxOf(t), snap)
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	if w := all[0]; w.Path != "/top" || len(w.Folders) != 0 || w.Entry.Size != 1 || w.Fresh {
		t.Errorf("%+v", w)
	}
	if w := all[1]; w.Path != "/a/b/data" || len(w.Folders) != 2 || w.Folders[0].Name != "a" || w.Folders[1].Name != "b" {
		t.Errorf("%+v", w)
	}
	if !all[2].Fresh {
		t.Errorf("%+v", all[2])
	}
}
