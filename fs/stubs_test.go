package fs_test

import (
	"context"
	"os"
	"testing"

	"srvfs/fs"
	"srvfs/manifest"
)

// Only programs have stubs, however their paths are written; what is no path of
// a program, or can't be had, is passed over.
func TestStubsAreOfPrograms(t *testing.T) {
	w := newWorld(t, func(dir string) {
		for _, f := range []string{"/usr/bin/prog", "/usr/lib/libx.so.1", "/usr/bin/twice", "/opt/deep/er/script", "/etc/conf"} {
			write(t, dir+f, f)
			must(t, os.Chmod(dir+f, 0o755))
		}
		must(t, os.Chmod(dir+"/etc/conf", 0o644))
		must(t, os.Link(dir+"/usr/bin/twice", dir+"/usr/bin/thrice"))
		must(t, os.Symlink("usr/bin", dir+"/bin"))
		must(t, os.Symlink("/opt/../opt/deep", dir+"/usr/bin/relay"))
		must(t, os.Symlink("loop", dir+"/loop"))
		write(t, dir+"/usr/bin/empty", "")
		must(t, os.Chmod(dir+"/usr/bin/empty", 0o755))
	}).mount(fs.Options{Layout: fs.Layers})
	dir := t.TempDir()
	n, err := w.view.Stubs(context.Background(), dir, []string{"/bin/prog", "/usr/bin/prog", "/bin/relay/er/script", "/usr/lib/libx.so.1", "/usr/bin/twice",
		"/etc/conf", "/loop/x", "/none", "/bin/prog/x", "/../../etc", "", "/bin/empty"})
	must(t, err)
	if n != 2 {
		t.Errorf("%d stubs, want 2", n)
	}
	out, err := shell(t, "cd %s && find . -type f -printf '%%p %%s\\n' | sort", dir)
	if want := "./opt/deep/er/script 19\n./usr/bin/prog 13\n"; err != nil || out != want {
		t.Errorf("%v, the stubs are\n%swant\n%s", err, out, want)
	}
	// Twice into one folder is a mistake of the caller.
	if _, err := w.view.Stubs(context.Background(), dir, []string{"/bin/prog"}); err == nil {
		t.Error("stubs were written over others")
	}
}

// A disk that can't keep what the tree has is no place for stubs.
func TestStubsAreExact(t *testing.T) {
	w := newWorld(t, func(dir string) { write(t, dir+"/x", "x") })
	tree := w.source.Tree
	prog := manifest.Entry{Name: "prog", Type: manifest.File, Mode: 0o755, Links: 1, Size: 1, Digest: manifest.Sum([]byte("x")),
		Mtime: manifest.Time{Sec: 1 << 40}}
	tree.Root.Digest = directory(t, tree, []manifest.Entry{prog})
	w.mount(fs.Options{Layout: fs.Layers})
	if n, err := w.view.Stubs(context.Background(), t.TempDir(), []string{"/prog"}); err == nil {
		t.Errorf("%d stubs with times that no disk has", n)
	}
}
