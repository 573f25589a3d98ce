package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExit(t *testing.T) {
	s := begin(t, testRoot(t))
	for script, want := range map[string]ExitStatus{
		"exit 0":     {},
		"exit 3":     {Code: 3},
		"exit 255":   {Code: 255},
		"kill -9 $$": {Code: 137, Signal: unix.SIGKILL},
		"kill -1 $$": {Code: 129, Signal: unix.SIGHUP},
	} {
		p, err := s.Run(limit(t), shell(script))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := p.Wait(limit(t)); got != want || err != nil {
				t.Errorf("%s: %v, %v; want %v", script, got, err, want)
			}
		}
		if err := p.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal after the end: %v", err)
		}
	}
}

func TestExecuteFails(t *testing.T) {
	c := testRoot(t)
	s := begin(t, c)
	output(t, s, shell("echo '#!/no/such/interpreter' >/tmp/script; chmod 755 /tmp/script; echo x >/tmp/data; mkdir -m 700 /tmp/closed"))
	for _, x := range []struct {
		c    Command
		is   error
		says string
	}{
		{Command{Argv: []string{"/no/such"}}, fs.ErrNotExist, "execute /no/such: no such file"},
		{Command{Argv: []string{"nosuch"}, Env: cleanEnv}, fs.ErrNotExist, "not found in PATH"},
		{Command{Argv: []string{"/tmp/script"}}, fs.ErrNotExist, "the interpreter that it names"},
		{Command{Argv: []string{"/tmp/data"}}, fs.ErrPermission, "execute /tmp/data: permission denied"},
		{Command{Argv: []string{"/bin/true"}, Dir: "/nowhere"}, fs.ErrNotExist, "enter folder /nowhere"},
		{Command{Argv: []string{"/bin/true"}, Dir: "/tmp/closed", UID: 7}, fs.ErrPermission, "enter folder /tmp/closed"},
		{Command{Argv: []string{"/bin/true", "a\x00b"}}, nil, "zero byte"},
		{Command{}, nil, "no program"},
		{Command{Argv: []string{"/bin/true", strings.Repeat("x", 1<<20)}}, unix.E2BIG, "argument list too long"},
		{Command{Argv: []string{"/bin/true"}, Seccomp: []unix.SockFilter{{Code: 0xffff}}}, unix.EINVAL, "seccomp"},
	} {
		_, err := s.Run(limit(t), x.c)
		if err == nil || x.is != nil && !errors.Is(err, x.is) || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%.60q: %v", x.c.Argv, err)
		}
	}
}

func TestIdentity(t *testing.T) {
	c := testRoot(t)
	c.Hostname = "standin"
	s := begin(t, c)
	cmd := shell(`id -u; id -g; id -G; umask; pwd; hostname; env; readlink /proc/self/fd/0; ls /proc/self/fd; cat /proc/self/fd/3; ps -o sid= -p $$ | tr -d ' '; echo $$; grep -E 'Sig(Ign|Blk)|NoNewPrivs' /proc/self/status; ulimit -n`)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "ODD=\xff\xfe", "EMPTY="}
	cmd.UID, cmd.GID, cmd.Groups, cmd.Umask, cmd.Dir = 33, 34, []uint32{4, 5}, 0o27, "/tmp"
	extra, err := os.Open("/proc/sys/kernel/ostype")
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	cmd.Files = []*os.File{extra}
	var host unix.Rlimit
	out, err := exec.Command("/bin/sh", "-c", "ulimit -n").Output()
	if err != nil {
		t.Fatal(err, host)
	}
	got := output(t, s, cmd)
	lines := strings.Split(got, "\n")
	want := []string{"33", "34", "34 4 5", "0027", "/tmp", "standin"}
	if len(lines) < len(want) || !slices.Equal(lines[:len(want)], want) {
		t.Errorf("got %q, want %q first", lines, want)
	}
	for _, w := range []string{"ODD=\xff\xfe\n", "EMPTY=\n", "\n/dev/null\n0\n1\n2\n3\n4\nLinux\n" /* 4 is ls's own */, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n", "\n" + string(out)} {
		if !strings.Contains(got, w) {
			t.Errorf("no %q in %q", w, got)
		}
	}
	if strings.Contains(got, "GOMAXPROCS") || strings.Contains(got, callerEnv) {
		t.Errorf("the environment has more than was given: %q", got)
	}
	// It is the leader of a session of its own.
	i := slices.Index(lines, "Linux")
	if i < 0 || lines[i+1] != lines[i+2] {
		t.Errorf("session and process differ: %q", lines)
	}
}

// A daemon forks, its parent exits, and it lives on as a child of process 1.
func TestForkingDaemon(t *testing.T) {
	s := begin(t, testRoot(t))
	p, err := s.Run(limit(t), shell(`setsid sh -c 'echo $$ >/tmp/pid.new; mv /tmp/pid.new /tmp/pid; exec sleep 1000' >/dev/null 2>&1 & while ! test -e /tmp/pid; do sleep 0.01; done`))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(limit(t)); err != nil || !st.Success() {
		t.Fatal(st, err)
	}
	inside, err := strconv.Atoi(strings.TrimSpace(output(t, s, shell("cat /tmp/pid"))))
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Adopt(limit(t), inside)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Adopt(limit(t), inside); err == nil {
		t.Error("adopted twice")
	}
	pids, err := s.Pids()
	if err != nil || !slices.Equal(pids, []int{d.Pid()}) {
		t.Fatalf("pids %v, %v; want %d", pids, err, d.Pid())
	}
	if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", d.Pid())); string(name) != "sleep\x001000\x00" {
		t.Errorf("process %d is %q", d.Pid(), name)
	}
	if err := d.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if st, err := d.Wait(limit(t)); err != nil || st.Signal != unix.SIGTERM {
		t.Error(st, err)
	}
	if _, err := s.Adopt(limit(t), inside); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("adopted a dead one: %v", err)
	}
}

// Orphans that nobody asked about leave no zombies.
func TestOrphansAreReaped(t *testing.T) {
	s := begin(t, testRoot(t))
	output(t, s, shell(`i=0; while test $i -lt 200; do (true &) ; i=$((i+1)); done`))
	for {
		pids, err := s.Pids()
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 0 {
			return
		}
		select {
		case <-time.After(time.Millisecond): // nothing announces a reaped orphan
		case <-limit(t).Done():
			t.Fatalf("zombies: %v", pids)
		}
	}
}

func TestSignals(t *testing.T) {
	s := begin(t, testRoot(t))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []*Process
	for range 3 {
		cmd := shell(`trap 'exit 42' TERM; echo ready; while :; do sleep 1000 & wait; done`)
		cmd.Stdout = w
		p, err := s.Run(limit(t), cmd)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	w.Close()
	lines := bufio.NewScanner(r)
	for range all {
		lines.Scan()
	}
	// Process 1 withstands its own children.
	output(t, s, shell("kill -TERM 1; kill -HUP 1; kill -INT 1; kill -KILL 1; true"))
	if err := s.SignalInside(all[0].Inside(), unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if st, err := all[0].Wait(limit(t)); st.Code != 42 || err != nil {
		t.Error(st, err)
	}
	if err := s.SignalInside(1, unix.SIGKILL); err == nil {
		t.Error("process 1 was signalled")
	}
	if err := s.SignalAll(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	for _, p := range all[1:] {
		if st, err := p.Wait(limit(t)); st.Code != 42 || err != nil {
			t.Error(st, err)
		}
	}
	if _, err := io.ReadAll(r); err != nil { // the sleepers are gone too
		t.Error(err)
	}
}

func TestOutput(t *testing.T) {
	s := begin(t, testRoot(t))
	out, exit, err := s.Output(limit(t), shell("echo one; echo two >&2; exit 5"))
	if string(out) != "one\ntwo\n" || exit != 5 || err != nil {
		t.Errorf("%q, %d, %v", out, exit, err)
	}
	out, exit, err = s.Output(limit(t), shell("head -c 5000000 /dev/zero"))
	if len(out) != maxOutput || exit != 0 || err != nil {
		t.Errorf("%d bytes, %d, %v", len(out), exit, err)
	}
	// A daemon that keeps the pipe does not keep us.
	out, exit, err = s.Output(limit(t), shell("sleep 1000 & echo started"))
	if string(out) != "started\n" || exit != 0 || err != nil {
		t.Errorf("%q, %d, %v", out, exit, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, _, err = s.Output(ctx, shell("sleep 1000")); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
