package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// build makes a tree in a temporary folder: "dir/", "file", "link -> target".
func build(t testing.TB, lines ...string) *Root {
	t.Helper()
	dir := t.TempDir()
	for _, l := range lines {
		name, target, isLink := strings.Cut(l, " -> ")
		host := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(host), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case isLink:
			err = os.Symlink(target, host)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(host, 0o755)
		default:
			err = os.WriteFile(host, []byte(name), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return open(t, dir)
}

func open(t testing.TB, dir string) *Root {
	t.Helper()
	r, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestResolve(t *testing.T) {
	r := build(t, "usr/bin/dash", "bin -> usr/bin", "usr/bin/sh -> dash", "etc/alternatives/vi -> /usr/bin/vim",
		"usr/bin/vim", "usr/bin/vi -> /etc/alternatives/vi", "out -> ../../../../etc/passwd", "abs -> /", "loop -> loop",
		"a -> b", "b -> a", "self/x -> ../self/y", "dangling -> nowhere/at/all", "empty/")
	for _, c := range []struct {
		path, want string
		links      []string
		err        error
	}{
		{"/", "/", nil, nil},
		{"", "/", nil, nil},
		{"/../..", "/", nil, nil},
		{"/bin/sh", "/usr/bin/dash", []string{"/bin", "/usr/bin/sh"}, nil},
		{"bin/./sh", "/usr/bin/dash", []string{"/bin", "/usr/bin/sh"}, nil},
		{"//bin//sh", "/usr/bin/dash", []string{"/bin", "/usr/bin/sh"}, nil},
		{"/bin/vi", "/usr/bin/vim", []string{"/bin", "/usr/bin/vi", "/etc/alternatives/vi"}, nil},
		{"/bin/../bin/sh", "/usr/bin/dash", []string{"/bin", "/usr/bin/sh"}, nil}, // ".." is /usr
		{"/out", "/etc/passwd", []string{"/out"}, fs.ErrNotExist},
		{"/abs/bin/sh", "/usr/bin/dash", []string{"/abs", "/bin", "/usr/bin/sh"}, nil},
		{"/abs", "/", []string{"/abs"}, nil},
		{"/loop", "/loop", slices.Repeat([]string{"/loop"}, MaxLinks+1), syscall.ELOOP},
		{"/a/c", "/b/c", nil, syscall.ELOOP},
		{"/dangling", "/nowhere/at/all", []string{"/dangling"}, fs.ErrNotExist},
		{"/dangling/x", "/nowhere/at/all/x", []string{"/dangling"}, fs.ErrNotExist},
		{"/bin/none/x/y", "/usr/bin/none/x/y", []string{"/bin"}, fs.ErrNotExist},
		{"/bin/sh/x", "/usr/bin/dash/x", []string{"/bin", "/usr/bin/sh"}, syscall.ENOTDIR},
		{"/bin/dash/", "/usr/bin/dash", []string{"/bin"}, syscall.ENOTDIR},
		{"/bin/dash/.", "/usr/bin/dash", []string{"/bin"}, syscall.ENOTDIR},
		{"/empty/", "/empty", nil, nil},
		{"/x\x00y", "/", nil, syscall.EINVAL},
	} {
		for _, again := range []bool{false, true} { // the second time from the cache
			got, links, err := r.Resolve(c.path)
			if c.path == "/a/c" {
				got, links = c.want, nil // either link may be the 41st
			}
			if got != c.want || !slices.Equal(links, c.links) || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Errorf("Resolve(%q) again=%v: %q %q %v, want %q %q %v", c.path, again, got, links, err, c.want, c.links, c.err)
			}
		}
	}
	if p, links, err := r.ResolveParent("/bin/sh"); p != "/usr/bin/sh" || len(links) != 1 || err != nil {
		t.Errorf("ResolveParent: %q %q %v", p, links, err)
	}
	if p, _, err := r.ResolveParent("/none"); p != "/none" || err != nil {
		t.Errorf("ResolveParent of a missing file: %q %v", p, err)
	}
}

// TestResolveAsKernel compares random paths through random links with what
// openat2(RESOLVE_IN_ROOT) makes of them.
func TestResolveAsKernel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c", "d"}
	random := func(n int) string {
		var parts []string
		for range 1 + rng.IntN(n) {
			switch rng.IntN(8) {
			case 0:
				parts = append(parts, "..")
			case 1:
				parts = append(parts, ".")
			default:
				parts = append(parts, names[rng.IntN(len(names))])
			}
		}
		s := strings.Join(parts, "/")
		if rng.IntN(3) == 0 {
			s = "/" + s
		}
		if rng.IntN(6) == 0 {
			s += "/"
		}
		return s
	}
	agreed := map[bool]int{}
	for range 60 {
		dir := t.TempDir()
		for _, x := range names {
			for _, y := range append(names, "") {
				host := filepath.Join(dir, x, y)
				switch rng.IntN(4) {
				case 0:
					_ = os.MkdirAll(filepath.Dir(host), 0o755)
					_ = os.Symlink(random(4), host)
				case 1:
					_ = os.MkdirAll(host, 0o755)
				case 2:
					_ = os.WriteFile(host, nil, 0o644)
				}
			}
		}
		r := open(t, dir)
		for range 200 {
			p := random(5)
			got, links, err := r.Resolve(p)
			fd, kerr := openInRoot(r, p)
			if (err == nil) != (kerr == nil) || err != nil && !errors.Is(err, kerr) {
				t.Fatalf("%q: %q %v, the kernel says %v", p, got, err, kerr)
			}
			agreed[err == nil]++
			for _, l := range links {
				if info, err := os.Lstat(r.Host(l)); err != nil || info.Mode()&fs.ModeSymlink == 0 {
					t.Fatalf("%q crossed %q, which is no link: %v", p, l, err)
				}
			}
			if kerr != nil {
				continue
			}
			want, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			_ = unix.Close(fd)
			if err != nil || r.Host(got) != want {
				t.Fatalf("%q: %q, the kernel says %q (%v)", p, r.Host(got), want, err)
			}
		}
	}
	if agreed[true] < 1000 || agreed[false] < 1000 {
		t.Errorf("the trees are too simple: %v", agreed)
	}
}

// openInRoot asks the kernel, again while renames elsewhere on this machine
// make it unsure of "..".
func openInRoot(r *Root, p string) (int, error) {
	if p = strings.TrimLeft(p, "/"); p == "" {
		p = "."
	}
	for {
		fd, err := unix.Openat2(int(r.dir.Fd()), p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		if !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

func TestLiveRoot(t *testing.T) {
	r := open(t, "/")
	got, links, err := r.Resolve("/bin/sh")
	want, werr := filepath.EvalSymlinks("/bin/sh")
	if err != nil || werr != nil || got != want || len(links) == 0 {
		t.Errorf("/bin/sh is %q by %q (%v), want %q", got, links, err, want)
	}
	if r.Path() != "/" || r.Host("/etc") != "/etc" {
		t.Errorf("path %q, /etc at %q", r.Path(), r.Host("/etc"))
	}
	if b, err := r.ReadFile("/proc/self/stat", 1<<16); err != nil || len(b) == 0 {
		t.Errorf("a file that says it is empty: %d bytes, %v", len(b), err)
	}
	self := open(t, fmt.Sprintf("/proc/%d/root", os.Getpid()))
	if _, err := self.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

func TestFiles(t *testing.T) {
	r := build(t, "etc/real", "etc/link -> /etc/real", "etc/out -> /../../../../../../../../../../etc/passwd", "bin/prog", "bin/tool -> /bin/prog", "bin/dir/")
	if err := os.Chmod(r.Host("/etc/real"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(r.Host("/etc/fifo"), 0o755); err != nil {
		t.Fatal(err)
	}
	if b, err := r.ReadFile("/etc/link", 8); err != nil || string(b) != "etc/real" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := r.ReadFile("/etc/link", 7); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, err := r.ReadFile("/etc/out", 1<<20); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link that leads out: %v", err)
	}
	if _, err := r.Open("/etc/fifo"); !errors.Is(err, ErrNotRegular) {
		t.Errorf("a FIFO: %v", err)
	}
	if _, err := r.ReadFile("/etc", 10); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("a directory: %v", err)
	}
	if s, err := r.Readlink("/etc/link"); s != "/etc/real" || err != nil {
		t.Errorf("Readlink: %q %v", s, err)
	}
	if i, err := r.Lstat("/etc/link"); err != nil || i.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("Lstat: %v %v", i, err)
	}
	if i, err := r.Stat("/etc/link"); err != nil || !i.Mode().IsRegular() {
		t.Errorf("Stat: %v %v", i, err)
	}
	if d, err := r.ReadDir("/etc"); err != nil || len(d) != 4 || d[0].Name() != "fifo" {
		t.Errorf("ReadDir: %v %v", d, err)
	}
	for name, want := range map[string]string{"prog": "/bin/prog", "tool": "/bin/tool", "/bin/tool": "/bin/tool", "dir": "", "none": "", "/etc/real": "", "fifo": ""} {
		got, err := r.LookPath(name, []string{"", "rel", "/none", "/etc", "/bin"})
		if (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("LookPath(%s): %q %v, want %q", name, got, err, want)
		}
	}
	if _, err := New(r.Host("/etc/real")); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file as root: %v", err)
	}
	if _, err := New(r.Host("/none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing root: %v", err)
	}
}

func BenchmarkResolve(b *testing.B) {
	r := open(b, "/")
	for b.Loop() {
		if _, _, err := r.Resolve("/lib/x86_64-linux-gnu/libc.so.6"); err != nil {
			b.Fatal(err)
		}
	}
}
