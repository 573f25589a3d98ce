package sandbox

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

	"golang.org/x/sys/unix"
)

// callerEnv makes the test binary the caller that TestCallerKilled kills, or
// that of TestCallerInChroot.
const callerEnv = "SANDBOX_TEST_CALLER"

func TestMain(m *testing.M) {
	Init()
	caller := os.Getenv(callerEnv)
	outlived, isOutlived := strings.CutPrefix(caller, outlivedPrefix)
	attached, isAttached := strings.CutPrefix(caller, attachPrefix)
	switch {
	case caller == "":
	case caller == "1":
		beCaller()
	case isOutlived:
		beOutlived(outlived)
	case isAttached:
		beAttached(attached)
	default:
		beChrooted(caller)
	}
	code := m.Run()
	if staticPath != "" {
		_ = os.RemoveAll(filepath.Dir(staticPath))
	}
	os.Exit(code)
}

// limit bounds a test; nothing here takes a second.
func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// hostFolders are bound read-only into a test's root, so that it has a shell.
func hostMounts() []Mount {
	var ms []Mount
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"} {
		if _, err := os.Stat(dir); err == nil {
			ms = append(ms, BindMount(dir, dir, true))
		}
	}
	return ms
}

// testRoot is a Config with a shell, on a tmpfs over an empty folder.
func testRoot(t *testing.T) Config {
	root := TmpfsMount("/", 0o755)
	ms := append([]Mount{root}, hostMounts()...)
	ms = append(ms, ProcMount(), TmpfsMount("/tmp", 0o1777))
	ms = append(ms, DevMounts()...)
	return Config{Root: t.TempDir(), Mounts: ms, Log: os.Stderr}
}

func begin(t *testing.T, c Config) *Sandbox {
	t.Helper()
	s, err := Start(limit(t), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *Sandbox) {
	t.Helper()
	if err := s.Stop(limit(t)); err != nil {
		t.Error(err)
	}
}

var cleanEnv = []string{"PATH=/usr/bin:/bin"}

func shell(script string) Command {
	return Command{Argv: []string{"/bin/sh", "-c", script}, Env: cleanEnv, Umask: 0o022}
}

func output(t *testing.T, s *Sandbox, c Command) string {
	t.Helper()
	out, exit, err := s.Output(limit(t), c)
	if err != nil || exit != 0 {
		t.Fatalf("%v: exit %d, %v\n%s", c.Argv, exit, err, out)
	}
	return string(out)
}

func TestStopLeavesNothing(t *testing.T) {
	c := testRoot(t)
	upper := t.TempDir()
	if err := unix.Mount("tmpfs", upper, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(upper, unix.MNT_DETACH)
	// As systemd leaves it, so that mounts would spread if nobody prevented it.
	if err := unix.Mount("", upper, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"u", "w", "root"} {
		if err := os.Mkdir(filepath.Join(upper, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.Root = filepath.Join(upper, "root")
	c.Mounts[0] = Mount{Source: "overlay", Target: "/", Type: "overlay",
		Data: fmt.Sprintf("lowerdir=%s,upperdir=%s/u,workdir=%s/w", t.TempDir(), upper, upper)}
	before := mounts(t)
	// Five times with the same upper layer: the kernel must have let go of it.
	for round := range 5 {
		s, err := Start(limit(t), c)
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Run(limit(t), shell("echo $0 >>/kept; sleep 1000 & sleep 1000"))
		if err != nil {
			t.Fatal(err)
		}
		for { // until both sleep
			if pids, err := s.Pids(); err != nil || len(pids) == 3 {
				break
			}
		}
		if got := mounts(t); got != before {
			t.Errorf("mounts leak into the caller's namespace:\n%s", got)
		}
		pids, _ := s.Pids()
		stop(t, s)
		stop(t, s)
		if _, err := p.Wait(limit(t)); !errors.Is(err, ErrEnded) {
			t.Errorf("wait after stop: %v", err)
		}
		for _, pid := range append(pids, s.init.Process.Pid) {
			if err := unix.Kill(pid, 0); err != unix.ESRCH {
				t.Errorf("process %d is left: %v", pid, err)
			}
		}
		if _, err := s.Run(limit(t), shell("true")); !errors.Is(err, ErrEnded) {
			t.Errorf("run after stop: %v", err)
		}
		if _, err := s.Dial(limit(t), "tcp", "127.0.0.1:1"); !errors.Is(err, ErrEnded) {
			t.Errorf("dial after stop: %v", err)
		}
		if err := s.SignalAll(unix.SIGTERM); !errors.Is(err, ErrEnded) {
			t.Errorf("signal after stop: %v", err)
		}
		if pids, err := s.Pids(); len(pids) != 0 || err != nil {
			t.Errorf("pids after stop: %v, %v", pids, err)
		}
		if kept, err := os.ReadFile(upper + "/u/kept"); strings.Count(string(kept), "\n") != round+1 {
			t.Errorf("upper layer holds %q, %v", kept, err)
		}
	}
	if err := unix.Unmount(upper, 0); err != nil {
		t.Errorf("something still holds the upper layer's file system: %v", err)
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var ours []string // other tests of this machine may mount as well
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, t.TempDir()[:len(os.TempDir())+len("/"+t.Name())]) {
			ours = append(ours, line)
		}
	}
	return strings.Join(ours, "")
}

// BenchmarkRun is what a sandbox costs before the program in it runs.
func BenchmarkRun(b *testing.B) {
	c := Config{Root: b.TempDir(), Mounts: append([]Mount{TmpfsMount("/", 0o755)}, hostMounts()...)}
	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			s, err := Start(b.Context(), c)
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Stop(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("true", func(b *testing.B) {
		s, err := Start(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		defer s.Stop(context.Background())
		for b.Loop() {
			if _, _, err := s.Output(b.Context(), Command{Argv: []string{"/bin/true"}}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("baseline", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command("/bin/true").Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
