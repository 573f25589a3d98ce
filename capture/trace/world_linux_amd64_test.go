package trace

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"srvfs/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	if role := os.Getenv("TRACE_ROLE"); role != "" {
		act(role, os.Args[1:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A world is a sandbox on a disposable overlay of this machine's root, with a
// folder that it shares with the test.
type world struct {
	testing.TB
	ctx    context.Context
	sb     *sandbox.Sandbox
	shared string // the folder that is /mnt inside
}

// newWorld starts a sandbox that ends with the test, whatever happens. The
// test fails if a process is left.
func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests need root")
	}
	// The upper layer can't lie in the tree that is the lower one.
	memory, err := os.MkdirTemp("/dev/shm", "trace-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(memory) })
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(memory, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{TB: t, shared: t.TempDir()}
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	if err := os.Chmod(w.shared, 0o777); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(memory, "root")
	w.sb, err = sandbox.Start(w.ctx, sandbox.Config{
		Root: root, NewNet: true, Log: os.Stderr,
		Mounts: append([]sandbox.Mount{
			{Source: "overlay", Target: "/", Type: "overlay", Data: fmt.Sprintf(
				"lowerdir=/,upperdir=%s/upper,workdir=%s/work", memory, memory)},
			sandbox.ProcMount(), sandbox.TmpfsMount("/tmp", 0o1777), sandbox.TmpfsMount("/run", 0o755),
			sandbox.BindMount(w.shared, "/mnt", false),
		}, sandbox.DevMounts()...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := w.sb.Stop(ctx); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
	return w
}

// command runs argv as root with the standard path.
func command(argv ...string) sandbox.Command {
	return sandbox.Command{
		Argv: argv, Umask: 0o022, Stderr: os.Stderr,
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "HOME=/root"},
	}
}

func shell(script string) sandbox.Command { return command("/bin/sh", "-c", script) }

// run runs commands without trace.
func (w *world) run(c sandbox.Command) string {
	w.Helper()
	c.Stderr = nil
	out, exit, err := w.sb.Output(w.ctx, c)
	if err != nil || exit != 0 {
		w.Fatalf("%q: exit %d, %v\n%s", c.Argv, exit, err, out)
	}
	return string(out)
}

// trace runs a command under trace until it and its descendants have ended.
func (w *world) trace(c sandbox.Command) ([]Access, *Tracer) {
	w.Helper()
	t := New(w.sb)
	p, err := t.Start(w.ctx, c)
	if err != nil {
		w.Fatal(err)
	}
	status, err := p.Wait(w.ctx)
	if err != nil || !status.Success() {
		w.Fatalf("%q: %v, %v", c.Argv, status, err)
	}
	all, err := t.Finish(w.ctx)
	if err != nil {
		w.Fatal(err)
	}
	return all, t
}

// script writes an executable file that /mnt/NAME is inside.
func (w *world) script(name, text string) string {
	w.Helper()
	if err := os.WriteFile(filepath.Join(w.shared, name), []byte(text), 0o755); err != nil {
		w.Fatal(err)
	}
	return "/mnt/" + name
}

// actor copies this test program into the sandbox and returns a command that
// plays one of its roles (see actor_test.go).
func (w *world) actor(role string, args ...string) sandbox.Command {
	w.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		w.Fatal(err)
	}
	c := command(append([]string{w.script("actor", string(program))}, args...)...)
	c.Env = append(c.Env, "TRACE_ROLE="+role, "GOMAXPROCS=2")
	return c
}

// look describes an access in one line, without process and number.
func look(a Access) string {
	s := a.Op.String()
	if a.Write {
		s += " write"
	}
	if a.NoFollow {
		s += " nofollow"
	}
	s += " " + a.Path
	if a.Root != "/" {
		s += " in " + a.Root
	}
	return s
}

func looks(all []Access) []string {
	var out []string
	for _, a := range all {
		out = append(out, look(a))
	}
	return out
}

// want fails the test if one of lines is not among the accesses.
func (w *world) want(all []Access, lines ...string) {
	w.Helper()
	have := looks(all)
	for _, l := range lines {
		if !slices.Contains(have, l) {
			w.Errorf("no access %q", l)
		}
	}
	if w.Failed() {
		w.Logf("accesses:\n%s", strings.Join(have, "\n"))
	}
}

// noGaps fails the test if the trace has gaps.
func (w *world) noGaps(t *Tracer) {
	w.Helper()
	for _, g := range t.Gaps() {
		w.Errorf("gap: %v", g)
	}
}

// ours lists the processes of the sandbox that live or are zombies.
func (w *world) ours() []int {
	w.Helper()
	pids, err := w.sb.Pids()
	if err != nil {
		w.Fatal(err)
	}
	return pids
}

// eventually waits for a state of another process that sends no event, such as
// being stopped.
func (w *world) eventually(what string, f func() bool) {
	w.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("not in 20 s: %s", what)
		}
	}
}

// state returns the letter of a process's state, 0 if it is gone.
func state(pid int) byte {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	i := strings.LastIndexByte(string(b), ')')
	return b[i+2]
}
