package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// mountTemp mounts a file system that goes away with the test.
func mountTemp(t testing.TB, source, kind, data string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(source, dir, kind, 0, data); err != nil {
		t.Fatalf("mount %s: %v", kind, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// A full disk is ErrNoSpace with the amount and the place; nothing is corrupt, and
// when there is room again it goes on.
func TestDiskFull(t *testing.T) {
	full := mountTemp(t, "store-test", "tmpfs", "size=4m")
	o := newOrigin()
	files := map[string][]byte{"/var/big": random(9<<20, 30)}
	for i := range 100 {
		files[name(i)] = random(40_000, uint64(i)+3000)
	}
	snap := o.tree(files)
	dir := filepath.Join(full, "store")
	s := openStore(t, Options{Dir: dir})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	big := newOrigin().file("/var/big", files["/var/big"])
	for what, err := range map[string]error{
		"ensure":   r.Ensure(ctxOf(t), big),
		"prefetch": r.Prefetch(ctxOf(t), snap, nil),
	} {
		if !errors.Is(err, manifest.ErrNoSpace) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "bytes") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range 100 {
		c := newOrigin().file(name(i), files[name(i)])
		if err := r.Ensure(ctxOf(t), c); err != nil && !errors.Is(err, manifest.ErrNoSpace) {
			t.Errorf("%v", err)
		}
	}
	verifyBlobs(t, dir)
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 0 {
		t.Errorf("%d files left in tmp", len(left))
	}
	if err := unix.Mount("store-test", full, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if err := r.Prefetch(ctxOf(t), snap, nil); err != nil {
		t.Fatal(err)
	}
	if tally, err := r.Tally(ctxOf(t), snap); err != nil || !tally.Detached {
		t.Errorf("%+v, %v", tally, err)
	}
	verifyBlobs(t, dir)
}

// Across file systems a host file is copied; on one that shares blocks it is
// reflinked where a link would be dangerous.
func TestPinCopiesAndReflinks(t *testing.T) {
	image := filepath.Join(t.TempDir(), "xfs")
	if err := exec.Command("truncate", "-s", "320M", image).Run(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.xfs (package xfsprogs): %v: %s", err, out)
	}
	xfs := loopMount(t, image)
	tmp := mountTemp(t, "store-test", "tmpfs", "size=16m")
	for _, k := range []struct {
		store, host string
		link, other PinKind
	}{
		{xfs, xfs, Linked, Reflinked},
		{tmp, xfs, Copied, Copied},
	} {
		root := filepath.Join(k.host, fmt.Sprintf("root%v", k.other))
		b := random(3*chunk, 31)
		lib, conf := append([]byte("lib"), b...), append([]byte("conf"), b...)
		writeFile(t, root+"/usr/lib/f", lib)
		writeFile(t, root+"/etc/f", conf)
		settleClock()
		s := openStore(t, Options{Dir: filepath.Join(k.store, "store"), HostRoot: root})
		r := s.Reader()
		for p, want := range map[string]PinKind{"/usr/lib/f": k.link, "/etc/f": k.other} {
			body := map[string][]byte{"/usr/lib/f": lib, "/etc/f": conf}[p]
			c := newOrigin().file(p, body)
			mustRead(t, r, c, body)
			if got := s.Pin(c.Digest); got != want {
				t.Errorf("%s from %s to %s: %v, want %v", p, k.host, k.store, got, want)
			}
			// An edit of the host's file doesn't reach a reflink or a copy.
			if want != Linked {
				writeFile(t, root+p, []byte("edited"))
				mustRead(t, r, c, body)
			}
		}
		verifyBlobs(t, s.Dir())
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func loopMount(t testing.TB, image string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}
