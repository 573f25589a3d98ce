package proc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"srvfs/capture/elf"
	"srvfs/capture/rootfs"
)

// TestMain lets the test program play the daemon that is looked at: it opens
// files, starts a child, says that it is ready, and ends with its input.
func TestMain(m *testing.M) {
	if os.Getenv("PROC_TEST_DAEMON") == "" {
		os.Exit(m.Run())
	}
	if err := daemon(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func daemon() error {
	if os.Getenv("PROC_TEST_DAEMON") == "leaf" {
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return nil
	}
	data, err := os.OpenFile("data.db", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	gone, err := os.Create("gone")
	if err != nil {
		return err
	}
	if err := os.Remove("gone"); err != nil {
		return err
	}
	mapped, err := syscall.Mmap(int(data.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe")
	child.Env = []string{"PROC_TEST_DAEMON=leaf"}
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stdout // all given: a chroot has no /dev/null
	if err := child.Start(); err != nil {
		return err
	}
	err = child.Wait()
	_ = gone.Close()
	return errors.Join(err, syscall.Munmap(mapped), data.Close())
}

// start copies the test program into a new folder, as /bin/daemon, and starts
// it there, in a chroot if asked for. It returns the folder and the process.
func start(t *testing.T, chroot bool) (dir string, pid int) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range []string{"bin", "var", "run", "proc"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "bin/daemon")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	libs, _, err := elf.New(open(t, "/")).Needed(program, nil) // built with -race it has some
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range libs {
		b, err := os.ReadFile(l.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir+filepath.Dir(l.Path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+l.Path, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "-x", "two words")
	cmd.Dir = filepath.Join(dir, "var")
	cmd.Env = []string{"PROC_TEST_DAEMON=1", "A=b c"}
	if chroot {
		if err := syscall.Mount("proc", filepath.Join(dir, "proc"), "proc", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(filepath.Join(dir, "proc"), 0); err != nil {
				t.Error(err)
			}
		})
		cmd.Path, cmd.Dir = "/bin/daemon", "/var"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: 0, Gid: 7, Groups: []uint32{7, 9}}}
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		stop := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer stop.Stop()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("daemon says %q, %v", line, err)
	}
	return dir, cmd.Process.Pid
}

func open(t *testing.T, dir string) *rootfs.Root {
	t.Helper()
	r, err := rootfs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestInspect(t *testing.T) {
	dir, pid := start(t, false)
	f, err := InspectIn(open(t, "/"), pid)
	if err != nil {
		t.Fatal(err)
	}
	if f.Exe != dir+"/bin/daemon" || f.Cwd != dir+"/var" || f.Root != "/" || f.UID != 0 {
		t.Errorf("%+v", f)
	}
	if !slices.Equal(f.Argv[1:], []string{"-x", "two words"}) || !slices.Equal(f.Env, []string{"PROC_TEST_DAEMON=1", "A=b c"}) {
		t.Errorf("%q %q", f.Argv, f.Env)
	}
	if !slices.Contains(f.Maps, dir+"/bin/daemon") || !slices.Contains(f.Maps, dir+"/var/data.db") || !slices.IsSorted(f.Maps) {
		t.Errorf("maps %q", f.Maps)
	}
	i := slices.IndexFunc(f.Fds, func(d Fd) bool { return d.Path == dir+"/var/data.db" })
	if i < 0 || !f.Fds[i].Write || f.Fds[i].Dir {
		t.Errorf("open files %+v", f.Fds)
	}
	for _, d := range f.Fds {
		if strings.Contains(d.Path, "gone") {
			t.Errorf("a deleted file: %+v", d)
		}
	}
}

func TestInspectChroot(t *testing.T) {
	dir, pid := start(t, true)
	in := func(f *Files, err error, root, prefix string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if f.Root != root || f.Exe != prefix+"/bin/daemon" || f.Cwd != prefix+"/var" || !slices.Contains(f.Maps, prefix+"/var/data.db") || f.GID != 7 || !slices.Equal(f.Groups, []uint32{7, 9}) {
			t.Errorf("%+v, want below %q", f, prefix)
		}
	}
	f, err := InspectIn(open(t, "/"), pid)
	in(f, err, dir, dir)
	f, err = InspectIn(open(t, dir), pid)
	in(f, err, "/", "")
	f, err = InspectIn(open(t, filepath.Dir(dir)), pid)
	in(f, err, "/"+filepath.Base(dir), "/"+filepath.Base(dir))
	f, err = Inspect(pid)
	in(f, err, dir, "")
	f, err = InspectIn(open(t, dir+"/run"), pid)
	if err != nil || f.Exe+f.Cwd+f.Root != "" || len(f.Maps)+len(f.Fds) > 0 {
		t.Errorf("files outside the root: %+v %v", f, err)
	}
}

func TestRunning(t *testing.T) {
	dir, pid := start(t, false)
	live := open(t, "/")
	if err := os.WriteFile(dir+"/run/pid", fmt.Appendf(nil, " %d\nmore\n", pid), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/run/bad", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	check := func(what string, root *rootfs.Root, q Query, want int) {
		t.Helper()
		pids, err := Running(root, q)
		if err != nil || len(pids) != want || want > 0 && !slices.Contains(pids, pid) {
			t.Errorf("%s: %v %v, want %d with %d", what, pids, err, want, pid)
		}
	}
	check("by program", live, Query{Exe: dir + "/bin/daemon"}, 2) // it and its child
	check("by PID file", live, Query{PIDFile: dir + "/run/pid"}, 2)
	check("unit first, then the rest", live, Query{Unit: "no-such-unit.service", PIDFile: dir + "/run/bad", Exe: dir + "/bin/daemon"}, 2)
	check("of another root", open(t, dir), Query{Exe: "/bin/daemon"}, 0)
	check("none", live, Query{Unit: "no-such-unit.service", PIDFile: "/none", Exe: "/none"}, 0)
	check("nothing asked", live, Query{}, 0)

	// A package upgrade renames a new program over the running one.
	if err := os.WriteFile(dir+"/bin/new", []byte("new"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/bin/new", dir+"/bin/daemon"); err != nil {
		t.Fatal(err)
	}
	pids, err := Running(live, Query{Exe: dir + "/bin/daemon"})
	if err != nil || !slices.Contains(pids, pid) {
		t.Errorf("after an upgrade: %v %v", pids, err)
	}
	if f, err := InspectIn(live, pid); err != nil || f.Exe != "" {
		t.Errorf("%+v %v", f, err)
	}
}

func TestRunningInChroot(t *testing.T) {
	dir, pid := start(t, true)
	for _, root := range []*rootfs.Root{open(t, dir), open(t, "/")} {
		exe := strings.TrimPrefix(dir, strings.TrimSuffix(root.Path(), "/")) + "/bin/daemon"
		if pids, err := Running(root, Query{Exe: exe}); err != nil || len(pids) != 2 || !slices.Contains(pids, pid) {
			t.Errorf("%s in %s: %v %v", exe, root, pids, err)
		}
	}
}

func TestEnded(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	for _, look := range []func() (*Files, error){
		func() (*Files, error) { return Inspect(cmd.Process.Pid) },
		func() (*Files, error) { return InspectIn(open(t, "/"), cmd.Process.Pid) },
	} {
		if f, err := look(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v %v", f, err)
		}
	}
}

func TestInUnit(t *testing.T) {
	for text, want := range map[string]bool{
		"0::/system.slice/nginx.service\n":                                 true,
		"0::/system.slice/nginx.service/sub\n":                             true,
		"9:name=systemd:/system.slice/nginx.service\n0::/\n":               true,
		"4:memory:/system.slice/nginx.service\n0::/user.slice\n":           false,
		"0::/system.slice/my-nginx.service\n":                              false,
		"0::/system.slice/system-a.slice/a@b:c.service\nbad\n1:\n":         false,
		"0::/machine.slice/c1.scope/init/system.slice/nginx.service/x/y\n": true,
	} {
		if inUnit(text, "nginx.service") != want {
			t.Errorf("%q: want %v", text, want)
		}
	}
	if !inUnit("0::/system.slice/system-a.slice/a@b:c.service\n", "a@b:c.service") {
		t.Error("a name with a colon")
	}
}

func FuzzParseMap(f *testing.F) {
	f.Add("7f1 r-xp 00000000 fd:00 123   /usr/lib/a b.so")
	f.Add("7f1-7f2 rw-p 00000000 00:00 0 [heap]")
	f.Add("7f1-7f2 rw-p 00000000 00:00 12 /x (deleted)")
	f.Fuzz(func(t *testing.T, l string) {
		if p, ok := parseMap(l); ok && p[0] != '/' {
			t.Fatal(p)
		}
	})
}
