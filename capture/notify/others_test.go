package notify

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file of a file system that is mounted twice has two paths, whatever its names.
func TestOthersOfTwoMounts(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(dir+"/real", 0o755), os.MkdirAll(dir+"/bind", 0o755), unix.Mount(dir+"/real", dir+"/bind", "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir+"/bind", unix.MNT_DETACH) })
	if err := errors.Join(os.WriteFile(dir+"/real/file", nil, 0o644), os.Link(dir+"/real/file", dir+"/real/link")); err != nil {
		t.Fatal(err)
	}
	w, err := Open([]Mount{{"/", dir}, {"/bind", dir + "/bind"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if err := errors.Join(os.Remove(dir+"/real/file"), os.WriteFile(dir+"/end", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	inodes := 0
	for ended := false; !ended; {
		events, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			names, others := w.Others(e)
			inodes, ended = inodes+len(others), ended || e.Path == "/end"
			if len(names) > 0 {
				t.Errorf("%s: it is said to be at %q alone", e.Path, names)
			}
		}
	}
	if inodes == 0 {
		t.Error("the file that has another name is not told of")
	}
}

// Of a file that has lost a name it is told where it is now, or, if it has other names,
// which it is.
func TestOthers(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func() error
		names  []string
		inode  string
	}{
		{"it is moved", func() error { return os.Rename("file", "in/moved") }, []string{"/in/moved"}, ""},
		{"it is moved over another", func() error { return os.Rename("file", "other") }, []string{"/other"}, ""},
		{"it has a second name, and is moved", func() error { return os.Rename("linked", "in/moved") }, nil, "link"},
		{"it has a second name, and this one goes", func() error { return os.Remove("linked") }, []string{"/link"}, ""},
		{"it goes", func() error { return os.Remove("file") }, nil, ""},
		{"it changes", func() error { return os.Chmod("file", 0o600) }, nil, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			check(os.Mkdir("in", 0o755))
			for _, name := range []string{"file", "other", "linked"} {
				check(os.WriteFile(name, []byte(name), 0o644))
			}
			check(os.Link("linked", "link"))
			w := watch(t, dir)
			check(c.change())
			check(os.WriteFile("end", nil, 0o644))
			var names []string
			var inodes []Inode
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			for ended := false; !ended; {
				events, err := w.Next(ctx)
				check(err)
				for _, e := range events {
					n, i := w.Others(e)
					names, inodes, ended = append(names, n...), append(inodes, i...), ended || e.Path == "/end"
				}
			}
			var want []Inode
			if c.inode != "" {
				var st unix.Stat_t
				check(unix.Lstat(c.inode, &st))
				want = []Inode{{st.Dev, st.Ino}}
			}
			if !slices.Equal(names, c.names) || !slices.Equal(inodes, want) {
				t.Errorf("names %q and inodes %v, want %q and %v", names, inodes, c.names, want)
			}
		})
	}
}
