package archive

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A vandal changes a folder at random.
type vandal struct {
	*rand.Rand
	dir string
}

// some returns the path of something below the folder for which ok holds, or "".
func (v vandal) some(ok func(fs.FileInfo) bool) string {
	var all []string
	_ = filepath.WalkDir(v.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == v.dir {
			return err
		}
		if info, err := d.Info(); err == nil && ok(info) {
			all = append(all, p)
		}
		return nil
	})
	if len(all) == 0 {
		return ""
	}
	return all[v.IntN(len(all))]
}

func isDir(i fs.FileInfo) bool  { return i.IsDir() }
func isFile(i fs.FileInfo) bool { return i.Mode().IsRegular() }
func notDir(i fs.FileInfo) bool { return !i.IsDir() }
func any1(fs.FileInfo) bool     { return true }

// fresh returns a path, of something that is there or not, in one of the folders.
func (v vandal) fresh() string {
	dir := v.some(isDir)
	if dir == "" || v.IntN(6) == 0 {
		dir = v.dir
	}
	return filepath.Join(dir, fmt.Sprintf("n%d", v.IntN(6)))
}

// step makes one change; what can't be done does not matter.
func (v vandal) step() {
	p, a := v.fresh(), v.some(any1)
	switch v.IntN(13) {
	case 0, 1:
		if info, err := os.Stat(p); err == nil && !info.Mode().IsRegular() {
			break // to open a FIFO would wait for a reader
		}
		_ = os.WriteFile(p, []byte(strings.Repeat(fmt.Sprint(v.Uint32()), v.IntN(3000))), 0o644)
	case 2:
		_ = os.MkdirAll(filepath.Join(p, "sub"), 0o755)
	case 3:
		_ = os.Symlink("n1", p)
	case 4:
		_ = os.Link(v.some(notDir), p)
	case 5:
		_ = os.RemoveAll(a)
	case 6:
		_ = os.Rename(a, p)
	case 7:
		_ = unix.Chmod(a, uint32(v.IntN(0o10000))|0o700)
	case 8:
		_ = os.Lchown(a, v.IntN(5), v.IntN(5))
	case 9:
		_ = unix.Lsetxattr(a, fmt.Sprintf("user.x%d", v.IntN(3)), []byte{byte(v.IntN(256))}, 0)
	case 10: // another type in the same place
		_ = os.RemoveAll(a)
		switch v.IntN(4) {
		case 0:
			_ = os.MkdirAll(filepath.Join(a, "n1"), 0o700)
		case 1:
			_ = os.WriteFile(a, []byte("file"), 0o600)
		case 2:
			_ = os.Symlink("n2", a)
		case 3:
			_ = unix.Mkfifo(a, 0o600)
		}
	case 11:
		when := unix.Timespec{Sec: v.Int64N(2e9), Nsec: v.Int64N(1e9)}
		if a != "" {
			_ = unix.UtimesNanoAt(unix.AT_FDCWD, a, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW)
		}
	case 12: // a new file in the place of an old one, as an editor leaves it
		if f := v.some(isFile); f != "" {
			_ = os.WriteFile(f+"~", []byte(fmt.Sprint(v.Uint32())), 0o640)
			_ = os.Rename(f+"~", f)
		}
	}
}

// Whatever is done to a tree between exports, umoci makes of the layers what there is, and
// each earlier snapshot stays what it was.
func TestRandomChanges(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	v := vandal{rand.New(rand.NewPCG(seed, 1)), t.TempDir()}
	dest := filepath.Join(t.TempDir(), "layout")
	roots := map[uint64]manifest.Digest{}
	for n := uint64(1); n <= 8; n++ {
		for range 30 {
			v.step()
		}
		s, src := scan(t, v.dir, n)
		if w := exportDir(t, dest, v.dir, n, Options{Compact: n == 4}); w.Unchanged {
			continue
		}
		if n == 4 {
			clear(roots)
		}
		roots[n] = s.Root.Digest
		if n%2 == 0 {
			unpacked(t, dest, "latest", s, src)
		}
		if t.Failed() {
			return
		}
	}
	a := open(t, dest, OpenOptions{})
	if len(a.Snapshots()) != len(roots) {
		t.Errorf("%d snapshots, want %d", len(a.Snapshots()), len(roots))
	}
	for n, want := range roots {
		if checkout(t, a, manifest.Ref{Sequence: n}) != want {
			t.Errorf("snapshot %d is another", n)
		}
	}
}
