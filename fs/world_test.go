package fs_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/fs"
	"srvfs/fs/fstest"
)

// limit is the longest that anything in these tests may wait for a view.
const limit = 20 * time.Second

// patience is the same for a program, in seconds; a benchmark needs more.
var patience = "20"

func TestMain(m *testing.M) {
	if args := os.Getenv("FS_TEST_SERVE"); args != "" {
		serveFor(args)
		return
	}
	code := m.Run()
	if left := leftovers(os.TempDir() + "/Test"); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "mounts left behind: %q\n", left)
		code = 1
	}
	os.Exit(code)
}

// leftovers returns the views whose mountpoints begin with prefix.
func leftovers(prefix string) []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], prefix) && strings.Contains(line, fs.Type) {
			left = append(left, f[4])
		}
	}
	return left
}

// A world is a source folder, the view of it, and where it is mounted.
type world struct {
	t      testing.TB
	dir    string // of everything
	origin string // the folder that is shown
	mnt    string
	blobs  string
	source *fstest.Source
	view   *fs.View
	log    *lockedBuffer
	stubs  bool // every root has a layer of stubs of all programs
}

// newWorld makes the folders; fill makes what is to be shown.
func newWorld(t testing.TB, fill func(dir string)) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, origin: dir + "/origin", mnt: dir + "/mnt", blobs: dir + "/blobs", log: &lockedBuffer{}}
	for _, d := range []string{w.origin, w.mnt, w.blobs} {
		must(t, os.Mkdir(d, 0o755))
	}
	fill(w.origin)
	tree, err := fstest.Scan(w.origin)
	must(t, err)
	w.source = &fstest.Source{Tree: tree, Blobs: w.blobs}
	return w
}

// mount mounts the view; it disappears with the test, whatever happens.
func (w *world) mount(o fs.Options) *world {
	w.t.Helper()
	if o.Snapshot == nil {
		o.Snapshot = w.source.Tree.Snapshot("web")
	}
	if o.Content == nil {
		o.Content = w.source
	}
	o.Log = slog.New(slog.NewTextHandler(w.log, nil))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	v, err := fs.Mount(ctx, w.mnt, o)
	must(w.t, err)
	w.view = v
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := v.Unmount(ctx); err != nil {
			w.t.Errorf("unmount: %v", err)
		}
		if left := leftovers(w.dir + "/"); len(left) > 0 {
			w.t.Errorf("left behind: %q", left)
		}
		if w.t.Failed() {
			w.t.Logf("the view's log:\n%s", w.log)
		}
	})
	return w
}

// overlay mounts the root of DESIGN's chapter 5 on the view, with an upper layer.
func (w *world) overlay() (root string) {
	w.t.Helper()
	root = w.dir + "/root"
	for _, d := range []string{root, w.dir + "/upper", w.dir + "/work"} {
		must(w.t, os.Mkdir(d, 0o755))
	}
	w.overlayAt(root, w.dir+"/upper", w.dir+"/work")
	return root
}

func (w *world) overlayAt(root, upper, work string) {
	w.t.Helper()
	lower := fs.Lower(w.mnt, w.blobs)
	if w.stubs {
		dir, err := os.MkdirTemp(w.dir, "stubs")
		must(w.t, err)
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		all, err := paths(w.origin)
		must(w.t, err)
		n, err := w.view.Stubs(ctx, dir, all)
		must(w.t, err)
		w.t.Logf("%d stubs", n)
		lower = dir + ":" + lower
	}
	w.overlayOf(root, lower, upper, work)
}

// paths returns all paths of a source, as a snapshot has them.
func paths(origin string) (all []string, err error) {
	err = filepath.WalkDir(origin, func(path string, _ os.DirEntry, err error) error {
		all = append(all, "/"+strings.TrimPrefix(strings.TrimPrefix(path, origin), "/"))
		return err
	})
	return all, err
}

func (w *world) overlayOf(root, lower, upper, work string) {
	w.t.Helper()
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,metacopy=on,redirect_dir=on", lower, upper, work)
	must(w.t, unix.Mount("overlay", root, "overlay", 0, data))
	w.t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // the test may have done it
			w.t.Error(err)
		}
	})
}

// quiet runs fn and fails the test if the kernel has asked the view anything.
//
// A kernel may give any cached page to somebody else at any time, and a virtual
// machine's balloon makes it do so in the middle of a test: the pages of a
// listing of 100,000 names were seen to go. Then fn itself makes the path warm
// again. So what must not ask is one of three runs; what the kernel can't cache
// asks in all of them.
func (w *world) quiet(what string, fn func()) {
	w.t.Helper()
	var asked map[string]uint64
	for range 3 {
		if asked = w.asked(fn); len(asked) == 0 {
			return
		}
	}
	w.t.Errorf("%s asked the view: %v", what, asked)
}

// asked runs fn and returns the requests that it caused.
func (w *world) asked(fn func()) map[string]uint64 {
	before := w.view.Stats().Upcalls
	fn()
	after := w.view.Stats().Upcalls
	maps.DeleteFunc(after, func(k string, n uint64) bool { return k == "forget" || n == before[k] })
	for k := range after {
		after[k] -= before[k]
	}
	return after
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, name, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	must(t, os.WriteFile(name, []byte(content), 0o644))
}

// pattern returns n bytes of which no two pages are alike.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// lockedBuffer is a log that tests read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A served view lives in a process of its own, as views do in earnest. Programs
// may be executed from it: when a process executes from a view that it serves
// itself, it waits for an answer that it can't give.
type served struct {
	*world
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

type serveArgs struct {
	Origin, Mountpoint, Blobs string
	Layout                    fs.Layout
	Deadline                  time.Duration
	Hang                      string // the Op that never answers
	Stubs                     string // a folder for stubs of all programs
}

// serve mounts the view in a process of its own.
func (w *world) serve(a serveArgs) *served {
	w.t.Helper()
	a.Origin, a.Mountpoint, a.Blobs = w.origin, w.mnt, w.blobs
	b, err := json.Marshal(a)
	must(w.t, err)
	s := &served{world: w, cmd: exec.Command("/proc/self/exe")}
	s.cmd.Env = append(os.Environ(), "FS_TEST_SERVE="+string(b))
	s.cmd.Stderr = w.log
	s.in, err = s.cmd.StdinPipe()
	must(w.t, err)
	out, err := s.cmd.StdoutPipe()
	must(w.t, err)
	s.out = bufio.NewScanner(out)
	must(w.t, s.cmd.Start())
	w.t.Cleanup(func() {
		_ = s.in.Close() // it unmounts and ends
		killer := time.AfterFunc(limit, func() { _ = s.cmd.Process.Kill() })
		_ = s.cmd.Wait()
		killer.Stop()
		must(w.t, fs.Detach(w.mnt))
		if w.t.Failed() {
			w.t.Logf("the view's log:\n%s", w.log)
		}
	})
	s.say("ready")
	return s
}

// say waits for the view's next line and checks its first word.
func (s *served) say(want string) string {
	s.t.Helper()
	if !s.out.Scan() {
		s.t.Fatalf("the serving process has ended: %s", s.log)
	}
	word, rest, _ := strings.Cut(s.out.Text(), " ")
	if word != want {
		s.t.Fatalf("got %q, want %s", s.out.Text(), want)
	}
	return rest
}

func (s *served) stats() fs.Stats {
	s.t.Helper()
	_, err := io.WriteString(s.in, "stats\n")
	must(s.t, err)
	var st fs.Stats
	must(s.t, json.Unmarshal([]byte(s.say("stats")), &st))
	return st
}

// serveFor is the other side of serve.
func serveFor(args string) {
	if err := func() error {
		var a serveArgs
		if err := json.Unmarshal([]byte(args), &a); err != nil {
			return err
		}
		tree, err := fstest.Scan(a.Origin)
		if err != nil {
			return err
		}
		src := &fstest.Source{Tree: tree, Blobs: a.Blobs}
		src.SetHook(func(ctx context.Context, c fstest.Call) error {
			if c.Op == a.Hang {
				<-ctx.Done()
			}
			return ctx.Err()
		})
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		v, err := fs.Mount(ctx, a.Mountpoint, fs.Options{Snapshot: tree.Snapshot("web"), Content: src, Layout: a.Layout, Deadline: a.Deadline})
		if err != nil {
			return err
		}
		if a.Stubs != "" {
			all, err := paths(a.Origin)
			if err == nil {
				_, err = v.Stubs(ctx, a.Stubs, all)
			}
			if err != nil {
				return err
			}
		}
		fmt.Println("ready")
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			b, err := json.Marshal(v.Stats())
			if err != nil {
				return err
			}
			fmt.Println(lines.Text(), string(b))
		}
		end, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		return v.Unmount(end)
	}(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// shell runs a command line in a process that holds no part of a view.
func shell(t testing.TB, format string, args ...any) (string, error) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	out, err := exec.Command("timeout", patience, "sh", "-c", line).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", line, err)
	}
	return string(out), err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
