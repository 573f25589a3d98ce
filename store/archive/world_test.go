package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/fs/fstest"
	"srvfs/manifest"
	"srvfs/manifest/origintest"
)

// A disk is a Source over a folder.
type disk struct{ *fstest.Tree }

func (d disk) Meta(_ context.Context, digests []manifest.Digest) ([][]byte, error) {
	out := make([][]byte, len(digests))
	for i, digest := range digests {
		b, ok := d.Tree.Meta[digest]
		if !ok {
			return nil, fmt.Errorf("metadata %v: %w", digest, manifest.ErrNotFound)
		}
		out[i] = b
	}
	return out, nil
}

func (d disk) Read(_ context.Context, c manifest.Content) (io.ReadCloser, error) {
	path, ok := d.Files[c.Digest]
	if !ok {
		return nil, fmt.Errorf("content %v: %w", c.Digest, manifest.ErrNotFound)
	}
	return os.Open(path)
}

// scan makes a snapshot of a folder, with the number.
func scan(t testing.TB, dir string, number uint64) (*manifest.Snapshot, disk) {
	t.Helper()
	tree, err := fstest.Scan(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := tree.Snapshot("web")
	s.Sequence, s.Created = number, 1_700_000_000_000_000_000+int64(number)*1e9
	s.Metadata = []manifest.Digest{s.Root.Digest}
	s.Units = []manifest.Unit{{Name: "web.service", Kind: manifest.Simple, Start: []manifest.Command{{Argv: []string{"/bin/web", "-v"}}}, Env: []string{"PATH=/bin"}, Signal: 15, User: manifest.User{UID: 7, GID: 8}}}
	return s, disk{tree}
}

// exportDir writes a folder's snapshot.
func exportDir(t testing.TB, dest, dir string, number uint64, o Options) *Written {
	t.Helper()
	s, src := scan(t, dir, number)
	w, err := Write(t.Context(), dest, s, src, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func open(t testing.TB, ref string, o OpenOptions) *Archive {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, err := Open(ctx, ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// contentsDir has a file for each of the contents of the conformance suite.
func contentsDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, b := range origintest.Contents() {
		write(t, filepath.Join(dir, "c", manifest.Sum(b).Hex()), string(b))
	}
	return dir
}

func write(t testing.TB, path, body string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(body), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// must fails the test for any error.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// checkout reads all that a snapshot of an archive has, verifies it, and returns the
// root's digest.
func checkout(t testing.TB, a *Archive, ref manifest.Ref) manifest.Digest {
	t.Helper()
	s, err := a.Snapshot(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifyAll(t.Context(), a, s); err != nil {
		t.Fatal(err)
	}
	return s.Root.Digest
}

func verifyAll(ctx context.Context, a *Archive, s *manifest.Snapshot) error {
	var want []manifest.Range
	var sums []manifest.Digest
	err := changes(ctx, nil, a, nil, s, func(c change) error {
		e := c.entry
		if e.Type != manifest.File {
			return nil
		}
		var list manifest.ChunkList
		if e.Size > manifest.ChunkSize {
			b, err := a.Meta(ctx, []manifest.Digest{e.Chunks})
			if err != nil {
				return err
			}
			if list, err = manifest.DecodeChunkList(b[0], e.Size); err != nil {
				return err
			}
		} else {
			list = manifest.ChunkList{e.Digest}
		}
		for k, sum := range list {
			off := int64(k) * manifest.ChunkSize
			want = append(want, manifest.Range{Digest: e.Digest, Off: off, Len: min(manifest.ChunkSize, e.Size-off)})
			sums = append(sums, sum)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.FetchBatch(ctx, want, func(i int, data []byte, err error) error {
		if err == nil {
			err = verify(data, sums[i], "chunk")
		}
		return err
	})
}

// everything makes a folder with all that a snapshot can hold.
func everything(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	p := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"bin/web", "etc/web/conf", "etc/web/gone", "etc/to-link", "var/big", "var/odd/\xff\xfe name\n", "var/ünï", "srv/" + strings.Repeat("long", 60), "srv/a", "type/file", "type/dir/below", "type/tolink/below", "same/one"} {
		write(t, p(name), "content of "+name)
	}
	deep := "deep/" + strings.Repeat(strings.Repeat("d", 100)+"/", 5) + "file"
	write(t, p(deep), "deep")
	write(t, p("var/empty"), "")
	write(t, p("var/big"), strings.Repeat("0123456789abcdef", 50_000))
	write(t, p("var/zeros"), string(make([]byte, 3<<20)))
	must(t, os.Symlink("web/conf", p("etc/link")), os.Symlink("/nowhere/"+strings.Repeat("x", 200), p("etc/dangling")),
		os.Link(p("same/one"), p("same/two")), os.Link(p("same/one"), p("bin/three")),
		unix.Mkfifo(p("var/fifo"), 0o620), unix.Mknod(p("var/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mknod(p("var/disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70_000))),
		os.Mkdir(p("var/none"), 0o700),
		os.Chown(p("etc/web/conf"), 1000, 3_000_000_000), os.Chmod(p("etc/web/conf"), 0o440), os.Lchown(p("etc/link"), 33, 34),
		unix.Chmod(p("bin/web"), 0o4755), unix.Chmod(p("var"), 0o1777), unix.Chmod(p("srv"), 0o2750),
		unix.Lsetxattr(p("bin/web"), "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0),
		unix.Lsetxattr(p("etc/web"), "user.binary", []byte("a\x00\xff=\n"), 0),
		unix.Lsetxattr(p("etc/web"), "system.posix_acl_default", acl, 0), unix.Lsetxattr(p("srv/a"), "system.posix_acl_access", acl, 0),
		unix.Lsetxattr(p("etc/dangling"), "trusted.of-link", []byte("v"), 0),
	)
	times := []unix.Timespec{{Sec: 1_234_567_890, Nsec: 123_456_789}, {Sec: 1_234_567_890, Nsec: 123_456_789}}
	old := []unix.Timespec{{Sec: -5, Nsec: 5}, {Sec: -5, Nsec: 5}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p("etc/web/conf"), times, 0), unix.UtimesNanoAt(unix.AT_FDCWD, p("etc/link"), times, unix.AT_SYMLINK_NOFOLLOW),
		unix.UtimesNanoAt(unix.AT_FDCWD, p("var/empty"), old, 0), unix.UtimesNanoAt(unix.AT_FDCWD, p("etc/web"), times, 0), unix.UtimesNanoAt(unix.AT_FDCWD, dir, times, 0))
	return dir
}

// acl is a POSIX ACL: user::rwx, user:1000:r--, group::r-x, mask::r-x, other::---.
var acl = []byte{2, 0, 0, 0,
	1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}

// edit changes a folder made by everything in all ways.
func edit(t testing.TB, dir string) {
	t.Helper()
	p := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Remove(p("etc/web/gone")), os.RemoveAll(p("deep")), os.Remove(p("type/file")), os.RemoveAll(p("type/dir")), os.RemoveAll(p("type/tolink")))
	write(t, p("type/file/now/a/dir"), "was a file")
	write(t, p("type/dir"), "was a dir")
	must(t, os.Symlink("dir", p("type/tolink")), os.Remove(p("etc/to-link")), os.Symlink("web", p("etc/to-link")))
	write(t, p("etc/web/new"), "new")
	write(t, p("etc/web/conf"), "changed")
	must(t, os.Link(p("same/one"), p("same/four")), os.Remove(p("bin/three")))
	must(t, os.Chmod(p("var/none"), 0o711), unix.Lsetxattr(p("var/empty"), "user.new", []byte("v"), 0), os.Rename(p("srv/a"), p("srv/b")))
	when := []unix.Timespec{{Sec: 1_300_000_000, Nsec: 7}, {Sec: 1_300_000_000, Nsec: 7}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p("var/odd"), when, 0))
}
