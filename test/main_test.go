package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"srvfs/sandbox"
	"srvfs/test/world"
)

// binaries is where TestMain built srvd and srvfs.
var binaries string

func TestMain(m *testing.M) {
	sandbox.Init()
	world.Private()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the end-to-end tests make mounts and namespaces: run them as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "srvfs-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Setenv("TMPDIR", dir); err != nil { // so that what is left is known to be ours
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	before := leftovers(dir)
	binaries = dir
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if left := difference(leftovers(dir), before); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: left behind:\n  %s\n", strings.Join(left, "\n  "))
		return 1
	}
	return code
}

// build makes the programs as they are tested: with the race detector if the
// test has it.
func build(dir string) error {
	args := []string{"build", "-o", dir + "/"}
	env := os.Environ()
	if raceEnabled {
		args = append(args, "-race", "-ldflags", "-linkmode=external -extldflags=-static", "-tags", "netgo,osusergo")
	} else {
		env = append(env, "CGO_ENABLED=0")
	}
	cmd := exec.Command("go", append(args, "srvfs/cmd/srvd", "srvfs/cmd/srvfs")...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// leftovers lists what a test could leave on this machine: mounts below the
// folder, named network namespaces, and processes of worlds there. What other
// tests have at the same time is not ours.
func leftovers(dir string) map[string]bool {
	all := map[string]bool{}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			all["mount "+f[4]] = true
		}
	}
	nets, _ := os.ReadDir("/run/netns")
	for _, n := range nets {
		all["network namespace "+n.Name()] = true
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, p := range procs {
		env, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "environ"))
		if strings.Contains(string(env), "SRVFS_WORLD="+dir+"/") {
			name, _ := os.ReadFile(p)
			all["process "+filepath.Base(filepath.Dir(p))+" "+strings.TrimSpace(string(name))] = true
		}
	}
	return all
}

func difference(a, b map[string]bool) []string {
	var d []string
	for k := range a {
		if !b[k] {
			d = append(d, k)
		}
	}
	return d
}

// A site is a source that runs nginx, a standby, and a client, with both
// programs installed.
type site struct {
	*testing.T
	ctx                     context.Context
	world                   *world.World
	source, standby, client *world.Host

	// What the transactions of services_test.go remember.
	service     string
	sent        int
	said        string
	shown       string
	certificate []byte
}

// page is what the source's nginx serves.
const page = "<html><body>served by the source's own files</body></html>\n"

// newSite builds a site, whose standby is made of the given root, and captures
// nothing yet.
func newSite(t *testing.T, standby world.RootKind) *site {
	t.Helper()
	s := bareSite(t, world.SourceRoot, standby)
	s.check(os.WriteFile(filepath.Join(s.source.Root, "var/www/html/index.html"), []byte(page), 0o644))
	s.on(s.source, "nginx")
	s.check(s.source.Await(s.ctx, "127.0.0.1:80"))
	return s
}

// bareSite builds a site on whose source nothing runs.
func bareSite(t *testing.T, source, standby world.RootKind) *site {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	w, err := world.New(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &site{T: t, ctx: ctx, world: w}
	s.source = must(w.Host(ctx, "source", source))(t)
	s.standby = must(w.Host(ctx, "standby", standby))(t)
	s.client = must(w.Client(ctx))(t)
	s.check(s.source.Install(filepath.Join(binaries, "srvd"), "usr/local/sbin/srvd"))
	s.check(s.standby.Install(filepath.Join(binaries, "srvfs"), "usr/local/sbin/srvfs"))
	return s
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (s *site) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// on runs a shell line on a host; it must succeed.
func (s *site) on(h *world.Host, line string) string {
	s.Helper()
	out, err := h.Shell(s.ctx, line)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// fails runs a shell line on a host; it must exit with the code, and say the
// text.
func (s *site) fails(h *world.Host, code int, text, line string) {
	s.Helper()
	_, err := h.Shell(s.ctx, line)
	var exit *world.ExitError
	if !errors.As(err, &exit) {
		s.Errorf("%s: %s: got %v, want exit status %d", h.Name, line, err, code)
		return
	}
	if exit.Code != code || !strings.Contains(exit.Output, text) {
		s.Errorf("%s: %s: exit status %d, want %d with %q; it says:\n%s", h.Name, line, exit.Code, code, text, exit.Output)
	}
	if strings.Contains(exit.Output, "goroutine ") {
		s.Errorf("%s: %s: panics:\n%s", h.Name, line, exit.Output)
	}
}

// captured captures the source's nginx as the service web, and starts srvd.
func (s *site) captured(flags ...string) {
	s.Helper()
	s.on(s.source, "srvd capture web --unit nginx --probe http://127.0.0.1/ "+strings.Join(flags, " "))
	s.serve()
}

func (s *site) serve() {
	s.Helper()
	_, log, err := s.source.Start(s.ctx, "srvd", "serve", "-v")
	s.check(err)
	if err := s.source.Await(s.ctx, "127.0.0.1:7077"); err != nil {
		text, _ := os.ReadFile(log)
		s.Fatalf("%v\n%s", err, text)
	}
}

// paired pairs the standby with the source.
func (s *site) paired() {
	s.Helper()
	token := strings.TrimSpace(s.on(s.source, "srvd pair"))
	s.on(s.standby, "srvfs pair "+token)
}

// lose ends srvd on the source and takes away what it serves.
func (s *site) lose() {
	s.Helper()
	s.endProcess(s.source, "srvd", "KILL")
	s.on(s.source, "rm -rf /var/lib/srvd /var/www /etc/nginx /usr/share/nginx /usr/lib/nginx")
}

// endProcess sends a signal to each process with that name on a host, and waits
// until they are gone.
func (s *site) endProcess(h *world.Host, name, signal string) {
	s.Helper()
	procs, err := h.Processes()
	s.check(err)
	found := false
	for pid, comm := range procs {
		if comm != name {
			continue
		}
		found = true
		if out, err := exec.CommandContext(s.ctx, "kill", "-"+signal, fmt.Sprint(pid)).CombinedOutput(); err != nil {
			s.Fatalf("kill %s: %v %s", name, err, out)
		}
	}
	if !found {
		s.Fatalf("%s runs no %s: %v", h.Name, name, procs)
	}
	if signal == "KILL" || signal == "TERM" {
		s.await(name+" is gone", func() bool { return !s.runs(h, name) })
	}
}

func (s *site) runs(h *world.Host, name string) bool {
	s.Helper()
	procs, err := h.Processes()
	s.check(err)
	for _, comm := range procs {
		if comm == name {
			return true
		}
	}
	return false
}

// await polls for what announces itself in no other way.
func (s *site) await(what string, done func() bool) {
	s.Helper()
	for !done() {
		select {
		case <-s.ctx.Done():
			s.Fatalf("waited in vain until %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// get fetches a page from a host, as the client sees it.
func (s *site) get(h *world.Host, path string) string {
	s.Helper()
	body, err := s.client.Get(s.ctx, "http://"+h.Addr+path)
	if err != nil {
		s.Fatal(err)
	}
	return body
}
