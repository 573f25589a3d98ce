package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What makes the test binary a caller that is outlived: of its own sandbox, or of one that
// it has taken over.
const (
	outlivedPrefix = "outlived:"
	attachPrefix   = "attach:"
)

// beOutlived has a sandbox that outlives it, with a process in it, says their numbers, and
// waits to be killed.
func beOutlived(dir string) {
	err := os.Mkdir(filepath.Join(dir, "root"), 0o755)
	if err == nil {
		c := Config{Root: filepath.Join(dir, "root"), Mounts: append(append([]Mount{TmpfsMount("/", 0o755)}, hostMounts()...), append(DevMounts(), ProcMount(), TmpfsMount("/tmp", 0o1777))...)}
		var s *Sandbox
		if s, err = Start(context.Background(), c); err == nil {
			err = s.Outlive(filepath.Join(dir, "door"))
			var p *Process
			if err == nil {
				p, err = s.Run(context.Background(), shell("trap 'exit 7' TERM; while :; do sleep 1000 & wait; done"))
			}
			if err == nil {
				fmt.Println(s.init.Process.Pid, p.Pid(), p.Inside())
			}
		}
	}
	if err != nil {
		fmt.Println("error:", err)
	}
	_, _ = io.ReadAll(os.Stdin)
	os.Exit(1)
}

// beAttached does the same with a sandbox that is there.
func beAttached(dir string) {
	s, err := Attach(context.Background(), filepath.Join(dir, "door"))
	var p *Process
	if err == nil {
		p, err = s.Run(context.Background(), shell("exec sleep 1000"))
	}
	if err == nil {
		fmt.Println(s.init.Process.Pid, p.Pid(), p.Inside())
	} else {
		fmt.Println("error:", err)
	}
	_, _ = io.ReadAll(os.Stdin)
	os.Exit(1)
}

// outlived starts and kills such a caller, and returns the numbers of process 1 and of the
// other on the host, and that of the other inside.
func outlived(t *testing.T, as string) (first, other, inside int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), callerEnv+"="+as)
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
	if _, scanned := fmt.Sscan(line, &first, &other, &inside); err != nil || scanned != nil {
		t.Fatalf("the caller said %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return first, other, inside
}

// What outlives its caller goes on, and another one takes it over: twice, as the second
// may die too.
func TestOutlive(t *testing.T) {
	dir := t.TempDir()
	first, other, inside := outlived(t, outlivedPrefix+dir)
	door := filepath.Join(dir, "door")
	s, err := Attach(limit(t), door)
	if err != nil {
		t.Fatal(err)
	}
	if s.init.Process.Pid != first {
		t.Errorf("process 1 is %d, was %d", s.init.Process.Pid, first)
	}
	// The first caller's process is found, and its end is seen.
	p, err := s.Adopt(limit(t), inside)
	if err != nil || p.Pid() != other {
		t.Fatalf("adopt: %+v, %v; want %d", p, err, other)
	}
	// While somebody holds it another one waits.
	short, cancel := context.WithTimeout(limit(t), 50*time.Millisecond)
	defer cancel()
	if _, err := Attach(short, door); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second caller: %v", err)
	}
	if out, status, err := s.Output(limit(t), shell("echo here $$")); err != nil || status != 0 || !strings.HasPrefix(string(out), "here ") {
		t.Errorf("a new command: %q, %d, %v", out, status, err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(limit(t)); err != nil || status.Code != 7 {
		t.Errorf("it ended with %v, %v", status, err)
	}
	stop(t, s)
	select {
	case <-s.Done():
	default:
		t.Error("it has not ended")
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(first)); err == nil {
		if b, _ := os.ReadFile("/proc/" + strconv.Itoa(first) + "/stat"); !strings.Contains(string(b), ") Z ") {
			t.Errorf("process 1 is left: %s", b)
		}
	}
	if _, err := Attach(limit(t), door); !errors.Is(err, ErrEnded) {
		t.Errorf("nobody is there: %v", err)
	}
	if _, err := Attach(limit(t), filepath.Join(dir, "none")); !errors.Is(err, ErrEnded) {
		t.Errorf("there never was one: %v", err)
	}
}

// The one that took over may die too.
func TestOutliveTwice(t *testing.T) {
	dir := t.TempDir()
	first, _, _ := outlived(t, outlivedPrefix+dir)
	second, other, inside := outlived(t, attachPrefix+dir)
	s, err := Attach(limit(t), filepath.Join(dir, "door"))
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, s)
	p, err := s.Adopt(limit(t), inside)
	if err != nil || p.Pid() != other || first != second || s.init.Process.Pid != first {
		t.Fatalf("process 1 is %d, was %d and %d; %v", s.init.Process.Pid, first, second, err)
	}
	stop(t, s)
	select {
	case <-p.Ended():
	case <-limit(t).Done():
		t.Error("the end of the sandbox was not seen")
	}
}
