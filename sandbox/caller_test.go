package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// beCaller starts a sandbox with processes of several kinds in it, says their
// numbers, and waits to be killed.
func beCaller() {
	root, err := os.MkdirTemp("", "sandbox-caller")
	if err == nil {
		c := Config{Root: root, Mounts: append(append([]Mount{TmpfsMount("/", 0o755)}, hostMounts()...), append(DevMounts(), ProcMount())...)}
		var s *Sandbox
		if s, err = Start(context.Background(), c); err == nil {
			_, err = s.Run(context.Background(), shell("(setsid sleep 1000 &) ; trap '' TERM HUP INT; sleep 1000 & exec sleep 1000"))
			var pids []int
			for err == nil && !allSleep(pids) {
				pids, err = s.Pids()
			}
			fmt.Println(root, s.init.Process.Pid, strings.Trim(fmt.Sprint(pids), "[]"))
		}
	}
	if err != nil {
		fmt.Println("error:", err)
	}
	_, _ = io.ReadAll(os.Stdin)
	os.Exit(1)
}

func allSleep(pids []int) bool {
	for _, pid := range pids {
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(name) != "sleep\n" {
			return false
		}
	}
	return len(pids) == 3
}

func TestCallerKilled(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), callerEnv+"=1")
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) < 5 {
		t.Fatalf("caller said %q, %v", line, err)
	}
	defer os.Remove(fields[0])
	var watched []unix.PollFd
	for _, f := range fields[1:] {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		watched = append(watched, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	began := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for i := range watched {
		n, err := unix.Poll(watched[i:i+1], 10_000)
		for errors.Is(err, unix.EINTR) { // the runtime preempts goroutines by signals
			n, err = unix.Poll(watched[i:i+1], 10_000)
		}
		if n != 1 {
			t.Errorf("process %s lives on: %v", fields[1+i], err)
		}
	}
	t.Logf("all gone after %v", time.Since(began))
	_ = cmd.Wait()
}

// beChrooted is a caller in a plain chroot, in a folder that is no mount point,
// and with a network namespace of its own.
func beChrooted(jail string) {
	err := unix.Chroot(jail)
	var s *Sandbox
	if err == nil {
		s, err = Start(context.Background(), Config{Root: "/root", NewNet: true, Log: os.Stderr, Mounts: []Mount{
			TmpfsMount("/", 0o755), BindMount("/static", "/static", true), ProcMount(),
		}})
	}
	var out []byte
	if err == nil {
		out, _, err = s.Output(context.Background(), Command{Argv: []string{"/static", "/proc/1/task"}})
	}
	if err == nil {
		_, err = s.Dial(context.Background(), "tcp", "127.0.0.1:1")
		if errors.Is(err, unix.ECONNREFUSED) { // so its loopback is up; the caller's is not
			err = s.Stop(context.Background())
		}
	}
	fmt.Printf("%s%v\n", out, err)
	os.Exit(0)
}

func TestCallerInChroot(t *testing.T) {
	jail := t.TempDir()
	copyTo := func(from, to string) {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(to, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	copyTo(staticProgram(t), jail+"/static")
	// This program may be linked dynamically.
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if f := strings.Fields(line); len(f) == 6 && strings.HasPrefix(f[5], "/") && strings.Contains(f[5], ".so") {
			copyTo(f[5], jail+f[5])
		}
	}
	for _, link := range []string{"/lib", "/lib64"} {
		if to, err := os.Readlink(link); err == nil {
			if err := os.MkdirAll(jail+"/usr"+link, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(to, jail+link); err != nil {
				t.Fatal(err)
			}
		}
	}
	if interp, err := filepath.EvalSymlinks("/lib64/ld-linux-x86-64.so.2"); err == nil && interp != "/lib64/ld-linux-x86-64.so.2" {
		to, err := filepath.Rel("/usr/lib64", interp)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, jail+"/usr/lib64/ld-linux-x86-64.so.2"); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"/proc", "/dev"} {
		if err := os.Mkdir(jail+dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(dir, jail+dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(jail+dir, unix.MNT_DETACH)
	}
	if err := os.Mkdir(jail+"/root", 0o755); err != nil {
		t.Fatal(err)
	}
	before := mounts(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), callerEnv+"="+jail)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := "/: proc static\n/proc/1/task: 1 "; !strings.HasPrefix(string(out), want) || !strings.HasSuffix(string(out), "\n<nil>\n") {
		t.Errorf("got %q, want %q first", out, want)
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts leak out of the chroot:\n%s", after)
	}
}

// Start uses the network of the thread that calls it, and Dial finds it.
func TestCallerThreadInNamespace(t *testing.T) {
	done := make(chan error)
	var s *Sandbox
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its network
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = raiseLoopback(nil)
		}
		if err == nil {
			s, err = Start(limit(t), testRoot(t))
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	defer stop(t, s)
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if _, err := s.Dial(limit(t), "tcp", host.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dialled in the wrong network: %v", err)
	}
}

// A program that does not call Init must not start itself for ever.
func TestHelperThatRanOn(t *testing.T) {
	name := os.Args[0]
	defer func() { os.Args[0] = name }()
	os.Args[0] = initName
	if _, err := Start(limit(t), testRoot(t)); err == nil || !strings.Contains(err.Error(), "sandbox.Init") {
		t.Error(err)
	}
}
