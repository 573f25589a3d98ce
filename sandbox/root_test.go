package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDevices(t *testing.T) {
	s := begin(t, testRoot(t))
	got := output(t, s, shell(`set -e
		echo gone >/dev/null; head -c 4 /dev/zero | od -An -tx1; head -c 1 /dev/urandom | wc -c
		echo out >/dev/stdout; echo err >/dev/stderr; echo fd >/dev/fd/1
		(echo full >/dev/full) 2>/dev/null && exit 1
		echo shared >/dev/shm/x; cat /dev/shm/x; stat -c %a:%F /dev/ptmx /dev/pts/ptmx /dev /dev/shm; echo swallowed >/dev/console
		ls /proc | grep -c '^[0-9]'`))
	want := " 00 00 00 00\n1\nout\nerr\nfd\nshared\n777:symbolic link\n666:character special file\n755:directory\n1777:directory\n"
	if !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if n, _ := strconv.Atoi(strings.TrimSpace(got[len(want):])); n < 1 || n > 6 {
		t.Errorf("/proc shows %d processes; it is not that of the sandbox", n)
	}
}

func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, x := range []struct {
		ctx  context.Context
		c    Config
		is   error
		says string
	}{
		{nil, Config{Root: "relative"}, nil, "not an absolute path"},
		{nil, Config{Root: dir + "/missing"}, fs.ErrNotExist, "bind root " + dir + "/missing"},
		{nil, Config{Root: file}, syscall.ENOTDIR, file},
		{nil, Config{Root: dir, Mounts: []Mount{TmpfsMount("/missing", 0o755)}}, nil, "belongs to somebody else"},
		{nil, Config{Root: dir, Mounts: []Mount{{Target: "/", Type: "nosuchfs"}}}, unix.ENODEV, "no file system nosuchfs"},
		{nil, Config{Root: dir, Mounts: []Mount{{Target: "/", Type: "overlay", Data: "lowerdir=/nowhere"}}}, nil, "mount overlay on /"},
		{nil, Config{Root: dir, Mounts: []Mount{BindMount("/nowhere", "/", false)}}, fs.ErrNotExist, "bind /nowhere"},
		{nil, Config{Root: dir, Mounts: []Mount{{Target: "/", Flags: unix.MS_MOVE}}}, nil, "change a mount"},
		{nil, Config{Root: dir, Mounts: []Mount{{Target: "x"}}}, nil, "not an absolute path"},
		{cancelled, Config{Root: dir}, context.Canceled, ""},
	} {
		ctx := x.ctx
		if ctx == nil {
			ctx = limit(t)
		}
		s, err := Start(ctx, x.c)
		if err == nil {
			stop(t, s)
		}
		if err == nil || x.is != nil && !errors.Is(err, x.is) || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%+v: %v", x.c, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("something was made in the caller's folder: %v", entries)
	}
}

func TestMountsStayInside(t *testing.T) {
	outside := t.TempDir()
	for name, link := range map[string]string{
		"absolute": outside,
		"dots":     strings.Repeat("../", 20) + outside,
		"chain":    "other",
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for at, to := range map[string]string{"proc": link, "other": outside} {
				if err := os.Symlink(to, filepath.Join(root, at)); err != nil {
					t.Fatal(err)
				}
			}
			// Inside the root that path does not exist.
			s, err := Start(limit(t), Config{Root: root, Mounts: []Mount{ProcMount()}})
			if err == nil {
				stop(t, s)
				t.Fatal("mounted somewhere")
			}
			if !strings.Contains(err.Error(), "make mount target /proc") {
				t.Error(err)
			}
			// When it exists inside, that is where the mount is.
			inside := filepath.Join(root, outside)
			if err := os.MkdirAll(inside, 0o755); err != nil {
				t.Fatal(err)
			}
			s = begin(t, Config{Root: root, Mounts: []Mount{TmpfsMount("/proc", 0o755), BindMount(staticProgram(t), "/proc/static", true)}})
			if got := output(t, s, Command{Argv: []string{outside + "/static", outside}}); !strings.Contains(got, outside+": static\n") {
				t.Errorf("got %q", got)
			}
			if entries, err := os.ReadDir(outside); len(entries) != 0 || err != nil {
				t.Errorf("outside the root there is now %v, %v", entries, err)
			}
		})
	}
	t.Run("magic link", func(t *testing.T) {
		root := t.TempDir()
		if err := os.Symlink("/proc/self/root"+outside, filepath.Join(root, "dev")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
			t.Fatal(err)
		}
		s, err := Start(limit(t), Config{Root: root, Mounts: append([]Mount{BindMount("/proc", "/proc", false)}, DevMounts()...)})
		if err == nil {
			stop(t, s)
		}
		if !errors.Is(err, unix.ELOOP) {
			t.Error(err)
		}
	})
	t.Run("target is a file", func(t *testing.T) {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "proc"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := Start(limit(t), Config{Root: root, Mounts: []Mount{ProcMount()}})
		if err == nil {
			stop(t, s)
		}
		if !errors.Is(err, unix.ENOTDIR) {
			t.Error(err)
		}
	})
}

// staticProgram builds the program that needs nothing else in its root.
func staticProgram(t *testing.T) string {
	t.Helper()
	static.Do(func() {
		dir, err := os.MkdirTemp("", "sandbox-static")
		if err != nil {
			panic(err)
		}
		staticPath = filepath.Join(dir, "static")
		cmd := exec.Command("go", "build", "-o", staticPath, "./testdata/static")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			panic(string(out))
		}
	})
	return staticPath
}

var (
	static     sync.Once
	staticPath string
)

// The root may hold one program and nothing else: no loader for the helper, if
// that needs one, no /proc, no /dev.
func TestBareRoot(t *testing.T) {
	root := t.TempDir()
	b, err := os.ReadFile(staticProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "program"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	s := begin(t, Config{Root: root})
	if got := output(t, s, Command{Argv: []string{"/program"}, UID: 99, GID: 99}); got != "/: program\n" {
		t.Errorf("got %q", got)
	}
	if pids, err := s.Pids(); len(pids) != 0 || err != nil {
		t.Error(pids, err)
	}
}

func TestReadOnlyBind(t *testing.T) {
	c := testRoot(t)
	shared, inner := t.TempDir(), ""
	inner = filepath.Join(shared, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(inner, unix.MNT_DETACH)
	c.Mounts = append(c.Mounts, BindMount(shared, "/shared/ro", true), BindMount(shared, "/shared/rw", false))
	s := begin(t, c)
	output(t, s, shell("! touch /shared/ro/x 2>/dev/null && ! touch /shared/ro/inner/x 2>/dev/null && touch /shared/rw/y /shared/rw/inner/y"))
	if _, err := os.Stat(inner + "/y"); err != nil {
		t.Error(err)
	}
}
