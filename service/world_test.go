package service

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/sandbox"
)

// server is the program of testdata/server, built once.
var server string

func TestMain(m *testing.M) {
	sandbox.Init()
	if dir := os.Getenv("SERVICE_TEST_VICTIM"); dir != "" {
		victim(dir)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "service-test-")
		if err != nil {
			panic(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		server = filepath.Join(dir, "server")
		build := exec.Command("go", "build", "-o", server, "./testdata/server")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("build the test server: %v: %s", err, out))
		}
		code := m.Run()
		if pids := children(); len(pids) > 0 {
			fmt.Println("children are left:", pids)
			code = 1
		}
		return code
	}())
}

// A world is a tree with a service in it, and a directory for the service.
type world struct {
	t    *testing.T
	tree string // the plain tree
	Layers
	dir string
}

// newWorld makes a tree with the test server, a shell, and some files and
// folders. When the test ends, nothing of the service may be left.
func newWorld(t *testing.T) *world {
	t.Helper()
	base := t.TempDir()
	w := &world{t: t, tree: filepath.Join(base, "tree"), dir: filepath.Join(base, "web")}
	w.Tree = w.tree
	for _, d := range []string{"bin", "etc", "proc", "dev", "run", "tmp", "var/lib/data", "lib", "lib64"} {
		must(t, os.MkdirAll(filepath.Join(w.tree, d), 0o755))
	}
	must(t, os.Chmod(filepath.Join(w.tree, "tmp"), 0o1777))
	must(t, os.Symlink("/run", filepath.Join(w.tree, "var/run")))
	must(t, os.Link(server, filepath.Join(w.tree, "bin/server")))
	must(t, os.WriteFile(filepath.Join(w.tree, "etc/greeting"), []byte("hello from the tree"), 0o644))
	w.addShell()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if pids := insiders(t, base); len(pids) > 0 {
			t.Errorf("processes are left before the removal: %v", pids)
		}
		if err := Remove(ctx, w.dir); err != nil {
			t.Errorf("remove: %v", err)
		}
		if _, err := os.Lstat(w.dir); err == nil {
			t.Errorf("%s is left", w.dir)
		}
		if left := hostMounts(t, base); len(left) > 0 {
			t.Errorf("mounts are left: %s", left)
		}
	})
	return w
}

// addShell copies the host's shell and its libraries.
func (w *world) addShell() {
	w.t.Helper()
	out, err := exec.Command("ldd", "/bin/sh").Output()
	must(w.t, err)
	files := []string{"/bin/sh"}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			files = append(files, word)
		}
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(w.t, err)
		to := filepath.Join(w.tree, f)
		must(w.t, os.MkdirAll(filepath.Dir(to), 0o755))
		must(w.t, os.WriteFile(to, b, 0o755))
	}
}

// layer makes a second tree of names only, with the content in blobs and an
// empty gate between, as a view and a store show them.
func (w *world) layer() {
	w.t.Helper()
	base := filepath.Dir(w.tree)
	w.Layers = Layers{Tree: filepath.Join(base, "names"), Gate: filepath.Join(base, "gate"), Blobs: filepath.Join(base, "blobs")}
	must(w.t, os.Mkdir(w.Gate, 0o755))
	must(w.t, os.Mkdir(w.Blobs, 0o755))
	must(w.t, filepath.WalkDir(w.tree, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(w.tree, p)
		to := filepath.Join(w.Tree, rel)
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			if err := os.Mkdir(to, 0o755); err != nil {
				return err
			}
			return os.Chmod(to, info.Mode())
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(target, to)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		d := manifest.Sum(b)
		if err := os.WriteFile(filepath.Join(w.Blobs, d.Hex()), b, 0o444); err != nil {
			return err
		}
		if err := os.WriteFile(to, nil, info.Mode()); err != nil {
			return err
		}
		if err := os.Truncate(to, info.Size()); err != nil {
			return err
		}
		if err := unix.Setxattr(to, "trusted.overlay.metacopy", nil, 0); err != nil {
			return err
		}
		return unix.Setxattr(to, "trusted.overlay.redirect", []byte("/"+d.Hex()), 0)
	}))
	// And a layer above it with one of its files.
	w.Stubs = filepath.Join(base, "stubs")
	out, err := exec.Command("sh", "-c", `mkdir "$2" && cd "$1" && cp -a --parents --preserve=all --sparse=always bin/server "$2"`, "sh", w.Tree, w.Stubs).CombinedOutput()
	if err != nil {
		w.t.Fatalf("stubs: %v: %s", err, out)
	}
}

// both runs a test on a plain tree and on layers.
func both(t *testing.T, f func(*testing.T, *world)) {
	t.Run("plain", func(t *testing.T) { f(t, newWorld(t)) })
	t.Run("layers", func(t *testing.T) {
		w := newWorld(t)
		w.layer()
		f(t, w)
	})
}

// options start units over the world's tree.
func (w *world) options(units ...manifest.Unit) Options {
	return Options{
		Name: "web", Dir: w.dir, Layers: w.Layers, ReadyTimeout: 10 * time.Second,
		Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
		Snapshot: &manifest.Snapshot{
			Service: "web", Sequence: 7, Source: "source.example", Units: units,
			Root: manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: manifest.Sum([]byte(w.tree))},
		},
	}
}

func cmd(argv ...string) manifest.Command { return manifest.Command{Argv: argv} }

// serving is a unit of one server that listens on /run/NAME.
func serving(name string) manifest.Unit {
	return manifest.Unit{Name: name, Kind: manifest.Simple, Start: []manifest.Command{cmd("/bin/server", "serve", "/run/"+name)}}
}

func probing(name string) string { return "exec:/bin/server ask /run/" + name }

// start starts a service that must come up, and stops it at the test's end.
func (w *world) start(o Options) *Instance {
	w.t.Helper()
	i, err := Start(soon(w.t), o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.stop(i) })
	return i
}

func (w *world) stop(i *Instance) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := i.Stop(ctx); err != nil {
		w.t.Errorf("stop: %v", err)
	}
}

// failed is what must hold after a start that failed: only the log is left.
func (w *world) failed(i *Instance, err error) *StartError {
	w.t.Helper()
	if err == nil {
		w.stop(i)
		w.t.Fatal("it started")
	}
	if pids := insiders(w.t, filepath.Dir(w.tree)); len(pids) > 0 {
		w.t.Errorf("processes are left: %v", pids)
	}
	left, _ := os.ReadDir(w.dir)
	for _, e := range left {
		if e.Name() != lockName && e.Name() != logName {
			w.t.Errorf("%s is left", e.Name())
		}
	}
	se, _ := err.(*StartError) //nolint:errorlint // Start returns it unwrapped
	w.t.Logf("error: %v", err)
	return se
}

// A report is what the test server says of itself.
type report struct {
	UID, GID, PID int
	Groups        []int
	Umask         int
	Dir, Host     string
	Env           []string
	Null          string
}

// ask asks a server inside through its socket in the folder that is its /run.
func (w *world) ask(name string) report {
	w.t.Helper()
	c := w.dial(name)
	defer func() { _ = c.Close() }()
	_, err := io.WriteString(c, "report\n")
	must(w.t, err)
	var r report
	must(w.t, json.NewDecoder(c).Decode(&r))
	return r
}

func (w *world) dial(name string) net.Conn {
	w.t.Helper()
	run, err := os.Open(filepath.Join(w.dir, runName))
	must(w.t, err)
	defer func() { _ = run.Close() }()
	c, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", run.Fd(), name))
	must(w.t, err)
	return c
}

// upper reads a file that the service wrote.
func (w *world) upper(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, upperName, name))
	must(w.t, err)
	return string(b)
}

// hostMounts returns the lines of the host's mount table that could be ours.
func hostMounts(t *testing.T, base string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return slices.DeleteFunc(strings.Split(string(b), "\n"), func(l string) bool {
		return !strings.Contains(l, base) && !strings.Contains(l, " srvfs-web-")
	})
}

// children returns the children of this process.
func children() []int {
	names, _ := os.ReadDir("/proc")
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n.Name()); err == nil {
			if parent, _, _, err := procStat(pid); err == nil && parent == os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// insiders returns the processes that see an overlay with its upper below base,
// or a root there.
func insiders(t *testing.T, base string) []int {
	t.Helper()
	names, err := os.ReadDir("/proc")
	must(t, err)
	var pids []int
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + n.Name() + "/mountinfo")
		if err == nil && bytes.Contains(b, []byte("upperdir="+base)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
